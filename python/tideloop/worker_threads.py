"""The threads behind run_blocking(): WorkerPool, Job.

A pool starts a thread when there is work and nobody is idle, and a thread that has been idle for some seconds ends.
How many there may be is not its business: whoever has a permit gets a thread, so there is no queue of work here, and
nothing that a cancelled caller would have to be taken out of.

Who touches what, and why that is safe
--------------------------------------
* An idle thread is in `pool.idle`. Whoever takes it out, by `pop` or by `remove`, owns it: the caller who has a job
  for it, or the thread itself, which wants to end. Both are single steps of a list, of which exactly one gets it.
  The last that became idle is the first to be used, so that those that are not needed come of age.
* A thread waits at a lock of its own, which is locked while it has nothing to do. Its owner puts the job in its field
  and unlocks.
* A job may be begun by its thread or dropped by its caller. Both take the function out of `claim`, a list of one:
  again exactly one gets it. Who has dropped it gives the permit back; otherwise the thread does, at the very end.
* `result` and `error` are written by the thread before it asks the loop to call `wake`, and read by the caller after
  that. Everything else of a job belongs to the loop's thread.
* A thread becomes idle before the permit goes back and the caller is told, so that the next caller finds it.

The threads are daemons. What runs when the interpreter exits was abandoned by its caller (a caller who waits is a task
that its loop waits for), so nobody wants it, and a thread that never ends must not keep the process. Idle threads are
told to end then, so that none of them wakes up in an interpreter that is being taken apart.

A forked child has none of the threads. It begins with empty pools, and calls that it has inherited raise there.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from tideloop.limits import Limiter

__all__ = ["ForeignCall", "Job", "Tool", "Worker", "WorkerPool", "close_all"]

_log = logging.getLogger("tideloop.offload")


class Tool(Protocol):
    """What a thread works with, and keeps for the next job: a process, an interpreter."""

    def close(self) -> None:
        """The thread ends."""

    def kill(self) -> None:
        """The interpreter exits, and the thread is busy."""

    def forget(self) -> None:
        """This is a forked child: it is the parent's."""


class ForeignCall(Protocol):
    """A call that a thread makes in its tool."""

    def run(self) -> Any:
        """Make it, from the thread."""

    def kill(self) -> None:
        """End it, as far as it can be ended; from the loop."""


class Job:
    """One call: what is called, who waits for it, and whose permit it has."""

    __slots__ = (
        "abandoned",
        "args",
        "cancelled",
        "claim",
        "context",
        "done",
        "error",
        "expired",
        "future",
        "limiter",
        "loop",
        "result",
        "title",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limiter: Limiter, fn: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        self.claim = [fn]
        self.args = args
        self.context = contextvars.copy_context()
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.limiter = limiter
        self.title: object = fn
        self.result: Any = None
        self.error: BaseException | None = None
        # Whether it has ended; whether it took too long; whether its caller wants to leave; and whether he has left.
        self.done = self.expired = self.cancelled = self.abandoned = False

    def drop(self) -> bool:
        """Whether it had not begun; then it never will, and its permit is free."""
        try:
            self.claim.pop()
        except IndexError:
            return False
        self.done = True
        self.limiter.release()
        return True

    def run(self) -> bool:
        """Do it, in a thread; whether it was there to be done."""
        try:
            fn = self.claim.pop()
        except IndexError:
            return False
        try:
            self.result = self.context.run(fn, *self.args)
        except BaseException as error:
            self.error = error
        return True

    def tell(self) -> None:
        """Give the permit back, and tell the caller, from the thread."""
        try:
            self.limiter.release()
        finally:
            try:
                self.loop.call_soon_threadsafe(self.wake)
            except RuntimeError:  # The loop is closed: nobody waits.
                self.done = self.abandoned = True
                self.report()

    def wake(self) -> None:
        """It has ended; called on the loop."""
        self.done = True
        if not self.future.done():
            self.future.set_result(None)
        elif self.abandoned:
            self.report()

    async def outlast(self) -> None:
        """Wait for its end, or until it takes too long. If cancelled meanwhile, raise that when it has come."""
        cancelled: asyncio.CancelledError | None = None
        while not self.done and not self.expired:
            if self.future.done():
                self.future = self.loop.create_future()
            try:
                # Not the future itself: others may wait here as well, and a task that is cancelled cancels it.
                await asyncio.wait([self.future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def expire(self) -> None:
        """It takes too long; called on the loop."""
        if not self.done:
            self.expired = True
            if not self.future.done():
                self.future.set_result(None)

    def take_error(self) -> BaseException:
        """What it has raised, which it knows no more: an exception and a frame that knows it keep each other."""
        error, self.error = self.error, None
        assert error is not None
        return error

    def report(self) -> None:
        """Nobody asks any more how it has ended: a failure must not be silent."""
        error, self.error = self.error, None
        if error is not None and not isinstance(error, asyncio.CancelledError):
            _log.error("%r has failed after its caller had left", self.title, exc_info=error)

    def lose(self) -> None:
        """The process was forked, and this is the child, where the thread is not."""
        if not self.done:
            self.done = True
            self.claim.clear()
            with contextlib.suppress(ValueError):  # a limit of the caller's own would lack its permit here for ever
                self.limiter.release()
            self.error = RuntimeError(f"{self.title!r} ran in a thread of the process that this one was forked from")
            if not self.future.done() and not self.loop.is_closed():
                self.future.set_result(None)


class Worker(threading.Thread):
    """A thread of a pool; `tool` is what its jobs leave for the next one, and is closed when it ends."""

    def __init__(self, pool: WorkerPool, job: Job) -> None:
        super().__init__(name=f"tideloop-{pool.kind}-{next(pool.numbers)}", daemon=True)
        self.pool = pool
        self.job: Job | None = job
        self.ready = threading.Lock()
        self.ready.acquire()
        self.tool: Tool | None = None

    def run(self) -> None:
        """Do one job after the other, until there was none for a while."""
        pool = self.pool
        try:
            while (job := self.job) is not None:
                begun = job.run()
                self.job = None
                pool.idle.append(self)
                if begun:
                    try:
                        job.tell()
                    except BaseException:
                        # A permit that was given back by somebody else, or a loop that is no asyncio loop.
                        _log.exception("the end of %r could not be told", job.title)
                # What it refers to must not live as long as this thread is idle.
                del job
                if not self.ready.acquire(timeout=pool.patience) and not pool.leaves(self):
                    # Somebody has taken it out of the idle ones at this moment, and brings a job.
                    self.ready.acquire()
        finally:
            pool.workers.discard(self)
            tool, self.tool = self.tool, None
            if tool is not None:
                tool.close()


class WorkerPool:
    """Threads of one kind, which are idle for at most `patience` seconds."""

    def __init__(self, kind: str, patience: float) -> None:
        self.kind = kind
        self.patience = patience
        self.numbers = itertools.count(1)
        self.idle: list[Worker] = []
        self.workers: set[Worker] = set()
        self.started = 0
        self.closed = False
        self._lock = threading.Lock()
        _pools.add(self)

    def submit(self, job: Job) -> None:
        """Have a thread do it. Raises RuntimeError if there can be none, and MemoryError."""
        try:
            worker = self.idle.pop()
        except IndexError:
            if self.closed:
                raise RuntimeError(f"{job.title!r} cannot run in a thread: the interpreter exits") from None
            self._start(Worker(self, job))
        else:
            worker.job = job
            worker.ready.release()

    def _start(self, worker: Worker) -> None:
        # Known before it runs: it may end, or the process be forked, at once.
        self.workers.add(worker)
        try:
            worker.start()
        except BaseException:
            self.workers.discard(worker)
            raise
        with self._lock:
            self.started += 1

    def leaves(self, worker: Worker) -> bool:
        """Whether an idle thread may end: nobody has taken it."""
        try:
            self.idle.remove(worker)
        except ValueError:
            return False
        return True

    def close(self) -> None:
        """The interpreter exits: end those that are idle, and leave the others to the process's end."""
        self.closed = True
        self.dismiss()
        for worker in list(self.workers):
            if worker.tool is not None:
                worker.tool.kill()

    def dismiss(self) -> None:
        """End those that are idle, and wait for their ends, but not for long."""
        ending = []
        with contextlib.suppress(IndexError):  # they also take themselves out
            while True:
                worker = self.idle.pop()
                worker.ready.release()
                ending.append(worker)
        until = time.monotonic() + 1.5  # longer than a process may take to end, or to be killed
        for worker in ending:
            worker.join(max(0.0, until - time.monotonic()))

    def forget(self) -> None:
        """This is a forked child: there are no threads."""
        jobs = [job for worker in self.workers if (job := worker.job) is not None]
        for worker in self.workers:
            if worker.tool is not None:
                worker.tool.forget()
        self.idle, self.workers, self._lock = [], set(), threading.Lock()
        for job in jobs:
            job.lose()


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def close_all() -> None:
    """The interpreter exits: end all threads that are idle, and what can be ended of the others."""
    for pool in list(_pools):
        pool.close()


def _forget_all() -> None:
    for pool in list(_pools):
        pool.forget()


atexit.register(close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
