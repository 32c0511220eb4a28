"""The harness finds what is broken: each of these primitives has a defect that somebody's once had."""

from __future__ import annotations

import asyncio
import collections
import os
import threading

import pytest

from tests.toolkit import harness
from tests.toolkit.harness import Attack, Broken, Inside, Permits, Pipe, Stuck


class Slots:
    """A FIFO semaphore as one should be, written to be broken by the classes below."""

    def __init__(self, limit: int = 2) -> None:
        self.limit = self.free = limit
        self.waiters: collections.deque[asyncio.Future[None]] = collections.deque()

    async def enter(self) -> None:
        if self.free and not self.waiters:
            self.free -= 1
            return
        future = asyncio.get_running_loop().create_future()
        self.waiters.append(future)
        try:
            await future
        except asyncio.CancelledError:
            self.withdraw(future)
            raise

    def withdraw(self, future: asyncio.Future[None]) -> None:
        if future.cancelled():
            self.waiters.remove(future)
        else:
            self.leave()

    def leave(self) -> None:
        waiter = self.next_waiter()
        if waiter:
            waiter.set_result(None)
        else:
            self.free += 1

    def next_waiter(self) -> asyncio.Future[None] | None:
        alive = [waiter for waiter in self.waiters if not waiter.done()]
        if alive:
            self.waiters.remove(alive[0])
            return alive[0]
        return None


class LosesWhatWasGranted(Slots):
    """A waiter that is told and cancelled in one turn keeps its slot for ever."""

    def withdraw(self, future):
        if future.cancelled():
            self.waiters.remove(future)


class LeavesTheDeadQueued(Slots):
    """A cancelled waiter stays in the queue, and is given a slot."""

    def withdraw(self, future):
        if not future.cancelled():
            self.leave()

    def next_waiter(self):
        return self.waiters.popleft() if self.waiters else None

    def leave(self):
        waiter = self.next_waiter()
        if waiter is None:
            self.free += 1
        elif not waiter.done():
            waiter.set_result(None)


class LetsTooManyIn(Slots):
    """Who comes while a slot changes hands takes one that is not there."""

    def leave(self):
        self.free += 1
        waiter = self.next_waiter()
        if waiter:
            waiter.set_result(None)


class LastFirst(Slots):
    def next_waiter(self):
        alive = [waiter for waiter in self.waiters if not waiter.done()]
        if alive:
            self.waiters.remove(alive[-1])
            return alive[-1]
        return None


async def visit(slots: Slots, inside: Inside) -> None:
    await slots.enter()
    try:
        await inside()
    finally:
        slots.leave()


def all_back(slots: Slots) -> None:
    harness.demand(slots.free == slots.limit, f"{slots.free} of {slots.limit} slots are free")
    harness.demand(not slots.waiters, f"still queued: {slots.waiters}")


def permits(make) -> Permits:
    return Permits(make.__name__, make, visit, all_back, limit=2)


def test_a_good_one_passes(kind):
    assert harness.cancel_everywhere(kind, harness.permits_scenario(permits(Slots))) == 13
    for seed in range(50):
        harness.interleave(kind, permits(Slots), seed)


@pytest.mark.parametrize("broken", [LosesWhatWasGranted, LeavesTheDeadQueued, LetsTooManyIn])
def test_cancelling_everywhere_finds(kind, broken):
    if broken is LetsTooManyIn:
        # Wrong without anybody's being cancelled.
        with pytest.raises(Broken, match=r"slots are free|inside, 2 allowed"):
            harness.run(kind, harness.permits_scenario(permits(broken))(Attack()))
    with pytest.raises(Broken):
        harness.cancel_everywhere(kind, harness.permits_scenario(permits(broken)))


@pytest.mark.parametrize("broken", [LosesWhatWasGranted, LeavesTheDeadQueued, LetsTooManyIn, LastFirst])
def test_random_schedules_find(kind, broken):
    def all_seeds() -> None:
        for seed in range(50):
            harness.interleave(kind, permits(broken), seed)

    with pytest.raises(Broken) as caught:
        all_seeds()
    assert "seed" in caught.value.__notes__[0]


class ContextPool:
    """A pool that takes a permit and then makes what it gives out: if that fails or is cancelled the permit is gone."""

    def __init__(self) -> None:
        self.permits = asyncio.Semaphore(2)

    async def acquire(self) -> object:
        await self.permits.acquire()
        await asyncio.sleep(0)  # a new browser context takes a while
        return object()


def test_a_pool_that_loses_its_permits(kind):
    async def use(pool: ContextPool, inside: Inside) -> None:
        await pool.acquire()
        try:
            await inside()
        finally:
            pool.permits.release()

    def idle(pool: ContextPool) -> None:
        harness.demand(pool.permits._value == 2, "a permit is lost")

    pool = Permits("pool", ContextPool, use, idle, limit=2)
    harness.run(kind, harness.permits_scenario(pool)(Attack()))
    with pytest.raises(Broken, match="a permit is lost"):
        harness.cancel_everywhere(kind, harness.permits_scenario(pool))


class Batcher:
    """Collects keys for a moment and looks them up together; holds its lock while it awaits somebody's future."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted: dict[str, asyncio.Future[str]] = {}
        self.timer: asyncio.Task[None] | None = None

    async def get(self, key: str) -> str:
        async with self.lock:
            if key in self.wanted:
                return await self.wanted[key]
            future = self.wanted[key] = asyncio.get_running_loop().create_future()
            if not self.timer:
                self.timer = asyncio.ensure_future(self.flush())
        return await future

    async def flush(self) -> None:
        await asyncio.sleep(0.01)
        async with self.lock:
            wanted, self.wanted, self.timer = self.wanted, {}, None
            for key, future in wanted.items():
                future.set_result(key.upper())


def test_a_batcher_that_waits_for_itself(kind):
    async def same_key_twice() -> None:
        batcher = Batcher()
        await asyncio.gather(batcher.get("a"), batcher.get("a"))

    with pytest.raises(Stuck, match=r"flush"):
        harness.run(kind, same_key_twice())


def test_a_batcher_whose_callers_hang_when_one_is_cancelled(kind):
    async def scenario(attack: Attack) -> None:
        batcher = Batcher()
        attack.task(batcher.get("a"))
        attack.task(batcher.get("b"))
        await attack.settle()

    harness.run(kind, scenario(Attack()))
    with pytest.raises(Stuck):
        harness.cancel_everywhere(kind, scenario)


class Mailbox:
    """An unbounded queue whose getter takes the item out before it is sure to stay."""

    def __init__(self) -> None:
        self.items: collections.deque[object] = collections.deque()
        self.came = asyncio.Event()

    async def put(self, item: object) -> None:
        self.items.append(item)
        self.came.set()

    async def get(self) -> object:
        while not self.items:
            self.came.clear()
            await self.came.wait()
        item = self.items.popleft()
        await asyncio.sleep(0)
        return item


class Eager(Mailbox):
    """One whose put() delivers and then can still be cancelled."""

    async def put(self, item):
        await super().put(item)
        await asyncio.sleep(0)

    async def get(self):
        while not self.items:
            self.came.clear()
            await self.came.wait()
        return self.items.popleft()


class Doubles(Mailbox):
    """One that gives an item out again."""

    async def get(self):
        item = await super().get()
        if item == (0, 1):
            self.items.append(item)
        return item


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [(Mailbox, "put and lost"), (Eager, "delivered all the same"), (Doubles, "came out twice")],
)
def test_items_lost_and_doubled(kind, broken, complaint):
    pipe = Pipe(broken.__name__, broken, broken.put, broken.get, lambda box: list(box.items))
    with pytest.raises(Broken, match=complaint):
        harness.cancel_everywhere(kind, harness.pipe_scenario(pipe))


class Unlocked(Slots):
    """Counts without a lock, and lets the other threads in between."""

    async def enter(self):
        while True:
            seen = self.free
            threading.Event().wait(0.0001)
            if seen:
                self.free = seen - 1
                return
            await asyncio.sleep(0)

    def leave(self):
        self.free += 1


def test_sharing_finds_a_race(backend):
    broken = Permits("Unlocked", lambda: Unlocked(1), visit, all_back, limit=1, several_loops=True)
    with pytest.raises(Broken):
        harness.share(backend.name, broken, visits=200)


class ServesTheDead(Slots):
    """Gives what is free to a waiter of another loop, whether that runs or not."""

    def leave(self):
        if self.waiters:
            self.waiters.popleft()
        else:
            self.free += 1


def test_closing_a_loop_finds_who_serves_the_dead(backend, monkeypatch):
    monkeypatch.setattr(harness, "REAL_PATIENCE", 0.2)
    broken = Permits("ServesTheDead", lambda: ServesTheDead(1), visit, all_back, limit=1, several_loops=True)
    with pytest.raises(Stuck, match="closed loop"):
        harness.close_loop(backend.name, broken)


class HangsInTheChild(Slots):
    """Waits for what happens in the parent only."""

    def __init__(self) -> None:
        super().__init__(1)
        self.made_in = os.getpid()

    async def enter(self):
        if self.made_in != os.getpid():
            threading.Event().wait()
        await super().enter()


def test_forking_finds_who_hangs(backend, monkeypatch):
    monkeypatch.setattr(harness, "REAL_PATIENCE", 1)
    broken = Permits("HangsInTheChild", HangsInTheChild, visit, all_back, limit=1)
    with pytest.raises(Stuck, match="the child hangs"):
        harness.fork_with_waiters(backend.name, broken)


def test_a_failure_of_a_callback_is_a_failure(kind):
    async def fails_aside() -> None:
        asyncio.get_running_loop().call_soon(int, "x")
        await asyncio.sleep(0)

    with pytest.raises(Broken, match="reached the exception handler"):
        harness.run(kind, fails_aside())
