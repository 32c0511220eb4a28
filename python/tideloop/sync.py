"""Lock, Event, Condition, Semaphore, BoundedSemaphore and Barrier: asyncio's, with a native core.

Subclasses that override what asyncio's class calls on itself (``acquire``, ``locked``, …) get asyncio's
implementation.

Beyond asyncio's they have a ``name``, the keyword ``name=`` of the constructor or an attribute to be set, and tell by
``stats()`` how they are used. Neither changes what they do, and every call that asyncio's constructors take means the
same here. (A Barrier has neither.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tideloop import stock
from tideloop._tideloop import BarrierCore, ConditionCore, EventCore, LockCore, SemaphoreCore, function

__all__ = [
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "ConditionStats",
    "Event",
    "EventStats",
    "Lock",
    "LockStats",
    "Semaphore",
    "SemaphoreStats",
]


class SemaphoreStats(NamedTuple):
    """What ``Semaphore.stats()`` tells. A subclass that overrides asyncio's methods has no counts."""

    name: str | None
    value: int
    """Permits that are free."""
    waiting: int
    acquired: int
    """How often a permit was got, at once or after waiting."""
    waited: int
    """How often somebody got one who had to wait."""
    cancelled: int
    """How often somebody was cancelled who waited."""


class LockStats(NamedTuple):
    """What ``Lock.stats()`` tells; see SemaphoreStats."""

    name: str | None
    locked: bool
    waiting: int
    acquired: int
    waited: int
    cancelled: int


class EventStats(NamedTuple):
    """What ``Event.stats()`` tells."""

    name: str | None
    is_set: bool
    waiting: int


class ConditionStats(NamedTuple):
    """What ``Condition.stats()`` tells."""

    name: str | None
    locked: bool
    waiting: int
    """How many wait to be notified, the lock not among what they wait for."""


if TYPE_CHECKING:
    import asyncio
    from asyncio import Barrier

    class Event(asyncio.Event):
        name: str | None

        def __init__(self, *, name: str | None = None) -> None: ...

        def stats(self) -> EventStats: ...

    class Lock(asyncio.Lock):
        name: str | None

        def __init__(self, *, name: str | None = None) -> None: ...

        def stats(self) -> LockStats: ...

    class Semaphore(asyncio.Semaphore):
        name: str | None

        def __init__(self, value: int = 1, *, name: str | None = None) -> None: ...

        def stats(self) -> SemaphoreStats: ...

    class BoundedSemaphore(Semaphore, asyncio.BoundedSemaphore): ...

    class Condition(asyncio.Condition):
        name: str | None

        def __init__(self, lock: asyncio.Lock | None = None, *, name: str | None = None) -> None: ...

        def stats(self) -> ConditionStats: ...

else:

    def _overrides(cls, base, names):
        return any(getattr(cls, name, None) is not getattr(base, name, None) for name in names)

    def _describe(self, state):
        name = "" if self.name is None else f" {self.name!r}"
        return f"<{object.__repr__(self)[1:-1]}{name} [{state}]>"

    class Event(EventCore, stock.Event):
        __doc__ = stock.Event.__doc__
        __module__ = "tideloop"
        name = None

        def __init__(self, *, name=None):
            if name is not None:
                self.name = name

        def stats(self):
            return EventStats(self.name, self.is_set(), self._waiting())

        wait = function("Event.wait", stock.Event.wait)
        set = function("Event.set", stock.Event.set)
        clear = function("Event.clear", stock.Event.clear)
        is_set = function("Event.is_set", stock.Event.is_set)

        def __repr__(self):
            return _describe(self, self._state())

    class Lock(LockCore, stock.Lock):
        __doc__ = stock.Lock.__doc__
        __module__ = "tideloop"
        name = None

        def __init__(self, *, name=None):
            if name is not None:
                self.name = name
            cls = type(self)
            if cls is not Lock and _overrides(cls, Lock, ("acquire", "release", "_wake_up_first", "_get_loop")):
                self._divert()

        acquire = function("Lock.acquire", stock.Lock.acquire)
        release = function("Lock.release", stock.Lock.release)
        locked = function("Lock.locked", stock.Lock.locked)
        __aenter__ = function("Lock.__aenter__", stock.Lock.__aenter__)
        __aexit__ = function("Lock.__aexit__", stock.Lock.__aexit__)

        def stats(self):
            return LockStats(self.name, self.locked(), *self._tally())

        def __repr__(self):
            return _describe(self, self._state())

    class Semaphore(SemaphoreCore, stock.Semaphore):
        __doc__ = stock.Semaphore.__doc__
        __module__ = "tideloop"
        name = None

        def __init__(self, value=1, *, name=None):
            if value < 0:
                raise ValueError("Semaphore initial value must be >= 0")
            if name is not None:
                self.name = name
            self._value = value
            self._adapt(Semaphore)

        def _adapt(self, base):
            cls = type(self)
            if cls is not base and _overrides(
                cls, base, ("acquire", "release", "locked", "_wake_up_next", "_get_loop")
            ):
                self._divert()

        acquire = function("Semaphore.acquire", stock.Semaphore.acquire)
        release = function("Semaphore.release", stock.Semaphore.release)
        locked = function("Semaphore.locked", stock.Semaphore.locked)
        __aenter__ = function("Semaphore.__aenter__", stock.Semaphore.__aenter__)
        __aexit__ = function("Semaphore.__aexit__", stock.Semaphore.__aexit__)

        def stats(self):
            return SemaphoreStats(self.name, self._value, *self._tally())

        def __repr__(self):
            return _describe(self, self._state(self.locked()))

    class BoundedSemaphore(Semaphore, stock.BoundedSemaphore):
        __doc__ = stock.BoundedSemaphore.__doc__
        __module__ = "tideloop"

        def __init__(self, value=1, *, name=None):
            self._bound_value = value
            Semaphore.__init__(self, value, name=name)

        def _adapt(self, base):
            super()._adapt(BoundedSemaphore)

        release = function("Semaphore.release", stock.BoundedSemaphore.release)

    class Condition(ConditionCore, stock.Condition):
        __doc__ = stock.Condition.__doc__
        __module__ = "tideloop"

        name = None

        def __init__(self, lock=None, *, name=None):
            if name is not None:
                self.name = name
            if lock is None:
                lock = Lock()
            self._lock = lock
            self.locked, self.acquire, self.release = lock.locked, lock.acquire, lock.release
            cls = type(self)
            if cls is not Condition and _overrides(
                cls, Condition, ("wait", "notify", "_notify", "_get_loop", "acquire", "release", "locked")
            ):
                self._divert()

        wait = function("Condition.wait", stock.Condition.wait)
        wait_for = function("Condition.wait_for", stock.Condition.wait_for)
        notify = function("Condition.notify", stock.Condition.notify)
        notify_all = function("Condition.notify_all", stock.Condition.notify_all)
        __aenter__ = function("Condition.__aenter__", stock.Condition.__aenter__)
        __aexit__ = function("Condition.__aexit__", stock.Condition.__aexit__)

        def __repr__(self):
            return _describe(self, self._state(self.locked()))

        def stats(self):
            return ConditionStats(self.name, self.locked(), self._waiting())

    class Barrier(BarrierCore, stock.Barrier):
        __doc__ = stock.Barrier.__doc__
        __module__ = "tideloop"

        def __init__(self, parties):
            super().__init__(parties)
            self._cond = Condition()
            cls = type(self)
            if cls is not Barrier and _overrides(cls, Barrier, ("wait", "_block", "_release", "_wait", "_exit")):
                self._divert()

        wait = function("Barrier.wait", stock.Barrier.wait)
        __aenter__ = function("Barrier.__aenter__", stock.Barrier.__aenter__)
