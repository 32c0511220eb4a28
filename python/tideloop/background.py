"""Background work: Background, Restart.

Tasks that nobody awaits are asyncio's best known trap: the loop keeps them weakly, so they vanish; what they raise
is told when the collector comes by, if at all; and at the end of the program they are cancelled in the middle of
whatever they do. A Background keeps its tasks, tells of every failure at once, starts again what should go on, and
ends in an orderly way within a time that is stated: what had to be cancelled, and what would not even then, is named.

Works on every asyncio loop.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import random
import weakref
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar, TypeVarTuple

from tideloop import accelerated
from tideloop._tideloop import Enlisted, enlist
from tideloop.cancellation import Request
from tideloop.changes import Changes
from tideloop.deadlines import without_deadline
from tideloop.durations import seconds
from tideloop.limits import Limiter
from tideloop.shutdown import grace_left

__all__ = ["Background", "BackgroundClosed", "BackgroundStats", "Drained", "Restart", "Survivor"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
OnError = Literal["log", "raise"] | Callable[[asyncio.Task[Any], BaseException], object]

_log = logging.getLogger("tideloop.background")


class BackgroundClosed(RuntimeError):
    """Something was to be spawned in a Background that is being drained, or was left."""


class Restart(NamedTuple):
    """How work that has failed is begun again: after a pause that grows from one failure to the next.

    The n-th pause is ``first * factor ** (n - 1)`` seconds, `longest` at most, and up to `jitter` of it longer or
    shorter, so that many that failed together do not come back together. Work that has run for `forgive` seconds
    begins with the first pause again. After `most` restarts in a row the failure is final; None is never.
    """

    first: float = 0.1
    factor: float = 2.0
    longest: float = 30.0
    jitter: float = 0.1
    most: int | None = None
    forgive: float = 60.0

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        # The exponent is bounded: a float's is, too.
        pause = min(self.first * self.factor ** min(failures - 1, 64), self.longest)
        return pause * (1 + self.jitter * (2 * random.random() - 1))  # spreads, hides nothing


class Survivor(NamedTuple):
    """A task that goes on although it was cancelled, or was to be left alone."""

    name: str
    stack: tuple[str, ...]
    """Where it is, outermost call first: ``file:line function``."""


class Drained(NamedTuple):
    """How draining has ended."""

    finished: int
    """Tasks that ended by themselves, in good time."""
    cancelled: int
    """Tasks that were cancelled, and ended of it."""
    survivors: tuple[Survivor, ...]
    """Tasks that still run."""


class BackgroundStats(NamedTuple):
    """A Background in numbers."""

    running: int
    waiting: int
    """For a place within the limit."""
    succeeded: int
    failed: int
    """For good: a failure after which it was begun again is a restart."""
    cancelled: int
    restarts: int


class Background(Enlisted):
    """``async with tideloop.Background() as background: background.spawn(fn, ...)``: tasks that run beside the block.

    At most `limit` of them run at once, the others wait in order. What one raises is told at once: with `on_error`
    "log" to the logger ``tideloop.background``, with traceback; with "raise" by cancelling the block and all tasks,
    and raising an ExceptionGroup at its end; a function is called with the task and the exception. `restart` begins
    those again that have failed, and their failures are told all the same, as a warning.

    Leaving the block in order drains: nothing new is let in, and what runs has `grace` seconds to end before it is
    cancelled. Leaving it by an exception, or cancelled, cancels at once; only if it is the first signal to
    ``tideloop.run(main(), signals=...)`` that cancels main, it drains, as long as the grace of the program lasts, too.
    Nobody is waited for longer than `patience` seconds after that; who still runs then is logged with his stack.

    Belongs to one loop; entered once. Tasks are the loop's own; `spawn` and the others are called on the loop.
    """

    def __init__(
        self,
        *,
        limit: int | None = None,
        on_error: OnError = "log",
        restart: Restart | None = None,
        grace: float | None = 30.0,
        patience: float = 5.0,
        name: str | None = None,
    ) -> None:
        if on_error not in ("log", "raise") and not callable(on_error):
            raise ValueError(f"on_error must be 'log', 'raise' or a function, not {on_error!r}")
        if inspect.iscoroutinefunction(on_error):
            raise TypeError(f"on_error must be a plain function, which nobody awaits, not {on_error!r}")
        _check(restart)
        self.name = name
        self._limiter = None if limit is None else Limiter(limit, name=name)
        self._on_error = on_error
        self._restart = restart
        self._grace = grace if grace is None else seconds("grace", grace)
        self._patience = seconds("patience", patience)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = Changes()
        self._closing = Changes()
        # Those of the tasks that wait for the others to end; they do not wait for each other.
        self._drainers: set[asyncio.Task[Any]] = set()
        self._entered = self._closed = self._left = False
        self._asked: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._parent: Request | None = None
        self._errors: list[BaseException] = []
        self._succeeded = self._failed = self._cancelled = self._restarts = 0
        enlist(self)

    async def __aenter__(self) -> Background:
        if self._entered:
            raise RuntimeError(f"{self!r} was entered before; make another")
        self._entered = True
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError(f"{self!r} is entered by a task; none is running")
        self._parent = Request(task)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._parent is not None
        cancelled: asyncio.CancelledError | None = None
        grace = self._grace
        if self._errors:
            grace = 0
        elif error is not None:
            left = grace_left(self._parent.task) if isinstance(error, asyncio.CancelledError) else 0.0
            grace = left if grace is None else min(grace, left)
        try:
            await self.drain(grace)
        except asyncio.CancelledError as late:
            # Whether by a task's failure or from outside: there is no more time.
            cancelled = late
        try:
            if cancelled is not None:
                await self.drain(0)
        except asyncio.CancelledError as late:
            cancelled = late
        self._left = True
        self._parent.take_back()
        errors, self._errors = self._errors, []
        foreign = self._parent.others and isinstance(cancelled or error, asyncio.CancelledError)
        if foreign:
            for failure in errors:
                _log.error("a task of %r has failed", self, exc_info=failure)
            errors = []
        if errors:
            if error is not None and not isinstance(error, asyncio.CancelledError):
                errors.insert(0, error)
            raise BaseExceptionGroup(f"errors in {self!r}", errors) from None
        if cancelled is not None and foreign:
            raise cancelled

    def spawn(
        self,
        fn: Callable[[*_Ts], Awaitable[_T]],
        *args: *_Ts,
        name: str | None = None,
        restart: Restart | None = None,
    ) -> asyncio.Task[_T]:
        """Begin ``fn(*args)`` as a task, which need not be awaited, and may be.

        `restart` is the task's own, instead of that of all. The task has a copy of the context, but no deadline: that
        is about the work of who spawns. Raises RuntimeError on another loop, and BackgroundClosed while it is being
        drained and after.
        """
        if not callable(fn):
            raise TypeError(f"fn must be a function that returns an awaitable, not {fn!r}")
        _check(restart)
        if not self._entered:
            raise RuntimeError(f"{self!r} was not entered; spawn inside of its block")
        loop = self._running_loop()
        if self._closed:
            raise BackgroundClosed(f"{self!r} takes nothing new any more")
        work = self._work(fn, args, restart or self._restart)
        task = loop.create_task(work, name=name or getattr(fn, "__qualname__", None), context=without_deadline())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def drain(self, timeout: float | None = None, then: Literal["cancel", "leave"] = "cancel") -> Drained:  # noqa: ASYNC109
        """Take nothing new, and wait for what runs: at most `timeout` seconds, None is for ever.

        What runs then is cancelled, or left alone with `then` "leave". Returns who ended how. If the task that asks is
        one of those, neither it nor others of those that drain are waited for. Cancelled, it stops waiting; nothing new
        is taken all the same.
        """
        if then not in ("cancel", "leave"):
            raise ValueError(f"then must be 'cancel' or 'leave', not {then!r}")
        limit = None if timeout is None else seconds("timeout", timeout)
        if self._entered:
            self._running_loop()
        self._close()
        task = asyncio.current_task()
        if task is None or task not in self._tasks or task in self._drainers:
            return await self._drain(limit, then)
        self._drainers.add(task)
        self._ended.tell()
        try:
            return await self._drain(limit, then)
        finally:
            self._drainers.discard(task)

    async def _drain(self, limit: float | None, then: Literal["cancel", "leave"]) -> Drained:
        loop = asyncio.get_running_loop()
        before = len(self._others())
        await self._settle(math.inf if limit is None else loop.time() + limit)
        late = self._others()
        finished = before - len(late)
        if late and then == "cancel":
            self._cancel(late)
            await self._settle(loop.time() + self._patience)
        survivors = tuple(Survivor(task.get_name(), _stack(task)) for task in self._others())
        for survivor in survivors if then == "cancel" else ():
            _log.error("%r still runs although it was cancelled: %s", survivor.name, " > ".join(survivor.stack))
        return Drained(finished, len(late) - len(survivors), survivors)

    def cancel(self) -> None:
        """Cancel all tasks, but the one that asks. They can be waited for by drain()."""
        current = asyncio.current_task()
        self._cancel([task for task in self._tasks if task is not current])

    def _cancel(self, tasks: list[asyncio.Task[Any]]) -> None:
        for task in tasks:
            if task not in self._asked:
                self._asked.add(task)
                task.cancel()

    def stats(self) -> BackgroundStats:
        """The Background in numbers."""
        waiting = 0 if self._limiter is None else self._limiter.stats().waiting
        return BackgroundStats(
            len(self._tasks) - waiting, waiting, self._succeeded, self._failed, self._cancelled, self._restarts
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._entered else "unused"
        return f"<tideloop.Background {f'{self.name!r} ' if self.name else ''}{state} tasks={len(self._tasks)}>"

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        assert self._parent is not None
        loop = asyncio.get_running_loop()
        if loop is not self._parent.task.get_loop():
            raise RuntimeError(f"{self!r} belongs to another event loop")
        return loop

    # --- one task ---------------------------------------------------------------------------

    async def _work(self, fn: Callable[..., Awaitable[_T]], args: tuple[Any, ...], restart: Restart | None) -> _T:
        failures = 0
        while True:
            loop = asyncio.get_running_loop()
            try:
                if self._limiter is None:
                    began = loop.time()
                    return await fn(*args)
                async with self._limiter:
                    began = loop.time()
                    return await fn(*args)
            except Exception as error:
                if restart is None or self._closed:
                    raise
                last = error
                failures = 1 if loop.time() - began >= restart.forgive else failures + 1
                if restart.most is not None and failures > restart.most:
                    raise
                pause = restart.pause(failures)
                task = asyncio.current_task()
                assert task is not None
                _log.warning("%r has failed and begins again in %.3g s", task.get_name(), pause, exc_info=error)
            self._restarts += 1
            until = loop.time() + pause
            await accelerated.sleep(0)
            while not self._closed and loop.time() < until:
                await self._closing.wait(until)
            if self._closed:
                raise last

    def _close(self) -> None:
        self._closed = True
        self._closing.tell()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._ended.tell()
        if task.cancelled():
            self._cancelled += 1
            return
        error = task.exception()
        if error is None:
            self._succeeded += 1
            return
        self._failed += 1
        if self._on_error == "raise":
            self._errors.append(error)
            self._close()
            self.cancel()
            if self._left:
                _log.error("%r has failed after its block was left", task.get_name(), exc_info=error)
            else:
                assert self._parent is not None
                self._parent.make()
        elif self._on_error == "log":
            _log.error("%r has failed", task.get_name(), exc_info=error)
        else:
            assert callable(self._on_error)
            try:
                self._on_error(task, error)
            except Exception:
                # Neither is lost: the context of this one's traceback is not the failure.
                _log.error("%r has failed", task.get_name(), exc_info=error)
                raise

    # --- ending -----------------------------------------------------------------------------

    def _excluded(self) -> set[asyncio.Task[Any]]:
        """Whom this one does not wait for: if he is one of the tasks, those that drain, of whom he is one."""
        return self._drainers if asyncio.current_task() in self._tasks else set()

    def _others(self) -> list[asyncio.Task[Any]]:
        return list(self._tasks - self._excluded())

    async def _settle(self, deadline: float) -> None:
        """Wait until all have ended, or until a time of the loop."""
        loop = asyncio.get_running_loop()
        while len(self._tasks) > len(self._excluded()) and loop.time() < deadline:
            await self._ended.wait(deadline)


def _check(restart: Restart | None) -> None:
    if restart is None:
        return
    if not isinstance(restart, Restart):
        raise TypeError(f"restart must be a Restart or None, not {restart!r}")
    for what in ("first", "longest", "forgive"):
        seconds(f"{what} of a Restart", getattr(restart, what))
    if not isinstance(restart.factor, int | float) or restart.factor < 1:
        raise ValueError(f"factor of a Restart must be a number of at least 1, not {restart.factor!r}")
    if not isinstance(restart.jitter, int | float) or not 0 <= restart.jitter <= 1:
        raise ValueError(f"jitter of a Restart must be a part between 0 and 1, not {restart.jitter!r}")
    if restart.most is not None and (not isinstance(restart.most, int) or restart.most < 0):
        raise ValueError(f"most of a Restart must be a number of at least 0, or None, not {restart.most!r}")


def _stack(task: asyncio.Task[Any]) -> tuple[str, ...]:
    """Every frame from the task's coroutine to what it waits for; asyncio's own get_stack() has only the first."""
    lines = []
    awaiting: Any = task.get_coro()
    while awaiting is not None:
        frame = getattr(awaiting, "cr_frame", None) or getattr(awaiting, "gi_frame", None)
        if frame is not None:
            lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        awaiting = getattr(awaiting, "cr_await", None) or getattr(awaiting, "gi_yieldfrom", None)
    return tuple(lines)
