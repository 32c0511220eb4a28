"""What a pool has and owes, key by key: Resource, Shelf. Kept by the pool; decides nothing."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import Any, Generic, TypeVar

__all__ = ["Resource", "Shelf"]

_T = TypeVar("_T")


class Resource(Generic[_T]):
    """Something that is lent, with its age."""

    __slots__ = ("checked", "expires", "idle_since", "is_last_loan", "shelf", "uses", "value")

    def __init__(self, value: _T, shelf: Shelf[_T], now: float, expires: float) -> None:
        self.value = value
        self.shelf = shelf
        self.uses = 0
        self.is_last_loan = False
        # When it was seen alive: used, made ready or checked.
        self.idle_since = self.checked = now
        self.expires = expires


class Shelf(Generic[_T]):
    """The resources of one key, and who waits for them."""

    __slots__ = ("creating", "idle", "key", "size", "turn", "waiters")

    def __init__(self, key: Any) -> None:
        self.key = key
        self.idle: deque[Resource[_T]] = deque()
        # Who waits, by when he came: a number that grows over all keys.
        self.waiters: OrderedDict[int, asyncio.Future[Resource[_T]]] = OrderedDict()
        # Idle, borrowed, being made, reset or closed.
        self.size = 0
        self.creating = 0
        # Where it stands among those of which one more is wanted; the pool's Turns know.
        self.turn: int | None = None

    def first(self) -> int | None:
        """When he came who has waited longest and still does."""
        return self._waiter(0)

    def unserved(self, ahead: int = 0) -> int | None:
        """When he came who has waited longest of those for whom none is being made, `ahead` of them left out."""
        return self._waiter(self.creating + ahead)

    def _waiter(self, ahead: int) -> int | None:
        """The first of those who wait, or a later one. Who has given up on the way is looked at once only."""
        gone = []
        found = None
        for number, waiter in self.waiters.items():
            if waiter.done():
                gone.append(number)
            elif ahead:
                ahead -= 1
            else:
                found = number
                break
        for number in gone:
            del self.waiters[number]
        return found

    def give_first(self, resource: Resource[_T]) -> None:
        """To who has waited longest; there has to be one."""
        first = self.first()
        assert first is not None
        self.waiters.pop(first).set_result(resource)

    def fail_first(self, error: BaseException) -> bool:
        """Tell who has waited longest of a failure; whether there was one."""
        first = self.first()
        if first is None:
            return False
        self.waiters.pop(first).set_exception(error)
        return True

    def queue(self, number: int, waiter: asyncio.Future[Resource[_T]]) -> None:
        """Let somebody wait: at the end, or, if he comes again, before those who came later."""
        later = []
        for other in reversed(self.waiters):
            if other < number:
                break
            later.append(other)
        self.waiters[number] = waiter
        for other in reversed(later):
            self.waiters.move_to_end(other)

    def lay(self, resource: Resource[_T]) -> None:
        """Among the idle ones, where it belongs: the last one has been idle for the shortest time."""
        after = 0
        while after < len(self.idle) and self.idle[-1 - after].idle_since > resource.idle_since:
            after += 1
        self.idle.insert(len(self.idle) - after, resource)

    def waiting(self) -> int:
        """How many wait."""
        return sum(1 for waiter in self.waiters.values() if not waiter.done())
