"""Task groups: group(), Group, TaskHandle.

A group is a block that is not left before every task that was spawned in it has ended. Its tasks are the loop's
own (``loop.create_task``), so contexts, ``asyncio.all_tasks()``, names and call graphs are as everywhere; what
the group adds is a handle per task that keeps the result, a limit, and what happens when one fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar, TypeVarTuple, Unpack, runtime_checkable

from tideloop import accelerated
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


class _State:
    WAITING, RUNNING, ENDED = "waiting", "running", "ended"


class TaskHandle(Generic[_T]):
    """One task of a group. Made by ``Group.spawn()``; keeps the result after the task is gone."""

    __slots__ = ("__weakref__", "_group", "_outcome", "_start", "_state", "_task", "_traceback", "_waiters", "key", "name")

    def __init__(self, owner: Group, key: object, name: str | None) -> None:
        self._group = owner
        self._state = _State.WAITING
        self._task: asyncio.Task[_T] | None = None
        self._outcome: Outcome[_T] | None = None
        self._traceback: TracebackType | None = None
        self._start: tuple[Callable[..., Any], tuple[Any, ...], float | None, contextvars.Context] | None = None
        self._waiters: list[asyncio.Future[None]] | None = None
        self.key = key
        self.name = name

    @property
    def task(self) -> asyncio.Task[_T] | None:
        """The task while it is alive; None before the limit has let it start, and after its end."""
        return self._task

    def done(self) -> bool:
        """Whether the task has ended, in whatever way."""
        return self._outcome is not None

    def cancelled(self) -> bool:
        """Whether the task was cancelled."""
        return self._outcome is not None and self._outcome.cancelled

    @property
    def outcome(self) -> Outcome[_T]:
        """How the task has ended. Raises asyncio.InvalidStateError if it has not."""
        if self._outcome is None:
            raise asyncio.InvalidStateError(f"{self!r} has not ended")
        return self._outcome

    def result(self) -> _T:
        """What the task returned. Raises what it raised, CancelledError included; InvalidStateError if not done."""
        outcome = self.outcome
        if outcome.exception is not None:
            raise outcome.exception.with_traceback(self._traceback)
        return outcome.value  # type: ignore[return-value]  # None exactly if that was returned

    def exception(self) -> BaseException | None:
        """What the task raised. Raises CancelledError if it was cancelled, InvalidStateError if it is not done."""
        outcome = self.outcome
        if outcome.cancelled:
            assert outcome.exception is not None
            raise outcome.exception.with_traceback(self._traceback)
        return outcome.exception

    def cancel(self, msg: Any = None) -> bool:
        """Cancel this task alone; False if it is done. One that has not started never will.

        A task that is cancelled is no failure: its group goes on.
        """
        if self._task is not None:
            return self._task.cancel(msg)
        return self._group._drop(self, msg)

    async def wait(self) -> Outcome[_T]:
        """Wait until the task has ended. Its exception is not raised but in the outcome.

        Cancelling the waiter leaves the task alone. Raises RuntimeError when the task waits for itself.
        """
        if self._outcome is None:
            if self._task is not None and asyncio.current_task() is self._task:
                raise RuntimeError(f"{self!r} cannot wait for itself")
            waiter = asyncio.get_running_loop().create_future()
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if self._waiters is not None:
                    self._waiters.remove(waiter)
        return self.outcome

    def __await__(self) -> Generator[Any, None, _T]:
        """Wait for the task, then ``result()``."""
        if self._outcome is None:
            yield from self.wait().__await__()
        return self.result()

    def __repr__(self) -> str:
        words = ["<tideloop.TaskHandle"]
        if self.name is not None:
            words.append(repr(self.name))
        if self.key is not None:
            words.append(f"key={self.key!r}")
        words.append(self._state)
        if self._outcome is not None and self._outcome.exception is not None:
            words.append(f"exception={self._outcome.exception!r}")
        elif self._outcome is not None:
            words.append(f"result={self._outcome.value!r}")
        return " ".join(words) + ">"

    def _launch(self, fn: Callable[..., Any], args: tuple[Any, ...], timeout: float | None, context: Any) -> None:
        """Makes the task. Nothing is left behind if that fails."""
        owner = self._group
        limiter = owner._limiter
        coro: Coroutine[Any, Any, Any]
        if limiter is not None:
            coro = _permitted(limiter, fn, args, timeout)
        elif timeout is not None:
            coro = _timed(fn, args, timeout)
        else:
            made = fn(*args) if context is None else context.run(fn, *args)
            coro = made if inspect.iscoroutine(made) else _coroutine_of(made, fn)
        try:
            if context is None:
                task = owner._loop.create_task(coro) if self.name is None else owner._loop.create_task(coro, name=self.name)
            else:
                task = owner._loop.create_task(coro, name=self.name, context=context)
        except BaseException:
            coro.close()
            raise
        self._state = _State.RUNNING
        owner._running += 1
        self._task = task
        if task.done():  # eager
            self._finish(task)
            return
        if _note_awaiting is not None:
            _note_awaiting(task, owner._parent)
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[_T]) -> None:
        """The task's done callback."""
        owner = self._group
        if _forget_awaiting is not None and owner._parent is not None:
            _forget_awaiting(task, owner._parent)
        owner._running -= 1
        self._task = None
        if task.cancelled():
            try:
                task.result()
            except asyncio.CancelledError as error:
                self._end(Outcome(None, error))
            return
        exception = task.exception()
        if exception is None:
            self._end(Outcome(task.result()))
        else:
            self._end(Outcome(None, exception))

    def _end(self, outcome: Outcome[Any]) -> None:
        self._outcome = outcome
        self._state = _State.ENDED
        if outcome.exception is not None:
            self._traceback = outcome.exception.__traceback__
        if self._waiters is not None:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
        self._group._ended(self, outcome)


if sys.version_info >= (3, 14):
    _note_awaiting: Any = asyncio.future_add_to_awaited_by
    _forget_awaiting: Any = asyncio.future_discard_from_awaited_by
else:
    _note_awaiting = _forget_awaiting = None


async def _permitted(limiter: Acquirable, fn: Callable[..., Any], args: tuple[Any, ...], timeout: float | None) -> Any:
    await limiter.acquire()
    try:
        if timeout is not None:
            return await _timed(fn, args, timeout)
        return await _awaitable_of(fn(*args), fn)
    finally:
        limiter.release()


async def _timed(fn: Callable[..., Any], args: tuple[Any, ...], timeout: float) -> Any:
    async with accelerated.timeout(timeout):
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


class Group:
    """``async with tideloop.group() as g:`` See group(). Belongs to the loop and the task that entered it."""

    __slots__ = (
        "__weakref__",
        "_aborting",
        "_cancelled",
        "_done",
        "_failed",
        "_fatal",
        "_handles",
        "_idle",
        "_limit",
        "_limiter",
        "_loop",
        "_parent",
        "_request",
        "_running",
        "_stage",
        "_streams",
        "_waiting",
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
        self._handles: list[TaskHandle[Any]] = []
        self._done: list[TaskHandle[Any]] = []
        self._waiting: deque[TaskHandle[Any]] = deque()
        self._running = 0
        self._failed: list[BaseException] = []
        self._cancelled = 0
        self._fatal: BaseException | None = None
        self._idle: asyncio.Future[None] | None = None
        self._streams: list[asyncio.Future[None]] = []

    # --- for the block -------------------------------------------------------------------------

    def spawn(
        self,
        fn: Callable[[Unpack[_Ts]], Awaitable[_T]],
        /,
        *args: Unpack[_Ts],
        key: object = None,
        timeout: float | None = None,
    ) -> TaskHandle[_T]:
        """Run ``fn(*args)`` as a task of the group.

        `key` is kept in the handle, for whoever looks up results. `timeout` is in seconds from the task's start;
        when it is over the task fails with TimeoutError. With a limit that is used up, `fn` is called later, in the
        context of this call. Allowed until the group's last task has ended, so for its tasks as well.

        Raises RuntimeError, without having called `fn`, if the group was not entered, has ended or is being
        cancelled; TypeError for a `fn` that is not callable; and what ``fn(*args)`` itself raises.
        """
        if self._stage is _Stage.NEW or self._stage is _Stage.CLOSED or self._aborting:
            self._refuse(fn)
        if not callable(fn):
            self._refuse_coroutine(fn)
        if asyncio._get_running_loop() is not self._loop:
            raise RuntimeError(f"{self!r} belongs to another event loop than the one that runs here")
        name = None
        if self.name is not None:
            name = f"{self.name}[{len(self._handles) if key is None else key}]"
        handle: TaskHandle[_T] = TaskHandle(self, key, name)
        self._handles.append(handle)
        if self._limit is not None and self._running >= self._limit:
            handle._start = (fn, args, timeout, contextvars.copy_context())
            self._waiting.append(handle)
            return handle
        try:
            handle._launch(fn, args, timeout, None)
        except BaseException:
            self._forget(handle)
            raise
        return handle

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
        failed, ended = len(self._failed), len(self._done)
        return GroupStats(
            spawned=len(self._handles),
            waiting=len(self._waiting),
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

    async def _leave(self, error: BaseException | None) -> bool:
        assert self._request is not None
        self._stage = _Stage.LEAVING
        interrupted = error if isinstance(error, asyncio.CancelledError) else None
        if error is not None:
            if _is_fatal(error) and self._fatal is None:
                self._fatal = error
            self._abort()
        while self._running or self._waiting:
            self._idle = self._loop.create_future()
            try:
                await self._idle
            except asyncio.CancelledError as cancellation:
                interrupted = cancellation
                self._abort()
            except BaseException:  # the parent's coroutine is closed: nobody will wait
                self._abort()
                raise
            finally:
                self._idle = None
        self._stage = _Stage.CLOSED
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
                failures = list(self._failed)
                if own is not None and not any(own is failure for failure in failures):
                    failures.append(own)
            if (failures or own is not None) and interrupted is not None and self._request.others:
                # The errors go first; the cancellation comes at the parent's next await, its count unchanged.
                self._parent.uncancel()
                self._parent.cancel()
            if failures:
                title = "errors in a group" if self.name is None else f"errors in group {self.name!r}"
                raise BaseExceptionGroup(title, failures) from None
            if own is not None or interrupted is error and error is not None:
                return False
            if interrupted is not None:
                raise interrupted
            return True
        finally:
            error = interrupted = own = None

    # --- for the handles -----------------------------------------------------------------------

    def _ended(self, handle: TaskHandle[Any], outcome: Outcome[Any]) -> None:
        """A task has ended, or will never start."""
        self._done.append(handle)
        error = outcome.exception
        if error is not None:
            if isinstance(error, asyncio.CancelledError):
                self._cancelled += 1
            else:
                self._failed.append(error)
                fatal = _is_fatal(error)
                if fatal and self._fatal is None:
                    self._fatal = error
                if (fatal or self.on_error == "cancel") and not self._aborting:
                    self._abort()
                    self._interrupt_block()
        while self._waiting and self._limit is not None and self._running < self._limit:
            self._start_next()
        if self._streams:
            for waiter in self._streams:
                if not waiter.done():
                    waiter.set_result(None)
        if self._idle is not None and not self._running and not self._waiting and not self._idle.done():
            self._idle.set_result(None)

    def _start_next(self) -> None:
        handle = self._waiting.popleft()
        assert handle._start is not None
        fn, args, timeout, context = handle._start
        handle._start = None
        try:
            handle._launch(fn, args, timeout, context)
        except BaseException as error:
            handle._end(Outcome(None, error))
            if _is_fatal(error):
                raise

    def _forget(self, handle: TaskHandle[Any]) -> None:
        """Takes back a handle whose task could not be made, one of the last."""
        for index in range(len(self._handles) - 1, -1, -1):
            if self._handles[index] is handle:
                del self._handles[index]
                return

    def _drop(self, handle: TaskHandle[Any], msg: Any) -> bool:
        """Cancels one that waits for the limit."""
        if handle.done():
            return False
        with contextlib.suppress(ValueError):
            self._waiting.remove(handle)
        self._never_start(handle, msg)
        return True

    def _never_start(self, handle: TaskHandle[Any], msg: Any) -> None:
        handle._start = None
        handle._end(Outcome(None, asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)))

    def _abort(self, msg: Any = None) -> None:
        """Cancels every task."""
        if self._aborting:
            return
        self._aborting = True
        while self._waiting:
            self._never_start(self._waiting.popleft(), msg)
        for handle in self._handles.copy():
            if handle._task is not None and not handle._task.done():
                handle._task.cancel(msg)

    def _interrupt_block(self, msg: Any = None) -> None:
        if self._stage is _Stage.OPEN:
            assert self._request is not None
            self._request.make(msg)

    def _refuse(self, fn: object) -> None:
        if asyncio.iscoroutine(fn):
            fn.close()
        if self._stage is _Stage.NEW:
            raise RuntimeError(f"{self!r} was not entered; spawn belongs in its `async with` block")
        if self._stage is _Stage.CLOSED:
            raise RuntimeError(f"{self!r} has ended; it takes no more tasks")
        raise RuntimeError(f"{self!r} is being cancelled; it takes no more tasks")

    def _refuse_coroutine(self, fn: object) -> None:
        if asyncio.iscoroutine(fn):
            fn.close()
            raise TypeError(f"spawn() takes a function and its arguments, not a coroutine: {fn!r}")
        raise TypeError(f"spawn() takes a coroutine function, not {fn!r}")


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
            waiter = asyncio.get_running_loop().create_future()
            owner._streams.append(waiter)
            try:
                await waiter
            finally:
                owner._streams.remove(waiter)
        self._next += 1
        return owner._done[self._next - 1]


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
