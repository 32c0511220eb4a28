"""Failures that nobody has asked for: told of while the task is still there, not when it is collected at last.

asyncio tells of them when the task is destroyed, which is never if somebody keeps it. A loop that counts tasks
(``observe="tasks"``) looks again some seconds after a task has failed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

__all__ = ["Unretrieved", "off_unretrieved", "on_unretrieved", "set_unretrieved_after", "unretrieved_after"]

_logger = logging.getLogger("tideloop")

_KEPT = 64


class Unretrieved(NamedTuple):
    """A task that has failed, and nobody has asked for its exception in the seconds since."""

    task: asyncio.Task[Any]
    exception: BaseException
    age: float
    """Seconds since it has failed."""

    def __str__(self) -> str:
        from tideloop.observe.tasks import qualified

        name, coroutine = self.task.get_name(), qualified(self.task.get_coro())
        words = f"nobody has asked for the exception of task {name!r}, {coroutine}, for {self.age:.1f} s"
        return f"{words}: {self.exception!r}"


class Told(NamedTuple):
    """One that was told of, in words."""

    task: str
    coroutine: str
    exception: str
    at: float
    """``time.monotonic()`` at which it failed, or nearly."""


_Hook = TypeVar("_Hook", bound=Callable[[Unretrieved], object])

_hooks: list[Callable[[Unretrieved], object]] = []
_after = 2.0

# Of each loop: the tasks that have failed, since when it is waited for somebody to ask, and when they have failed.
_Expected: TypeAlias = deque[tuple[weakref.ref[asyncio.Task[Any]], float, float]]
_expected: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Expected] = weakref.WeakKeyDictionary()
_told: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, deque[Told]] = weakref.WeakKeyDictionary()


def on_unretrieved(hook: _Hook) -> _Hook:
    """Call ``hook(unretrieved)`` for each failure that nobody has asked for in time; a decorator.

    It is called by the loop, as a callback of its own; what it raises goes to the loop's exception handler. Each is
    logged as well, as an error of the logger ``tideloop``. Loops tell of them that are made with ``observe="tasks"``.
    """
    if not callable(hook):
        raise TypeError(f"hook is {hook!r}; expected a callable")
    _hooks.append(hook)
    return hook


def off_unretrieved(hook: Callable[[Unretrieved], object]) -> None:
    """Call the hook no more. Raises ValueError if it is none."""
    if hook not in _hooks:
        raise ValueError(f"{hook!r} was not given to on_unretrieved()")
    _hooks.remove(hook)


def unretrieved_after() -> float:
    """After how many seconds a failure is told of that nobody has asked for."""
    return _after


def set_unretrieved_after(seconds: float) -> None:
    """Set after how many seconds of the loop's time that is: 2 unless it is set. Raises ValueError for no such time."""
    global _after
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds is {seconds!r}; expected a number >= 0")
    _after = seconds


def expect(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """A task has failed: look again later."""
    if not getattr(task, "_log_traceback", True):
        return
    expected = _expected.get(loop)
    if expected is None:
        expected = _expected[loop] = deque()
    now = loop.time()
    expected.append((weakref.ref(task), now, now))
    if len(expected) == 1:
        loop.call_later(_after, _look, weakref.ref(loop))


def _look(owner: weakref.ref[asyncio.AbstractEventLoop]) -> None:
    loop = owner()
    expected = _expected.get(loop) if loop is not None else None
    if loop is None or not expected:
        return
    now = loop.time()
    later = []
    gathered: set[int] | None = None
    try:
        while expected and expected[0][1] + _after <= now + 1e-6:
            seen, _, failed = expected.popleft()
            task = seen()
            # asyncio's own mark: somebody would be told of it when it is destroyed.
            if task is not None and getattr(task, "_log_traceback", False):
                if gathered is None:
                    gathered = _gathered(loop)
                if id(task) in gathered:
                    later.append((seen, now, failed))
                else:
                    _tell(loop, task, now - failed)
    finally:
        # What is told of may raise anything.
        expected.extend(later)
        if expected:
            loop.call_at(expected[0][1] + _after, _look, owner)


def _gathered(loop: asyncio.AbstractEventLoop) -> set[int]:
    """The tasks whose exceptions a gather() that somebody awaits will ask for when the others have ended."""
    waiters = [getattr(task, "_fut_waiter", None) for task in asyncio.all_tasks(loop)]
    return {id(child) for waiter in waiters for child in getattr(waiter, "_children", None) or ()}


def _tell(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], age: float) -> None:
    from tideloop.observe.tasks import qualified

    # Not by exception(), which would count as asking.
    exception: BaseException | None = getattr(task, "_exception", None)
    if exception is None:
        return
    unretrieved = Unretrieved(task, exception, age)
    told = _told.get(loop)
    if told is None:
        told = _told[loop] = deque(maxlen=_KEPT)
    told.append(Told(task.get_name(), qualified(task.get_coro()), repr(exception), time.monotonic() - age))
    _logger.error("%s", unretrieved, exc_info=exception)
    for hook in tuple(_hooks):
        loop.call_soon(hook, unretrieved)


def told_of(loop: asyncio.AbstractEventLoop) -> list[Told]:
    """The last failures of a loop that were told of."""
    return list(_told.get(loop, ()))
