"""Pools with keys: KeyedPool. As many kinds of resources as there are keys, under one limit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar, Unpack, overload

from tideloop._tideloop import Enlisted, enlist
from tideloop.leases import Lease
from tideloop.lending import Lender
from tideloop.pool_options import KeyedPoolOptions, count
from tideloop.shelves import Resource, Shelf

__all__ = ["KeyedPool"]

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)


class KeyedPool(Enlisted, Lender[_T], Generic[_K, _T]):
    """Resources by key, like connections by host: ``async with pool.acquire("example.org") as connection: ...``.

    As Pool; `create` is given the key. At most `max_per_key` of each, `max` of all. Where all places are taken, the
    resource that was idle longest makes room for another key, and who has waited longest has the next place, whatever
    his key. A key of which nothing is left is forgotten.
    """

    @overload
    def __init__(
        self,
        create: Callable[[_K], Awaitable[_T]],
        close: Callable[[_T], Any] | None = None,
        *,
        max_per_key: int = 10,
        max: int = 100,
        **options: Unpack[KeyedPoolOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        create: Callable[[_K], _T],
        close: Callable[[_T], Any] | None = None,
        *,
        max_per_key: int = 10,
        max: int = 100,
        **options: Unpack[KeyedPoolOptions],
    ) -> None: ...

    def __init__(
        self,
        create: Callable[[_K], Awaitable[_T] | _T],
        close: Callable[[_T], Any] | None = None,
        *,
        max_per_key: int = 10,
        max: int = 100,
        **options: Unpack[KeyedPoolOptions],
    ) -> None:
        if "min" in options:
            raise TypeError("a pool with keys takes no min")
        super().__init__(create, close, max=max, **options)
        self._with_idle: dict[Shelf[_T], None] = {}
        self._max_per_key = count("max_per_key", max_per_key)
        enlist(self)

    def acquire(self, key: _K) -> Lease[_T]:
        """Borrow one of a key. See Pool.acquire()."""
        shelf = self._shelves.get(key)
        return Lease(self, Shelf(key) if shelf is None else shelf)

    def resize(self, *, max: int) -> None:
        """Change how many there may be in all, as Pool.resize() does."""
        self._resize(0, max)

    def _limit(self, shelf: Shelf[_T]) -> int:
        return self._max_per_key

    def _lay_down(self, shelf: Shelf[_T], resource: Resource[_T]) -> None:
        self._with_idle[shelf] = None
        super()._lay_down(shelf, resource)

    def _stocked(self) -> Iterable[Shelf[_T]]:
        """Not all shelves: there may be many more keys that somebody waits for than resources."""
        for shelf in [shelf for shelf in self._with_idle if not shelf.idle]:
            del self._with_idle[shelf]
        return self._with_idle

    def _sweep(self, shelf: Shelf[_T]) -> None:
        super()._sweep(shelf)
        if not shelf.size:
            self._with_idle.pop(shelf, None)

    def _ask_for_one(self, shelf: Shelf[_T]) -> Awaitable[_T] | _T:
        return self._create(shelf.key)
