"""Limits on how much happens at a time: Limiter, KeyedLimiter, ResourceLimits.

They serve whoever came first (of a higher priority first, where that is asked for), across all event loops and
threads that use them, and nobody overtakes: somebody who wants ten permits gets them before those who came
later and want one. They work on any asyncio loop.

Whoever waits may be cancelled at any moment: what it was granted goes to the next, and nothing is lost. When a
loop closes, its waiters are passed over; what its tasks *hold* comes home when their ``async with`` blocks end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Hashable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from tideloop._tideloop import ClaimCore, Enlisted, LimitsCore, enlist, function

if TYPE_CHECKING:
    from tideloop.redis_store import RedisStore
    from tideloop.shared_limits import SharedLimiter

__all__ = [
    "Claim",
    "KeyedLimiter",
    "KeyedLimiterStats",
    "Limiter",
    "LimiterClosed",
    "LimiterFull",
    "LimiterStats",
    "ResourceLimits",
    "ResourceStats",
    "WaitTimes",
    "WeightError",
]

_F = TypeVar("_F", bound=Callable[..., Any])


class LimiterClosed(RuntimeError):
    """The limiter was closed, before or while this waited for it."""


class LimiterFull(RuntimeError):
    """As many wait for the limiter as may wait (``queue_limit``)."""


class WeightError(ValueError):
    """More permits are wanted at once than there are, so that waiting for them would never end."""


class WaitTimes(NamedTuple):
    """How long those waited who got their permits; all in seconds, percentiles within 4.4 %."""

    total: float
    p50: float
    p90: float
    p99: float
    longest: float


class LimiterStats(NamedTuple):
    """What ``Limiter.stats()`` tells."""

    name: str | None
    capacity: int
    in_use: int
    """Permits that somebody holds; after shrinking there may be more of them than the capacity."""
    waiting: int
    granted: int
    """Requests that got their permits, at once or after waiting."""
    waited: int
    """Those of them that had to wait."""
    cancelled: int
    """Requests that were cancelled while they waited, or before they came for their permits."""
    timed_out: int
    rejected: int
    """Requests refused: too heavy, the queue full, the limiter closed."""
    wait_times: WaitTimes
    closed: bool


class ResourceStats(NamedTuple):
    """One resource of ``ResourceLimits.stats()``."""

    capacity: int
    in_use: int
    waiting: int


def _native(name: str) -> Callable[[_F], _F]:
    """The native function of this name, with the signature and the documentation of what it decorates."""
    return lambda template: function(name, template)


def _stats(core: LimitsCore, capacity: int, in_use: int) -> LimiterStats:
    (granted, waited, cancelled, expired, refused), times = core._tally()
    return LimiterStats(
        name=core.name,
        capacity=capacity,
        in_use=in_use,
        waiting=core.waiting,
        granted=granted,
        waited=waited,
        cancelled=cancelled,
        timed_out=expired,
        rejected=refused,
        wait_times=WaitTimes(*times),
        closed=core.closed,
    )


class Claim(ClaimCore):
    """What ``limiter(...)`` returns: ``async with`` it to hold its permits meanwhile.

    It may be kept and entered again, also while it is entered: each time it takes its permits anew.
    """

    __slots__ = ()

    @_native("Claim.__aenter__")
    async def __aenter__(self) -> None:
        raise TypeError(f"{self!r} is not a Claim")

    @_native("Claim.__aexit__")
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        raise TypeError(f"{self!r} is not a Claim")

    def acquire(self) -> Coroutine[Any, Any, None]:
        """Take the permits; to be given back by release()."""
        return self.__aenter__()

    def try_acquire(self) -> bool:
        """Take the permits if nobody waits for them and all are free; whether it did."""
        return self._try()

    def blocking_acquire(self) -> None:
        """Take the permits, blocking this thread until it has them."""
        self._block()

    def release(self) -> None:
        """Give the permits back. Raises ValueError if not as many are in use."""
        self._release()


class Limiter(LimitsCore):
    """So many permits; whoever wants one, or several at once, waits until they are free.

    ``async with limiter:`` holds one permit, ``async with limiter(weight=10, timeout=2.5):`` ten. First come, first
    served, whatever the weights: those who came later wait even if there are permits enough for them, so heavy
    requests do not starve. Usable from any number of loops and threads at once; the bound is exact.

    ``capacity`` is a number of permits from 1 on, ``name`` is what errors call it, and ``queue_limit`` how many may
    wait (None: any number). With a ``store`` it is a SharedLimiter: the permits of all processes that use that name.
    """

    @overload
    def __new__(cls, capacity: int, *, name: str | None = None, queue_limit: int | None = None) -> Limiter: ...
    @overload
    def __new__(  # type: ignore[misc]  # it is another class, with the same methods
        cls, capacity: int, *, store: RedisStore, name: str, queue_limit: int | None = None
    ) -> SharedLimiter: ...
    def __new__(  # type: ignore[misc]
        cls,
        capacity: int,
        *,
        store: RedisStore | None = None,
        name: str | None = None,
        queue_limit: int | None = None,
    ) -> Limiter | SharedLimiter:
        if store is not None:
            from tideloop.shared_limits import SharedLimiter

            return SharedLimiter(capacity, store=store, name=name, queue_limit=queue_limit)
        return LimitsCore.__new__(cls, "Limiter", [capacity], [], name, queue_limit)

    @_native("Limiter.acquire")
    async def acquire(
        self,
        weight: int = 1,
        priority: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109 - of the wait alone, and told in the limiter's own words
    ) -> None:
        """Take ``weight`` permits, waiting for them if need be; to be given back by release().

        Of those who wait, higher priorities go first, and equal ones in order of arrival. Raises TimeoutError
        if the permits did not come within ``timeout`` seconds of the loop's clock (0: only if they are free now),
        WeightError if there are not as many permits in all, also if the limiter shrinks so far while this
        waits, LimiterFull beyond ``queue_limit``, LimiterClosed after close(). Cancelled, it holds nothing.
        """
        raise TypeError(f"{self!r} is not a Limiter")

    @_native("Limiter.try_acquire")
    def try_acquire(self, weight: int = 1) -> bool:
        """Take ``weight`` permits if nobody waits and they are free; whether it did.

        Raises WeightError and LimiterClosed as acquire() does.
        """
        raise TypeError(f"{self!r} is not a Limiter")

    def blocking_acquire(self, weight: int = 1, priority: int = 0, timeout: float | None = None) -> None:
        """Take ``weight`` permits, blocking this thread until it has them; raises what acquire() raises.

        For threads that run no event loop: RuntimeError in others, if it would have to wait.
        """
        self._block(weight, priority, timeout)

    @_native("Limiter.release")
    def release(self, weight: int = 1) -> None:
        """Give ``weight`` permits back, from any thread. Raises ValueError if not as many are in use."""
        raise TypeError(f"{self!r} is not a Limiter")

    @_native("Limiter.__aenter__")
    async def __aenter__(self) -> None:
        raise TypeError(f"{self!r} is not a Limiter")

    @_native("Limiter.__aexit__")
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        raise TypeError(f"{self!r} is not a Limiter")

    def __call__(self, weight: int = 1, *, priority: int = 0, timeout: float | None = None) -> Claim:
        """What to ``async with`` for other than one permit; the arguments are those of acquire()."""
        return Claim(self, [(0, weight)], priority, timeout)

    def resize(self, capacity: int) -> None:
        """Change the number of permits, from any thread.

        More permits go to those who wait. With fewer, the permits in use beyond the new number are not taken
        from anybody: nobody gets one until enough have come home. Waiters who want more permits than there are
        now get WeightError, since they would wait for ever.
        """
        self._resize(0, capacity)

    @property
    def capacity(self) -> int:
        """How many permits there are."""
        return self._usage()[0][0]

    @property
    def in_use(self) -> int:
        """How many of them are in use; right after shrinking maybe more than there are."""
        return self._usage()[0][1]

    @property
    def available(self) -> int:
        """How many of them are free."""
        capacity, in_use, _ = self._usage()[0]
        return max(0, capacity - in_use)

    def stats(self) -> LimiterStats:
        """How it is used and what happened so far."""
        capacity, in_use, _ = self._usage()[0]
        return _stats(self, capacity, in_use)

    def __repr__(self) -> str:
        capacity, in_use, waiting = self._usage()[0]
        words = [f"{in_use}/{capacity} in use"]
        if waiting:
            words.append(f"{waiting} waiting")
        return _describe(self, words)


def _describe(core: LimitsCore, words: list[str]) -> str:
    if core.closed:
        words.append("closed")
    name = "" if core.name is None else f" {core.name!r}"
    return f"<tideloop.{type(core).__name__}{name} {', '.join(words)}>"


class ResourceLimits(LimitsCore):
    """Permits of several resources, taken together: all that is wanted or nothing.

    ``limits = ResourceLimits(browser=3, http=10, file=5)``, then ``async with limits(browser=1, http=2):``.

    Whoever waits holds nothing, so there is no deadlock, in whatever order resources are named. First come, first
    served on each resource; those who want different resources do not wait for each other.
    """

    _numbers: dict[str, int]

    def __new__(
        cls,
        capacities: Mapping[str, int] | None = None,
        /,
        *,
        name: str | None = None,
        queue_limit: int | None = None,
        **more: int,
    ) -> ResourceLimits:
        resources = {**(capacities or {}), **more}
        if not resources:
            raise ValueError("ResourceLimits needs at least one resource, such as http=10")
        self = LimitsCore.__new__(cls, "ResourceLimits", list(resources.values()), list(resources), name, queue_limit)
        self._numbers = {resource: number for number, resource in enumerate(resources)}
        return self

    def __call__(
        self,
        wanted: Mapping[str, int] | None = None,
        /,
        *,
        priority: int = 0,
        timeout: float | None = None,
        **more: int,
    ) -> Claim:
        """What to ``async with``: so many permits of each resource, as keywords or in a mapping.

        ``priority`` and ``timeout`` are those of ``Limiter.acquire``, and so is what entering raises. Raises
        ValueError for an unknown resource. (One that is called priority or timeout can be named in the mapping.)
        """
        wants = {**(wanted or {}), **more}
        return Claim(self, [(self._number(resource), weight) for resource, weight in wants.items()], priority, timeout)

    def _number(self, resource: str) -> int:
        number = self._numbers.get(resource)
        if number is None:
            known = ", ".join(map(repr, self._numbers))
            raise ValueError(f"{self!r}: no resource {resource!r}; there are {known}")
        return number

    def resize(self, resource: str, capacity: int) -> None:
        """Change the number of permits of one resource, as ``Limiter.resize`` does."""
        self._resize(self._number(resource), capacity)

    def stats(self) -> dict[str, ResourceStats]:
        """How each resource is used."""
        return {resource: ResourceStats(*usage) for resource, usage in zip(self._numbers, self._usage(), strict=True)}

    def total(self) -> LimiterStats:
        """The same for all resources together, and what happened to the requests so far."""
        usage = self._usage()
        return _stats(self, sum(capacity for capacity, _, _ in usage), sum(in_use for _, in_use, _ in usage))

    def __repr__(self) -> str:
        words = [f"{resource} {use}/{of}" for resource, (of, use, _) in zip(self._numbers, self._usage(), strict=True)]
        if self.waiting:
            words.append(f"{self.waiting} waiting")
        return _describe(self, words)


class KeyedLimiterStats(NamedTuple):
    """What ``KeyedLimiter.stats()`` tells."""

    name: str | None
    capacity: int
    """Permits of each key."""
    keys: int
    """Keys that are in use or waited for."""
    in_use: int
    waiting: int
    evicted: int
    """Keys that were forgotten because nobody used them any more."""


class _Entry:
    """One key's limiter, and how many are about to take permits of it."""

    __slots__ = ("coming", "limiter")

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.coming = 0


class KeyedLimiter(Enlisted):
    """So many permits for each key: at most so many requests to a host, jobs of a customer, …

    ``async with limiter(host):`` holds one permit of that host. A key costs memory only while somebody holds its
    permits or waits for them, however many keys have been seen.

    Usable from several loops and threads at once. ``capacity`` is what each key has, unless ``capacities`` has
    another number for it; ``queue_limit`` is how many may wait for one key.
    """

    def __init__(
        self,
        capacity: int,
        *,
        capacities: Mapping[Hashable, int] | None = None,
        name: str | None = None,
        queue_limit: int | None = None,
    ) -> None:
        # These refuse what is no number of permits. Limiters inside of something are not initialised, so no gauges.
        Limiter.__new__(Limiter, capacity, name=name, queue_limit=queue_limit)
        self._capacity = capacity
        self._capacities = dict(capacities or {})
        for key, own in self._capacities.items():
            Limiter.__new__(Limiter, own, name=self._title(name, key))
        self._name = name
        self._queue_limit = queue_limit
        self._entries: dict[Hashable, _Entry] = {}
        self._evicted = 0
        # Re-entrant: a collection inside of it may close coroutines that hold our permits.
        self._lock = threading.RLock()
        enlist(self)

    @staticmethod
    def _title(name: str | None, key: Hashable) -> str:
        return repr(key) if name is None else f"{name}[{key!r}]"

    def _come(self, key: Hashable) -> Limiter:
        """The limiter of a key, which stays until _settle() was called as often, and longer if it is in use then."""
        while True:
            new = None
            if key not in self._entries:
                capacity = self._capacities.get(key, self._capacity)
                title = self._title(self._name, key)
                new = _Entry(Limiter.__new__(Limiter, capacity, name=title, queue_limit=self._queue_limit))
            with self._lock:
                entry = self._entries.get(key) or new
                if entry is not None:
                    self._entries[key] = entry
                    entry.coming += 1
                    return entry.limiter

    def _settle(self, key: Hashable, change: int) -> None:
        """Forget a key that nobody uses any more."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return
            entry.coming += change
            if entry.coming == 0 and entry.limiter.in_use == 0:
                del self._entries[key]
                self._evicted += 1

    def __call__(
        self, key: Hashable, weight: int = 1, *, priority: int = 0, timeout: float | None = None
    ) -> KeyedClaim:
        """What to ``async with`` for permits of a key; the other arguments are those of ``Limiter.acquire``."""
        return KeyedClaim(self, key, weight, priority, timeout)

    async def acquire(
        self,
        key: Hashable,
        weight: int = 1,
        priority: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109 - as Limiter.acquire
    ) -> None:
        """Take permits of a key, as ``Limiter.acquire`` does; to be given back by release()."""
        limiter = self._come(key)
        try:
            await limiter.acquire(weight, priority, timeout)
        finally:
            self._settle(key, -1)

    def try_acquire(self, key: Hashable, weight: int = 1) -> bool:
        """Take permits of a key if nobody waits for them and they are free; whether it did."""
        limiter = self._come(key)
        try:
            return limiter.try_acquire(weight)
        finally:
            self._settle(key, -1)

    def release(self, key: Hashable, weight: int = 1) -> None:
        """Give permits of a key back. Raises ValueError if not as many are in use."""
        entry = self._entries.get(key)
        if entry is None:
            raise ValueError(f"{self!r}: {weight} released for {key!r}, but none is in use")
        entry.limiter.release(weight)
        self._settle(key, 0)

    def __getitem__(self, key: Hashable) -> LimiterStats:
        """How one key is used. Raises KeyError if nobody uses it."""
        return self._entries[key].limiter.stats()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        """How many keys are in use."""
        return len(self._entries)

    def resize(self, capacity: int, *, key: Hashable | None = None) -> None:
        """Change the number of permits of one key, or with None of all that have no number of their own."""
        Limiter.__new__(Limiter, capacity, name=self._name)
        with self._lock:
            if key is not None:
                self._capacities[key] = capacity
            else:
                self._capacity = capacity
            concerned = [
                entry.limiter
                for known, entry in self._entries.items()
                if known == key or (key is None and known not in self._capacities)
            ]
        for limiter in concerned:
            limiter.resize(capacity)

    def stats(self) -> KeyedLimiterStats:
        """How it is used, over all keys."""
        with self._lock:
            limiters = [entry.limiter for entry in self._entries.values()]
            evicted = self._evicted
        return KeyedLimiterStats(
            name=self._name,
            capacity=self._capacity,
            keys=len(limiters),
            in_use=sum(limiter.in_use for limiter in limiters),
            waiting=sum(limiter.waiting for limiter in limiters),
            evicted=evicted,
        )

    @property
    def name(self) -> str | None:
        """The name that it was given."""
        return self._name

    def __repr__(self) -> str:
        name = "" if self._name is None else f" {self._name!r}"
        return f"<tideloop.KeyedLimiter{name} {self._capacity} per key, {len(self._entries)} keys>"


class KeyedClaim:
    """What ``keyed_limiter(key, ...)`` returns: ``async with`` it to hold permits of that key meanwhile."""

    __slots__ = ("_key", "_limiter", "_priority", "_timeout", "_weight")

    def __init__(self, limiter: KeyedLimiter, key: Hashable, weight: int, priority: int, timeout: float | None) -> None:
        self._limiter = limiter
        self._key = key
        self._weight = weight
        self._priority = priority
        self._timeout = timeout

    def __aenter__(self) -> Coroutine[Any, Any, None]:
        return self._limiter.acquire(self._key, self._weight, self._priority, self._timeout)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._limiter.release(self._key, self._weight)
