"""The virtual clock of tideloop.testing."""

from __future__ import annotations

import asyncio
import time

import pytest
from tideloop.testing import new_virtual_loop


@pytest.fixture
def loop(kind):
    loop = new_virtual_loop(kind, start=100.0)
    yield loop
    loop.close()


def test_hours_take_no_time_and_are_exact(loop):
    async def main():
        times = []
        for delay in (3600.0, 0.0015, 1e-6, 86_400.0 * 365, 0.25):
            before = loop.time()
            await asyncio.sleep(delay)
            times.append(loop.time() - before)
        return times

    began = time.monotonic()
    assert loop.time() == 100.0
    waited = loop.run_until_complete(main())
    assert waited == pytest.approx([3600.0, 0.0015, 1e-6, 86_400.0 * 365, 0.25], abs=1e-8)
    assert time.monotonic() - began < 5


def test_timers_fire_in_the_order_of_their_times(loop):
    async def main():
        order = []
        for delay in (0.3, 0.0001, 20, 0.0102, 0.01):
            loop.call_later(delay, lambda delay=delay: order.append((delay, round(loop.time() - 100, 9))))
        await asyncio.sleep(30)
        return order

    assert loop.run_until_complete(main()) == [(d, d) for d in (0.0001, 0.01, 0.0102, 0.3, 20)]


def test_the_clock_stands_while_something_runs(loop):
    async def main():
        before = loop.time()
        for _ in range(2000):
            await asyncio.sleep(0)
        assert loop.time() == before
        loop.advance(2.5)
        assert loop.time() == before + 2.5

    loop.run_until_complete(main())


def test_a_clock_never_goes_back(loop):
    with pytest.raises(ValueError, match="seconds is -1; expected at least 0"):
        loop.advance(-1)


def test_timeouts_are_virtual(loop):
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1000):
                await asyncio.Event().wait()
        assert loop.time() == 1100.0

    loop.run_until_complete(main())


def test_the_clock_stands_while_a_thread_works(loop):
    async def main():
        gate = asyncio.Event()
        loop.call_later(10, gate.set)
        assert await asyncio.to_thread(lambda: time.sleep(0.01) or 7) == 7
        assert loop.time() == 100.0
        assert not gate.is_set()
        await gate.wait()
        assert loop.time() == 110.0

    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())


def test_a_runner_waits_for_threads_at_its_end(kind):
    """From 3.12 on it does so with a timeout, a timer that the clock must not jump to."""
    with asyncio.Runner(loop_factory=lambda: new_virtual_loop(kind)) as runner:
        assert runner.run(asyncio.to_thread(lambda: 7)) == 7


def test_held_it_waits_for_real(loop):
    async def main():
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with loop.hold_clock():
            async with asyncio.timeout(5):
                assert await reader.readline() == b"hello\n"
        assert loop.time() == 100.0
        writer.close()

    async def greet(reader, writer):
        writer.write(b"hello\n")
        await writer.drain()
        writer.close()

    server = loop.run_until_complete(asyncio.start_server(greet, "127.0.0.1", 0))
    loop.run_until_complete(main())
    server.close()
    loop.run_until_complete(server.wait_closed())


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind is 'uvloop'; expected 'tideloop' or 'asyncio'"):
        new_virtual_loop("uvloop")
