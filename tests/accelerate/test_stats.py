"""What the drop-ins have beyond asyncio's: a name, and stats() that change nothing."""

import asyncio

import pytest
import tideloop


async def turns():
    for _ in range(3):
        await asyncio.sleep(0)


def named(thing, name):
    thing.name = name
    return thing


@pytest.mark.parametrize("name", ["Semaphore", "BoundedSemaphore", "Lock", "Event", "Condition"])
def test_named(name):
    thing = getattr(tideloop, name)()
    assert thing.name is None
    assert thing.stats().name is None
    thing.name = "db"
    assert thing.stats().name == "db"


async def test_semaphore(loop):
    semaphore = named(tideloop.Semaphore(2), "few")
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
    lock = named(tideloop.Lock(), "one")
    async with lock:
        waiter = asyncio.ensure_future(lock.acquire())
        await turns()
        assert lock.stats() == ("one", True, 1, 1, 0, 0)
    await waiter
    assert lock.stats() == ("one", True, 0, 2, 1, 0)
    lock.release()
    assert lock.stats().locked is False


async def test_event(loop):
    event = named(tideloop.Event(), "go")
    waiter = asyncio.ensure_future(event.wait())
    await turns()
    assert event.stats() == ("go", False, 1)
    event.set()
    await waiter
    assert event.stats() == ("go", True, 0)


async def test_condition(loop):
    condition = named(tideloop.Condition(), "changed")

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
