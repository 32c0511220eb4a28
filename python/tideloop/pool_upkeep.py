"""The upkeep of a pool: what is made, closed, replaced and looked after, in tasks of its own.

Who makes a resource is the pool, never the borrower, so a borrower who is cancelled harms nobody. For the same reason
its hooks run in the context in which the pool was made, without a deadline: what they do is done for all. No hook may
take for ever: a creation is cancelled after `create_timeout`, and after `close_timeout` nobody waits for a reset or a
close any longer, whether it heeds being cancelled or not.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from tideloop.changes import Changes
from tideloop.deadlines import without_deadline
from tideloop.durations import seconds
from tideloop.pool_options import PoolTimeout, bounds, count, limit
from tideloop.shelves import Resource, Shelf

__all__ = ["Upkeep"]

_T = TypeVar("_T")

_log = logging.getLogger("tideloop.pools")

_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds from a failed creation to the next for the minimum: the first pause, which doubles, and the longest."""

_SLOW = 1.0
"""Seconds after which a close is slow: its place is not waited for any more if there is another to be had."""


class Upkeep(Generic[_T]):
    """What is made and what goes. Whom it is lent to, and who is next, is said by the class that derives from it."""

    def __init__(
        self,
        create: Callable[..., Awaitable[_T] | _T],
        close: Callable[[_T], Any] | None = None,
        *,
        check: Callable[[_T], Any] | None = None,
        reset: Callable[[_T], Any] | None = None,
        min: int = 0,
        max: int = 10,
        max_idle: float | None = 600.0,
        max_lifetime: float | None = 1800.0,
        max_uses: int | None = None,
        jitter: float = 0.1,
        acquire_timeout: float | None = 30.0,
        create_timeout: float | None = 60.0,
        close_timeout: float | None = 10.0,
        create_limit: int = 2,
        leak_after: float | None = None,
        name: str | None = None,
    ) -> None:
        for what, fn in (("create", create), ("close", close), ("check", check), ("reset", reset)):
            if not callable(fn) and (fn is not None or what == "create"):
                raise TypeError(f"{what} must be a function, not {fn!r}")
        if not isinstance(jitter, int | float) or not 0 <= jitter < 1:
            raise ValueError(f"jitter must be a part of at least 0, below 1, not {jitter!r}")
        self.name = name
        self._create, self._close, self._check, self._reset = create, close, check, reset
        self._min, self._max = bounds(min, max)
        self._max_idle = limit("max_idle", max_idle)
        self._max_lifetime = limit("max_lifetime", max_lifetime)
        self._max_uses = math.inf if max_uses is None else count("max_uses", max_uses)
        self._jitter = jitter
        self._acquire_timeout = limit("acquire_timeout", acquire_timeout)
        self._create_timeout = None if create_timeout is None else seconds("create_timeout", create_timeout)
        self._close_timeout = limit("close_timeout", close_timeout)
        self._create_limit = count("create_limit", create_limit)
        self._leak_after = None if leak_after is None else seconds("leak_after", leak_after)
        self._context = without_deadline()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shelves: dict[Any, Shelf[_T]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._making: set[asyncio.Task[None]] = set()
        # Hooks that were given up and have not ended yet.
        self._strays: set[asyncio.Future[Any]] = set()
        # Whose hook a task of its own is.
        self._hooks: dict[Any, asyncio.Task[Any] | None] = {}
        self._housekeeping: asyncio.TimerHandle | None = None
        self._planned = math.inf
        # When the minimum is tried again after a failure, and how many there were in a row.
        self._again: asyncio.TimerHandle | None = None
        self._failures = 0
        self._emptied = Changes()
        self._closed = False
        self._size = self._borrowed = self._creating = self._arrivals = 0
        # On their last loan; being closed, and of these the slow ones.
        self._last_loans = self._leaving = self._slow = 0
        self._lent = self._timeouts = self._created = self._failed = self._retired = self._leaked = 0
        self._waited = 0.0

    # --- said by the class that derives -----------------------------------------------------

    def _put_back(self, resource: Resource[_T]) -> None:
        """To the next who waits for one of its key, or to the idle ones."""
        raise NotImplementedError

    def _serve(self) -> None:
        """Begin to make resources for those who wait."""
        raise NotImplementedError

    def _ask_for_one(self, shelf: Shelf[_T]) -> Awaitable[_T] | _T:
        """Call `create`."""
        return self._create()

    def _minimum_lacks(self) -> bool:
        """Whether there are fewer than the minimum; only a pool without keys has one."""
        return False

    def _refill_one(self) -> None:
        """Begin to make one for the minimum."""

    def _sweep(self, shelf: Shelf[_T]) -> None:
        """Forget a key of which nothing is there any more."""
        if not shelf.size and not shelf.waiters and self._shelves.get(shelf.key) is shelf:
            del self._shelves[shelf.key]

    # --- making -----------------------------------------------------------------------------

    def _begin_to_create(self, shelf: Shelf[_T]) -> None:
        shelf.size += 1
        shelf.creating += 1
        self._size += 1
        self._creating += 1
        task = self._spawn(self._create_for(shelf))
        self._making.add(task)
        task.add_done_callback(self._making.discard)

    async def _create_for(self, shelf: Shelf[_T]) -> None:
        assert self._loop is not None
        failure: BaseException | None = None
        in_time = asyncio.timeout(self._create_timeout)
        try:
            async with in_time:
                made = self._ask_for_one(shelf)
                value = await made if inspect.isawaitable(made) else made
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # The loop is ending; those who wait are cancelled, too.
                self._forget(shelf)
                raise
            failure = RuntimeError(f"creating a resource of {self!r} was cancelled")
            failure.__cause__ = error
        except Exception as error:
            failure = error
            if isinstance(error, TimeoutError) and in_time.expired():
                failure = PoolTimeout(f"creating a resource of {self!r} was not done in {self._create_timeout:g} s")
        finally:
            shelf.creating -= 1
            self._creating -= 1
        if failure is None:
            self._created += 1
            self._failures = 0
            if self._again is not None:
                self._again.cancel()
                self._again = None
            now = self._loop.time()
            self._put_back(Resource(value, shelf, now, now + self._vary(self._max_lifetime)))
            self._refill()
        else:
            self._failed += 1
            self._failures += 1
            if not shelf.fail_first(failure):
                _log.error("%r could not make a resource", self, exc_info=failure)
            self._forget(shelf)
            self._refill_later()
        self._serve()

    def _refill(self) -> None:
        """Make resources up to the minimum."""
        while self._again is None and self._creating < self._create_limit and self._minimum_lacks():
            self._refill_one()

    def _refill_later(self) -> None:
        """After a pause: what has just failed will mostly fail again."""
        if self._again is None and self._minimum_lacks():
            assert self._loop is not None
            pause = min(_PAUSE * 2 ** min(self._failures - 1, 10), _LONGEST_PAUSE)
            self._again = self._loop.call_later(pause, self._refill_again)

    def _refill_again(self) -> None:
        self._again = None
        self._refill()

    # --- resetting and closing --------------------------------------------------------------

    async def _reset_and_put_back(self, resource: Resource[_T]) -> None:
        assert self._reset is not None
        assert self._loop is not None
        good = False
        try:
            await self._bounded(self._reset(resource.value))
            good = True
        except Exception as error:
            _log.warning("%r: a resource could not be reset and is closed", self, exc_info=error)
        finally:
            if good and not self._closed:
                resource.idle_since = self._loop.time()
                self._put_back(resource)
            else:
                self._retire(resource)

    def _retire(self, resource: Resource[_T]) -> None:
        """Close a resource, in a task; its place is free when that is done, or at once if nothing has to be done."""
        self._retired += 1
        if self._close is None:
            self._forget(resource.shelf)
            self._after_leaving()
        else:
            self._leaving += 1
            self._spawn(self._close_and_forget(resource))
            self._refill()

    async def _close_and_forget(self, resource: Resource[_T]) -> None:
        assert self._close is not None
        assert self._loop is not None
        slow = False

        def is_slow() -> None:
            nonlocal slow
            slow = True
            self._slow += 1
            self._serve()

        timer = self._loop.call_later(_SLOW, is_slow)
        try:
            await self._bounded(self._close(resource.value))
        except Exception as error:
            _log.warning("%r: closing a resource has failed", self, exc_info=error)
        finally:
            timer.cancel()
            self._slow -= slow
            self._leaving -= 1
            self._forget(resource.shelf)
            self._after_leaving()

    async def _bounded(self, said: Any) -> None:
        """Await what a hook has returned, if it can be, for `close_timeout` seconds at most."""
        if not inspect.isawaitable(said):
            return
        if self._close_timeout == math.inf:
            await said
            return
        work = asyncio.ensure_future(said)
        self._hooks[work] = asyncio.current_task()
        try:
            await asyncio.wait([work], timeout=self._close_timeout)
        finally:
            del self._hooks[work]
            if not work.done():
                work.cancel()
                self._strays.add(work)
                work.add_done_callback(self._strays.discard)
        if not work.done():
            raise TimeoutError(f"not done in {self._close_timeout:g} s; it is left alone")
        work.result()

    def _forget(self, shelf: Shelf[_T]) -> None:
        shelf.size -= 1
        self._size -= 1
        self._sweep(shelf)
        if not self._size:
            self._emptied.tell()

    def _after_leaving(self) -> None:
        if not self._closed:
            self._serve()
            self._refill()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        assert self._loop is not None
        name = f"pool {self.name}" if self.name else "pool"
        try:
            task = self._loop.create_task(work, name=name, context=self._context.copy())
        except BaseException:
            # The loop is closed; the error says so.
            work.close()
            raise
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- keeping house ----------------------------------------------------------------------

    def _is_worn(self, resource: Resource[_T], now: float) -> bool:
        return (
            now >= resource.expires
            or resource.uses >= self._max_uses
            or (now - resource.idle_since >= self._max_idle and self._lasting() > self._min)
        )

    def _lasting(self) -> int:
        """How many resources there are without those that are being closed."""
        return self._size - self._leaving

    def _vary(self, age: float) -> float:
        return age * (1 - self._jitter * random.random())  # spreads, hides nothing

    def _due(self, resource: Resource[_T]) -> float:
        return min(resource.expires, resource.idle_since + self._max_idle)

    def _schedule_housekeeping(self, due: float) -> None:
        """Look at what is idle at that time, or at the time that is planned if that is earlier."""
        assert self._loop is not None
        # More often than once per second is no use: it looks at all that is idle.
        due = max(due, self._loop.time() + 1.0)
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
        for shelf in list(self._shelves.values()):
            for resource in [resource for resource in shelf.idle if self._is_worn(resource, now)]:
                if resource.expires <= now and self._lasting() - self._creating <= self._min:
                    # Its replacement comes first; it goes at the first round after that.
                    if self._creating:
                        continue
                    if self._size < self._max:
                        self._begin_to_create(shelf)
                        continue
                shelf.idle.remove(resource)
                self._retire(resource)
        idle = (resource for shelf in self._shelves.values() for resource in shelf.idle)
        self._schedule_housekeeping(min(map(self._due, idle), default=math.inf))

    def _end_upkeep(self) -> None:
        for timer in (self._housekeeping, self._again):
            if timer is not None:
                timer.cancel()
