"""Keeping a pool's house: who is worn, who is replaced in time, who is kept alive.

**Replacing.** A resource of the minimum whose time is nearly over is replaced before it is: when what is left is twice
what making another takes, that is begun, if there is room for it. Until it is there the old one is lent as before; then
it goes, as soon as it is idle. What is above the minimum is not replaced.

**Keeping alive.** What is idle for long may be cut off by whatever stands between it and its backend, which nobody sees
before it is used. `check` every `keepalive` seconds is traffic, and finds out. One at a time, so that the others can be
lent meanwhile; what was checked lies where it lay before, and has aged.
"""

from __future__ import annotations

import logging
import math
from typing import TypeVar

from tideloop.pool_upkeep import Upkeep
from tideloop.shelves import Resource

__all__ = ["Housekeeping"]

_T = TypeVar("_T")

_log = logging.getLogger("tideloop.pools")

_ROUND, _SHORTEST_ROUND = 1.0, 0.05
"""Seconds to the next round at least, as each looks at all that is there: in general, and where lives are short."""


class Housekeeping(Upkeep[_T]):
    """What goes, and what is done lest it goes."""

    def _is_worn(self, resource: Resource[_T], now: float) -> bool:
        return (
            now >= resource.expires
            or resource.uses >= self._max_uses
            or (now - resource.idle_since >= self._max_idle and self._lasting() > self._min)
        )

    def _came(self, resource: Resource[_T]) -> None:
        if self._min and not self._closed:
            # It may be lent when its time comes, and is to be replaced all the same.
            self._schedule_housekeeping(resource.expires - self._lead)
            self._replace()

    def _after_leaving(self) -> None:
        super()._after_leaving()
        if self._min and not self._closed:
            self._replace()

    def _is_replaced(self) -> bool:
        """Whether one may go whose time is not quite over, since there are enough without it."""
        return self._lasting() - self._creating - self._last_loans > self._min

    def _due(self, resource: Resource[_T]) -> float:
        """When to look at one that is idle."""
        due = min(resource.expires, resource.idle_since + self._max_idle)
        return due if self._keeper is not None else min(due, resource.checked + self._keepalive)

    def _schedule_housekeeping(self, due: float) -> None:
        """Look at what is there at that time, or at the time that is planned if that is earlier."""
        assert self._loop is not None
        pause = max(min(_ROUND, self._max_lifetime / 20), _SHORTEST_ROUND) if self._min else _ROUND
        due = max(due, self._loop.time() + pause)
        if due < self._planned:
            if self._housekeeping is not None:
                self._housekeeping.cancel()
            self._planned = due
            self._housekeeping = self._loop.call_at(due, self._keep_house)

    def _keep_house(self) -> None:
        self._housekeeping = None
        self._planned = math.inf
        if self._closed:
            return
        assert self._loop is not None
        now = self._loop.time()
        if self._min:
            self._replace()
        for shelf in list(self._shelves.values()):
            # One after the other: the first that goes may leave the minimum.
            for resource in list(shelf.idle):
                # Letting one go may have others served, by the next of these.
                if self._is_worn(resource, now) and resource in shelf.idle:
                    shelf.idle.remove(resource)
                    self._retire(resource)
        if self._keeper is None and self._longest_unchecked(now) is not None:
            self._keeper = self._spawn(self._keep_alive())
        self._plan()

    def _plan(self) -> None:
        """Have the next round when there is something to do for it."""
        idle = (resource for shelf in self._shelves.values() for resource in shelf.idle)
        due = min(map(self._due, idle), default=math.inf)
        if self._min:
            due = min(due, min((resource.expires for resource in self._resources), default=math.inf) - self._lead)
        self._schedule_housekeeping(due)

    def _replace(self) -> None:
        """Begin to make what replaces those of the minimum whose time is nearly over, and let go what is replaced."""
        assert self._loop is not None
        now = self._loop.time()
        for resource in sorted(self._resources, key=lambda resource: resource.expires):
            if resource.expires - self._lead > now:
                break
            if resource not in self._resources:
                continue  # gone meanwhile: letting one go comes here again
            if self._is_replaced():
                if resource in resource.shelf.idle:
                    resource.shelf.idle.remove(resource)
                    self._retire(resource)
            elif not self._creating and self._again is None and self._size < self._max:
                self._begin_to_create(resource.shelf)

    # --- keeping alive ----------------------------------------------------------------------

    def _longest_unchecked(self, now: float) -> Resource[_T] | None:
        """Of those that are idle and due, the one that was seen alive longest ago."""
        idle = (resource for shelf in self._shelves.values() for resource in shelf.idle)
        due = (resource for resource in idle if resource.checked + self._keepalive <= now)
        return min(due, key=lambda resource: resource.checked, default=None)

    async def _keep_alive(self) -> None:
        """Check those that are due, one after the other."""
        assert self._loop is not None
        assert self._check is not None
        try:
            while not self._closed and (resource := self._longest_unchecked(self._loop.time())) is not None:
                resource.shelf.idle.remove(resource)
                await self._see_to(resource)
        finally:
            self._keeper = None
            if not self._closed:
                self._plan()

    async def _see_to(self, resource: Resource[_T]) -> None:
        """Check one that nobody else has; it is idle again, or goes."""
        assert self._loop is not None
        assert self._check is not None
        good = False
        try:
            good = await self._bounded(self._check(resource.value)) is not False
        except Exception as error:
            _log.info("%r: a resource that was idle has failed its check: %r", self, error)
        finally:
            if good:
                resource.checked = self._loop.time()
                self._put_back(resource)
                shelf = resource.shelf
                if shelf.idle and shelf.idle[-1] is resource:
                    shelf.idle.pop()
                    shelf.lay(resource)
            else:
                self._retire(resource)
