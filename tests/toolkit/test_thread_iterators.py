"""iter_in_thread(): every item once and in order, bounded, closed in its thread however it ends."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
import tideloop
from tideloop import Limiter, iter_in_thread

from tests.toolkit import harness
from tests.toolkit.test_offload import PATIENCE, at_rest


class Source:
    """Counts from 0, and knows how far it is and what has become of it."""

    def __init__(self, length=10**9, error=None):
        self.length = length
        self.error = error
        self.given = 0
        self.closed = threading.Event()
        self.threads = set()

    def __iter__(self):
        try:
            for number in range(self.length):
                self.threads.add(threading.get_ident())
                self.given += 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.threads.add(threading.get_ident())
            self.closed.set()


async def until(event):
    assert await asyncio.get_running_loop().run_in_executor(None, event.wait, PATIENCE)


async def test_items_come_in_order(loop):
    source, limiter = Source(1000), Limiter(1)
    items = iter_in_thread(source, buffer=7, limit=limiter, name="numbers")
    assert repr(items) == "<tideloop.ThreadIterator 'numbers' not begun taken=0>"
    assert items.stats() == ("numbers", 0, 0, False)
    assert [item async for item in items] == list(range(1000))
    assert repr(items) == "<tideloop.ThreadIterator 'numbers' ended taken=1000>"
    assert items.stats() == ("numbers", 1000, 0, False)
    assert len(source.threads) == 1
    assert source.threads != {threading.get_ident()}
    assert limiter.in_use == 0
    with pytest.raises(StopAsyncIteration):
        await anext(items)


async def test_a_function_is_called_in_the_thread(loop):
    def words():
        assert threading.current_thread() is not threading.main_thread()
        return ["a", "b"]

    assert [word async for word in iter_in_thread(words)] == ["a", "b"]


async def test_errors_come_after_the_items_before_them(loop):
    items = iter_in_thread(Source(3, LookupError("no more")), buffer=8)
    assert [await anext(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError, match="no more"):
        await anext(items)

    def fail():
        raise LookupError("none at all")

    with pytest.raises(LookupError, match="none at all"):
        await anext(iter_in_thread(fail))


async def test_the_thread_is_ahead_by_the_buffer_at_most(loop):
    source = Source()
    async with iter_in_thread(source, buffer=5) as items:
        for expected in range(20):
            assert await anext(items) == expected
            assert source.given <= expected + 1 + 5 + 1
        assert items.stats().running
    assert not items.stats().running


async def test_leaving_waits_until_it_is_closed(loop):
    source, limiter = Source(), Limiter(1)
    async with iter_in_thread(source, buffer=2, limit=limiter) as items:
        async for item in items:
            if item == 3:
                break
    assert source.closed.is_set()
    assert len(source.threads) == 1
    assert limiter.in_use == 0
    assert repr(items) == "<tideloop.ThreadIterator closed taken=4>"
    with pytest.raises(StopAsyncIteration):
        await anext(items)
    await items.aclose()


async def test_forgotten_it_is_closed_too(loop):
    source, limiter = Source(), Limiter(1)
    async for item in iter_in_thread(source, buffer=2, limit=limiter):
        if item == 3:
            break
    gc.collect()
    await until(source.closed)
    await at_rest(limiter)


async def test_not_begun_it_takes_nothing(loop):
    source = Source()
    async with iter_in_thread(source) as items:
        pass
    assert source.given == 0
    with pytest.raises(StopAsyncIteration):
        await anext(items)


async def test_what_closing_raises_is_raised(loop):
    def source():
        try:
            while True:
                yield 1
        finally:
            raise OSError("disk full")

    items = iter_in_thread(source(), buffer=1)
    await anext(items)
    with pytest.raises(OSError, match="disk full"):
        await items.aclose()


async def test_closing_waits_also_when_cancelled(loop):
    entered, leave = threading.Event(), threading.Event()

    def source():
        yield 1
        entered.set()
        assert leave.wait(PATIENCE)

    items = iter_in_thread(source())
    await anext(items)
    await until(entered)
    closing = asyncio.ensure_future(items.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.sleep(0)
    assert not closing.done()
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not items.stats().running


def test_cancelled_everywhere(kind):
    """No step that is cancelled takes an item with it, nor a permit."""

    async def scenario(attack):
        limiter = Limiter(1)
        go = threading.Event()
        got = []

        def source():
            assert go.wait(PATIENCE)
            yield from range(4)

        items = iter_in_thread(source, buffer=1, limit=limiter)

        async def take():
            got.append(await anext(items))

        with asyncio.get_running_loop().hold_clock():
            # It waits for its permit first, and for its first item then.
            await limiter.acquire()
            asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, limiter.release)
            attack.task(take())
            for _ in range(5):
                await asyncio.sleep(0)
            go.set()
            await attack.settle()
            got += [item async for item in items]
            assert got == [0, 1, 2, 3]
            await at_rest(limiter)

    assert harness.cancel_everywhere(kind, scenario) == 2


def test_its_loop_is_closed(backend, monkeypatch):
    monkeypatch.setattr(tideloop.thread_iterators, "_LOOK_EVERY", 0.01)
    source, limiter = Source(), Limiter(1)
    items = iter_in_thread(source, buffer=1, limit=limiter)
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        assert runner.run(anext(items)) == 0
    assert source.closed.wait(PATIENCE)
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        runner.run(at_rest(limiter))


def test_wrong_arguments():
    with pytest.raises(TypeError, match="source must be an iterable"):
        iter_in_thread(3)
    for buffer in (0, True, 1.5):
        with pytest.raises(ValueError, match="buffer must be a number of items of at least 1"):
            iter_in_thread([], buffer=buffer)
