"""Limits on how much happens per time: RateLimiter and KeyedRateLimiter.

    limiter = RateLimiter(rate(100, per=1, burst=20), rate(50_000, per=60, unit="tokens"))

    async with limiter(cost={"tokens": 800}) as charge:     # one request and 800 tokens
        answer = await ask(...)
        charge.settle(tokens=answer.tokens)                 # what it really cost

The algorithm is GCRA (ITU-T I.371; "leaky bucket as a meter"): in every span of ``d`` seconds at most
``burst + limit / per * d`` units are admitted, for each rate at once, and not only in spans that begin on the
minute. First come, first served within a priority, whatever the costs. Who waits costs one wake-up; one timer
serves all of a loop.

Usable from several loops and threads at once, as long as their clocks are the same one, as those of real loops are.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, overload
from weakref import WeakValueDictionary

from tideloop._tideloop import Charge, Enlisted, RateClaimCore, RatesCore, enlist, function

if TYPE_CHECKING:
    from tideloop.redis_store import RedisStore
    from tideloop.shared_rates import SharedRateLimiter

__all__ = [
    "Charge",
    "Cost",
    "KeyedRateLimiter",
    "KeyedRateLimiterStats",
    "Rate",
    "RateClaim",
    "RateLimiter",
    "RateLimiterStats",
    "rate",
]

_F = TypeVar("_F", bound=Callable[..., Any])

Cost: TypeAlias = int | Mapping[str, int] | None
"""What a request costs: of each unit; a number counts requests, or the only unit there is. None is one of these.

A mapping that does not name requests, where these are limited too, means one request.
"""


class Rate(NamedTuple):
    """So much per time; made by rate()."""

    limit: float
    per: float
    burst: int
    unit: str


def rate(limit: float, per: float = 1.0, burst: int | None = None, unit: str = "requests") -> Rate:
    """``limit`` units per ``per`` seconds, and ``burst`` of them at once after a pause.

    Without a burst it is the limit (at least 1): after a pause all that a span of ``per`` seconds allows may come at
    once, and as much again in the course of the span. Where a server counts each span strictly, take a burst
    of 1, or a limit that is lower by the burst. No request can cost more than the burst.

    Raises ValueError if one of them is not positive, TypeError if the burst is no int.
    """
    if burst is None:
        burst = max(1, int(limit)) if 0 < limit < float("inf") else 1
    if not isinstance(burst, int) or isinstance(burst, bool):
        raise TypeError(f"burst is {burst!r}; expected an int >= 1")
    for word, value in {"limit": limit, "per": per, "burst": burst}.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{word} is {value!r}; expected a number > 0")
    return Rate(float(limit), float(per), burst, unit)


class RateLimiterStats(NamedTuple):
    """What ``RateLimiter.stats()`` tells."""

    name: str | None
    waiting: int
    admitted: int
    """Requests that were admitted, at once, after waiting or by a reservation."""
    waited: int
    """Those of them that had to wait."""
    cancelled: int
    """Requests that were cancelled while they waited, or before they went on."""
    rejected: int
    """try_acquire() calls that got nothing."""
    penalties: int
    """Calls of penalise()."""
    wait_time: float
    """Seconds that were waited in all, by those who were admitted."""
    timers: int
    """How often a timer rang: at most once for each who waited."""
    available: tuple[int, ...]
    """Units that each rate would admit now."""


def _native(name: str) -> Callable[[_F], _F]:
    """The native function of this name, with the signature and the documentation of what it decorates."""
    return lambda template: function(name, template)


class RateClaim(RateClaimCore):
    """What ``limiter(cost=...)`` returns: ``async with`` it to be admitted. It may be entered any number of times."""

    __slots__ = ()

    @_native("RateClaim.__aenter__")
    async def __aenter__(self) -> Charge:
        raise TypeError(f"{self!r} is not a RateClaim")

    @_native("RateLimiter.__aexit__")
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        raise TypeError(f"{self!r} is not a RateClaim")


class RateLimiter(RatesCore):
    """So much per time, by one or more rates at once; see the module for an example.

    ``async with limiter:`` waits until one request is admitted, ``async with limiter(cost=...) as charge:`` until one
    of another cost is. What runs inside of the block is not limited: it is about when it begins. An admission is
    not given back by leaving the block, only by ``charge.settle()`` or ``charge.cancel()``.

    Cancelled while it waits, a request costs nothing, and those behind it come earlier.

    With a ``store`` it is a SharedRateLimiter: the rates of all processes that use that name.
    """

    @overload
    def __new__(cls, *rates: Rate, name: str | None = None) -> RateLimiter: ...
    @overload
    def __new__(  # type: ignore[misc]  # it is another class, with the same methods
        cls, *rates: Rate, store: RedisStore, name: str
    ) -> SharedRateLimiter: ...
    def __new__(  # type: ignore[misc]
        cls, *rates: Rate, store: RedisStore | None = None, name: str | None = None
    ) -> RateLimiter | SharedRateLimiter:
        if store is not None:
            from tideloop.shared_rates import SharedRateLimiter

            return SharedRateLimiter(*rates, store=store, name=name)
        for given in rates:
            if not isinstance(given, Rate):
                raise TypeError(f"RateLimiter takes rates, such as rate(100, per=1), not {given!r}")
        self = RatesCore.__new__(cls, rates, name)
        self._rates = rates
        return self

    _rates: tuple[Rate, ...]

    @_native("RateLimiter.acquire")
    async def acquire(self, cost: Cost = None, priority: int = 0) -> Charge:
        """Wait until a request of this cost is admitted, and charge it.

        Of those who wait, higher priorities go first, and equal ones in order of arrival. Raises WeightError if the
        cost is more than a rate's burst, since that is never admitted; ValueError for a unit that no rate counts.
        """
        raise TypeError(f"{self!r} is not a RateLimiter")

    @_native("RateLimiter.__aenter__")
    async def __aenter__(self) -> None:
        raise TypeError(f"{self!r} is not a RateLimiter")

    @_native("RateLimiter.__aexit__")
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        raise TypeError(f"{self!r} is not a RateLimiter")

    def __call__(self, cost: Cost = None, *, priority: int = 0) -> RateClaim:
        """What to ``async with`` for another cost than one request; raises what acquire() does."""
        return RateClaim(self, cost, priority)

    def try_acquire(self, cost: Cost = None) -> Charge | None:
        """Charge a request if it is admitted now and nobody waits; None: it is not. From any thread."""
        return self._try_acquire(cost)

    def reserve(self, cost: Cost = None, *, priority: int = 0) -> Charge:
        """Charge a request without waiting: its owner may go on ``charge.wait`` seconds from now.

        It stands behind those who wait; ``charge.cancel()`` gives it back. From any thread.
        """
        return self._reserve(cost, priority)

    def penalise(self, retry_after: float) -> None:
        """Admit nobody for so many seconds, and no burst after them: what to do when a server says 429, Retry-After.

        Raises ValueError for a negative number or nan. From any thread.
        """
        if not 0 <= retry_after < float("inf"):
            raise ValueError(f"{self!r}: retry_after is {retry_after!r}; expected seconds >= 0")
        self._penalise(retry_after)

    @property
    def rates(self) -> tuple[Rate, ...]:
        """The rates that it keeps."""
        return self._rates

    def stats(self) -> RateLimiterStats:
        """What happened so far, and what would be admitted now."""
        (admitted, waited, cancelled, refused, penalties, rung), wait_time = self._tally()
        return RateLimiterStats(
            name=self.name,
            waiting=self.waiting,
            admitted=admitted,
            waited=waited,
            cancelled=cancelled,
            rejected=refused,
            penalties=penalties,
            wait_time=wait_time,
            timers=rung,
            available=tuple(self._available()),
        )

    def __repr__(self) -> str:
        words = [f"{rate.limit:g} {rate.unit} per {rate.per:g} s" for rate in self._rates]
        if self.waiting:
            words.append(f"{self.waiting} waiting")
        name = "" if self.name is None else f" {self.name!r}"
        return f"<tideloop.{type(self).__name__}{name} {', '.join(words)}>"


class KeyedRateLimiterStats(NamedTuple):
    """What ``KeyedRateLimiter.stats()`` tells."""

    name: str | None
    keys: int
    """Keys that are remembered: those that a new limiter would treat differently."""
    waiting: int
    evicted: int
    """Keys that were forgotten because their rates had recovered."""


class KeyedRateLimiter(Enlisted):
    """The same rates for each key: so many requests per minute to a host, of a customer, …

    ``async with limiter(host):``, ``limiter[host].penalise(30)``. A key is forgotten when its rates have recovered
    fully and nobody waits, since a new limiter would do the same: nothing is lost by it, and memory is bounded by
    what the rates allow to happen. Each use looks at the two keys that were used longest ago.
    """

    def __init__(self, *rates: Rate, name: str | None = None) -> None:
        # Refuses what is no rate. (Those inside of something are no gauges: they are not initialised.)
        RateLimiter.__new__(RateLimiter, *rates, name=name)
        self._rates = rates
        self._name = name
        self._limiters: OrderedDict[Hashable, RateLimiter] = OrderedDict()
        # Forgotten, but somebody has them yet and may go on: there are never two for a key.
        self._forgotten: WeakValueDictionary[Hashable, RateLimiter] = WeakValueDictionary()
        self._evicted = 0
        # Re-entrant: a collection inside of it may run code that uses this.
        self._lock = threading.RLock()
        enlist(self)

    def __getitem__(self, key: Hashable) -> RateLimiter:
        """The limiter of a key; from any thread."""
        with self._lock:
            limiter = self._limiters.get(key) or self._forgotten.get(key)
            if limiter is None:
                title = repr(key) if self._name is None else f"{self._name}[{key!r}]"
                limiter = RateLimiter.__new__(RateLimiter, *self._rates, name=title)
            self._limiters[key] = limiter
            self._limiters.move_to_end(key)
            self._evict()
            return limiter

    def _evict(self) -> None:
        for _ in range(min(2, len(self._limiters) - 1)):
            key, oldest = next(iter(self._limiters.items()))
            if not oldest._is_fresh():
                # Looked at again when all others have been.
                self._limiters.move_to_end(key)
                return
            self._forgotten[key] = self._limiters.pop(key)
            self._evicted += 1

    def __call__(self, key: Hashable, cost: Cost = None, *, priority: int = 0) -> RateClaim:
        """What to ``async with`` for a request of a key; the other arguments are those of ``RateLimiter.acquire``."""
        return self[key](cost, priority=priority)

    def acquire(self, key: Hashable, cost: Cost = None, priority: int = 0) -> Coroutine[Any, Any, Charge]:
        """Wait until a request of a key is admitted, as ``RateLimiter.acquire`` does."""
        return self[key].acquire(cost, priority)

    def try_acquire(self, key: Hashable, cost: Cost = None) -> Charge | None:
        """Charge a request of a key if it is admitted now, as ``RateLimiter.try_acquire`` does."""
        return self[key].try_acquire(cost)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._limiters

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._limiters)

    @property
    def name(self) -> str | None:
        """The name that it was given."""
        return self._name

    def stats(self) -> KeyedRateLimiterStats:
        """How it is used, over all keys."""
        with self._lock:
            limiters = list(self._limiters.values())
        return KeyedRateLimiterStats(
            name=self._name,
            keys=len(limiters),
            waiting=sum(limiter.waiting for limiter in limiters),
            evicted=self._evicted,
        )

    def __repr__(self) -> str:
        words = [f"{rate.limit:g} {rate.unit} per {rate.per:g} s" for rate in self._rates]
        name = "" if self._name is None else f" {self._name!r}"
        return f"<tideloop.KeyedRateLimiter{name} {', '.join(words)} per key, {len(self)} keys>"
