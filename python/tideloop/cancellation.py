"""Cancelling a task on somebody's behalf, so that it can be told apart and taken back.

asyncio counts: `Task.cancel()` adds one, `Task.uncancel()` takes one off, and whoever has asked for a
cancellation takes its own request back when the CancelledError comes by. What is left on the count is
somebody else's, who must see the CancelledError too. Scopes and groups ask through a `Request`, which keeps to
that on every Python version:

* It compares with the count at its beginning, not with 0: clean-up code of a cancelled task may open scopes.
* It never cancels a task in the middle of its step. `Task.cancel()` then only leaves a mark for the next await,
  and if the block ends without one, the mark outlives it (`uncancel()` removes it since 3.13 only). So while any
  task runs, the request waits for the loop's next turn, and leaving the block takes it off again.

A `Shield` holds back what would cancel a task, until it is left. asyncio has no such thing: the shield puts its
own `cancel` in front of the task's. What began inside of it goes through: a Request by knowing its shield,
anything else (`asyncio.timeout()`, a child of an `asyncio.TaskGroup`) by its context, which was copied inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import weakref
from collections.abc import Callable, Collection
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Literal

from tideloop._tideloop import forgive, keep_contexts

__all__ = ["Request", "Shield", "inside", "outlast"]

_inside: ContextVar[Shield | None] = ContextVar("tideloop.shield", default=None)


def inside() -> Shield | None:
    """The innermost shield that this context was entered or copied in."""
    return _inside.get()


def _shield_of(task: asyncio.Task[Any]) -> Shield | None:
    """The innermost shield that a task is in."""
    found = getattr(task.cancel, "__self__", None)
    return found if isinstance(found, Shield) else None


class Request:
    """One party's wish that a task be cancelled. Belongs to the task's loop.

    Made often (for every scope) and used rarely: where the wish is, is one field. None: not made. A Handle: due in
    the loop's next turn. A Shield: held back. True: the task was cancelled.
    """

    __slots__ = ("_before", "_message", "_shield", "_state", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self._before = task.cancelling()
        self._shield = _inside.get()
        self._state: asyncio.Handle | Shield | Literal[True] | None = None

    @property
    def shield(self) -> Shield | None:
        """The shield that it began in."""
        return self._shield

    @property
    def made(self) -> bool:
        """Whether the cancellation was asked for and not taken back."""
        return self._state is not None

    def make(self, message: Any = None) -> None:
        """Cancel the task, at its next or present await. Once is enough: again does nothing."""
        if self._state is None and not self.task.done():
            self._message = message
            self.pursue()

    def pursue(self) -> None:
        """Go on with what was held back, or was waiting for the next turn."""
        shield = _shield_of(self.task)
        if shield is not self._shield and shield is not None:
            self._state = shield
            shield.hold(self)
        elif asyncio.current_task() is not None:
            self._state = self.task.get_loop().call_soon(self.pursue)
        else:
            self._state = True
            type(self.task).cancel(self.task, self._message)

    def take_back(self) -> bool:
        """Called by the task. Whether a CancelledError that came by was nobody else's."""
        state, self._state = self._state, None
        if isinstance(state, Shield):
            state.let_go(self)
        elif state is True:
            self.task.uncancel()
        elif state is not None:
            state.cancel()
        return not self.others

    @property
    def others(self) -> bool:
        """Whether, this request apart, the task was cancelled since it was made."""
        return self.task.cancelling() - (self._state is True) > self._before


async def outlast(
    tasks: Collection[asyncio.Task[Any]], on_cancel: Callable[[], object] | None = None
) -> asyncio.CancelledError | None:
    """Wait until tasks have ended, also when cancelled meanwhile, of which it tells `on_cancel` each time.

    Returns that CancelledError, which the caller raises when he has done what he has to.
    """
    cancelled: asyncio.CancelledError | None = None
    try:
        while running := [task for task in tasks if not task.done()]:
            try:
                await asyncio.wait(running)
            except asyncio.CancelledError as error:
                cancelled = error
                if on_cancel is not None:
                    on_cancel()
        return cancelled
    finally:
        # Else the exception's traceback refers to this frame, and this frame to the exception.
        cancelled = None


_MARK_STAYS = sys.version_info < (3, 13)


class _Uncancel:
    """``task.uncancel()`` as it is since 3.13: with the last request the mark for the next await goes as well.

    In front of the task's own once a shield has let go of cancellations that it held back. Whoever asked for one
    (``asyncio.timeout()``) may take it back before the task awaits anything.
    """

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = weakref.ref(task)

    def __call__(self) -> int:
        task = self._task()
        assert task is not None
        left = type(task).uncancel(task)
        if left == 0:
            with contextlib.suppress(AttributeError):
                forgive(task)
            if getattr(task.uncancel, "_task", None) is self._task:
                del task.uncancel
        return left


class Shield:
    """``with tideloop.shield():`` holds back cancellation of the task until the block is left.

    Whatever cancels the task from outside meanwhile (``Task.cancel()``, a scope, a group, a time limit) does so
    at the first await after the block. What began inside of the block works as usual: a time limit around the
    clean-up belongs there. Entered once, by the task that is shielded; RuntimeError otherwise.
    """

    __slots__ = ("__weakref__", "_held", "_outer", "_parent", "_task", "_token")

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._outer: Shield | None = None
        self._parent: Shield | None = None
        self._token: Token[Shield | None] | None = None
        self._held: list[Request | tuple[Any, Shield | None]] = []

    def __enter__(self) -> Shield:
        if self._token is not None:
            raise RuntimeError(f"{self!r} was entered before; make another")
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("tideloop.shield() shields a task; none is running")
        self._outer = _shield_of(task)
        self._parent = _inside.get()
        try:
            task.cancel = self._cancel  # type: ignore[method-assign]
        except AttributeError:
            raise RuntimeError(f"{task!r} cannot be shielded: it takes no attributes") from None
        self._task = task
        self._token = _inside.set(self)
        keep_contexts(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = self._task
        assert task is not None
        assert self._token is not None
        self._task = None
        keep_contexts(False)
        with contextlib.suppress(ValueError):  # left in another context than entered, as a generator may be
            _inside.reset(self._token)
        if self._outer is not None:
            task.cancel = self._outer._cancel  # type: ignore[method-assign]
        else:
            del task.cancel
        held, self._held = self._held, []
        for item in held:
            if isinstance(item, Request):
                item.pursue()
                continue
            if self._outer is not None:
                self._outer._receive(*item)
            else:
                task.cancel(item[0])
            if _MARK_STAYS:
                task.uncancel = _Uncancel(task)  # type: ignore[method-assign]

    def hold(self, request: Request) -> None:
        self._held.append(request)

    def let_go(self, request: Request) -> None:
        self._held.remove(request)

    def _cancel(self, msg: Any = None) -> bool:
        """In the place of the task's cancel()."""
        task = self._task
        if task is None or task.done():
            return False
        return self._receive(msg, _inside.get())

    def _receive(self, message: Any, origin: Shield | None) -> bool:
        task = self._task
        assert task is not None
        within = origin
        while within is not None and within is not self:
            within = within._parent
        if within is self:
            return type(task).cancel(task, message)
        self._held.append((message, origin))
        return True

    def __repr__(self) -> str:
        state = "unused" if self._token is None else "left" if self._task is None else f"holding {len(self._held)}"
        return f"<tideloop.Shield {state}>"
