"""A limit that learns how much what is behind it can take: AdaptiveLimiter.

    limiter = AdaptiveLimiter()             # Gradient2, from 1 to 1000
    async with limiter:
        await query(...)

It watches how long operations take. As long as that is about what they take when nothing queues, the limit
grows; when they queue, it shrinks. So it finds the capacity of a backend and follows when that changes; as a
bound on what a batch job does at a time, or, rejecting, on what a server accepts.

The permits are those of a ``Limiter``: first come, first served, nothing lost when somebody is cancelled.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from types import TracebackType
from typing import Literal, NamedTuple, TypeAlias

from tideloop._tideloop import AdaptiveCore, Enlisted, enlist
from tideloop.limits import Limiter

__all__ = ["AIMD", "AdaptiveLimiter", "AdaptiveLimiterStats", "AdaptivePermit", "Gradient2", "Vegas", "outcome_of"]

# The constructor has parameters of these names.
_least, _most = min, max

Result: TypeAlias = Literal["ok", "drop", "ignore"]
Outcomes: TypeAlias = Mapping[type[BaseException], Result] | Callable[[BaseException], Result]


def _check(algorithm: object, **expected: tuple[bool, str]) -> None:
    for field, (holds, words) in expected.items():
        if not holds:
            raise ValueError(f"{field} of {algorithm!r}: expected {words}")


_PART = "more than 0 and less than 1"


@dataclass(frozen=True)
class Gradient2:
    """The limit times ``tolerance * baseline / mean``; at most a quarter more, at least a quarter of it, per window.

    Source: Netflix concurrency-limits, ``Gradient2Limit``. Where it deviates, and why:

    * theirs compares single operations with a long mean, which contains the queue that the limit has made, tolerates
      half as much again, and adds a constant 4; on a backend of 20 it settles at about 30. This one compares means of
      windows with a baseline that probes keep free of queues, tolerates a tenth, and grows by the room in that;
    * theirs clamps the factor to a half and smooths it. Below a half it is no noise, and here it is taken as it is:
      from 50 times the capacity each step takes as long as the queue does;
    * theirs does not look at drops.

    tolerance: how many times the time without a queue operations may take. smoothing: which part of a change is
    made at once. backoff: what is left of the limit after a window with drops.
    """

    tolerance: float = 1.1
    smoothing: float = 0.7
    backoff: float = 0.9

    def __post_init__(self) -> None:
        _check(
            self,
            tolerance=(1 < self.tolerance < math.inf, "a number above 1"),
            smoothing=(0 < self.smoothing <= 1, "more than 0 and at most 1"),
            backoff=(0 < self.backoff < 1, _PART),
        )


@dataclass(frozen=True)
class Vegas:
    """Keeps between ``alpha`` and ``beta`` logarithms (of the limit, to base 10) of operations in the queue.

    Source: Brakmo and Peterson, "TCP Vegas", 1995; Netflix concurrency-limits, ``VegasLimit``. Where it deviates, and
    why: theirs keeps 3 to 6 logarithms, measured on single operations; means of windows allow 1 to 2. A queue that is
    far beyond ``beta`` is taken off by half, and most of the limit if it is most of it: steps of one take for ever.
    """

    alpha: float = 1.0
    beta: float = 2.0
    backoff: float = 0.9

    def __post_init__(self) -> None:
        _check(
            self,
            alpha=(0 < self.alpha <= self.beta, "more than 0 and at most beta"),
            beta=(self.beta < math.inf, "a number"),
            backoff=(0 < self.backoff < 1, _PART),
        )


@dataclass(frozen=True)
class AIMD:
    """``step`` more per window; times ``backoff`` when operations are dropped or take longer than ``too_long`` seconds.

    Source: Chiu and Jain 1989; Netflix concurrency-limits, ``AIMDLimit``. For backends that say when they have
    enough: it knows nothing of queues, and without drops and ``too_long`` it grows to the maximum. Where it deviates,
    and why: it decides per window, against noise; drops that go on although the limit was cut take more and more of
    it, up to half per window, and so does twice ``too_long``, since a tenth per window is too slow far above the
    capacity. The other algorithms do the same after drops.
    """

    step: float = 1.0
    backoff: float = 0.9
    too_long: float = math.inf

    def __post_init__(self) -> None:
        _check(
            self,
            step=(0 < self.step < math.inf, "a number above 0"),
            backoff=(0 < self.backoff < 1, _PART),
            too_long=(self.too_long > 0, "more than 0 seconds"),
        )


def outcome_of(error: BaseException) -> Result:
    """What an exception says of the backend, unless ``outcomes`` says otherwise.

    "drop": TimeoutError, ConnectionError, and whatever carries the HTTP status 429 or 503 (as ``status``,
    ``status_code``, or in a ``response``), as errors of the usual clients do. "ignore": everything else; how long it
    took says nothing.
    """
    if isinstance(error, TimeoutError | ConnectionError):
        return "drop"
    for bearer in (error, getattr(error, "response", None)):
        for name in ("status", "status_code"):
            if getattr(bearer, name, None) in (429, 503):
                return "drop"
    return "ignore"


class AdaptiveLimiterStats(NamedTuple):
    """What ``AdaptiveLimiter.stats()`` tells."""

    name: str | None
    limit: float
    """What the algorithm wants."""
    allowed: int
    """How many operations are allowed now: the limit, or less while a probe is under way."""
    in_flight: int
    waiting: int
    baseline: float | None
    """Seconds that an operation takes when nothing queues, as far as it is known."""
    windows: int
    """Decisions and probes so far."""
    probing: bool
    reason: str
    """Why the limit is what it is: "start", "grew", "queued", "dropped" or "kept"."""
    ok: int
    dropped: int
    ignored: int
    rejected: int


class AdaptivePermit:
    """What ``limiter(...)`` returns: ``async with`` it, once, to hold a permit meanwhile.

    ``permit.outcome`` says how it went, if not by an exception: "drop" or "ignore" set inside of the block counts.
    """

    __slots__ = ("_began", "_limiter", "_partition", "outcome")

    def __init__(self, limiter: AdaptiveLimiter, partition: str | None) -> None:
        self._limiter = limiter
        self._partition = partition
        self._began: float | None = None
        self.outcome: Result | None = None

    async def __aenter__(self) -> AdaptivePermit:
        if self._began is not None:
            raise RuntimeError(f"{self!r} was entered already; call the limiter again for another permit")
        await self._limiter._enter(self._partition)
        self._began = self._limiter._now()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._began is not None
        outcome: Result = "ignore"
        try:
            outcome = self.outcome or self._limiter._outcome(error)
        finally:
            self._limiter._leave(self._partition, self._began, outcome)

    def __repr__(self) -> str:
        return f"<permit of {self._limiter!r}>"


class AdaptiveLimiter(Enlisted):
    """A limit on operations in flight that follows what is behind it; see the module for what it is for.

    ``async with limiter:``, or ``async with limiter(partition="batch") as permit:``. How an operation ended is known
    from the exception that leaves the block: none is "ok"; CancelledError and GeneratorExit are "ignore", they say
    nothing; others are what ``outcomes`` says, a mapping of exception classes or a function, and otherwise
    what ``outcome_of`` says. A cancelled operation changes neither the baseline nor the limit.

    algorithm: ``Gradient2()``, ``Vegas()`` or ``AIMD()``. min, max: the limit stays between them, both included; a
    probe lets in three quarters of it, and so may go below `min` for a window.
    initial: what it begins with, or the nearest that these allow. on_full: whether who comes when all permits are in
    use waits, or gets LimiterFull.

    partitions: shares of the limit, such as ``{"live": 0.8, "batch": 0.2}``. A partition may always use its share (at
    least 1), and what the others leave; when permits come home, the one that uses least of its share goes first. So the
    limit may be exceeded for a while by those who claim their shares back.

    Usable from several loops and threads. Raises ValueError for shares that are not positive or exceed 1 together.
    """

    def __init__(
        self,
        algorithm: Gradient2 | Vegas | AIMD | None = None,
        *,
        min: int = 1,
        max: int = 1000,
        initial: int = 20,
        on_full: Literal["wait", "reject"] = "wait",
        partitions: Mapping[str, float] | None = None,
        outcomes: Outcomes | None = None,
        name: str | None = None,
    ) -> None:
        self._algorithm = algorithm = Gradient2() if algorithm is None else algorithm
        if not isinstance(algorithm, Gradient2 | Vegas | AIMD):
            raise TypeError(f"algorithm is {algorithm!r}; expected Gradient2(), Vegas() or AIMD()")
        if on_full not in ("wait", "reject"):
            raise ValueError(f"on_full is {on_full!r}; expected 'wait' or 'reject'")
        for word, value in {"min": min, "max": max, "initial": initial}.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{word} is {value!r}; expected an int")
        if initial < 1:
            raise ValueError(f"initial is {initial}; expected 1 or more")
        shares = {None: 1.0} if partitions is None else dict(partitions)
        if not shares or _least(shares.values()) <= 0 or sum(shares.values()) > 1 + 1e-9:
            raise ValueError(f"partitions are {partitions!r}; expected positive shares that are at most 1 together")
        self._name = name
        self._rejects = on_full == "reject"
        self._outcomes = outcomes
        initial = _most(min, _least(max, initial))
        kind = type(algorithm).__name__
        self._core = AdaptiveCore(kind, astuple(algorithm), min, max, initial, self._now())
        self._allowed = initial
        self._shares: dict[str | None, float] = shares  # type: ignore[assignment]
        title = "adaptive" if name is None else name
        queue_limit = 0 if self._rejects else None
        self._limiters = {
            # A part of this gauge, none of its own: it is not initialised.
            partition: Limiter.__new__(
                Limiter,
                self._share(partition),
                name=title if partition is None else f"{title}[{partition}]",
                queue_limit=queue_limit,
            )
            for partition in self._shares
        }
        self._counts: dict[Result, int] = {"ok": 0, "drop": 0, "ignore": 0}
        # Beginnings of those who use acquire() and release(), or the limiter itself as a context, by task.
        self._begun: dict[object, list[tuple[float, BaseException | None]]] = {}
        self._lock = threading.RLock()
        enlist(self)

    # --- who may be inside ---------------------------------------------------------------------

    @staticmethod
    def _now() -> float:
        try:
            return asyncio.get_running_loop().time()
        except RuntimeError:
            return time.monotonic()

    def _share(self, partition: str | None) -> int:
        return _most(1, round(self._shares[partition] * self._allowed))

    def _of(self, partition: str | None) -> Limiter:
        limiter = self._limiters.get(partition)
        if limiter is None:
            known = ", ".join(repr(known) for known in self._limiters if known is not None)
            raise ValueError(f"{self!r}: partition is {partition!r}; expected one of {known or 'None'}")
        return limiter

    def _balance(self, comer: str | None = None) -> None:
        """Give each partition its share, and what is free to who needs it most. Under the lock."""
        if len(self._limiters) == 1:
            return
        for partition, limiter in self._limiters.items():
            capacity = _most(self._share(partition), limiter.in_use)
            if limiter.capacity != capacity:
                limiter.resize(capacity)
        free = self._allowed - self.in_flight  # now that those who waited for their share have it
        while free > 0:
            full = [
                (limiter.in_use / self._shares[partition], limiter)
                for partition, limiter in self._limiters.items()
                if limiter.available == 0 and (limiter.waiting or partition == comer)
            ]
            if not full:
                return
            # The one more is taken at once by who waits; a comer takes it when this returns.
            limiter = _least(full, key=lambda entry: entry[0])[1]
            limiter.resize(limiter.capacity + 1)
            free -= 1

    async def _enter(self, partition: str | None) -> None:
        limiter = self._of(partition)
        if len(self._limiters) == 1:
            await limiter.acquire()
            return
        if limiter.available == 0:
            with self._lock:
                self._balance(partition)
        try:
            await limiter.acquire()
        except BaseException:
            # What it was lent is for the others now.
            with self._lock:
                self._balance()
            raise

    def _leave(self, partition: str | None, began: float, outcome: Result) -> None:
        known = outcome if outcome in self._counts else "ignore"
        with self._lock:
            in_flight = self.in_flight
            limiter = self._limiters[partition]
            if len(self._limiters) > 1:
                # What was lent comes back to all, not to the next of this partition.
                limiter.resize(_most(self._share(partition), limiter.in_use - 1))
            limiter.release()
            self._counts[known] += 1
            allowed = self._core._ended(began, self._now(), in_flight, known)
            if allowed is not None:
                self._allowed = allowed
                if len(self._limiters) == 1:
                    limiter.resize(allowed)
            self._balance()
        if known != outcome:
            raise ValueError(f"{self!r}: outcome is {outcome!r}; expected 'ok', 'drop' or 'ignore'")

    def _outcome(self, error: BaseException | None) -> Result:
        if error is None:
            return "ok"
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            return "ignore"
        if callable(self._outcomes):
            return self._outcomes(error)
        for kind, outcome in (self._outcomes or {}).items():
            if isinstance(error, kind):
                return outcome
        return outcome_of(error)

    # --- how it is used ------------------------------------------------------------------------

    def __call__(self, partition: str | None = None) -> AdaptivePermit:
        """What to ``async with`` for a permit of a partition, or to say how it went by ``permit.outcome``."""
        self._of(partition)
        return AdaptivePermit(self, partition)

    async def acquire(self) -> None:
        """Take a permit; to be given back by release(), in the same task. Raises LimiterFull if ``on_full="reject"``.

        Cancelled, it holds nothing. For what takes a Limiter: ``group(limit=AdaptiveLimiter())``.
        """
        await self._enter(None)
        self._begun.setdefault(self._holder(), []).append((self._now(), sys.exception()))

    def release(self, outcome: Result | None = None) -> None:
        """Give a permit back. Without an outcome it is that of the exception under way, such as in a ``finally``.

        Raises RuntimeError if this task has not taken one.
        """
        holder = self._holder()
        begun = self._begun.get(holder)
        if not begun:
            raise RuntimeError(f"{self!r}: released by {holder!r}, which has not acquired it")
        began, before = begun.pop()
        if not begun:
            del self._begun[holder]
        error = sys.exception()
        known: Result = "ignore"
        try:
            # One that was under way at the beginning is somebody else's.
            known = outcome or self._outcome(None if error is before else error)
        finally:
            error = before = None
            self._leave(None, began, known)

    def _restart(self) -> None:
        """The operation of this task begins only now: what it waited for since acquire() is not the backend's doing."""
        if begun := self._begun.get(self._holder()):
            begun[-1] = (self._now(), begun[-1][1])

    @staticmethod
    def _holder() -> object:
        try:
            return asyncio.current_task() or threading.get_ident()
        except RuntimeError:
            return threading.get_ident()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        outcome: Result = "ignore"
        try:
            outcome = self._outcome(error)
        finally:
            self.release(outcome)

    # --- how it is doing -----------------------------------------------------------------------

    @property
    def name(self) -> str | None:
        """The name that it was given."""
        return self._name

    @property
    def limit(self) -> int:
        """How many operations are allowed now."""
        return self._allowed

    @property
    def in_flight(self) -> int:
        """How many permits are in use."""
        return sum(limiter.in_use for limiter in self._limiters.values())

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return sum(limiter.waiting for limiter in self._limiters.values())

    def stats(self) -> AdaptiveLimiterStats:
        """What it has learnt, and what happened so far."""
        allowed, limit, baseline, windows, probing, reason = self._core._look()
        return AdaptiveLimiterStats(
            name=self._name,
            limit=limit,
            allowed=allowed,
            in_flight=self.in_flight,
            waiting=self.waiting,
            baseline=baseline,
            windows=windows,
            probing=probing,
            reason=reason,
            ok=self._counts["ok"],
            dropped=self._counts["drop"],
            ignored=self._counts["ignore"],
            rejected=sum(limiter.stats().rejected for limiter in self._limiters.values()),
        )

    def __repr__(self) -> str:
        name = "" if self._name is None else f" {self._name!r}"
        words = f"{self.in_flight}/{self._allowed} in use"
        if self.waiting:
            words += f", {self.waiting} waiting"
        return f"<tideloop.AdaptiveLimiter{name} {words}, {type(self._algorithm).__name__}>"
