"""Deadlines: deadline(), remaining(). A limit in time that everything that is called can see.

A deadline is a context variable, and a timer that cancels the task that has set it. Tasks that are made inside inherit
the variable alone: most end long before, and whoever made them often cancels them anyway. When such a task is about to
wait for a queue, a channel or a limit, it gets a timer for that wait (`limit_wait`), which native code asks for once a
deadline was ever set. Pools, offloaded calls, processes and policies look at `remaining()` themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from contextvars import Context, ContextVar, Token, copy_context
from types import TracebackType
from typing import Any

from tideloop._tideloop import limit_waits
from tideloop.cancellation import Request, inside
from tideloop.durations import seconds

__all__ = ["Deadline", "DeadlineExceeded", "deadline", "limit_wait", "remaining", "without_deadline"]

_deadline: ContextVar[float] = ContextVar("tideloop.deadline", default=math.inf)
# Whose timer that is: a task that was made inside of the block has none.
_owner: ContextVar[tuple[asyncio.Task[Any], object] | None] = ContextVar("tideloop.deadline.owner", default=None)


class DeadlineExceeded(TimeoutError):
    """All of a call, or a deadline() block, took longer than it may."""


def remaining() -> float:
    """Seconds left until the deadline of this context, at least 0; infinite if there is none."""
    when = _deadline.get()
    if when is math.inf:
        return math.inf
    return max(when - asyncio.get_running_loop().time(), 0.0)


def without_deadline() -> Context:
    """A copy of this context that has no deadline: for what is done for others as well, like filling a pool."""
    context = copy_context()
    context.run(_deadline.set, math.inf)
    return context


class Deadline:
    """``with tideloop.deadline(5):`` See deadline()."""

    __slots__ = ("_given", "_owner", "_request", "_timer", "_token", "when")

    def __init__(self, given: float) -> None:
        self._given = given
        self._request: Request | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._token: Token[float] | None = None
        self.when = math.inf

    def __enter__(self) -> Deadline:
        if self._request is not None:
            raise RuntimeError("this deadline was entered before; make another")
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("tideloop.deadline() limits a task; none is running")
        loop = task.get_loop()
        limit_waits(limit_wait)
        self._request = Request(task)
        owner, shield = _owner.get(), self._request.shield
        # One that a shield holds back does not count inside of it.
        outer = _deadline.get() if owner is None or owner[1] is shield else math.inf
        # The outer one, if that is earlier, has its own timer.
        self.when = min(loop.time() + self._given, outer)
        self._token = _deadline.set(self.when)
        mine = owner is not None and owner[0] is task
        self._owner = _owner.set((task, shield))
        if self.when < outer or not mine:
            self._timer = loop.call_at(self.when, self._request.make, "deadline")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._request is not None
        assert self._token is not None
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(ValueError):  # left in another context than entered, as a generator may be
            _deadline.reset(self._token)
            _owner.reset(self._owner)
        if self._request.made and self._request.take_back() and isinstance(error, asyncio.CancelledError):
            raise DeadlineExceeded(f"not done within the deadline of {self._given:g} s") from error


def limit_wait(future: asyncio.Future[Any], waited_for: object) -> None:
    """Have a wait end at the deadline, if the task that begins it has inherited one."""
    when = _deadline.get()
    if when == math.inf:
        return
    owner = _owner.get()
    # His own is cancelled; and one that a shield holds back does not count inside of it.
    if owner is None or owner[0] is asyncio.current_task() or owner[1] is not inside():
        return
    timer = future.get_loop().call_at(when, _end_wait, future, waited_for)
    future.add_done_callback(lambda _: timer.cancel())


def _end_wait(future: asyncio.Future[Any], waited_for: object) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded(f"waiting for {_shown(waited_for)} was not done within the deadline"))
        # Somebody may have left it behind.
        future.exception()


def _shown(waited_for: object) -> str:
    """What a task waits for, without a queue's items: they may be many, and the repr() of one may fail."""
    if isinstance(waited_for, list):
        return f"[{', '.join(map(_shown, waited_for))}]"
    if isinstance(waited_for, asyncio.Queue):
        name = getattr(waited_for, "name", None)
        called = f" name={name!r}" if isinstance(name, str) else ""
        return f"<{type(waited_for).__name__} at {id(waited_for):#x} maxsize={waited_for.maxsize}{called}>"
    try:
        return repr(waited_for)
    except Exception:
        return object.__repr__(waited_for)


def deadline(limit: float) -> Deadline:
    """A block that must be done in `limit` seconds: ``with tideloop.deadline(5): ...``; raises DeadlineExceeded.

    What is called inside of it, in other tasks as well that are made there, can see what is left by remaining().
    Queues, channels, limits, pools, processes, offloaded calls and policies heed it: in those other tasks, too,
    waiting for one ends with DeadlineExceeded (a pool's with PoolTimeout, run_process() with ProcessTimeout). Blocks
    nest: the earliest deadline holds. A task that is to live on has to be made outside, or its waits end there, too.
    """
    return Deadline(seconds("limit", limit))
