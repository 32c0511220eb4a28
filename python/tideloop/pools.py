"""Pools: Pool, KeyedPool. Resources that are expensive to make and are lent out one at a time.

Database connections, browser pages, open files. How it is done, and why:

* **Who makes a resource is the pool**, in a task of its own, never the borrower: so a borrower who is cancelled harms
  nobody, and what was made for him goes to the next. A creation that fails is told to the one who has waited longest,
  and its place is free again.
* **Idle resources are lent last in, first out**, so that those that are not needed come of age and go; **borrowers are
  served first come, first served**, over all keys.
* **A resource that was handed to a borrower who was cancelled before he saw it** comes back like any other.
* **Worn resources** (too old, used too often, too long idle) are replaced; where there is room the new one is there
  before the old one leaves. Ages vary by `jitter`, so that what was made together does not go together.
* **Nothing is awaited in the way of leaving a block**: resetting and closing happen in the pool's own tasks.

The controls are HikariCP's (Wooldridge); its essay "About Pool Sizing" is why `max` is small by default. Works on
every asyncio loop. A pool belongs to the loop that it is first used in.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import math
import random
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Hashable
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar, Unpack

from tideloop.deadlines import remaining
from tideloop.durations import seconds

__all__ = ["KeyedPool", "Lease", "Pool", "PoolClosed", "PoolStats", "PoolTimeout"]

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)

_log = logging.getLogger("tideloop.pools")

_running_loop = asyncio.get_running_loop

_CHECKED_AFTER = 0.5
"""Seconds that a resource must have been idle to be checked when it is lent (HikariCP's alive-bypass window)."""


class PoolTimeout(TimeoutError):
    """No resource could be had in time. The message tells what the pool was doing."""


class PoolClosed(RuntimeError):
    """The pool lends nothing any more."""


class PoolStats(NamedTuple):
    """A pool in numbers, from which its size can be judged.

    Too small: `waiting` is often above 0, and `waited` grows. Too large: `idle` is never 0.
    """

    idle: int
    borrowed: int
    creating: int
    waiting: int
    lent: int
    """Times that a resource was lent."""
    waited: float
    """Seconds that borrowers have waited, all together."""
    timeouts: int
    created: int
    failed: int
    """Creations that have failed."""
    retired: int
    """Resources that were closed: worn, discarded, failing their check or their reset."""
    leaked: int
    """Loans that were reported as too long."""


class _Resource(Generic[_T]):
    __slots__ = ("expires", "idle_since", "shelf", "uses", "value")

    def __init__(self, value: _T, shelf: _Shelf[_T], now: float, expires: float) -> None:
        self.value = value
        self.shelf = shelf
        self.uses = 0
        self.idle_since = now
        self.expires = expires


class _Shelf(Generic[_T]):
    """The resources of one key, and who waits for them."""

    __slots__ = ("creating", "idle", "key", "size", "waiters")

    def __init__(self, key: Any) -> None:
        self.key = key
        self.idle: deque[_Resource[_T]] = deque()
        # Who waits, with when he came: a number that grows over all keys.
        self.waiters: deque[tuple[int, asyncio.Future[_Resource[_T]]]] = deque()
        # Idle, borrowed, being made, reset or closed.
        self.size = 0
        self.creating = 0

    def first(self) -> tuple[int, asyncio.Future[_Resource[_T]]] | None:
        """Who has waited longest and still does."""
        while self.waiters and self.waiters[0][1].done():
            self.waiters.popleft()
        return self.waiters[0] if self.waiters else None

    def waiting(self, most: int | None = None) -> int:
        """How many wait; not counted beyond `most`."""
        return sum(1 for _ in itertools.islice((w for _, w in self.waiters if not w.done()), most))


class Lease(Generic[_T]):
    """A loan: ``async with pool.acquire() as resource:``; or ``lease = await pool.acquire()``, ``lease.release()``."""

    __slots__ = ("_broken", "_pool", "_resource", "_shelf", "_timer")

    def __init__(self, pool: _Lender[_T], shelf: _Shelf[_T]) -> None:
        self._pool = pool
        self._shelf = shelf
        self._resource: _Resource[_T] | None = None
        self._broken = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def value(self) -> _T:
        """What was lent. RuntimeError before and after."""
        if self._resource is None:
            raise RuntimeError(f"nothing of {self._pool!r} is lent by this")
        return self._resource.value

    async def _begin(self) -> Lease[_T]:
        if self._resource is not None:
            raise RuntimeError(f"this loan of {self._pool!r} has begun already")
        pool, shelf = self._pool, self._shelf
        resource = pool._take(shelf)
        if resource is None:
            resource = await pool._wait(shelf)
        self._resource = resource
        if pool._leak_after is not None:
            self._watch(pool._leak_after)
        return self

    def __await__(self) -> Generator[Any, None, Lease[_T]]:
        return self._begin().__await__()

    async def __aenter__(self) -> _T:
        pool = self._pool
        # What almost always happens; one coroutine less than by _begin().
        if self._resource is None and pool._leak_after is None and (resource := pool._take(self._shelf)) is not None:
            self._resource = resource
            return resource.value
        await self._begin()
        assert self._resource is not None
        return self._resource.value

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._resource is not None:
            self.release()

    def release(self) -> None:
        """Give it back. RuntimeError if it is not lent, or given back already."""
        resource, self._resource = self._resource, None
        if resource is None:
            raise RuntimeError(f"nothing of {self._pool!r} is lent by this, or it was given back")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pool._take_back(resource, self._broken)

    def discard(self) -> None:
        """Have it closed instead of lent again, when it is given back: it is broken."""
        if self._resource is None:
            raise RuntimeError(f"nothing of {self._pool!r} is lent by this")
        self._broken = True

    def _watch(self, limit: float) -> None:
        stack = traceback.extract_stack(limit=12)[:-1]
        task = asyncio.current_task()
        name = task.get_name() if task is not None else "no task"

        def report() -> None:
            self._pool._leaked += 1
            where = "".join(traceback.format_list(stack))
            _log.warning("%r lent by %r was not given back in %g s; lent here:\n%s", self._pool, name, limit, where)

        self._timer = asyncio.get_running_loop().call_later(limit, report)


class _Lender(Generic[_T]):
    """What both kinds of pools are."""

    def __init__(
        self,
        create: Callable[..., Awaitable[_T]],
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
        self._min, self._max = _bounds(min, max)
        self._max_idle = math.inf if max_idle is None else seconds("max_idle", max_idle)
        self._max_lifetime = math.inf if max_lifetime is None else seconds("max_lifetime", max_lifetime)
        self._max_uses = math.inf if max_uses is None else _count("max_uses", max_uses)
        self._jitter = jitter
        self._acquire_timeout = math.inf if acquire_timeout is None else seconds("acquire_timeout", acquire_timeout)
        self._create_limit = _count("create_limit", create_limit)
        self._leak_after = None if leak_after is None else seconds("leak_after", leak_after)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shelves: dict[Any, _Shelf[_T]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._making: set[asyncio.Task[None]] = set()
        self._housekeeping: asyncio.TimerHandle | None = None
        self._planned = math.inf
        self._emptied: asyncio.Future[None] | None = None
        self._closed = False
        self._size = self._borrowed = self._creating = self._leaving = self._arrivals = 0
        self._lent = self._timeouts = self._created = self._failed = self._retired = self._leaked = 0
        self._waited = 0.0

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
            waiter = self._emptied = self._emptied or loop.create_future()
            timer = None if deadline == math.inf else loop.call_at(deadline, _wake, waiter)
            try:
                await asyncio.wait([waiter])
            finally:
                if timer is not None:
                    timer.cancel()
            if waiter.done() and self._emptied is waiter:
                self._emptied = None
        return not self._size

    async def aclose(self) -> None:
        """Lend nothing any more, and close what is idle; what is lent is closed when it comes back.

        Returns when all that is not lent is closed. Cancelled, closing goes on.
        """
        self._shut()
        for task in self._making:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def resize(self, *, min: int | None = None, max: int | None = None) -> None:
        """Change the limits. More room is used at once; what is too much goes when it comes back, idle ones at once."""
        self._min, self._max = _bounds(self._min if min is None else min, self._max if max is None else max)
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

    def _limit(self, shelf: _Shelf[_T]) -> int:
        """How many resources a shelf may have."""
        return self._max

    def _take(self, shelf: _Shelf[_T]) -> _Resource[_T] | None:
        """A resource that can be lent without waiting."""
        loop = self._loop
        if loop is None or self._check is not None or shelf.waiters or not shelf.idle:
            return None
        if _running_loop() is not loop:
            self._enter_loop()
        now = loop.time()
        while shelf.idle:
            resource = shelf.idle.pop()
            if not self._is_worn(resource, now):
                self._lend(resource)
                return resource
            self._retire(resource)
        return None

    async def _wait(self, shelf: _Shelf[_T]) -> _Resource[_T]:
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
            if self._check is None or resource.idle_since > self._loop.time() - _CHECKED_AFTER or not resource.uses:
                break
            if await self._is_good(resource, deadline):
                break
        self._waited += self._loop.time() - began
        self._lend(resource)
        return resource

    async def _next(self, shelf: _Shelf[_T], deadline: float, number: int) -> _Resource[_T]:
        assert self._loop is not None
        # It may have been swept away while nobody used it, and another one have come in its place.
        shelf = self._shelves.setdefault(shelf.key, shelf)
        now = self._loop.time()
        while shelf.idle and shelf.first() is None:
            resource = shelf.idle.pop()
            if not self._is_worn(resource, now):
                return resource
            self._retire(resource)
        waiter: asyncio.Future[_Resource[_T]] = self._loop.create_future()
        arrival = (number, waiter)
        # After a failed check he comes back to his place, before those who came later.
        behind = 0
        while behind < len(shelf.waiters) and shelf.waiters[-1 - behind][0] > number:
            behind += 1
        shelf.waiters.insert(len(shelf.waiters) - behind, arrival)
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
            if not waiter.done() or waiter.cancelled() or waiter.exception() is not None:
                # Whoever gives takes him off; who has given up does so himself.
                with contextlib.suppress(ValueError):
                    shelf.waiters.remove(arrival)
                if len(self._shelves) > 1:
                    self._serve()
            self._sweep(shelf)

    def _expire(self, waiter: asyncio.Future[_Resource[_T]]) -> None:
        if not waiter.done():
            self._timeouts += 1
            stats = self.stats()
            waiter.set_exception(
                PoolTimeout(
                    f"no resource of {self!r} in time: {stats.borrowed} lent, {stats.creating} being made, "
                    f"{stats.waiting - 1} others waiting"
                )
            )

    async def _is_good(self, resource: _Resource[_T], deadline: float) -> bool:
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

    def _lend(self, resource: _Resource[_T]) -> None:
        resource.uses += 1
        self._lent += 1
        self._borrowed += 1

    def _take_back(self, resource: _Resource[_T], broken: bool) -> None:
        self._borrowed -= 1
        assert self._loop is not None
        resource.idle_since = self._loop.time()
        if broken or self._closed or self._lasting() > self._max or self._is_worn(resource, resource.idle_since):
            self._retire(resource)
        elif self._reset is not None:
            self._spawn(self._reset_and_put_back(resource))
        else:
            self._put_back(resource)

    async def _reset_and_put_back(self, resource: _Resource[_T]) -> None:
        assert self._reset is not None
        assert self._loop is not None
        good = False
        try:
            said = self._reset(resource.value)
            if inspect.isawaitable(said):
                await said
            good = True
        except Exception as error:
            _log.warning("%r: a resource could not be reset and is closed", self, exc_info=error)
        finally:
            if good and not self._closed:
                resource.idle_since = self._loop.time()
                self._put_back(resource)
            else:
                self._retire(resource)

    def _put_back(self, resource: _Resource[_T]) -> None:
        """To the next who waits for one of its key, or to the idle ones."""
        if self._closed:
            self._retire(resource)
            return
        shelf = resource.shelf
        first = shelf.first() if shelf.waiters else None
        if first is not None and not self._is_owed_elsewhere(shelf, first[0]):
            shelf.waiters.popleft()
            first[1].set_result(resource)
            return
        shelf.idle.append(resource)
        due = min(resource.expires, resource.idle_since + self._max_idle)
        if due < self._planned:
            self._schedule_housekeeping(due)
        if self._size >= self._max:
            self._serve()

    def _is_owed_elsewhere(self, shelf: _Shelf[_T], arrival: int) -> bool:
        """Whether all places are taken, and somebody waits for another key who came earlier and could have one."""
        return self._size >= self._max and any(
            first[0] < arrival and not other.creating and other.size < self._limit(other)
            for other in self._shelves.values()
            if other is not shelf and not other.idle and (first := other.first()) is not None
        )

    # --- making and closing -----------------------------------------------------------------

    def _serve(self) -> None:
        """Begin to make resources for those who wait, key by key in turn."""
        if self._closed:
            return
        waiting = [(first[0], shelf) for shelf in self._shelves.values() if (first := shelf.first()) is not None]
        for _, shelf in sorted(waiting, key=lambda item: item[0]):
            # What was kept for somebody else, who has given up or was served since.
            while shelf.idle and (first := shelf.first()) is not None and not self._is_owed_elsewhere(shelf, first[0]):
                shelf.waiters.popleft()
                first[1].set_result(shelf.idle.pop())
            wanted = shelf.waiting(max(self._limit(shelf) - shelf.size + shelf.creating, 0))
            while shelf.creating < wanted and self._creating < self._create_limit:
                if self._size >= self._max and not self._make_room():
                    return
                self._begin_to_create(shelf)

    def _make_room(self) -> bool:
        """Close what was idle longest; whether its place is free by now. One at a time is on its way out."""
        if not self._leaving and (resource := self._oldest_idle()) is not None:
            self._retire(resource)
        return self._size < self._max

    def _oldest_idle(self) -> _Resource[_T] | None:
        oldest = min(
            (shelf.idle[0] for shelf in self._shelves.values() if shelf.idle),
            key=lambda resource: resource.idle_since,
            default=None,
        )
        if oldest is not None:
            oldest.shelf.idle.popleft()
        return oldest

    def _begin_to_create(self, shelf: _Shelf[_T]) -> None:
        shelf.size += 1
        shelf.creating += 1
        self._size += 1
        self._creating += 1
        task = self._spawn(self._create_for(shelf))
        self._making.add(task)
        task.add_done_callback(self._making.discard)

    async def _create_for(self, shelf: _Shelf[_T]) -> None:
        assert self._loop is not None
        failure: BaseException | None = None
        try:
            value = await self._make(shelf)
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
        finally:
            shelf.creating -= 1
            self._creating -= 1
        if failure is None:
            self._created += 1
            now = self._loop.time()
            resource = _Resource(value, shelf, now, now + self._vary(self._max_lifetime))
            self._put_back(resource)
            self._refill()
        else:
            self._failed += 1
            first = shelf.first()
            if first is not None:
                shelf.waiters.popleft()
                first[1].set_exception(failure)
            else:
                _log.error("%r could not make a resource", self, exc_info=failure)
            self._forget(shelf)
        self._serve()

    async def _make(self, shelf: _Shelf[_T]) -> _T:
        made = self._create()
        return await made if inspect.isawaitable(made) else made

    def _retire(self, resource: _Resource[_T]) -> None:
        """Close a resource, in a task; its place is free when that is done, or at once if nothing has to be done."""
        self._retired += 1
        if self._close is None:
            self._forget(resource.shelf)
            self._after_leaving()
        else:
            self._leaving += 1
            self._spawn(self._close_and_forget(resource))
            self._refill()

    async def _close_and_forget(self, resource: _Resource[_T]) -> None:
        assert self._close is not None
        try:
            said = self._close(resource.value)
            if inspect.isawaitable(said):
                await said
        except Exception as error:
            _log.warning("%r: closing a resource has failed", self, exc_info=error)
        finally:
            self._leaving -= 1
            self._forget(resource.shelf)
            self._after_leaving()

    def _forget(self, shelf: _Shelf[_T]) -> None:
        shelf.size -= 1
        self._size -= 1
        self._sweep(shelf)
        if not self._size and self._emptied is not None:
            _wake(self._emptied)

    def _after_leaving(self) -> None:
        if not self._closed:
            self._serve()
            self._refill()

    def _sweep(self, shelf: _Shelf[_T]) -> None:
        """Forget a key of which nothing is there any more."""
        if not shelf.size and not shelf.waiters and self._shelves.get(shelf.key) is shelf:
            del self._shelves[shelf.key]

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        assert self._loop is not None
        task = self._loop.create_task(work, name=f"pool {self.name}" if self.name else "pool")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- keeping house ----------------------------------------------------------------------

    def _is_worn(self, resource: _Resource[_T], now: float) -> bool:
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

    def _refill(self) -> None:
        """Make resources up to the minimum; only a pool without keys has one."""

    def _due(self, resource: _Resource[_T]) -> float:
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

    def _shut(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        for shelf in list(self._shelves.values()):
            while (first := shelf.first()) is not None:
                shelf.waiters.popleft()
                first[1].set_exception(PoolClosed(f"{self!r} lends nothing any more"))
            while shelf.idle:
                self._retire(shelf.idle.popleft())


_L = TypeVar("_L", bound="_Lender[Any]")


class _Options(TypedDict, total=False):
    """What both kinds of pools take, so that a checker knows."""

    check: Callable[[Any], Any] | None
    reset: Callable[[Any], Any] | None
    max_idle: float | None
    max_lifetime: float | None
    max_uses: int | None
    jitter: float
    acquire_timeout: float | None
    create_limit: int
    leak_after: float | None
    name: str | None


class _PoolOptions(_Options, total=False):
    min: int
    max: int


class Pool(_Lender[_T]):
    """Resources of one kind: ``async with pool.acquire() as connection: ...``.

    `create` makes one; `close` ends it; `check` is asked before one that was idle for half a second is lent, and says
    False or raises if it is broken; `reset` makes one ready for the next borrower when it comes back. Each may be a
    plain or, apart from what it says, an async function. There are at least `min` (once the pool is entered), at most
    `max`, and `create_limit` are made at a time. `max_idle` is in seconds, and holds for those above `min`;
    `max_lifetime` in seconds, less up to `jitter` of it; `max_uses` in loans. None is no limit.

    ``async with pool:`` makes the minimum, and closes the pool at its end. Who waits longer than `acquire_timeout`
    seconds, or the deadline() of his context, gets PoolTimeout; that time is for all of it, whatever has to be tried
    again. With `leak_after` seconds a loan that is longer is logged with the stack of the borrower.
    """

    def __init__(
        self,
        create: Callable[[], Awaitable[_T]],
        close: Callable[[_T], Any] | None = None,
        **options: Unpack[_PoolOptions],
    ) -> None:
        super().__init__(create, close, **options)
        self._only: _Shelf[_T] = _Shelf(None)

    def acquire(self) -> Lease[_T]:
        """Borrow one: ``async with pool.acquire() as resource:``, or ``lease = await pool.acquire()``.

        Raises PoolTimeout, PoolClosed, and what `create` has raised for the one who has waited longest. Cancelled,
        nothing is lent, and what was on its way goes to the next.
        """
        return Lease(self, self._only)

    def _refill(self) -> None:
        if not self._closed:
            self._shelves.setdefault(None, self._only)
            while self._lasting() < self._min and self._size < self._max and self._creating < self._create_limit:
                self._begin_to_create(self._only)

    def _sweep(self, shelf: _Shelf[_T]) -> None:
        """The only one stays."""


class KeyedPool(_Lender[_T], Generic[_K, _T]):
    """Resources by key, like connections by host: ``async with pool.acquire("example.org") as connection: ...``.

    As Pool; `create` is given the key. At most `max_per_key` of each, `max` of all. Where all places are taken, the
    resource that was idle longest makes room for another key, and who has waited longest has the next place, whatever
    his key. A key of which nothing is left is forgotten.
    """

    def __init__(
        self,
        create: Callable[[_K], Awaitable[_T]],
        close: Callable[[_T], Any] | None = None,
        *,
        max_per_key: int = 10,
        max: int = 100,
        **options: Unpack[_Options],
    ) -> None:
        if "min" in options:
            raise TypeError("a pool with keys takes no min")
        super().__init__(create, close, max=max, **options)
        self._max_per_key = _count("max_per_key", max_per_key)

    def acquire(self, key: _K) -> Lease[_T]:
        """Borrow one of a key. See Pool.acquire()."""
        shelf = self._shelves.get(key)
        return Lease(self, _Shelf(key) if shelf is None else shelf)

    def _limit(self, shelf: _Shelf[_T]) -> int:
        return self._max_per_key

    async def _make(self, shelf: _Shelf[_T]) -> _T:
        return await self._create(shelf.key)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a number of at least 1, not {value!r}")
    return value


def _bounds(least: int, most: int) -> tuple[int, int]:
    most = _count("max", most)
    if isinstance(least, bool) or not isinstance(least, int) or not 0 <= least <= most:
        raise ValueError(f"min must be a number from 0 to max, which is {most}, not {least!r}")
    return least, most
