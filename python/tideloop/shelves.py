"""What a pool has and owes, key by key: Resource, Shelf. Kept by the pool; decides nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from typing import Any, Generic, TypeVar

__all__ = ["Arrival", "Resource", "Shelf"]

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


Arrival = tuple[int, "asyncio.Future[Resource[_T]]"]
"""Who waits, with when he came: a number that grows over all keys."""


class Shelf(Generic[_T]):
    """The resources of one key, and who waits for them."""

    __slots__ = ("creating", "idle", "key", "size", "waiters")

    def __init__(self, key: Any) -> None:
        self.key = key
        self.idle: deque[Resource[_T]] = deque()
        self.waiters: deque[Arrival[_T]] = deque()
        # Idle, borrowed, being made, reset or closed.
        self.size = 0
        self.creating = 0

    def first(self) -> Arrival[_T] | None:
        """Who has waited longest and still does."""
        while self.waiters and self.waiters[0][1].done():
            self.waiters.popleft()
        return self.waiters[0] if self.waiters else None

    def first_unserved(self) -> int | None:
        """When he came who has waited longest of those for whom none is being made."""
        waiting = (number for number, waiter in self.waiters if not waiter.done())
        return next(itertools.islice(waiting, self.creating, None), None)

    def give_first(self, resource: Resource[_T]) -> None:
        """To who has waited longest; there has to be one."""
        self.waiters.popleft()[1].set_result(resource)

    def fail_first(self, error: BaseException) -> bool:
        """Tell who has waited longest of a failure; whether there was one."""
        if self.first() is None:
            return False
        self.waiters.popleft()[1].set_exception(error)
        return True

    def queue(self, arrival: Arrival[_T]) -> None:
        """Let somebody wait: at the end, or, if he comes again, before those who came later."""
        behind = 0
        while behind < len(self.waiters) and self.waiters[-1 - behind][0] > arrival[0]:
            behind += 1
        self.waiters.insert(len(self.waiters) - behind, arrival)

    def lay(self, resource: Resource[_T]) -> None:
        """Among the idle ones, where it belongs: the last one has been idle for the shortest time."""
        after = 0
        while after < len(self.idle) and self.idle[-1 - after].idle_since > resource.idle_since:
            after += 1
        self.idle.insert(len(self.idle) - after, resource)

    def waiting(self, most: int | None = None) -> int:
        """How many wait; not counted beyond `most`."""
        return sum(1 for _ in itertools.islice((w for _, w in self.waiters if not w.done()), most))
