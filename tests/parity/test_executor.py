"""run_in_executor, the default executor and its shutdown."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import pytest

from tests.backends import deviates
from tests.peers import turns

color = contextvars.ContextVar("color", default="none")


@pytest.fixture(autouse=True)
def no_threads_left(loop):
    yield
    if not loop.is_closed():
        loop.run_until_complete(loop.shutdown_default_executor())


async def test_runs_in_another_thread_with_its_arguments(loop):
    def work(*args):
        return threading.get_ident(), args

    thread, args = await loop.run_in_executor(None, work, 1, "two")
    assert thread != threading.get_ident()
    assert args == (1, "two")


async def test_returns_a_future_at_once(loop):
    gate = threading.Event()
    future = loop.run_in_executor(None, gate.wait)
    assert asyncio.isfuture(future)
    assert future.get_loop() is loop
    assert not future.done()
    gate.set()
    assert await future is True


async def test_exception_arrives(loop):
    def fail():
        raise LookupError("expected")

    with pytest.raises(LookupError, match="expected"):
        await loop.run_in_executor(None, fail)


async def test_jobs_run_side_by_side(loop):
    barrier = threading.Barrier(3)
    assert sorted(await asyncio.gather(*(loop.run_in_executor(None, barrier.wait) for _ in range(3)))) == [0, 1, 2]


async def test_given_executor_is_used(loop):
    class Inline(Executor):
        def submit(self, function, *args):
            future = Future()
            future.set_result(function(*args))
            return future

    assert await loop.run_in_executor(Inline(), threading.get_ident) == threading.get_ident()


async def test_many_jobs(loop):
    results = await asyncio.gather(*(loop.run_in_executor(None, pow, i, 2) for i in range(1000)))
    assert results == [i * i for i in range(1000)]


async def test_cancelled_waiter_does_not_break_the_job(loop):
    gate = threading.Event()
    done = threading.Event()

    def work():
        gate.wait()
        done.set()

    future = loop.run_in_executor(None, work)
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await future
    gate.set()
    await loop.run_in_executor(None, done.wait)


async def test_to_thread_carries_the_context(loop):
    color.set("red")
    assert await asyncio.to_thread(color.get) == "red"


class TestDefault:
    async def test_may_be_set(self, loop):
        names = []
        with ThreadPoolExecutor(1, thread_name_prefix="mine") as executor:
            loop.set_default_executor(executor)
            names.append(await loop.run_in_executor(None, lambda: threading.current_thread().name))
        assert names[0].startswith("mine")

    @deviates("uvloop", "takes anything")
    @pytest.mark.parametrize("what", [1, None, Executor()], ids=["int", "None", "Executor"])
    def test_must_be_a_thread_pool(self, loop, what):
        with pytest.raises(TypeError, match="executor must be ThreadPoolExecutor instance"):
            loop.set_default_executor(what)

    async def test_after_shutdown_it_refuses(self, loop):
        await loop.run_in_executor(None, int)
        await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
            loop.run_in_executor(None, int)
        with ThreadPoolExecutor(1) as executor:
            assert await loop.run_in_executor(executor, int) == 0

    async def test_shutdown_without_use(self, loop):
        await loop.shutdown_default_executor()
        await loop.shutdown_default_executor()

    async def test_shutdown_waits_for_running_jobs(self, loop):
        gate = threading.Event()
        done = []
        future = loop.run_in_executor(None, lambda: (gate.wait(), done.append(1)))
        shutdown = loop.create_task(loop.shutdown_default_executor())
        await turns()
        assert not shutdown.done()
        gate.set()
        await shutdown
        assert done == [1]
        await future

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="the timeout is new in 3.12")
    async def test_shutdown_gives_up_after_the_timeout(self, loop, backend):
        if backend.name == "uvloop":
            pytest.skip("uvloop gives up too, but then waits for the thread")
        gate = threading.Event()
        future = loop.run_in_executor(None, gate.wait)
        try:
            with pytest.warns(RuntimeWarning, match="did not finish"):
                await loop.shutdown_default_executor(timeout=0.005)
        finally:
            gate.set()
            await future

    def test_close_does_not_wait_for_running_jobs(self, loop):
        gate = threading.Event()
        started = threading.Event()
        finished = threading.Event()

        def work():
            started.set()
            gate.wait()
            finished.set()

        async def main():
            loop.run_in_executor(None, work)
            started.wait()

        loop.run_until_complete(main())
        loop.close()
        assert not finished.is_set()
        gate.set()
        finished.wait()
