"""What tideloop's queues have beyond asyncio's: shutdown everywhere, iteration, many items, order among equals."""

from __future__ import annotations

import asyncio
import heapq
import random

import pytest
import tideloop
from tideloop import LifoQueue, PriorityQueue, Queue, QueueShutDown

from tests.toolkit import harness
from tests.toolkit.harness import Pipe


class Shouting(Queue):
    """A subclass that asyncio's own methods serve."""

    def _put(self, item):
        self._queue.append(item.upper() if isinstance(item, str) else item)


class Overridden(Queue):
    """A subclass whose get() and put() are to be used for each item."""

    async def get(self):
        self.got = getattr(self, "got", 0) + 1
        return await super().get()


KINDS = [Queue, PriorityQueue, LifoQueue, Shouting, Overridden]


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


def drain(queue):
    return [queue.get_nowait() for _ in range(queue.qsize())]


# --- shutdown ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("immediate", [False, True])
async def test_shutdown(loop, make, immediate):
    queue = make(2)
    await queue.put_many([1, 2])
    putters = [asyncio.create_task(queue.put(item)) for item in (3, 4)]
    joiner = asyncio.create_task(queue.join())
    await turns()
    queue.shutdown(immediate=immediate)
    for result in await asyncio.gather(*putters, return_exceptions=True):
        assert isinstance(result, QueueShutDown)
    with pytest.raises(QueueShutDown):
        await queue.put(5)
    with pytest.raises(QueueShutDown):
        queue.put_nowait(5)
    if not immediate:
        assert sorted([await queue.get(), queue.get_nowait()]) == [1, 2]
        assert not joiner.done()
        queue.task_done()
        queue.task_done()
    await joiner
    for get in (queue.get, queue.get):
        with pytest.raises(QueueShutDown):
            await get()
    with pytest.raises(QueueShutDown):
        queue.get_nowait()
    assert queue.stats().shut_down
    assert "shutdown" in repr(queue)


@pytest.mark.parametrize("make", KINDS)
async def test_shutdown_wakes_all_getters(loop, make):
    queue = make()
    getters = [asyncio.create_task(queue.get()) for _ in range(3)]
    await turns()
    getters[0].cancel()
    queue.shutdown()
    results = await asyncio.gather(*getters, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, QueueShutDown, QueueShutDown]


# --- iteration -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", KINDS)
async def test_iteration_ends_with_the_queue(loop, make):
    queue = make(2)

    async def produce():
        await queue.put_many(range(5))
        queue.shutdown()

    producer = asyncio.create_task(produce())
    assert sorted([item async for item in queue]) == list(range(5))
    await producer
    assert [item async for item in queue] == []


# --- many items ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", KINDS)
async def test_many_at_once(loop, make):
    queue = make(3)
    putter = asyncio.create_task(queue.put_many(range(7)))
    await turns()
    assert queue.qsize() == 3
    first = await queue.get_many(2)
    assert len(first) == 2
    rest = []
    while len(rest) < 5:
        rest += await queue.get_many(10)
    await putter
    assert sorted(first + rest) == list(range(7))
    if make is Queue:
        assert first + rest == list(range(7))
    waiting = asyncio.create_task(queue.get_many(10))
    await turns()
    assert not waiting.done()
    await queue.put(7)
    assert await waiting == [7]
    for _ in range(8):
        queue.task_done()
    await queue.join()
    if make is Overridden:
        assert queue.got >= 8


async def test_bad_arguments(loop):
    queue = Queue()
    for most in (0, -1, "3"):
        with pytest.raises(ValueError, match="expected a number of items"):
            await queue.get_many(most)
    for within in (-1, float("nan")):
        with pytest.raises(ValueError, match="expected seconds"):
            await queue.get_many(1, within=within)
    with pytest.raises(TypeError):
        await queue.put_many(3)
    with pytest.raises(TypeError):
        Queue(1, "name")


def test_get_many_within_a_time(kind):
    """On a virtual clock."""

    async def story():
        queue = Queue()
        loop = asyncio.get_running_loop()

        async def produce():
            for item in range(6):
                await asyncio.sleep(1)
                queue.put_nowait(item)

        producer = asyncio.create_task(produce())
        # The time begins with the first item, which comes after a second.
        assert await queue.get_many(10, within=2.5) == [0, 1, 2]
        assert loop.time() == pytest.approx(3.5, abs=0.05)
        assert await queue.get_many(2, within=100) == [3, 4]
        assert loop.time() == pytest.approx(5, abs=0.05)
        loop.call_later(3, queue.shutdown)
        assert await queue.get_many(2, within=100) == [5]
        assert loop.time() == pytest.approx(8, abs=0.1)
        await producer

    harness.run(kind, story())


@pytest.mark.parametrize("queue_kind", KINDS)
def test_a_cancelled_get_many_takes_nothing(kind, queue_kind):
    async def story():
        queue = queue_kind(3)
        await queue.put_many([1, 2, 3])
        before = list(queue._queue) if queue_kind is Shouting else None
        waiting = asyncio.create_task(queue.get_many(5, within=10))
        await asyncio.sleep(1)
        assert queue.empty()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if before is not None:
            assert list(queue._queue) == before
        assert drain(queue) == ([3, 2, 1] if queue_kind is LifoQueue else [1, 2, 3])

    harness.run(kind, story())


async def test_what_is_given_back_is_first_again_and_wakes_who_waits(loop):
    queue = PriorityQueue()
    await queue.put_many([(1, "a"), (0, "b")])
    batch = asyncio.create_task(queue.get_many(5, within=10))
    await turns()
    getter = asyncio.create_task(queue.get())
    await turns()
    batch.cancel()
    assert await getter == (0, "b")
    assert batch.cancelled()
    assert queue._queue == [(1, "a")]  # from here on in a list, as asyncio's is
    batch = asyncio.create_task(queue.get_many(5, within=10))
    await turns()
    batch.cancel()
    await turns()
    assert drain(queue) == [(1, "a")]


PIPES = [
    Pipe(
        f"get_many from {kind.__name__}",
        lambda kind=kind: kind(2),
        lambda queue, item: queue.put_many([item]),
        lambda queue: one_of_many(queue),
        drain,
        fifo=kind is Queue,
    )
    for kind in (Queue, PriorityQueue, LifoQueue, Shouting)
]


async def one_of_many(queue):
    [item] = await queue.get_many(1, within=1)
    return item


@pytest.mark.parametrize("pipe", PIPES, ids=str)
def test_cancelled_at_every_await(kind, pipe):
    assert harness.cancel_everywhere(kind, harness.pipe_scenario(pipe)) >= 2


@pytest.mark.parametrize("pipe", PIPES, ids=str)
def test_random_schedules(kind, pipe):
    for seed in range(40):
        harness.interleave(kind, pipe, seed)


@pytest.mark.parametrize("queue_kind", [Queue, PriorityQueue, LifoQueue, Shouting])
def test_batches_lose_and_double_nothing(kind, queue_kind):
    """Producers and consumers of batches of all sizes, cancelled at random; seeded."""

    async def story(seed):
        dice = random.Random(seed)
        queue = queue_kind(dice.choice([0, 1, 3]))
        received, tasks = [], []
        sure = 0

        async def take(most, within):
            received.extend(await queue.get_many(most, within=within))

        for step in range(40):
            roll = dice.random()
            if roll < 0.4:
                for item in range(dice.randrange(4)):
                    tasks.append(asyncio.create_task(queue.put((step, item))))
                    sure += 1
            elif roll < 0.7:
                tasks.append(asyncio.create_task(take(dice.randrange(1, 5), dice.choice([None, 0, 1, 3]))))
            elif tasks and roll < 0.9:
                victim = dice.choice(tasks)
                if victim.get_coro().__name__ == "take":
                    victim.cancel()
            await asyncio.sleep(dice.choice([0, 0, 0.5]))
        takers = [task for task in tasks if task.get_coro().__name__ == "take"]
        for task in takers:
            task.cancel()
        await asyncio.gather(*takers, return_exceptions=True)
        while len(received) < sure:
            received += await asyncio.wait_for(queue.get_many(3), 10)
        await asyncio.gather(*(task for task in tasks if task not in takers))
        assert len(set(received)) == len(received) == sure, f"seed {seed}"
        assert queue.empty()

    for seed in range(25):
        harness.run(kind, story(seed))


# --- order among equals --------------------------------------------------------------------------


class Job:
    """Compared by its priority alone."""

    def __init__(self, priority, number):
        self.priority, self.number = priority, number

    def __lt__(self, other):
        return self.priority < other.priority


@pytest.mark.parametrize("seed", range(20))
async def test_equals_come_out_as_they_came_in(loop, seed):
    dice = random.Random(seed)
    queue = PriorityQueue()
    expected, number, out = [], 0, []
    for _ in range(300):
        if dice.random() < 0.6 or not expected:
            job = Job(dice.randrange(4), number)
            number += 1
            queue.put_nowait(job)
            expected.append(job)
            expected.sort(key=lambda job: job.priority)  # which is stable
        else:
            out.append(await queue.get())
            assert out[-1] is expected.pop(0)
    assert drain(queue) == expected


async def test_a_priority_queue_compares_no_more_than_heapq(loop):
    class Counting(Job):
        count = 0

        def __lt__(self, other):
            type(self).count += 1
            return super().__lt__(other)

    class Stock(Counting):
        pass

    dice = random.Random(1)
    priorities = [dice.random() for _ in range(500)]
    queue, heap = PriorityQueue(), []
    for number, priority in enumerate(priorities):
        queue.put_nowait(Counting(priority, number))
        heapq.heappush(heap, Stock(priority, number))
    assert drain(queue)[0].priority == min(priorities)
    while heap:
        heapq.heappop(heap)
    assert Counting.count <= Stock.count


async def test_comparing_may_fail_and_may_use_the_queue(loop):
    queue = PriorityQueue()
    await queue.put_many([(1, object()), (2, object()), (3, object())])
    before = queue.qsize()

    class Meddler:
        def __lt__(self, other):
            if queue.qsize() == before:
                queue.get_nowait()
            return True

    with pytest.raises(RuntimeError, match="changed while its items were compared"):
        queue.put_nowait(Meddler())
    assert queue.qsize() == before - 1
    mixed = PriorityQueue()
    mixed.put_nowait(1)
    with pytest.raises(TypeError):
        mixed.put_nowait("a")
    mixed.put_nowait(0)
    with pytest.raises(TypeError):
        drain(mixed)
    assert mixed.qsize() == 3 or mixed.qsize() == 2


# --- words ---------------------------------------------------------------------------------------


async def test_stats_and_names(loop):
    queue = Queue(2, name="jobs")
    await queue.put_many([1, 2])
    putter = asyncio.create_task(queue.put(3))
    await turns()
    assert queue.stats() == ("jobs", 2, 2, 2, 0, 1, 2, False)
    assert "name='jobs'" in repr(queue)
    assert await queue.get_many(3) == [1, 2]
    queue.task_done()
    await putter
    assert queue.stats()[2:7] == (1, 3, 0, 0, 2)
    assert Queue().stats().name is None
    shouting = Shouting(name="loud")
    shouting.put_nowait("a")
    assert shouting.stats()[:4] == ("loud", 0, 1, 1)
    assert tideloop.QueueStats._fields[3] == "put"
