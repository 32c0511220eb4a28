"""Work that blocks, off the loop: run_blocking(), blocking(), check_cancelled(), offload_limiter(), offload_stats().

A thread cannot be stopped from outside. What is usually written around asyncio.to_thread() forgets that: the caller is
cancelled, his permit is free, and the thread goes on; after five cancellations five threads do what one was allowed to.
Here a permit is held until the work has really ended, whatever becomes of its caller; work that has not begun when
its caller leaves is never begun; and what can be stopped, a process, is.

Works on every asyncio loop; the threads, processes and limits are shared by all loops of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, TypeVarTuple, overload

from tideloop.deadlines import DeadlineExceeded, remaining
from tideloop.durations import seconds
from tideloop.limits import Limiter, LimiterStats
from tideloop.worker_threads import ForeignCall, Job, Worker, WorkerPool

__all__ = [
    "OffloadStats",
    "OffloadTimeout",
    "blocking",
    "check_cancelled",
    "offload_limiter",
    "offload_stats",
    "run_blocking",
]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_P = ParamSpec("_P")
Kind = Literal["thread", "process", "interpreter"]
OnCancel = Literal["wait", "abandon", "kill"]

_CORES = os.cpu_count() or 1
# What runs at a time if nothing else is said. Threads mostly wait for somebody else: trio's and anyio's number.
_CAPACITIES: dict[str, int] = {"thread": 40, "process": _CORES, "interpreter": _CORES}
# Seconds after which an idle thread ends, with its process or interpreter, which is dearer to make.
_PATIENCE = {"thread": 10.0, "process": 60.0, "interpreter": 60.0}


class OffloadTimeout(TimeoutError):
    """A call took longer than its `timeout`."""


class OffloadStats(NamedTuple):
    """The workers of one kind, in numbers."""

    kind: str
    workers: int
    """Threads, and for the other kinds as many processes or interpreters."""
    idle: int
    started: int
    """Workers so far."""
    limit: LimiterStats
    """What applies where no `limit` is given."""


class _Kind:
    """The pool and the limit of one kind of workers."""

    __slots__ = ("limiter", "pool")

    def __init__(self, kind: str) -> None:
        self.pool = WorkerPool(kind, _PATIENCE[kind])
        self.limiter = Limiter(_CAPACITIES[kind], name=f"tideloop.{kind}")


_kinds = {kind: _Kind(kind) for kind in _CAPACITIES}
_thread = _kinds["thread"]


def _renew_limits() -> None:
    """This is a forked child: permits that threads of the parent hold never come back here."""
    for kind in _kinds.values():
        kind.limiter = Limiter(kind.limiter.capacity, name=kind.limiter.name)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_limits)


async def run_blocking(
    fn: Callable[[*_Ts], _T],
    /,
    *args: *_Ts,
    limit: Limiter | None = None,
    kind: Kind = "thread",
    on_cancel: OnCancel = "wait",
    timeout: float | None = None,  # noqa: ASYNC109  # of the work alone, and also ends a process
) -> _T:
    """Call ``fn(*args)`` in a thread, and return what it returns; what it raises is raised.

    With `kind` "process" or "interpreter" (Python 3.14 on) it is called in a process or an interpreter of its own,
    which work beside this one's lock; `fn`, `args` and the result must be such as pickle takes. In a thread `fn` sees
    the caller's context variables.

    `limit` is whose permit the call holds until it has really ended, also after its caller has left; without it that of
    the kind, see offload_limiter(). Waiting for the permit is first come, first served; a caller who is cancelled while
    he waits, or before a thread has begun, has called nothing.

    Cancelled later, with `on_cancel` "wait" it waits for the end of the work and is cancelled then; what `fn` has
    raised is the cancellation's cause. With "abandon" it is cancelled at once, and the work goes on by itself; its
    failure is logged to ``tideloop.offload``. With "kill", for processes, the process is killed. In a thread `fn` may
    ask by check_cancelled().

    `timeout` is in seconds, from when it has its permit. After it OffloadTimeout is raised: a process is killed and
    replaced, anything else goes on as if it was abandoned. The deadline() of the caller's context counts as well, also
    for the time in which it waits for the permit, and raises DeadlineExceeded.

    Raises WorkerDied if a worker process ends by itself or is killed by somebody else, and RuntimeError when no
    thread can be started.
    """
    here = _thread if kind == "thread" and on_cancel == "wait" else _checked(kind, on_cancel)
    if limit is None:
        limiter = here.limiter
    elif isinstance(limit, Limiter):
        limiter = limit
    else:
        raise TypeError(f"limit must be a Limiter, not {limit!r}; a number can be given to blocking()")
    loop = asyncio.get_running_loop()
    call = None if kind == "thread" else _foreign(kind, fn, args)
    allowed = remaining() if timeout is None else min(seconds("timeout", timeout), remaining())
    if not limiter.try_acquire():
        await _permit(fn, limiter)
        allowed = remaining() if timeout is None else min(timeout, remaining())
    job = Job(loop, limiter, fn, args) if call is None else Job(loop, limiter, call.run, ())
    job.title = fn
    try:
        here.pool.submit(job)
    except BaseException:
        # Not by drop(): whatever has failed, no thread has it.
        limiter.release()
        raise
    hold = getattr(loop, "hold_clock", None)
    if hold is not None or allowed is not math.inf:
        await _bounded(job, call, on_cancel, allowed, timeout, hold)
    else:
        try:
            await job.future
        except asyncio.CancelledError as cancelled:
            await _leave(job, call, on_cancel, cancelled)
            raise
    if job.error is None:
        return job.result  # type: ignore[no-any-return]
    raise job.take_error()


def check_cancelled() -> None:
    """For functions that run_blocking() has called in a thread: raise CancelledError if the caller wants to leave.

    That is when he was cancelled, or his `timeout` is over. Anywhere else it does nothing.
    """
    worker = threading.current_thread()
    if isinstance(worker, Worker) and (job := worker.job) is not None and job.cancelled:
        raise asyncio.CancelledError(f"the caller of {job.title!r} has left")


@overload
def blocking(fn: Callable[_P, _T], /) -> Callable[_P, Coroutine[Any, Any, _T]]: ...
@overload
def blocking(
    *,
    limit: int | Limiter | None = None,
    kind: Kind = "thread",
    on_cancel: OnCancel = "wait",
    timeout: float | None = None,
    name: str | None = None,
) -> Callable[[Callable[_P, _T]], Callable[_P, Coroutine[Any, Any, _T]]]: ...
def blocking(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    limit: int | Limiter | None = None,
    kind: Kind = "thread",
    on_cancel: OnCancel = "wait",
    timeout: float | None = None,
    name: str | None = None,
) -> Any:
    """Make a function that blocks one to await: ``@tideloop.blocking`` or ``@tideloop.blocking(limit=4)``.

    The options are those of run_blocking(); a number as `limit` is a limit of the function's own, called `name`. That
    is also its attribute ``limiter``, None if it shares that of its kind. The function itself is ``__wrapped__``.
    """
    if fn is None:
        return lambda fn: _awaitable(fn, limit, kind, on_cancel, timeout, name)
    return _awaitable(fn, limit, kind, on_cancel, timeout, name)


def offload_limiter(kind: Kind = "thread") -> Limiter:
    """The limit of those calls of a kind that were given none: 40 threads; as many processes as there are processors.

    ``offload_limiter().resize(100)`` changes it. A forked child has a new one of the same size.
    """
    return _known(kind).limiter


def offload_stats(kind: Kind = "thread") -> OffloadStats:
    """The workers of a kind in numbers."""
    here = _known(kind)
    pool = here.pool
    return OffloadStats(kind, len(pool.workers), len(pool.idle), pool.started, here.limiter.stats())


def _awaitable(
    fn: Callable[..., Any],
    limit: int | Limiter | None,
    kind: Kind,
    on_cancel: OnCancel,
    timeout: float | None,
    name: str | None,
) -> Any:
    if not callable(fn) or inspect.iscoroutinefunction(fn):
        raise TypeError(f"blocking() is for functions that block, not {fn!r}")
    if timeout is not None:
        seconds("timeout", timeout)
    _checked(kind, on_cancel)
    if isinstance(limit, int):
        limit = Limiter(limit, name=name or getattr(fn, "__qualname__", None))

    @functools.wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> Any:
        target = functools.partial(fn, **kwargs) if kwargs else fn
        return await run_blocking(target, *args, limit=limit, kind=kind, on_cancel=on_cancel, timeout=timeout)

    call.limiter = limit  # type: ignore[attr-defined]
    return call


def submit(job: Job) -> None:
    """Have a thread do a job, whose permit is there. For modules of this package."""
    _thread.pool.submit(job)


# --- what is not asked for often --------------------------------------------------------------------


def _known(kind: str) -> _Kind:
    here = _kinds.get(kind)
    if here is None:
        raise ValueError(f"kind must be one of {', '.join(map(repr, _kinds))}, not {kind!r}")
    return here


def _checked(kind: str, on_cancel: str) -> _Kind:
    here = _known(kind)
    if on_cancel not in ("wait", "abandon", "kill"):
        raise ValueError(f"on_cancel must be 'wait', 'abandon' or 'kill', not {on_cancel!r}")
    if on_cancel == "kill" and kind != "process":
        raise ValueError(f"on_cancel='kill' is for kind='process': a {kind} cannot be killed")
    if kind == "interpreter" and sys.version_info < (3, 14):
        here_is = ".".join(map(str, sys.version_info[:3]))
        raise RuntimeError(
            f"kind='interpreter' needs Python 3.14 or newer (concurrent.interpreters); this is {here_is}"
        )
    return here


def _foreign(kind: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> ForeignCall:
    """A call to be made by a thread in its process or its interpreter."""
    if kind == "process":
        from tideloop.worker_processes import ProcessCall  # here, as few programs need it

        return ProcessCall(fn, args)
    from tideloop.worker_interpreters import InterpreterCall

    return InterpreterCall(fn, args)


async def _permit(fn: object, limiter: Limiter) -> None:
    allowed = remaining()
    if allowed is math.inf:
        await limiter.acquire()
        return
    try:
        await limiter.acquire(1, 0, allowed)
    except TimeoutError as error:
        raise DeadlineExceeded(f"{fn!r} had no permit within the deadline") from error


async def _bounded(
    job: Job,
    call: ForeignCall | None,
    on_cancel: str,
    allowed: float,
    timeout: float | None,  # noqa: ASYNC109  # for the message
    hold: Callable[[], contextlib.AbstractContextManager[None]] | None,
) -> None:
    """Wait for a job for so long, and hold a virtual clock meanwhile."""
    timer = None if allowed is math.inf else job.loop.call_later(allowed, job.expire)
    with contextlib.nullcontext() if hold is None else hold():
        try:
            await job.future
        except asyncio.CancelledError as cancelled:
            await _leave(job, call, on_cancel, cancelled)
            raise
        finally:
            if timer is not None:
                timer.cancel()
    if job.done:
        return
    if not job.drop():
        _abandon(job, call)
    if timeout is not None and allowed == timeout:
        raise OffloadTimeout(f"{job.title!r} was not done in {timeout:g} s")
    raise DeadlineExceeded(f"{job.title!r} was not done within the deadline")


async def _leave(job: Job, call: ForeignCall | None, on_cancel: str, cancelled: asyncio.CancelledError) -> None:
    """The caller was cancelled: wait for the job's end if he is to."""
    if job.drop():
        return
    job.cancelled = True
    if on_cancel == "abandon":
        _abandon(job, None)
        return
    if on_cancel == "kill" and call is not None:
        call.kill()
    # However often it is cancelled meanwhile: it is, in the end.
    with contextlib.suppress(asyncio.CancelledError):
        await job.outlast()
    if not job.done:
        _abandon(job, call)
    elif job.error is not None and not isinstance(job.error, asyncio.CancelledError):
        cancelled.__cause__ = job.take_error()


def _abandon(job: Job, call: ForeignCall | None) -> None:
    job.cancelled = job.abandoned = True
    if call is not None:
        call.kill()
    if job.done:
        job.report()
