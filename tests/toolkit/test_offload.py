"""Blocking work in threads: permits until the real end, dropped work, cancellation at every await, forks, exits."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import logging
import os
import random
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import tideloop
from tideloop import Limiter, offload, run_blocking, worker_threads

from tests.toolkit import harness
from tests.toolkit.work import turns

PACKAGE = Path(tideloop.__file__).parent.parent
PATIENCE = 10.0


class Gate:
    """Blocks threads until it is opened, and knows how many of them are in it."""

    def __init__(self):
        self.lock = threading.Lock()
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.inside = self.most = self.calls = 0

    def wait(self, value=None):
        with self.lock:
            self.calls += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.entered.release()
        assert self.opened.wait(PATIENCE)
        with self.lock:
            self.inside -= 1
        return value

    async def reached(self):
        """Until one more thread is in it."""
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, self.entered.acquire, True, PATIENCE)


async def at_rest(limiter):
    """Until the threads have given back all permits."""
    loop = asyncio.get_running_loop()
    while limiter.in_use:
        await loop.run_in_executor(None, threading.Event().wait, 0.001)


async def test_it_returns_and_raises_what_the_function_does(loop):
    def fail(error):
        raise error

    assert await run_blocking(divmod, 7, 2) == (3, 1)
    assert await run_blocking(threading.current_thread) is not threading.current_thread()
    for error in (ValueError("no"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as caught:
            await run_blocking(fail, error)
        assert caught.value is error
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        await run_blocking(fail, StopIteration(1))
    with pytest.raises(asyncio.CancelledError):
        await run_blocking(fail, asyncio.CancelledError())
    assert asyncio.current_task().cancelling() == 0


async def test_one_thread_is_used_again_and_again(loop):
    await run_blocking(int)
    before = tideloop.offload_stats()
    threads = {await run_blocking(threading.get_ident) for _ in range(20)}
    after = tideloop.offload_stats()
    assert len(threads) == 1
    assert after.started == before.started
    assert after.idle >= 1
    assert (after.kind, after.limit.name, after.limit.in_use) == ("thread", "tideloop.thread", 0)


async def test_context_variables_are_copied(loop):
    var = contextvars.ContextVar("var", default="none")
    var.set("caller's")

    def look():
        seen = var.get()
        var.set("thread's")
        return seen

    assert await run_blocking(look) == "caller's"
    assert var.get() == "caller's"


async def test_what_is_called_is_not_kept(loop):
    class Thing:
        def method(self):
            raise ValueError

    thing = Thing()
    known = weakref.ref(thing)
    gc.disable()
    try:
        with pytest.raises(ValueError):  # noqa: PT011
            await run_blocking(thing.method)
        del thing
        await run_blocking(int)
        # The worker's own frame may be between two lines still.
        for _ in range(1000):
            if known() is None:
                break
            await asyncio.sleep(0.001)
        assert known() is None
    finally:
        gc.enable()


async def test_a_permit_is_held_until_the_thread_ends(loop):
    """Of a semaphore around to_thread(), five cancellations make five threads at once."""
    gate, limiter = Gate(), Limiter(1)
    for number in range(5):
        task = asyncio.ensure_future(run_blocking(gate.wait, limit=limiter, on_cancel="abandon"))
        # What no thread has begun yet would be withdrawn.
        await (turns(3) if number else gate.reached())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (gate.calls, limiter.in_use, limiter.waiting) == (1, 1, 0)
    late = asyncio.ensure_future(run_blocking(gate.wait, "late", limit=limiter))
    gate.opened.set()
    assert await late == "late"
    assert (gate.most, gate.calls) == (1, 2)
    assert limiter.in_use == 0


async def test_cancelled_it_waits_for_the_end(loop):
    gate = Gate()
    task = asyncio.ensure_future(run_blocking(gate.wait))
    await gate.reached()
    for _ in range(3):
        task.cancel("enough")
        await turns(3)
        assert not task.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError, match="enough") as caught:
        await task
    assert caught.value.__cause__ is None
    assert gate.inside == 0


async def test_a_failure_of_a_cancelled_call_is_its_cause(loop):
    gate = Gate()

    def fail():
        gate.wait()
        raise ValueError("late")

    task = asyncio.ensure_future(run_blocking(fail))
    await gate.reached()
    task.cancel()
    await turns(2)
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert isinstance(caught.value.__cause__, ValueError)


async def test_a_failure_of_an_abandoned_call_is_logged(loop, caplog):
    gate, limiter = Gate(), Limiter(1)

    def fail():
        gate.wait()
        raise ValueError("late")

    task = asyncio.ensure_future(run_blocking(fail, limit=limiter, on_cancel="abandon"))
    await gate.reached()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    gate.opened.set()
    await at_rest(limiter)
    await run_blocking(int)
    (record,) = caplog.records
    assert record.name == "tideloop.offload"
    assert "fail" in record.getMessage()
    assert isinstance(record.exc_info[1], ValueError)


async def test_a_thread_can_ask_whether_its_caller_leaves(loop):
    tideloop.check_cancelled()  # which means nothing here
    entered, ended = threading.Event(), threading.Event()

    def compute():
        entered.set()
        try:
            while not ended.wait(0.001):
                tideloop.check_cancelled()
        finally:
            ended.set()

    task = asyncio.ensure_future(run_blocking(compute))
    await loop.run_in_executor(None, entered.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert ended.is_set()
    assert caught.value.__cause__ is None


async def test_too_long_a_call_goes_on_with_its_permit(loop):
    gate, limiter = Gate(), Limiter(1)
    with pytest.raises(tideloop.OffloadTimeout, match=r"Gate.wait.* was not done in 0.01 s"):
        await run_blocking(gate.wait, limit=limiter, timeout=0.01)
    # On a loaded machine it may not have begun; then it never does.
    waiting = asyncio.ensure_future(run_blocking(gate.wait, limit=limiter))
    await turns(3)
    assert limiter.waiting == (1 if gate.calls else 0)
    gate.opened.set()
    await waiting
    assert gate.most == 1
    assert limiter.in_use == 0


async def test_the_time_in_the_queue_does_not_count(loop):
    gate, limiter = Gate(), Limiter(1)
    first = asyncio.ensure_future(run_blocking(gate.wait, limit=limiter))
    second = asyncio.ensure_future(run_blocking(int, limit=limiter, timeout=5))
    await gate.reached()
    assert limiter.waiting == 1
    gate.opened.set()
    await first
    assert await second == 0


def test_deadlines_count_for_the_queue_and_the_call(kind):
    async def main():
        gate, limiter = Gate(), Limiter(1)
        loop = asyncio.get_running_loop()
        with loop.hold_clock(), tideloop.deadline(5):
            # In tasks of their own, which the deadline does not cancel.
            one = asyncio.ensure_future(run_blocking(gate.wait, limit=limiter))
            two = asyncio.ensure_future(run_blocking(int, limit=limiter))
            await gate.reached()
            task = asyncio.ensure_future(asyncio.wait({one, two}))
        loop.advance(6)
        await task
        with pytest.raises(tideloop.DeadlineExceeded, match="was not done"):
            await one
        with pytest.raises(tideloop.DeadlineExceeded, match="had no permit"):
            await two
        gate.opened.set()
        await at_rest(limiter)

    harness.run(kind, main())


def test_the_virtual_clock_stands_while_a_thread_works(kind):
    async def main():
        loop = asyncio.get_running_loop()
        gate = Gate()
        timer = loop.call_later(1, gate.opened.set)
        loop.call_soon(threading.Timer(0.02, gate.opened.set).start)
        await run_blocking(gate.wait)
        assert loop.time() == 0
        timer.cancel()

    harness.run(kind, main())


def test_cancelled_everywhere(kind):
    """Nobody is called twice, never more at once than may be, and all permits come back."""
    loop_of = asyncio.get_running_loop

    async def scenario(attack):
        gate, limiter = Gate(), Limiter(2)
        for on_cancel in ("wait", "abandon", "wait", "abandon", "wait"):
            attack.task(run_blocking(gate.wait, limit=limiter, on_cancel=on_cancel))
        with loop_of().hold_clock():
            loop_of().call_soon(loop_of().call_soon, gate.opened.set)
            await attack.settle()
            await at_rest(limiter)
            assert await run_blocking(gate.wait, "after", limit=limiter) == "after"
        assert gate.most <= 2
        assert gate.inside == 0
        # Who was cancelled before its thread began had a permit, and called nothing.
        assert limiter.stats().granted - 1 <= gate.calls <= limiter.stats().granted
        assert (limiter.in_use, limiter.waiting) == (0, 0)

    assert harness.cancel_everywhere(kind, scenario) >= 5


@pytest.mark.parametrize("seed", range(5))
async def test_random_cancellations(loop, seed):
    dice = random.Random(seed)
    gate, limiter = Gate(), Limiter(3)
    gate.opened.set()
    tasks = []
    for number in range(150):
        on_cancel = dice.choice(("wait", "abandon"))
        tasks.append(asyncio.ensure_future(run_blocking(gate.wait, number, limit=limiter, on_cancel=on_cancel)))
        if dice.random() < 0.5:
            dice.choice(tasks).cancel()
        if dice.random() < 0.3:
            await turns(dice.randrange(3))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result == number or isinstance(result, asyncio.CancelledError) for number, result in enumerate(results))
    await at_rest(limiter)
    assert gate.most <= 3
    assert sum(result == number for number, result in enumerate(results)) <= gate.calls <= limiter.stats().granted


async def test_queued_work_of_a_cancelled_caller_is_dropped(loop):
    gate, limiter = Gate(), Limiter(1)
    called = []
    first = asyncio.ensure_future(run_blocking(gate.wait, limit=limiter))
    await gate.reached()
    others = [asyncio.ensure_future(run_blocking(called.append, number, limit=limiter)) for number in range(4)]
    await turns(2)
    others[0].cancel()
    others[2].cancel()
    gate.opened.set()
    await asyncio.wait([first, *others])
    assert called == [1, 3]
    assert [other.cancelled() for other in others] == [True, False, True, False]


async def test_a_thread_that_has_not_begun_never_does(loop, monkeypatch):
    limiter = Limiter(1)
    jobs = []
    monkeypatch.setattr(offload._thread.pool, "submit", jobs.append)
    called = []
    task = asyncio.ensure_future(run_blocking(called.append, 1, limit=limiter))
    await turns(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert limiter.in_use == 0
    (job,) = jobs
    assert not job.run()
    assert called == []


async def test_no_thread_to_be_had(loop, monkeypatch):
    limiter = Limiter(1)

    def refuse(job):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(offload._thread.pool, "submit", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        await run_blocking(int, limit=limiter)
    assert limiter.in_use == 0


def test_idle_threads_end():
    pool = worker_threads.WorkerPool("short", 0.01)
    limiter = Limiter(4)

    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(30):
            await limiter.acquire()
            job = worker_threads.Job(loop, limiter, threading.current_thread, ())
            pool.submit(job)
            await job.future
            if pool.started % 2:
                # At about the time at which it leaves.
                await asyncio.sleep(0.01)
        return job.result

    last = asyncio.run(main())
    last.join(PATIENCE)
    assert not last.is_alive()
    assert (pool.idle, pool.workers) == ([], set())
    assert limiter.in_use == 0


async def test_blocking(loop):
    gate = Gate()

    @tideloop.blocking(limit=2, name="reader")
    def read(value, *, twice=False):
        """Read."""
        gate.wait()
        return value * (1 + twice)

    tasks = [asyncio.ensure_future(read(number, twice=True)) for number in range(5)]
    await gate.reached()
    await gate.reached()
    assert (read.limiter.name, read.limiter.in_use, read.limiter.waiting) == ("reader", 2, 3)
    gate.opened.set()
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8]
    assert gate.most == 2
    assert (read.__name__, read.__doc__, inspect.iscoroutinefunction(read)) == ("read", "Read.", True)

    @tideloop.blocking
    def plain():
        return 1

    assert await plain() == 1
    assert plain.limiter is None


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"kind": "fibre"}, ValueError, "kind must be one of 'thread', 'process', 'interpreter', not 'fibre'"),
        ({"on_cancel": "forget"}, ValueError, "on_cancel must be 'wait', 'abandon' or 'kill', not 'forget'"),
        ({"on_cancel": "kill"}, ValueError, "a thread cannot be killed"),
        ({"timeout": -1}, ValueError, "timeout must be a number of seconds"),
    ],
)
async def test_wrong_arguments(loop, options, error, complaint):
    limiter = Limiter(1)
    with pytest.raises(error, match=complaint):
        await run_blocking(int, limit=limiter, **options)
    with pytest.raises(error, match=complaint):
        tideloop.blocking(**options)(int)
    assert limiter.in_use == 0
    with pytest.raises(TypeError, match="limit must be a Limiter, not 3"):
        await run_blocking(int, limit=3)
    with pytest.raises(TypeError, match="functions that block"):
        tideloop.blocking(turns)


def test_several_loops_share_threads_and_limit(backend):
    gate, limiter = Gate(), Limiter(2)
    gate.opened.set()
    faults = []

    async def main():
        for _ in range(20):
            await asyncio.gather(*(run_blocking(gate.wait, limit=limiter) for _ in range(5)))

    def work():
        try:
            with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
                runner.run(asyncio.wait_for(main(), PATIENCE))
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not faults
    assert gate.calls == 300
    assert gate.most <= 2
    assert limiter.in_use == 0


def test_a_loop_is_closed_while_a_thread_works(backend, caplog):
    gate, limiter = Gate(), Limiter(1)

    def fail():
        gate.wait()
        raise ValueError("nobody waits")

    doomed = backend.new_event_loop()
    task = doomed.create_task(run_blocking(fail, limit=limiter))
    doomed.run_until_complete(turns(3))
    doomed.close()
    assert gate.entered.acquire(timeout=PATIENCE)
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        loop = runner.get_loop()
        waiting = loop.create_task(run_blocking(int, limit=limiter))
        runner.run(turns(3))
        gate.opened.set()
        assert runner.run(asyncio.wait_for(waiting, PATIENCE)) == 0
    assert limiter.in_use == 0
    assert [record.name for record in caplog.records] == ["tideloop.offload"]
    harness._abandon(task)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_no_threads(backend):
    """It begins anew, and a call that it has inherited raises instead of waiting for ever."""
    gate = Gate()

    async def in_child(inherited):
        assert await run_blocking(divmod, 7, 2) == (3, 1)
        stats = tideloop.offload_stats()
        assert (stats.workers, stats.limit.in_use) == (1, 0)

    def child(job):
        try:
            asyncio.set_event_loop(None)
            with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
                runner.run(asyncio.wait_for(in_child(job), PATIENCE))
            assert job.done
            assert "forked from" in str(job.error)
            os._exit(0)
        except BaseException:
            logging.exception("in the child")
            os._exit(1)

    async def main():
        await run_blocking(int)
        task = asyncio.ensure_future(run_blocking(gate.wait, "parent's"))
        await gate.reached()
        (job,) = (worker.job for worker in offload._thread.pool.workers if worker.job is not None)
        pid = os.fork()
        if not pid:
            child(job)
        _, status = await asyncio.get_running_loop().run_in_executor(None, os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        gate.opened.set()
        assert await task == "parent's"

    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        runner.run(main())


EXIT = """
import asyncio, sys, threading, tideloop
entered = threading.Event()
def stuck():
    entered.set()
    threading.Event().wait()
async def main():
    await tideloop.run_blocking(int)
    task = asyncio.ensure_future(tideloop.run_blocking(stuck, on_cancel="abandon"))
    await tideloop.run_blocking(entered.wait)
    task.cancel()
    {last}
{run}(main())
"""


@pytest.mark.parametrize("last", ["pass", "sys.exit(0)", "import atexit; atexit.register(print, 'late')"])
@pytest.mark.parametrize("run", ["asyncio.run", "tideloop.run"])
def test_the_interpreter_exits_while_a_thread_is_stuck(last, run):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-c", EXIT.format(last=last, run=run)],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )
    assert (done.returncode, done.stderr) == (0, "")
