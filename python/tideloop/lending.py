"""Lending: who gets a resource of a pool, and when. What both kinds of pools are."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TypeVar

from tideloop.deadlines import remaining
from tideloop.durations import seconds
from tideloop.pool_housekeeping import Housekeeping
from tideloop.pool_options import PoolClosed, PoolStats, PoolTimeout, bounds
from tideloop.shelves import Resource, Shelf
from tideloop.turns import Turns

__all__ = ["Lender"]

_T = TypeVar("_T")
_L = TypeVar("_L", bound="Lender[Any]")

_log = logging.getLogger("tideloop.pools")

_running_loop = asyncio.get_running_loop

_CHECKED_AFTER = 0.5
"""Seconds that a resource must have been idle to be checked when it is lent (HikariCP's alive-bypass window)."""


class Lender(Housekeeping[_T]):
    """What is idle, lent and owed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._turns: Turns[_T] = Turns(self._limit)
        # With something idle that is owed to another key, and somebody who waits.
        self._withheld: set[Shelf[_T]] = set()
        # Tasks that wait; those included that were given something and have not seen it yet.
        self._waiting = 0

    # --- for the user -----------------------------------------------------------------------

    async def __aenter__(self: _L) -> _L:
        self._enter_loop()
        self._refill()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def drain(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Lend nothing any more, and wait until all has come back: `timeout` seconds at most, None is for ever.

        Those who wait get PoolClosed. Idle resources are closed at once, the others when they come back. Returns
        whether all has come back and is closed.
        """
        limit = math.inf if timeout is None else seconds("timeout", timeout)
        self._enter_loop()
        self._shut()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit
        while self._size and loop.time() < deadline:
            await self._emptied.wait(deadline)
        return not self._size

    async def aclose(self) -> None:
        """Lend nothing any more, and close what is idle; what is lent is closed when it comes back.

        Returns when all that is not lent is closed. Creations have `close_timeout` seconds to come to their end before
        they are cancelled: half-made, a resource may be lost that nobody closes. Cancelled, closing goes on.
        """
        self._enter_loop()
        self._shut()
        # One that asks may be the pool's own, a hook's.
        own = {current := asyncio.current_task(), self._hooks.get(current)}
        if making := self._making - own:
            await asyncio.wait(making, timeout=None if self._close_timeout == math.inf else self._close_timeout)
        for task in self._making - own:
            task.cancel()
        while tasks := self._tasks - own:
            await asyncio.wait(tasks)

    def _resize(self, min: int, max: int) -> None:
        self._min, self._max = bounds(min, max)
        for shelf in self._shelves.values():
            self._turns.note(shelf)
        while self._lasting() > self._max and (resource := self._oldest_idle()) is not None:
            self._retire(resource)
        if self._loop is not None:
            self._serve()
            self._refill()

    def stats(self) -> PoolStats:
        """The pool in numbers."""
        shelves = self._shelves.values()
        return PoolStats(
            sum(len(shelf.idle) for shelf in shelves),
            self._borrowed,
            self._creating,
            sum(shelf.waiting() for shelf in shelves),
            self._lent,
            self._waited,
            self._timeouts,
            self._created,
            self._failed,
            self._retired,
            self._leaked,
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._borrowed} of {self._max} lent"
        return f"<tideloop.{type(self).__name__} {f'{self.name!r} ' if self.name else ''}{state}>"

    # --- lending ----------------------------------------------------------------------------

    def _enter_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(f"{self!r} belongs to another event loop")

    def _limit(self, shelf: Shelf[_T]) -> int:
        """How many resources a shelf may have."""
        return self._max

    def _take(self, shelf: Shelf[_T]) -> Resource[_T] | None:
        """A resource that can be lent without waiting."""
        loop = self._loop
        idle = shelf.idle
        if not idle or self._check is not None or shelf.waiters or loop is None:
            return None
        if _running_loop() is not loop:
            self._enter_loop()
        now = loop.time()
        while idle:
            resource = idle.pop()
            # What almost always happens; two calls less than by _is_worn() and _lend().
            if (
                now < resource.expires
                and resource.uses < self._max_uses
                and (now - resource.idle_since < self._max_idle or self._lasting() <= self._min)
            ):
                self._lent += 1
                self._borrowed += 1
                resource.uses += 1
                if self._min and resource.uses >= self._max_uses:
                    self._lend_last(resource)
                return resource
            self._retire(resource)
        return None

    async def _wait(self, shelf: Shelf[_T]) -> Resource[_T]:
        """A resource, in turn; one that was idle is checked first, if the pool checks."""
        self._enter_loop()
        assert self._loop is not None
        began = self._loop.time()
        deadline = began + min(self._acquire_timeout, remaining())
        self._arrivals += 1
        arrival = self._arrivals
        while True:
            if self._closed:
                raise PoolClosed(f"{self!r} lends nothing any more")
            resource = await self._next(shelf, deadline, arrival)
            if self._check is None or resource.checked > self._loop.time() - _CHECKED_AFTER or not resource.uses:
                break
            if await self._is_good(resource, deadline):
                break
        self._waited += self._loop.time() - began
        self._lend(resource)
        return resource

    async def _next(self, shelf: Shelf[_T], deadline: float, number: int) -> Resource[_T]:
        assert self._loop is not None
        now = self._loop.time()
        shelf = self._shelves.get(shelf.key, shelf)
        while shelf.idle and shelf.first() is None:
            resource = shelf.idle.pop()
            if not self._is_worn(resource, now):
                return resource
            self._retire(resource)
        # It may have been swept away while nobody used it, also by that, and another one have come in its place.
        shelf = self._shelves.setdefault(shelf.key, shelf)
        waiter: asyncio.Future[Resource[_T]] = self._loop.create_future()
        shelf.queue(number, waiter)
        self._waiting += 1
        self._turns.note(shelf)
        self._serve()
        timer = None if deadline == math.inf else self._loop.call_at(deadline, self._expire, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # Handed over, and not seen any more.
                self._put_back(waiter.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._waiting -= 1
            if not waiter.done() or waiter.cancelled() or waiter.exception() is not None:
                # Whoever gives takes him off; who has given up does so himself.
                shelf.waiters.pop(number, None)
                if len(self._shelves) > 1:
                    self._serve()
            self._sweep(shelf)

    def _expire(self, waiter: asyncio.Future[Resource[_T]]) -> None:
        if not waiter.done():
            self._timeouts += 1
            waiter.set_exception(
                PoolTimeout(
                    f"no resource of {self!r} in time: {self._borrowed} lent, {self._creating} being made, "
                    f"{self._waiting - 1} others waiting"
                )
            )

    async def _is_good(self, resource: Resource[_T], deadline: float) -> bool:
        assert self._check is not None
        good = False
        try:
            async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                said = self._check(resource.value)
                if inspect.isawaitable(said):
                    said = await said
            good = said is not False
        except TimeoutError as error:
            if asyncio.get_running_loop().time() >= deadline:
                self._timeouts += 1
                raise PoolTimeout(f"the check of a resource of {self!r} was not done in time") from error
        except Exception as error:
            _log.info("%r: a resource has failed its check: %r", self, error)
        finally:
            if not good:
                self._retire(resource)
        return good

    def _lend(self, resource: Resource[_T]) -> None:
        self._lent += 1
        self._borrowed += 1
        resource.uses += 1
        if self._min and resource.uses >= self._max_uses:
            self._lend_last(resource)

    def _lend_last(self, resource: Resource[_T]) -> None:
        """It goes when it comes back, so what replaces it is made now."""
        resource.is_last_loan = True
        self._last_loans += 1
        self._refill()

    def _take_back(self, resource: Resource[_T], broken: bool) -> None:
        self._borrowed -= 1
        assert self._loop is not None
        if resource.is_last_loan:
            self._last_loans -= 1
        resource.idle_since = resource.checked = now = self._loop.time()
        if (
            broken
            or self._closed
            or self._size - self._leaving > self._max
            # _is_worn() of one that has not been idle yet: this is done after every loan.
            or now >= resource.expires
            or resource.uses >= self._max_uses
            or (self._max_idle == 0 and self._lasting() > self._min)
            or (self._min and now >= resource.expires - self._lead and self._is_replaced())
        ):
            self._retire(resource)
        elif self._reset is not None:
            self._spawn(self._reset_and_put_back(resource))
        elif (shelf := resource.shelf).waiters:
            self._put_back(resource)
        else:
            self._lay_down(shelf, resource)

    # --- who is next ------------------------------------------------------------------------

    def _put_back(self, resource: Resource[_T]) -> None:
        if self._closed or self._lasting() > self._max:
            self._retire(resource)
            return
        shelf = resource.shelf
        first = shelf.first() if shelf.waiters else None
        if first is None:
            self._lay_down(shelf, resource)
        elif not self._is_owed_elsewhere(first):
            shelf.give_first(resource)
            if self._withheld:
                # It may have been he for whom something was kept.
                self._give_withheld()
        else:
            # For whom it was made, if it was, is to have another.
            self._withheld.add(shelf)
            self._turns.note(shelf)
            self._lay_down(shelf, resource)

    def _lay_down(self, shelf: Shelf[_T], resource: Resource[_T]) -> None:
        """Among the idle ones: nobody is to have it now."""
        shelf.idle.append(resource)
        if resource.checked + self._looked_at < self._planned or resource.expires < self._planned:
            self._schedule_housekeeping(self._due(resource))
        if self._size >= self._max and len(self._shelves) > 1:
            # Somebody who waits for another key may have its place.
            self._serve()

    def _is_owed_elsewhere(self, arrival: int) -> bool:
        """Whether all places are taken, and somebody waits for another key who came earlier and could have one."""
        if self._size < self._max or len(self._shelves) < 2:
            return False
        earliest = self._turns.next({})
        return earliest is not None and earliest.turn is not None and earliest.turn < arrival

    def _serve(self) -> None:
        """Begin to make what is wanted, for those first who came first, whatever their key."""
        if self._closed:
            return
        if self._withheld:
            self._give_withheld()
        # Places that will be free, for those who came first.
        owed = 0
        promised: dict[Shelf[_T], int] = {}
        while self._creating + owed < self._create_limit and (shelf := self._turns.next(promised)) is not None:
            if self._size < self._max or self._make_room(owed):
                self._begin_to_create(shelf)
            elif owed < self._leaving:
                owed += 1
                promised[shelf] = promised.get(shelf, 0) + 1
            else:
                break
        for shelf in promised:
            self._turns.note(shelf)

    def _give_withheld(self) -> None:
        """What was kept for somebody else, who has given up or was served since."""
        for shelf in sorted(self._withheld, key=lambda shelf: shelf.first() or 0):
            while shelf.idle and (first := shelf.first()) is not None and not self._is_owed_elsewhere(first):
                shelf.give_first(shelf.idle.pop())
            if not shelf.idle or shelf.first() is None:
                self._withheld.discard(shelf)

    def _make_room(self, owed: int) -> bool:
        """Close what was idle longest, unless enough is on its way out; whether a place is free by now."""
        if self._leaving - self._slow <= owed and (resource := self._oldest_idle()) is not None:
            self._retire(resource)
        return self._size < self._max

    def _forget(self, shelf: Shelf[_T]) -> None:
        super()._forget(shelf)
        if shelf.waiters:
            self._turns.note(shelf)

    def _stocked(self) -> Iterable[Shelf[_T]]:
        """The shelves that may have something idle."""
        return self._shelves.values()

    def _oldest_idle(self) -> Resource[_T] | None:
        oldest = min(
            (shelf.idle[0] for shelf in self._stocked() if shelf.idle),
            key=lambda resource: resource.idle_since,
            default=None,
        )
        if oldest is not None:
            oldest.shelf.idle.popleft()
        return oldest

    def _shut(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._end_upkeep()
        for shelf in list(self._shelves.values()):
            while shelf.fail_first(PoolClosed(f"{self!r} lends nothing any more")):
                pass
            while shelf.idle:
                self._retire(shelf.idle.popleft())
