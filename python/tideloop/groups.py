"""Task groups: group(), Group, TaskHandle.

A group is a block that is not left before every task that was spawned in it has ended. Its tasks are the loop's
own (``loop.create_task``), so contexts, ``asyncio.all_tasks()``, names and call graphs are as everywhere; what
the group adds is a handle per task that keeps the result, a limit, and what happens when one fails.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar, TypeVarTuple, runtime_checkable

from tideloop import accelerated
from tideloop._tideloop import GroupCore, TaskHandle
from tideloop.cancellation import Request
from tideloop.outcome import Outcome

__all__ = ["Group", "GroupStats", "TaskHandle", "group"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
OnError = Literal["cancel", "collect"]


@runtime_checkable
class Acquirable(Protocol):
    """What a limit is, if it is no number: a Limiter, or whatever has these two."""

    def acquire(self) -> Awaitable[Any]: ...
    def release(self) -> Any: ...


Limit = int | Acquirable | None


class GroupStats(NamedTuple):
    """A group's tasks, by their state."""

    spawned: int
    waiting: int
    """Held back by the group's own limit; those that wait for a Limiter are running tasks."""
    running: int
    succeeded: int
    failed: int
    cancelled: int


async def _wait(handle: TaskHandle[_T]) -> Outcome[_T]:
    """TaskHandle.wait()."""
    if not handle.done():
        if handle.task is not None and asyncio.current_task() is handle.task:
            raise RuntimeError(f"{handle!r} cannot wait for itself")
        if handle._loop is not None and handle._loop is not asyncio.get_running_loop():
            raise RuntimeError(f"{handle!r} belongs to another event loop")
        waiter = asyncio.get_running_loop().create_future()
        handle._waiters.append(waiter)
        try:
            await waiter
        finally:
            handle._waiters.remove(waiter)
    return handle.outcome


async def _wait_for_result(handle: TaskHandle[_T]) -> _T:
    """``await handle``."""
    await _wait(handle)
    return handle.result()


def _prepared(
    owner: Group, fn: Callable[..., Any], args: tuple[Any, ...], timeout: float | None
) -> Coroutine[Any, Any, Any]:
    """The coroutine of a task whose call must be let in or is limited in time."""
    if owner._limiter is not None:
        return _permitted(owner._limiter, fn, args, timeout)
    assert timeout is not None
    return _timed(fn, args, timeout)


async def _permitted(limiter: Acquirable, fn: Callable[..., Any], args: tuple[Any, ...], limit: float | None) -> Any:
    await limiter.acquire()
    try:
        if limit is not None:
            return await _timed(fn, args, limit)
        return await _awaitable_of(fn(*args), fn)
    finally:
        limiter.release()


async def _timed(fn: Callable[..., Any], args: tuple[Any, ...], limit: float) -> Any:
    async with accelerated.timeout(limit):
        return await _awaitable_of(fn(*args), fn)


def _awaitable_of(made: Any, fn: Callable[..., Any]) -> Any:
    if not inspect.isawaitable(made):
        raise TypeError(f"{fn!r} must return an awaitable, but returned {made!r}")
    return made


def _coroutine_of(made: Any, fn: Callable[..., Any]) -> Coroutine[Any, Any, Any]:
    if asyncio.iscoroutine(made):
        return made

    async def wait(made: Any) -> Any:
        return await made

    return wait(_awaitable_of(made, fn))


class _Stage:
    NEW, OPEN, LEAVING, CLOSED = "unused", "open", "leaving", "closed"


def _is_fatal(error: BaseException | None) -> bool:
    return isinstance(error, KeyboardInterrupt | SystemExit)


class Group(GroupCore):
    """``async with tideloop.group() as g:`` See group(). Belongs to the loop and the task that entered it."""

    __slots__ = (
        "_aborting",
        "_failures",
        "_fatal",
        "_limit",
        "_limiter",
        "_loop",
        "_parent",
        "_request",
        "_stage",
        "name",
        "on_error",
    )

    def __init__(self, on_error: OnError = "cancel", limit: Limit = None, name: str | None = None) -> None:
        if on_error not in ("cancel", "collect"):
            raise ValueError(f"on_error must be 'cancel' or 'collect', not {on_error!r}")
        self.name = name
        self.on_error: OnError = on_error
        self._limit, self._limiter = limit_of(limit)
        self._stage = _Stage.NEW
        self._aborting = False
        self._loop: Any = None
        self._parent: Any = None
        self._request: Request | None = None
        self._failures: list[BaseException] = []
        self._fatal: BaseException | None = None

    # --- for the block -------------------------------------------------------------------------

    if TYPE_CHECKING:

        def spawn(
            self,
            fn: Callable[[*_Ts], Awaitable[_T]],
            /,
            *args: *_Ts,
            key: object = None,
            timeout: float | None = None,
        ) -> TaskHandle[_T]:
            """See GroupCore.spawn()."""

    def cancel(self, msg: Any = None) -> None:
        """Cancel the group: its tasks and the rest of its block. The block is then left without an exception.

        What fails while it is cancelled counts as ever. On the group's loop; after the end it does nothing.
        """
        if self._stage is _Stage.NEW:
            raise RuntimeError(f"{self!r} was not entered; there is nothing to cancel")
        if self._stage is _Stage.CLOSED:
            return
        self._abort(msg)
        self._interrupt_block(msg)

    @property
    def handles(self) -> list[TaskHandle[Any]]:
        """The handles of all tasks, in the order in which they were spawned."""
        return self._handles.copy()

    @property
    def results(self) -> list[Outcome[Any]]:
        """How the tasks have ended, in the order in which they were spawned.

        Complete once the block is left; before, asyncio.InvalidStateError if one of them has not ended.
        """
        return [handle.outcome for handle in self._handles]

    @property
    def by_key(self) -> dict[Any, Outcome[Any]]:
        """How the tasks that were spawned with a key have ended; of two with the same key, the later spawned."""
        return {handle.key: handle.outcome for handle in self._handles if handle.key is not None}

    def completed(self) -> AsyncIterator[TaskHandle[Any]]:
        """The handles in the order in which their tasks end, from the first one on.

        ``async for`` over it ends when every task that was spawned by then has ended. Iterating twice gives
        everything twice. Stopping early, or being cancelled, leaves the tasks alone.
        """
        return _Completed(self)

    def stats(self) -> GroupStats:
        """Counts of the tasks by state."""
        failed, ended = len(self._failures), len(self._done)
        return GroupStats(
            spawned=len(self._handles),
            waiting=self._waiting,
            running=self._running,
            succeeded=ended - failed - self._cancelled,
            failed=failed,
            cancelled=self._cancelled,
        )

    def __repr__(self) -> str:
        stats = self.stats()
        words = ["<tideloop.Group"]
        if self.name is not None:
            words.append(repr(self.name))
        words.append("cancelled" if self._aborting and self._stage is not _Stage.CLOSED else self._stage)
        words += [f"{state}={count}" for state, count in stats._asdict().items() if count and state != "spawned"]
        return " ".join(words) + ">"

    # --- entering and leaving ------------------------------------------------------------------

    async def __aenter__(self) -> Group:
        if self._stage is not _Stage.NEW:
            raise RuntimeError(f"{self!r} was entered before; make another")
        self._loop = asyncio.get_running_loop()
        self._parent = asyncio.current_task()
        if self._parent is None:
            raise RuntimeError(f"{self!r} must be entered by a task")
        self._request = Request(self._parent)
        self._stage = _Stage.OPEN
        self._open(self._loop, self._parent, self.name, self._limit, self._limiter is not None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            return await self._leave(error)
        finally:
            # Neither the parent's frames nor its exceptions are kept alive by whoever keeps the group.
            error = None
            self._parent = self._request = self._fatal = None
            self._forget_parent()

    async def _leave(self, error: BaseException | None) -> bool:
        assert self._request is not None
        self._stage = _Stage.LEAVING
        if isinstance(error, GeneratorExit):
            self._abandon()
            return False
        interrupted = error if isinstance(error, asyncio.CancelledError) else None
        if error is not None:
            if _is_fatal(error) and self._fatal is None:
                self._fatal = error
            self._abort()
        while self._running or self._waiting:
            idle = self._loop.create_future()
            self._idle = idle
            try:
                await idle
            except asyncio.CancelledError as cancellation:
                interrupted = cancellation
                self._abort()
            except GeneratorExit:
                self._abandon()
                raise
            finally:
                self._idle = None
        self._stage = _Stage.CLOSED
        self._shut()
        ours = self._request.made
        if self._request.take_back() and ours:
            interrupted = None
        try:
            return self._conclude(error, interrupted)
        finally:
            interrupted = None

    def _conclude(self, error: BaseException | None, interrupted: asyncio.CancelledError | None) -> bool:
        """Raises what is to be raised. False lets the block's own exception go on, True swallows it."""
        assert self._request is not None
        try:
            if self._fatal is not None:
                if self._fatal is error:
                    return False
                raise self._fatal
            own = error if error is not None and not isinstance(error, asyncio.CancelledError) else None
            failures: list[BaseException] = []
            if self.on_error == "cancel":
                failures = list(self._failures)
                if own is not None and not any(own is failure for failure in failures):
                    failures.append(own)
            if (failures or own is not None) and interrupted is not None and self._request.others:
                # The errors go first; the cancellation comes at the parent's next await, its count unchanged.
                self._parent.uncancel()
                self._parent.cancel()
            if failures:
                title = "errors in a group" if self.name is None else f"errors in group {self.name!r}"
                raise BaseExceptionGroup(title, failures) from None
            if own is not None or (error is not None and interrupted is error):
                return False
            if interrupted is not None:
                raise interrupted
            return True
        finally:
            error = interrupted = own = None

    # --- for the native half -------------------------------------------------------------------

    def _failed(self, error: BaseException) -> None:
        """A task has failed, or its function when its turn came."""
        self._failures.append(error)
        fatal = _is_fatal(error)
        if fatal and self._fatal is None:
            self._fatal = error
        if (fatal or self.on_error == "cancel") and not self._aborting:
            self._abort()
            self._interrupt_block()

    def _refuse(self, fn: object) -> None:
        """spawn() cannot serve a call: says why."""
        if asyncio.iscoroutine(fn):
            fn.close()
        if self._stage is _Stage.NEW:
            raise RuntimeError(f"{self!r} was not entered; spawn belongs in its `async with` block")
        if self._stage is _Stage.CLOSED:
            raise RuntimeError(f"{self!r} has ended; it takes no more tasks")
        if self._aborting:
            raise RuntimeError(f"{self!r} is being cancelled; it takes no more tasks")
        if asyncio.iscoroutine(fn):
            raise TypeError(f"spawn() takes a function and its arguments, not a coroutine: {fn!r}")
        if not callable(fn):
            raise TypeError(f"spawn() takes a coroutine function, not {fn!r}")
        raise RuntimeError(f"{self!r} belongs to another event loop than the one that runs here, if any")

    def _abort(self, msg: Any = None) -> None:
        """Cancels every task."""
        if not self._aborting:
            self._aborting = True
            self._shut()
            self._cancel_all(msg)

    def _abandon(self) -> None:
        """The parent's coroutine is closed, as happens to a task that is collected: it cannot wait any more.

        Its tasks are not cancelled: they may be garbage as well, which must not be scheduled again.
        """
        self._shut()
        self._stage = _Stage.CLOSED

    def _interrupt_block(self, msg: Any = None) -> None:
        if self._stage is _Stage.OPEN:
            assert self._request is not None
            self._request.make(msg)


class _Completed:
    """Group.completed(): a place in the group's list of ended tasks."""

    __slots__ = ("_group", "_next")

    def __init__(self, owner: Group) -> None:
        self._group = owner
        self._next = 0

    def __aiter__(self) -> _Completed:
        return self

    async def __anext__(self) -> TaskHandle[Any]:
        owner = self._group
        while self._next == len(owner._done):
            if not owner._running and not owner._waiting:
                raise StopAsyncIteration
            loop = asyncio.get_running_loop()
            if owner._loop is not None and owner._loop is not loop:
                raise RuntimeError(f"{owner!r} belongs to another event loop")
            waiter = loop.create_future()
            owner._watchers.append(waiter)
            try:
                await waiter
            finally:
                owner._watchers.remove(waiter)
        self._next += 1
        handle: TaskHandle[Any] = owner._done[self._next - 1]
        return handle


def limit_of(limit: object) -> tuple[int | None, Acquirable | None]:
    """A limit as a number or as something to acquire."""
    if limit is None:
        return None, None
    if isinstance(limit, int) and not isinstance(limit, bool):
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        return limit, None
    if isinstance(limit, Acquirable):
        return None, limit
    raise TypeError(f"limit must be a number of tasks or a Limiter, not {limit!r}")


def group(*, on_error: OnError = "cancel", limit: Limit = None, name: str | None = None) -> Group:
    """A block of tasks: ``async with tideloop.group() as g: handle = g.spawn(fetch, url)``.

    The block is left when all tasks have ended. By `on_error`:

    "cancel": the first failure cancels the block and the other tasks; leaving raises an ExceptionGroup of all
    failures, the block's own included. "collect": failures are kept in the handles and in ``g.results``, and nobody
    else hears of them; an exception of the block itself cancels the tasks and goes on as it is.

    In both: a cancelled task is no failure. When the parent is cancelled, its tasks are cancelled and awaited, and
    CancelledError goes on unless there are failures to be told, in which case it is raised again at the parent's next
    await. KeyboardInterrupt and SystemExit, wherever they come from, cancel everything and are raised bare.

    `limit` is the number of tasks that run at once, others start first come, first served; or a Limiter, which each
    task acquires before its function is called. `name` names the group and, with key or index, its tasks.

    Raises ValueError or TypeError for arguments that are none of these.
    """
    return Group(on_error, limit, name)
