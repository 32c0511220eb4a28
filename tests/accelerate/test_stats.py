"""What the drop-ins have beyond asyncio's: a name, and stats() that change nothing."""

import asyncio
import inspect

import pytest
import tideloop


async def turns():
    for _ in range(3):
        await asyncio.sleep(0)


NAMED = ["Semaphore", "BoundedSemaphore", "Lock", "Event", "Condition", "Queue", "PriorityQueue", "LifoQueue"]


@pytest.mark.parametrize("name", NAMED)
def test_named(name):
    kind = getattr(tideloop, name)
    thing = kind()
    assert thing.name is None
    assert thing.stats().name is None
    thing.name = "cache"
    assert thing.stats().name == "cache"
    thing = kind(name="db")
    assert thing.name == "db"
    assert thing.stats().name == "db"
    assert "'db'" in repr(thing)
    assert kind().name is None


@pytest.mark.parametrize("name", NAMED)
def test_a_name_is_no_positional_argument(name):
    kind = getattr(tideloop, name)
    own = len(inspect.signature(getattr(asyncio, name)).parameters)
    with pytest.raises(TypeError, match="positional argument"):
        kind(*([None] * own), "db")


@pytest.mark.parametrize("name", NAMED)
def test_a_subclass_may_know_nothing_of_names(name):
    kind = getattr(tideloop, name)
    own = type("Own", (kind,), {"__init__": lambda self: kind.__init__(self), "extra": True})
    assert own().stats().name is None


def test_an_accelerated_asyncio_takes_names():
    with tideloop.accelerate():
        assert asyncio.Semaphore(2, name="db").stats().name == "db"
        assert asyncio.BoundedSemaphore(2, name="db").stats().name == "db"
    with pytest.raises(TypeError):
        asyncio.Semaphore(2, name="db")


async def test_semaphore(loop):
    semaphore = tideloop.Semaphore(2, name="few")
    async with semaphore:
        async with semaphore:
            tasks = [asyncio.ensure_future(semaphore.acquire()) for _ in range(2)]
            await turns()
            assert semaphore.stats() == ("few", 0, 2, 2, 0, 0)
            tasks[0].cancel()
            await turns()
            assert semaphore.stats() == ("few", 0, 1, 2, 0, 1)
        await tasks[1]
    assert semaphore.stats() == ("few", 1, 0, 3, 1, 1)
    assert "'few' [unlocked, value:1]" in repr(semaphore)


async def test_lock(loop):
    lock = tideloop.Lock(name="one")
    async with lock:
        waiter = asyncio.ensure_future(lock.acquire())
        await turns()
        assert lock.stats() == ("one", True, 1, 1, 0, 0)
    await waiter
    assert lock.stats() == ("one", True, 0, 2, 1, 0)
    lock.release()
    assert lock.stats().locked is False


async def test_event(loop):
    event = tideloop.Event(name="go")
    waiter = asyncio.ensure_future(event.wait())
    await turns()
    assert event.stats() == ("go", False, 1)
    event.set()
    await waiter
    assert event.stats() == ("go", True, 0)


async def test_condition(loop):
    condition = tideloop.Condition(name="changed")

    async def wait():
        async with condition:
            await condition.wait()

    waiter = asyncio.ensure_future(wait())
    await turns()
    assert condition.stats() == ("changed", False, 1)
    async with condition:
        assert condition.stats().locked
        condition.notify()
    await waiter
    assert condition.stats() == ("changed", False, 0)


async def test_a_subclass_of_its_own_has_no_counts(loop):
    class Mine(tideloop.Semaphore):
        async def acquire(self):
            return await super().acquire()

    semaphore = Mine(1)
    async with semaphore:
        waiter = asyncio.ensure_future(semaphore.acquire())
        await turns()
        assert semaphore.stats()[:3] == (None, 0, 1)
    await waiter
