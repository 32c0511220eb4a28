"""A rate that processes and machines share: SharedRateLimiter, which is what ``RateLimiter(..., store=...)`` makes.

**The server decides** (``lua/rate.lua``): GCRA over its own clock, for all rates at once. A process fetches
admissions, `batch` requests at a time if as many are allowed at that moment, and its keeper (``kept``) puts them into
a pocket, from which requests are admitted without asking anybody. If fewer are allowed, one request is charged at the
server and admitted here after the wait that the server has said, or earlier, if others give back what they were
charged before. So the server's order is that of the calls, processes get their turns one request each while the rate
is exhausted, and nobody can take what another one waits for.

**What is promised.** All processes together are charged, in every span of ``d`` seconds, at most ``burst + limit /
per * d`` units. A process may use what it was charged for later, but keeps no more than a batch: admitted are at most
``burst + limit / per * d + batch * processes`` units, for requests of one unit each; with ``batch=1`` each request is
charged when it comes, and nothing is added but that its answer is under way. What lies in a pocket for a third of a
lease and is not used is given back.

**The pocket is a native limiter** of one resource per unit, whose permits are all in use; to admit is to release some,
and to be admitted is to take them, for good. So order, priorities, cancellation and several loops are those of every
other limiter. A request that is cancelled leaves its units for the next.

**Outage.** When the server has not answered for a lease (at first: when it does not answer), "fail" refuses those who
wait and come with StoreUnavailable. "local" admits a fair share: the rates divided by how many processes there were,
by a RateLimiter of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple

from tideloop._tideloop import enlist
from tideloop.kept import Kept
from tideloop.limits import LimiterClosed, ResourceLimits, WeightError
from tideloop.rates import Cost, Rate, RateLimiter, rate
from tideloop.redis_store import Link, OnOutage, RedisStore

__all__ = ["SharedCharge", "SharedRateClaim", "SharedRateLimiter", "SharedRateLimiterStats"]

_LOOK_AGAIN = 0.5
"""Seconds between two looks whether others have given something back, while a long wait is under way."""


class _Terms(NamedTuple):
    """What ``rate.lua`` says of one rate."""

    units: int
    wait: float
    """Seconds until what was charged may be used."""
    back: float
    """Units that were given back so far."""


class SharedRateLimiterStats(NamedTuple):
    """What ``stats()`` of a shared rate limiter tells; of this process, unless it says otherwise."""

    name: str
    waiting: int
    admitted: int
    pocket: dict[str, int]
    """Units that this process was charged for and has not used."""
    holders: int
    """Processes that the server knew of when it was last asked."""
    calls: int
    """Calls of the server so far."""
    away: bool
    """Whether the server is away, and has been for a lease."""


class SharedCharge:
    """What a request was charged; to be corrected when it is known better."""

    __slots__ = ("_cost", "_limiter")

    def __init__(self, limiter: SharedRateLimiter, cost: dict[str, int]) -> None:
        self._limiter = limiter
        self._cost = cost

    @property
    def cost(self) -> dict[str, int]:
        """Units that are charged."""
        return dict(self._cost)

    def settle(self, **units: int) -> None:
        """What it really cost, of the units that are named: the server is told. From any thread.

        Raises ValueError for a unit that no rate counts or a number below 0.
        """
        for unit, cost in units.items():
            if unit not in self._cost or not isinstance(cost, int) or cost < 0:
                known = ", ".join(self._cost)
                raise ValueError(f"{self._limiter!r}: settled {unit}={cost!r}; expected ints >= 0 of {known}")
        for unit, cost in units.items():
            self._limiter._correct(unit, cost - self._cost[unit])
            self._cost[unit] = cost

    def cancel(self) -> None:
        """Give all of it back: what was charged for was not done."""
        self.settle(**dict.fromkeys(self._cost, 0))

    def __repr__(self) -> str:
        return f"<charge of {self._cost} by {self._limiter!r}>"


class SharedRateClaim:
    """What ``limiter(cost=...)`` returns for a shared rate limiter: ``async with`` it to be admitted, also again."""

    __slots__ = ("_cost", "_limiter", "_priority")

    def __init__(self, limiter: SharedRateLimiter, cost: Cost, priority: int) -> None:
        self._limiter = limiter
        self._cost = cost
        self._priority = priority

    async def __aenter__(self) -> SharedCharge:
        return await self._limiter.acquire(self._cost, self._priority)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class SharedRateLimiter(Kept):
    """``RateLimiter(rate(...), store=..., name=...)``: so much per time for all processes that use this name there.

    It is used as a RateLimiter is (there is no ``reserve()``). How it is shared is told at the head of the module.
    Whoever wants to be admitted gets StoreUnavailable when the server is away and the store says "fail".
    """

    def __init__(self, *rates: Rate, store: RedisStore, name: str | None) -> None:
        RateLimiter.__new__(RateLimiter, *rates, name=name)  # refuses what is no rate
        super().__init__("RateLimiter", name, store)
        self._rates = rates
        self._units = list(dict.fromkeys(rate.unit for rate in rates))
        self._bursts = {unit: min(rate.burst for rate in rates if rate.unit == unit) for unit in self._units}
        self._keys = [f"{self._base}:levels", f"{self._base}:holders"]
        self._calls = self._admitted = 0
        self._reset()
        store.join(self)
        enlist(self)

    def _reset(self) -> None:
        super()._reset()
        self._holders = 1
        self._penalty: float | None = None
        # What was settled and the server has not heard of; from any thread.
        self._owed = dict.fromkeys(self._units, 0)
        self._owing = threading.RLock()
        self._latest: dict[str, int] = {}
        self._wants: dict[object, dict[str, int]] = {}
        self._idle_since = -1
        self._local: RateLimiter | None = None
        self._pocket = self._empty()

    def _empty(self) -> ResourceLimits:
        # No gauge of its own: it is not initialised.
        pocket = ResourceLimits.__new__(ResourceLimits, self._bursts, name=self._name)
        pocket(self._bursts).try_acquire()
        return pocket

    def _forked(self) -> None:
        self._admitted = 0
        self._reset()

    # --- how it is used ------------------------------------------------------------------------

    def _costs(self, cost: Cost) -> dict[str, int]:
        """What a request costs of each unit, checked."""
        first = "requests" if "requests" in self._bursts or len(self._units) > 1 else self._units[0]
        if cost is None:
            found: dict[str, int] = {first: 1}
        elif isinstance(cost, Mapping):
            found = {**({"requests": 1} if "requests" in self._bursts else {}), **cost}
        else:
            found = {first: cost}
        for unit, units in found.items():
            if unit not in self._bursts:
                raise ValueError(f"{self!r}: no rate of {unit!r}; there are {', '.join(self._units)}")
            if not isinstance(units, int) or isinstance(units, bool) or units < 0:
                raise ValueError(f"{self!r}: cost is {units!r} {unit}; expected an int >= 0")
            if units > self._bursts[unit]:
                raise WeightError(f"{self!r}: cost of {units} {unit}, but the burst is {self._bursts[unit]}")
        return {unit: units for unit, units in found.items() if units}

    async def acquire(self, cost: Cost = None, priority: int = 0) -> SharedCharge:
        """Wait until a request of this cost is admitted, and charge it, as ``RateLimiter.acquire`` does.

        Raises what that raises, and StoreUnavailable. Cancelled, it costs nothing; what was fetched for it serves the
        next of this process, or is given back.
        """
        costs = self._costs(cost)
        if costs:
            claim = self._pocket(costs, priority=priority)
            if self._away is not None or not claim.try_acquire():
                await self._wait(costs, priority)
        self._admitted += 1
        return SharedCharge(self, costs)

    async def _wait(self, costs: dict[str, int], priority: int) -> None:
        key = object()
        self._wants[key] = costs
        try:
            while True:
                # This one, from before the ring: if the keeper ends in between, it is closed.
                pocket = self._pocket
                self._ring()
                self._check()
                if (local := self._local) is not None:
                    await local.acquire(costs, priority)
                    return
                try:
                    await pocket(costs, priority=priority).acquire()
                    return
                except LimiterClosed:
                    continue  # there is another by now, or a refusal
        finally:
            del self._wants[key]

    def try_acquire(self, cost: Cost = None) -> SharedCharge | None:
        """Charge a request if this process has fetched as much and nobody waits; None: not. Asks no server.

        If it does not, a batch is fetched, so that trying again may succeed; from a thread without a loop only if a
        loop keeps the limiter already.
        """
        costs = self._costs(cost)
        local = self._local
        if local is not None:
            taken = local.try_acquire(costs) is not None
        else:
            taken = not costs or (self._refusal is None and self._pocket(costs).try_acquire())
        if not taken:
            self._latest = costs
            self._try_ring()
            return None
        self._admitted += 1
        return SharedCharge(self, costs)

    async def __aenter__(self) -> SharedCharge:
        return await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def __call__(self, cost: Cost = None, *, priority: int = 0) -> SharedRateClaim:
        """What to ``async with`` for another cost than one request; raises what acquire() does."""
        self._costs(cost)
        return SharedRateClaim(self, cost, priority)

    def penalise(self, retry_after: float) -> None:
        """Nobody in any process is admitted for so many seconds, and no burst after them.

        Begins when the server has heard of it; in this process at once. Raises ValueError for a negative number or nan.
        From any thread; RuntimeError if no running loop keeps the limiter.
        """
        if not 0 <= retry_after < float("inf"):
            raise ValueError(f"{self!r}: retry_after is {retry_after!r}; expected seconds >= 0")
        self._penalty = max(retry_after, self._penalty or 0.0)
        self._drain()
        if (local := self._local) is not None:
            local.penalise(retry_after)
        self._ring()

    def _drain(self) -> None:
        """What is in the pocket is given back, as far as nobody waits for it."""
        pocket = self._pocket
        for unit, (capacity, in_use, _) in zip(self._units, pocket._usage(), strict=True):
            left = capacity - in_use
            if left and pocket({unit: left}).try_acquire():
                self._owe({unit: -left})

    def _correct(self, unit: str, units: int) -> None:
        self._owe({unit: units})
        self._try_ring()

    def _owe(self, units: dict[str, int]) -> None:
        with self._owing:
            for unit, more in units.items():
                self._owed[unit] += more

    @property
    def rates(self) -> tuple[Rate, ...]:
        """The rates that all processes keep together."""
        return self._rates

    @property
    def waiting(self) -> int:
        """How many requests wait in this process."""
        return len(self._wants)

    def stats(self) -> SharedRateLimiterStats:
        """How it is used and what happened so far, in this process."""
        usage = self._pocket._usage()
        return SharedRateLimiterStats(
            name=self._name,
            waiting=self.waiting,
            admitted=self._admitted,
            pocket={unit: capacity - in_use for unit, (capacity, in_use, _) in zip(self._units, usage, strict=True)},
            holders=self._holders,
            calls=self._calls,
            away=self._away is not None,
        )

    def __repr__(self) -> str:
        words = [f"{rate.limit:g} {rate.unit} per {rate.per:g} s" for rate in self._rates]
        if self.waiting:
            words.append(f"{self.waiting} waiting")
        if self._away is not None:
            words.append("store away")
        return f"<tideloop.SharedRateLimiter {self._name!r} {', '.join(words)}>"

    # --- the keeper ------------------------------------------------------------------------------

    async def _step(self, link: Link, loop: asyncio.AbstractEventLoop) -> float | None:
        need: dict[str, int] = {}
        ask: dict[str, int] = {}
        if self._pocket.waiting or (self._away is not None and self._wants):
            wants = list(self._wants.values())
            # Enough for whichever of them is the first.
            usage = self._pocket._usage()
            here = {unit: size - used for unit, (size, used, _) in zip(self._units, usage, strict=True)}
            need = {unit: max(0, max(costs.get(unit, 0) for costs in wants) - here[unit]) for unit in self._units}
            served = wants[: self._store.batch]
            ahead = self._store.batch - len(served)
            for unit in self._units:
                units = sum(costs.get(unit, 0) for costs in served) + ahead * wants[-1].get(unit, 0)
                ask[unit] = max(0, min(units, self._bursts[unit]) - here[unit])
        elif self._latest:
            ask = {unit: self._latest.get(unit, 0) * self._store.batch for unit in self._units}
        self._latest = {}
        # While the store is away it is asked whether it still is.
        if not ask and self._away is None and self._penalty is None and not any(self._owed.values()):
            if self._idle_since == self._admitted:
                await self._part(link)
                return None
            self._idle_since = self._admitted
            return self._store.lease / 3
        charged = await self._admitted_at_last(link, loop, need, ask)
        pocket = self._pocket
        for unit, units in charged.items():
            # One by one: of a burst there can be no more in the pocket.
            room = pocket._usage()[self._units.index(unit)][1]
            if min(units, room):
                pocket(dict.fromkeys([unit], min(units, room))).release()
            if units > room:
                self._owe({unit: room - units})
        if pocket.waiting or self._penalty is not None or any(self._owed.values()):
            self._bell.set()
            await asyncio.sleep(0)  # those who were admitted leave the queue
        return self._store.lease / 3

    async def _admitted_at_last(
        self, link: Link, loop: asyncio.AbstractEventLoop, need: dict[str, int], ask: dict[str, int]
    ) -> dict[str, int]:
        """What was charged of each unit, when it may be used.

        A long wait is looked at again and again: others may have given back what they were charged before. A penalty
        meanwhile is for those who come later.
        """
        terms = first = await self._call(link, loop, need, ask)
        # Rates of one unit are charged alike.
        charged = {given.unit: terms.units for given, terms in zip(self._rates, first, strict=True)}
        began = loop.time()
        try:
            while True:
                waits = (
                    then.wait - (now.back - then.back) * given.per / given.limit
                    for given, then, now in zip(self._rates, first, terms, strict=True)
                )
                left = max(waits) - (loop.time() - began)
                if left <= 0:
                    return charged
                await asyncio.sleep(min(left, _LOOK_AGAIN))
                if left > _LOOK_AGAIN:
                    with contextlib.suppress(Exception):  # if there is no answer the wait is as long as it was
                        terms = await self._call(link, loop, {}, {})
        except asyncio.CancelledError:
            # The keeper ends before it may be used: the last words give it back.
            self._owe({unit: -units for unit, units in charged.items()})
            raise

    async def _call(
        self, link: Link, loop: asyncio.AbstractEventLoop, need: dict[str, int], ask: dict[str, int]
    ) -> list[_Terms]:
        """Charge, and tell what is owed."""
        penalty, self._penalty = self._penalty, None
        with self._owing:
            owed, self._owed = self._owed, dict.fromkeys(self._units, 0)
        arguments: list[str | int] = [self._holder, int(self._store.lease * 1000)]
        arguments += [repr(-1 if penalty is None else penalty), len(self._rates)]
        for number, given in enumerate(self._rates):
            unit = given.unit
            arguments += [f"{number}:{unit}", repr(given.limit / given.per), given.burst]
            arguments += [owed[unit], need.get(unit, 0), max(need.get(unit, 0), ask.get(unit, 0))]
        self._calls += 1
        asked = loop.time()
        try:
            self._holders, *told = await link.run("rate", self._keys, arguments)
        except BaseException:
            if penalty is not None:
                self._penalty = max(penalty, self._penalty or 0.0)
            self._owe(owed)
            raise
        self._answered(asked)
        self._local = None
        return [_Terms(told[at], told[at + 1] / 1e6, float(told[at + 2])) for at in range(0, 3 * len(self._rates), 3)]

    async def _part(self, link: Link) -> None:
        self._drain()
        if any(self._owed.values()) or self._penalty is not None:
            await self._call(link, asyncio.get_running_loop(), {}, {})

    def _renew(self) -> None:
        """Another pocket: who waits at this one begins anew."""
        old, self._pocket = self._pocket, self._empty()
        old.close()

    def _moved(self) -> None:
        self._renew()

    def _ended(self) -> None:
        self._local = None
        if self._wants:
            self._renew()

    def _alone(self, policy: OnOutage) -> None:
        if policy == "local":
            parts = self._holders
            shares = (
                rate(given.limit / parts, given.per, max(1, given.burst // parts), given.unit) for given in self._rates
            )
            self._local = RateLimiter.__new__(RateLimiter, *shares, name=self._name)
        self._renew()
