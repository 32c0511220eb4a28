"""A limit that processes and machines share: SharedLimiter, which is what ``Limiter(n, store=...)`` makes.

**Leases.** The server keeps a book: so many permits are lent to this holder, so many to that one, never more than `n`
together, each until a time by the server's own clock. A holder is one SharedLimiter, so mostly one process. It hands
the permits that it holds to its own tasks and threads without asking anybody, refreshes the lease three times in its
length, fetches more when somebody waits (`batch` at a time), and gives back what others wait for. Who is killed
refreshes nothing, and what it held is free when its lease ends. So in flight are at most `n`, whatever the batch; the
one exception is in the nature of leases: a process that is cut off, suspended or blocked for longer than its lease
goes on with what it had in flight (it begins nothing new as soon as it notices), while others get those permits.

**One native limiter does the waiting.** Its capacity is `n`. The permits that this holder does not have are simply in
use there: the keeper has taken them (`_abroad` counts them). To get permits from the server is to release so many; to
give some back is to take them, at a priority above all others, and then to tell the server. So order, weights,
priorities, time limits, cancellation, threads and the refusal of what can never be had are those of every other
limiter, and a free permit costs what it costs there and the look whether the store is away.

**The keeper** (``kept``) is a task that makes the calls; nobody else does. What `_step` and what it calls write
belongs to it; others only read it, one word at a time. When nothing was in use for a third of a lease it gives
everything back and ends, so what is not used costs nothing and keeps nothing from anybody. When its loop ends before,
it gives back what is idle. When its loop has stopped without that and another one takes over, the native limiter is
replaced (below), since the old keeper may yet be waiting in it.

**Withdrawing.** Permits are withdrawn here before the server hears of it, and lent here after it has said so: at every
moment this holder's tasks can have at most what the server has in its book. What is idle is withdrawn at once. What
is in use is waited for by `_recall`, which stands in front of the queue and takes each permit that comes home.

**A repeated or late call** must not do anything twice. Numbers are absolute ("I keep 3") and calls are counted.

**Outage.** As long as the lease is good nothing changes. When it ends without an answer, what may still be begun is
decided by the user: nothing ("fail"), or a fair share ("local"). To refuse those who wait, the native limiter is
closed and replaced by another, in which all that is in use is in use again. A release may hit the old one at that
very moment; what falls there is carried over (`_carry`). When the server answers again, the holder claims what it has
in use, gets of that what is free, and begins nothing until it is within it.

**Fairness.** Inside a process: the native limiter's, to the letter. Between processes: those that lack a permit stand
in a queue at the server, in order of arrival, and permits that are given back are reserved for the first. Who has
permits goes on using them until somebody waits who has fewer; then he gives back what is beyond his fair share (n
divided by the holders) and beyond what the other has then. So they come to be equal, but for one permit, and then
nothing is sent any more. If a request that waits is heavier than a fair share, or if somebody has nothing because
there are more holders than permits, everybody gives back what comes free, and permits go round. Priorities are
compared inside a process only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple

from tideloop._tideloop import enlist
from tideloop.kept import ASK_AGAIN, Kept
from tideloop.limits import Limiter, LimiterClosed
from tideloop.redis_store import Link, OnOutage, RedisStore

__all__ = ["SharedClaim", "SharedLimiter", "SharedLimiterStats"]

_log = logging.getLogger("tideloop.redis")

_FIRST, _LAST = 2**63 - 1, -(2**63)
"""The priorities at which the keeper takes permits."""

_ANY = 2**63
"""More permits than there can be."""


class SharedLimiterStats(NamedTuple):
    """What ``stats()`` of a shared limiter tells; of this process, unless it says otherwise."""

    name: str
    capacity: int
    """Permits of all processes together."""
    held: int
    """Permits that are lent to this process."""
    in_use: int
    waiting: int
    granted: int
    waited: int
    cancelled: int
    timed_out: int
    rejected: int
    holders: int
    """Processes that the server knew of when it was last asked."""
    calls: int
    """Calls of the server so far."""
    lost: int
    """Permits that were in use or idle here when their lease had ended."""
    away: bool
    """Whether the server is away, and has been for a lease."""
    closed: bool


class _Answer(NamedTuple):
    """What ``lease.lua`` returns."""

    held: int
    target: int
    holders: int
    waits: int
    next_end: int


class SharedClaim:
    """What ``limiter(...)`` returns for a shared limiter: ``async with`` it to hold its permits meanwhile.

    It may be kept and entered again, also while it is entered.
    """

    __slots__ = ("_limiter", "_priority", "_timeout", "_weight")

    def __init__(self, limiter: SharedLimiter, weight: int, priority: int, timeout: float | None) -> None:
        self._limiter = limiter
        self._weight = weight
        self._priority = priority
        self._timeout = timeout

    def __aenter__(self) -> Coroutine[Any, Any, None]:
        return self._limiter.acquire(self._weight, self._priority, self._timeout)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._limiter.release(self._weight)

    def __repr__(self) -> str:
        return f"<{self._weight} of {self._limiter!r}>"


class SharedLimiter(Kept):
    """``Limiter(n, store=..., name=...)``: n permits of all processes that use this name at this store.

    It is used as a Limiter is, from any number of loops and threads. Beside what Limiter raises, whoever wants a permit
    gets StoreUnavailable when the server has not answered for the length of a lease and the store says "fail"; at
    once when it has never answered. How permits are shared is told at the head of the module.
    """

    def __init__(self, capacity: int, *, store: RedisStore, name: str | None, queue_limit: int | None = None) -> None:
        super().__init__("Limiter", name, store)
        self._queue_limit = queue_limit
        self._keys = [f"{self._base}:{part}" for part in ("ends", "held", "queue", "wants", "calls", "ears")]
        self._capacity = self._new_capacity = Limiter.__new__(Limiter, capacity, name=name).capacity
        self._closed = False
        self._calls = self._lost = 0
        self._tallied = [0, 0, 0, 0, 0]
        self._reset()
        store.join(self)
        enlist(self)

    def _reset(self) -> None:
        """Make this a holder that has nothing and whom nobody knows."""
        super()._reset()
        self._call_number = 0
        self._held = 0
        self._holders = 1
        self._target = -1
        self._goal = 0
        self._idle_since: int | None = None
        self._carried: list[tuple[Limiter, int]] = []
        self._abroad = self._capacity
        self._inner = self._native(0)
        self._wants: dict[object, int] = {}
        self._hint = 0
        self._recaller: asyncio.Task[None] | None = None
        self._rank: int | None = None
        self._queued = 0

    def _native(self, in_use: int) -> Limiter:
        """A limiter of this size in which so many permits are in use by tasks, and all others are abroad."""
        size = max(self._capacity, in_use)
        # No gauge of its own: it is not initialised.
        inner = Limiter.__new__(Limiter, size, name=self._name, queue_limit=self._queue_limit)
        inner.try_acquire(size)
        self._tallied[0] -= 1
        if in_use > self._capacity:
            inner.resize(self._capacity)
        return inner

    def _forked(self) -> None:
        """In a child: what was held is the parent's."""
        self._tallied = [0, 0, 0, 0, 0]
        self._reset()

    # --- how it is used ------------------------------------------------------------------------

    async def acquire(
        self,
        weight: int = 1,
        priority: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109 - as Limiter.acquire
    ) -> None:
        """Take ``weight`` permits, waiting for them if need be, as ``Limiter.acquire`` does.

        Raises what that raises, and StoreUnavailable. Priorities count inside of this process.
        """
        if self._refusal is None and self._inner.try_acquire(weight):
            return
        await self._wait(weight, priority, timeout)

    async def __aenter__(self) -> None:
        if self._refusal is None and self._inner.try_acquire(1):
            return
        await self._wait(1, 0, None)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inner.release(1)
        if self._closed:
            self._try_ring()

    def __call__(self, weight: int = 1, *, priority: int = 0, timeout: float | None = None) -> SharedClaim:
        """What to ``async with`` for other than one permit; the arguments are those of acquire()."""
        return SharedClaim(self, weight, priority, timeout)

    def release(self, weight: int = 1) -> None:
        """Give ``weight`` permits back, from any thread. Raises ValueError if not as many are in use."""
        if isinstance(weight, int) and weight > self.in_use:
            raise ValueError(f"{self._title}: {weight} released, but {self.in_use} in use")
        self._inner.release(weight)
        if self._closed:
            self._try_ring()

    def try_acquire(self, weight: int = 1) -> bool:
        """Take ``weight`` permits if this process has them and nobody in it waits; whether it did. Asks no server.

        If it did not, permits are fetched, so that trying again may succeed; from a thread without a loop only if a
        loop keeps the limiter already.
        """
        if self._refusal is None and self._inner.try_acquire(weight):
            return True
        self._hint = weight
        self._try_ring()
        return False

    def blocking_acquire(self, weight: int = 1, priority: int = 0, timeout: float | None = None) -> None:
        """Take ``weight`` permits, blocking this thread until it has them; raises what acquire() raises.

        For threads that run no event loop. RuntimeError if there is no running loop in which this limiter was used:
        somebody has to talk to the server.
        """
        if self._refusal is None and self._inner.try_acquire(weight):
            return
        end = None if timeout is None else monotonic() + timeout
        key = object()
        self._wants[key] = weight
        try:
            # This one, from before the ring: if the keeper ends in between, it is closed.
            inner = self._inner
            self._ring()
            while True:
                self._check()
                try:
                    return inner.blocking_acquire(weight, priority, timeout)
                except LimiterClosed:
                    inner = self._inner
                    self._go_on()
                if end is not None:
                    timeout = max(0.0, end - monotonic())
        finally:
            self._wants.pop(key, None)

    async def _wait(self, weight: int, priority: int, timeout: float | None) -> None:  # noqa: ASYNC109 - as above
        time = asyncio.get_running_loop().time
        end = None if timeout is None else time() + timeout
        key = object()
        self._wants[key] = weight
        try:
            # This one, from before the ring: if the keeper ends in between, it is closed.
            inner = self._inner
            if weight > self._queued:
                self._ring()
            while True:
                self._check()
                try:
                    return await inner.acquire(weight, priority, timeout)
                except LimiterClosed:
                    inner = self._inner
                    self._go_on()
                if end is not None:
                    # Another native limiter, but the same wait.
                    timeout = max(0.0, end - time())
        finally:
            self._wants.pop(key, None)

    def _go_on(self) -> None:
        """The native limiter was closed: for good, or because there is another now."""
        if self._closed:
            raise
        self._ring()

    def resize(self, capacity: int) -> None:
        """Change the number of permits, as far as this process is concerned: every process has to be told.

        The keeper does it, at once if it runs and otherwise when a permit is wanted next. Until all processes know,
        the largest of their numbers is what is kept.
        """
        self._new_capacity = Limiter.__new__(Limiter, capacity, name=self._name).capacity
        self._try_ring()

    def close(self) -> None:
        """Refuse whoever waits and whoever comes in this process; permits in use may still be released."""
        self._closed = True
        self._inner.close()
        self._try_ring()

    @property
    def name(self) -> str:
        """The name by which processes mean the same limiter."""
        return self._name

    @property
    def closed(self) -> bool:
        """Whether close() was called, in this process."""
        return self._closed

    @property
    def capacity(self) -> int:
        """How many permits there are, for all processes together."""
        return self._new_capacity

    @property
    def in_use(self) -> int:
        """How many permits are in use in this process."""
        return max(0, self._inner.in_use - self._abroad)

    @property
    def held(self) -> int:
        """How many permits are lent to this process."""
        return self._held

    @property
    def waiting(self) -> int:
        """How many requests wait in this process."""
        return max(0, self._inner.waiting - (self._recaller is not None))

    @property
    def available(self) -> int:
        """How many permits this process has and does not use."""
        return self._inner.available

    def stats(self) -> SharedLimiterStats:
        """How it is used and what happened so far, in this process."""
        tally = [sum(pair) for pair in zip(self._tallied, self._inner._tally()[0], strict=True)]
        return SharedLimiterStats(
            name=self._name,
            capacity=self._new_capacity,
            held=self._held,
            in_use=self.in_use,
            waiting=self.waiting,
            granted=tally[0],
            waited=tally[1],
            cancelled=tally[2],
            timed_out=tally[3],
            rejected=tally[4],
            holders=self._holders,
            calls=self._calls,
            lost=self._lost,
            away=self._away is not None,
            closed=self._closed,
        )

    def __repr__(self) -> str:
        words = [f"{self.in_use} in use", f"{self._held} held of {self._new_capacity}"]
        if self.waiting:
            words.append(f"{self.waiting} waiting")
        if self._away is not None:
            words.append("store away")
        if self._closed:
            words.append("closed")
        return f"<tideloop.SharedLimiter {self._name!r} {', '.join(words)}>"

    # --- the keeper ------------------------------------------------------------------------------

    async def _step(self, link: Link, loop: asyncio.AbstractEventLoop) -> float | None:
        """One call of the server and what belongs to it. Seconds until the next; None: there is nothing to keep."""
        # Whoever comes from now on is not counted in what is asked for, and rings.
        self._queued = 0
        self._carry()
        self._fit()
        waiting = self.waiting
        granted = self.stats().granted
        if waiting or self._hint or self._away is not None:
            self._idle_since = None
        elif self._target < 0 and self._idle_since == granted:
            # Nobody came since the last look: what is idle is for others.
            self._withdraw(_ANY, spare=0)
        else:
            self._idle_since = granted
        keep = self._kept()
        in_use = self.in_use
        # What is in use and not lent (a lease has ended) is asked for again, so that the book becomes right.
        need = ask = min(max(0, in_use - keep), self._capacity - keep)
        heaviest = min(1, need)
        if (waiting or self._hint) and not self._closed:
            heaviest = max([self._hint, *list(self._wants.values())])
            need = max(0, min(in_use + heaviest, self._capacity) - keep)
            ask = min(max(need, self._store.batch), self._capacity - keep)
        elif keep == 0 and in_use == 0:
            await self._part(link)
            return None
        self._hint = 0
        answer = await self._call(link, keep, need, ask, heaviest, self._store.lease)
        if self._keeper is not asyncio.current_task():
            return None  # what was lent meanwhile goes back by the first call of the next keeper
        self._queued = heaviest if answer.waits else 0
        self._take_in(keep, answer)
        if answer.waits or (self.waiting and self._held >= self._capacity):
            next_end = answer.next_end / 1000 + 0.002 if answer.next_end >= 0 else ASK_AGAIN
            return min(self._store.lease / 3, ASK_AGAIN, max(0.005, next_end))
        return self._store.lease / 3

    async def _call(self, link: Link, keep: int, need: int, ask: int, weight: int, lease: float) -> _Answer:
        self._call_number += 1
        self._calls += 1
        numbers = (self._call_number, self._capacity, keep, need, ask, weight, int(lease * 1000))
        asked = asyncio.get_running_loop().time()
        answer = _Answer(*await link.run("lease", self._keys, (self._holder, *numbers, link.channel)))
        self._answered(asked)
        return answer

    def _take_in(self, keep: int, answer: _Answer) -> None:
        """What the server has said becomes true here."""
        self._held, self._target, self._holders = answer.held, answer.target, answer.holders
        if answer.held > keep:
            # No more than was gained: what was withdrawn meanwhile stays withdrawn.
            gain = min(answer.held - keep, answer.held - (self._capacity - self._abroad))
            if gain > 0 and not self._inner.closed:
                self._abroad -= gain
                self._inner.release(gain)
                self._idle_since = None
        elif answer.held < keep:
            self._lost += keep - answer.held
            _log.warning("%s: the lease of %d permits had ended", self._title, keep - answer.held)
        if self._target < 0:
            gone = self._withdraw(self._held, _ANY)
        else:
            gone = self._withdraw(min(self._held, self._target), 0)
        if gone or (self.waiting and answer.held > keep):
            self._bell.set()

    async def _part(self, link: Link) -> None:
        """Give back what is idle; and leave, if that is all."""
        self._withdraw(_ANY, 0)
        self._unrecall()
        if self._call_number == 0:
            return
        keep = self._kept()
        answer = await self._call(link, keep, 0, 0, 0, self._store.lease if keep else 0)
        self._held = answer.held
        if not keep:
            self._good_until = None
            self._target = -1
            self._idle_since = None

    def _moved(self) -> None:
        self._queued = 0
        self._replace()

    def _ended(self) -> None:
        self._queued = 0
        self._unrecall()
        if self.waiting or self._wants:
            # In other loops, mostly: they go on from there, with a keeper of their own.
            self._replace()

    # --- permits come and go -----------------------------------------------------------------------

    def _kept(self) -> int:
        """Permits that this holder has and has not withdrawn; a closed limiter lends none, so what is in use."""
        return min(self._held, self.in_use if self._inner.closed else self._capacity - self._abroad)

    def _withdraw(self, goal: int, spare: int = 0) -> bool:
        """Leave no more than `goal` permits here, of them no more than `spare` idle. Whether some have gone at once.

        The rest goes as it comes home: what is beyond the goal before anybody here has it, what is idle when nobody
        here wants it.
        """
        if self._inner.closed:
            return False
        idle, held = self._inner.available, self._capacity - self._abroad
        excess = min(idle, max(held - goal, idle - spare))
        gone = excess > 0 and self._inner.try_acquire(excess)
        if gone:
            self._tallied[0] -= 1
            self._abroad += excess
            held -= excess
        self._goal = goal
        rank = _FIRST if held > goal else _LAST if held and spare == 0 else None
        if rank != self._rank or self._recaller is None:
            self._unrecall()
            if rank is not None:
                self._rank = rank
                name = f"recall of {self._title}"
                self._recaller = asyncio.create_task(self._recall(self._inner, rank), name=name)
        return gone

    async def _recall(self, inner: Limiter, rank: int) -> None:
        """Take permits as they come home: before anybody else down to the goal, or behind all others."""
        me = asyncio.current_task()
        try:
            while self._recaller is me and self._capacity - self._abroad > (self._goal if rank == _FIRST else 0):
                if not inner.try_acquire(1):
                    await inner.acquire(1, rank)
                    self._tallied[1] -= 1
                self._tallied[0] -= 1
                if inner is not self._inner:
                    # Replaced meanwhile: it falls there, and is carried over.
                    inner.release(1)
                    return
                self._abroad += 1
                self._bell.set()
        except LimiterClosed:
            self._tallied[4] -= 1
        except asyncio.CancelledError:
            self._tallied[2] -= 1
            raise
        finally:
            if self._recaller is me:
                self._recaller = self._rank = None

    def _unrecall(self) -> None:
        recaller, self._recaller, self._rank = self._recaller, None, None
        if recaller is not None:
            recaller.cancel()

    def _fit(self) -> None:
        """Make the capacity what resize() has said."""
        change = self._new_capacity - self._capacity
        if change == 0 or self._closed:
            return
        # All of the new ones are abroad, and none of the old ones may come in by this: the same as a replacement.
        self._capacity = self._new_capacity
        self._replace()

    def _replace(self) -> None:
        """Another native limiter: all that is in use is in use there, all else is abroad, and waiters begin again."""
        old = self._inner
        self._unrecall()
        old.close()
        in_use = max(0, old.in_use - self._abroad)
        if self._abroad:
            old.release(self._abroad)
        self._tallied = [sum(pair) for pair in zip(self._tallied, old._tally()[0], strict=True)]
        self._abroad = max(0, self._capacity - in_use)
        self._inner = self._native(in_use)
        self._carried.append((old, in_use))
        if self._closed:
            self._inner.close()

    def _carry(self) -> None:
        """What was released at a native limiter that had just been replaced is released at this one."""
        still = []
        for old, known in self._carried:
            now = old.in_use
            if now < known:
                self._inner.release(known - now)
            if now:
                still.append((old, now))
        self._carried = still

    def _alone(self, policy: OnOutage) -> None:
        self._queued = 0
        self._target = -1
        if policy == "fail":
            # Those who wait are told, and what comes home stays abroad.
            self._replace()
            self._held = self.in_use
            self._withdraw(0)
            return
        self._held = max(1, self._capacity // self._holders)
        self._unrecall()
        missing = self._held - (self._capacity - self._abroad)
        if missing > 0:
            self._abroad -= missing
            self._inner.release(missing)
        else:
            self._withdraw(self._held, _ANY)
