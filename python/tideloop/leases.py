"""Loans of a pool's resources: Lease."""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from tideloop.lending import Lender
    from tideloop.shelves import Resource, Shelf

__all__ = ["Lease"]

_T = TypeVar("_T")

_log = logging.getLogger("tideloop.pools")

_SHOWN = 12
"""Frames of a borrower's stack that a report shows."""


class Lease(Generic[_T]):
    """A loan: ``async with pool.acquire() as resource:``; or ``lease = await pool.acquire()``, ``lease.release()``."""

    __slots__ = ("_broken", "_pool", "_resource", "_shelf", "_timer")

    def __init__(self, pool: Lender[_T], shelf: Shelf[_T]) -> None:
        self._pool = pool
        self._shelf = shelf
        self._resource: Resource[_T] | None = None
        # None while a task waits for it.
        self._broken: bool | None = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def value(self) -> _T:
        """What was lent. RuntimeError before and after."""
        if self._resource is None:
            raise RuntimeError(f"nothing of {self._pool!r} is lent by this")
        return self._resource.value

    async def _begin(self) -> Lease[_T]:
        if self._resource is not None or self._broken is None:
            raise RuntimeError(f"this loan of {self._pool!r} has begun already")
        pool, shelf = self._pool, self._shelf
        resource = pool._take(shelf)
        if resource is None:
            self._broken = None
            try:
                resource = await pool._wait(shelf)
            finally:
                self._broken = False
        self._resource = resource
        if pool._leak_after is not None:
            self._watch(pool._leak_after)
        return self

    def __await__(self) -> Generator[Any, None, Lease[_T]]:
        return self._begin().__await__()

    async def __aenter__(self) -> _T:
        pool = self._pool
        # What almost always happens; one coroutine less than by _begin().
        if (
            self._resource is None
            and pool._leak_after is None
            and self._broken is not None
            and (resource := pool._take(self._shelf)) is not None
        ):
            self._resource = resource
            return resource.value
        await self._begin()
        assert self._resource is not None
        return self._resource.value

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        resource = self._resource
        if resource is not None:
            if self._broken or self._timer is not None:
                self.release()
            else:
                # What almost always happens; one call less.
                self._resource = None
                self._pool._take_back(resource, False)

    def release(self) -> None:
        """Give it back. RuntimeError if it is not lent, or given back already."""
        resource, self._resource = self._resource, None
        if resource is None:
            raise RuntimeError(f"nothing of {self._pool!r} is lent by this, or it was given back")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        broken, self._broken = self._broken, False
        self._pool._take_back(resource, bool(broken))

    def discard(self) -> None:
        """Have it closed instead of lent again, when it is given back: it is broken."""
        if self._resource is None:
            raise RuntimeError(f"nothing of {self._pool!r} is lent by this")
        self._broken = True

    def _watch(self, limit: float) -> None:
        # Only what is needed to tell of it later: lines are looked up for those that are told of, which few are.
        places: list[tuple[str, int, str, None]] = []
        frame = inspect.currentframe()
        while (frame := frame and frame.f_back) is not None and len(places) < _SHOWN:
            places.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name, None))
        task = asyncio.current_task()
        name = task.get_name() if task is not None else "no task"

        def report() -> None:
            self._pool._leaked += 1
            where = "".join(traceback.StackSummary.from_list(reversed(places)).format())
            _log.warning("%r lent by %r was not given back in %g s; lent here:\n%s", self._pool, name, limit, where)

        self._timer = asyncio.get_running_loop().call_later(limit, report)
