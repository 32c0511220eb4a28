"""Pools: Pool. Resources that are expensive to make and are lent out one at a time.

Database connections, browser pages, open files. How it is done, and why:

* **Who makes a resource is the pool**, in a task of its own, never the borrower: so a borrower who is cancelled harms
  nobody, and what was made for him goes to the next. A creation that fails is told to the one who has waited longest,
  and its place is free again.
* **Idle resources are lent last in, first out**, so that those that are not needed come of age and go; **borrowers are
  served first come, first served**, over all keys.
* **A resource that was handed to a borrower who was cancelled before he saw it** comes back like any other.
* **Worn resources** (too old, used too often, too long idle) go; those of the minimum are replaced, and where there is
  room the new one is there before the old one leaves. Ages vary by `jitter`, so that what was made together does not go
  together.
* **Nothing is awaited in the way of leaving a block**: resetting and closing happen in the pool's own tasks.

The controls are HikariCP's (Wooldridge); its essay "About Pool Sizing" is why `max` is small by default. Works on
every asyncio loop. A pool belongs to the loop that it is first used in.

The parts: what is there and who waits for it (`shelves`), who gets it when (`lending`, `turns`), a loan (`leases`),
what is made and closed (`pool_upkeep`), what is replaced and kept alive (`pool_housekeeping`), and pools with keys
(`keyed_pools`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, Unpack, overload

from tideloop._tideloop import Enlisted, enlist
from tideloop.leases import Lease
from tideloop.lending import Lender
from tideloop.pool_options import PoolClosed, PoolOptions, PoolStats, PoolTimeout
from tideloop.shelves import Shelf

__all__ = ["Lease", "Pool", "PoolClosed", "PoolStats", "PoolTimeout"]

_T = TypeVar("_T")


class Pool(Enlisted, Lender[_T]):
    """Resources of one kind: ``async with pool.acquire() as connection: ...``.

    `create` makes one; `close` ends it; `check` is asked before one that was idle for half a second is lent, and says
    False or raises if it is broken; `reset` makes one ready for the next borrower when it comes back. Each may be a
    plain or, apart from what it says, an async function. There are at least `min` (once the pool is entered), at most
    `max`, and `create_limit` are made at a time. `max_idle` is in seconds, and holds for those above `min`;
    `max_lifetime` in seconds, less up to `jitter` of it; `max_uses` in loans. None is no limit. With `keepalive`
    seconds `check` is asked as well whenever one was idle for so long; it has `close_timeout`, and is no use of it.

    ``async with pool:`` makes the minimum, and closes the pool at its end. Who waits longer than `acquire_timeout`
    seconds, or the deadline() of his context, gets PoolTimeout; that time is for all of it, whatever has to be tried
    again. With `leak_after` seconds a loan that is longer is logged with the stack of the borrower.

    A creation is cancelled after `create_timeout` seconds, and has failed once it has heeded that; a reset or a close
    is after `close_timeout`, and is waited for no longer, even if it does not heed that. Where making the minimum has
    failed, it is tried again after a pause. The functions, apart from `check`, run in the context in which the pool was
    made; `check` is a part of the borrower's waiting: if he is cancelled in it, the resource is closed.
    """

    @overload
    def __init__(
        self,
        create: Callable[[], Awaitable[_T]],
        close: Callable[[_T], Any] | None = None,
        **options: Unpack[PoolOptions],
    ) -> None: ...

    @overload
    def __init__(
        self, create: Callable[[], _T], close: Callable[[_T], Any] | None = None, **options: Unpack[PoolOptions]
    ) -> None: ...

    def __init__(
        self,
        create: Callable[[], Awaitable[_T] | _T],
        close: Callable[[_T], Any] | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        super().__init__(create, close, **options)
        self._only: Shelf[_T] = Shelf(None)
        enlist(self)

    def acquire(self) -> Lease[_T]:
        """Borrow one: ``async with pool.acquire() as resource:``, or ``lease = await pool.acquire()``.

        Raises PoolTimeout, PoolClosed, and what `create` has raised for the one who has waited longest. Cancelled,
        nothing is lent, and what was on its way goes to the next.
        """
        return Lease(self, self._only)

    def resize(self, *, min: int | None = None, max: int | None = None) -> None:
        """Change the limits. More room is used at once; what is too much goes when it comes back, idle ones at once."""
        self._resize(self._min if min is None else min, self._max if max is None else max)

    def _minimum_lacks(self) -> bool:
        return not self._closed and self._size < self._max and self._lasting() - self._last_loans < self._min

    def _refill_one(self) -> None:
        self._shelves.setdefault(None, self._only)
        self._begin_to_create(self._only)

    def _sweep(self, shelf: Shelf[_T]) -> None:
        """The only one stays."""
