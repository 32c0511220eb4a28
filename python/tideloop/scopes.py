"""Cancel scopes: move_on_after(), fail_after(), CancelScope, shield().

A scope cancels a block instead of a task. It is built on asyncio's own cancellation (``Task.cancel()`` and
``uncancel()``), so it nests with ``asyncio.timeout()`` and task groups in any order, and a CancelledError is
raised once, at the await where the task is or at its next one; code that catches it goes on until it awaits
something that is cancelled again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, TypeVar, overload

from tideloop import accelerated
from tideloop.cancellation import Request, Shield

__all__ = ["CancelScope", "fail_after", "move_on_after", "shield"]

_T = TypeVar("_T")


class CancelScope:
    """A block that can be cancelled: ``with tideloop.CancelScope() as scope: ...``.

    `deadline` is a time of ``loop.time()``, infinite if there is none, and may be set at any time before the block is
    left. A deadline that has passed cancels at the block's first await that really waits. Belongs to one loop;
    entered once, by the task it will cancel (RuntimeError otherwise).
    """

    __slots__ = (
        "_cancel_called",
        "_cancelled_caught",
        "_deadline",
        "_delay",
        "_request",
        "_stage",
        "_timer",
        "name",
    )

    _CREATED, _OPEN, _LEFT = "unused", "open", "left"

    def __init__(self, *, deadline: float = math.inf, name: str | None = None) -> None:
        self.name = name
        self._deadline = deadline if deadline is math.inf else _number("deadline", deadline)
        self._delay: float | None = None
        self._stage = self._CREATED
        self._request: Request | None = None
        self._timer: asyncio.Handle | None = None
        self._cancel_called = False
        self._cancelled_caught = False

    @property
    def deadline(self) -> float:
        """When the block is cancelled, in ``loop.time()``; ``math.inf`` is never."""
        return self._deadline

    @deadline.setter
    def deadline(self, when: float) -> None:
        self._deadline = _number("deadline", when)
        self._delay = None
        if self._stage is self._OPEN:
            self._arm()

    @property
    def cancel_called(self) -> bool:
        """Whether the scope was cancelled, by its deadline or by cancel()."""
        return self._cancel_called

    @property
    def cancelled_caught(self) -> bool:
        """Whether the block was left by this scope's cancellation; False inside of it."""
        return self._cancelled_caught

    def cancel(self, message: Any = None) -> None:
        """Cancel the block. On the scope's loop; does nothing once the block is left.

        Raises RuntimeError before the block is entered.
        """
        if self._stage is self._CREATED:
            raise RuntimeError(f"{self!r} was not entered; there is nothing to cancel")
        if self._stage is self._OPEN:
            assert self._request is not None
            self._cancel_called = True
            self._request.make(message)

    def __enter__(self) -> CancelScope:
        if self._stage is not self._CREATED:
            raise RuntimeError(f"{self!r} was entered before; make another")
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError(f"{self!r} cancels a task; none is running")
        self._request = Request(task)
        self._stage = self._OPEN
        delay = self._delay
        if delay is not None:
            loop = task.get_loop()
            self._deadline = when = loop.time() + delay
            self._timer = loop.call_at(when, self._expire) if delay > 0 else loop.call_soon(self._expire)
        elif self._deadline is not math.inf:
            self._arm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._stage = self._LEFT
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._cancel_called:
            return False
        assert self._request is not None
        alone = self._request.take_back()
        self._cancelled_caught = alone and isinstance(error, asyncio.CancelledError)
        if self._cancelled_caught:
            self._caught(error)
        return self._cancelled_caught

    def _caught(self, error: BaseException | None) -> None:
        """The block was left by this scope's cancellation."""

    def _arm(self) -> None:
        assert self._request is not None
        loop = self._request.task.get_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._deadline <= loop.time():
            self._timer = loop.call_soon(self._expire)
        elif self._deadline != math.inf:
            self._timer = loop.call_at(self._deadline, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self.cancel()

    def __repr__(self) -> str:
        words = [f"<tideloop.{type(self).__name__}"]
        if self.name is not None:
            words.append(repr(self.name))
        words.append(self._stage)
        if self._delay is not None and self._stage is self._CREATED:
            words.append(f"delay={self._delay:g}")
        elif self._deadline != math.inf:
            words.append(f"deadline={self._deadline:.6f}")
        if self.cancel_called:
            words.append("cancelled")
        return " ".join(words) + ">"


class _FailScope(CancelScope):
    """A scope that tells of its end by TimeoutError."""

    __slots__ = ()

    def _caught(self, error: BaseException | None) -> None:
        raise TimeoutError(f"{self.name or 'the block'} was not done in time") from error


def move_on_after(delay: float | None, *, name: str | None = None) -> CancelScope:
    """A scope that is cancelled `delay` seconds after it is entered, and then goes on behind the block.

    None is no limit; 0 and less cancel at the first await. ``scope.cancelled_caught`` tells which it was.
    """
    return _after(CancelScope(name=name), delay)


def fail_after(delay: float | None, *, name: str | None = None) -> CancelScope:
    """As move_on_after(), but raises TimeoutError if the block was cancelled: by its deadline or by cancel()."""
    return _after(_FailScope(name=name), delay)


def _after(scope: CancelScope, delay: float | None) -> CancelScope:
    if delay is not None:
        kind = type(delay)
        if kind is not int and (kind is not float or not delay < math.inf):  # the usual ones need no second look
            delay = _number("delay", delay)
        scope._delay = None if delay == math.inf else delay
    return scope


def _number(what: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number of seconds, not {value!r}")
    if math.isnan(value):
        raise ValueError(f"{what} must be a number of seconds, not nan")
    return value


class _Nothing:
    pass


_NOTHING = _Nothing()


@overload
def shield() -> Shield: ...
@overload
def shield(arg: Awaitable[_T]) -> asyncio.Future[_T]: ...
def shield(arg: Awaitable[Any] | _Nothing = _NOTHING) -> Any:
    """With an argument it is ``asyncio.shield(awaitable)``; without one, a scope: ``with tideloop.shield():``.

    asyncio's protects the awaitable and lets go of the awaiting task at once. The scope keeps the task itself from
    being cancelled until the block is done; see Shield.
    """
    if isinstance(arg, _Nothing):
        return Shield()
    return accelerated.shield(arg)
