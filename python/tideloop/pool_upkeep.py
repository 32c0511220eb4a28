"""The upkeep of a pool: what is made, made ready and closed, in tasks of its own.

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

_FADES = 0.8
"""What is left of the time that making one took, once another was made faster."""

_SPARE = 1.0
"""Seconds by which a replacement is begun earlier than it has to be, as a round may come late."""

_SLOW = 1.0
"""Seconds after which a close is slow: its place is not waited for any more if there is another to be had."""


class Upkeep(Generic[_T]):
    """What is made and what goes. When, and who has it until then, is said by the classes that derive from it."""

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
        keepalive: float | None = None,
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
        if keepalive is not None and check is None:
            raise ValueError(f"keepalive={keepalive!r} needs a check, which is what keeps a resource alive")
        self._keepalive = limit("keepalive", keepalive)
        # Something has to be done with one that was idle for so long.
        self._looked_at = self._max_idle if self._max_idle < self._keepalive else self._keepalive
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
        # All that are not being closed, lent ones included.
        self._resources: set[Resource[_T]] = set()
        # How long making one takes, at most and of late; and how long before the end of one it is begun.
        self._takes = self._lead = 0.0
        # Whose hook a task of its own is.
        self._hooks: dict[Any, asyncio.Task[Any] | None] = {}
        self._housekeeping: asyncio.TimerHandle | None = None
        self._planned = math.inf
        # The task that checks what is idle.
        self._keeper: asyncio.Task[None] | None = None
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

    def _came(self, resource: Resource[_T]) -> None:
        """One was made."""

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
        began = self._loop.time()
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
            self._takes = max(now - began, self._takes * _FADES)
            # Less than the shortest life, or a new one would be due at once; half of it, if creating leaves that.
            shortest = (1 - self._jitter) * self._max_lifetime
            self._lead = min(2 * self._takes + _SPARE, max(1.1 * self._takes, 0.5 * shortest), 0.9 * shortest)
            resource = Resource(value, shelf, now, now + self._vary(self._max_lifetime))
            self._resources.add(resource)
            self._put_back(resource)
            self._refill()
            self._came(resource)
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
        """After a pause, as for what replaces one of the minimum: what has just failed will mostly fail again."""
        if self._again is None and self._min and not self._closed:
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
                resource.idle_since = resource.checked = self._loop.time()
                self._put_back(resource)
            else:
                self._retire(resource)

    def _retire(self, resource: Resource[_T]) -> None:
        """Close a resource, in a task; its place is free when that is done, or at once if nothing has to be done."""
        self._retired += 1
        self._resources.discard(resource)
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

    async def _bounded(self, said: Any) -> Any:
        """What a hook says; what it has returned is awaited, if it can be, for `close_timeout` seconds at most."""
        if not inspect.isawaitable(said):
            return said
        if self._close_timeout == math.inf:
            return await said
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
        return work.result()

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

    def _lasting(self) -> int:
        """How many resources there are without those that are being closed."""
        return self._size - self._leaving

    def _vary(self, age: float) -> float:
        return age * (1 - self._jitter * random.random())  # spreads, hides nothing

    def _end_upkeep(self) -> None:
        for timer in (self._housekeeping, self._again):
            if timer is not None:
                timer.cancel()
