"""What the counting build (`make refcheck`) counts: as many objects are destroyed as were made.

Only there do dead objects give their memory back at once, so that the references to a class are those of its
instances. In any other build these tests are skipped, and say so.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys

import pytest
import tideloop
from tideloop import _tideloop

pytestmark = pytest.mark.skipif(
    not hasattr(_tideloop, "live_natives"), reason="not a build with reference checks: see `make refcheck`"
)


async def nothing():
    pass


async def everything():
    """Each kind of object, ended in each way."""
    loop = asyncio.get_running_loop()
    queue, lock, condition, barrier = tideloop.Queue(1), tideloop.Lock(), tideloop.Condition(), tideloop.Barrier(2)
    await tideloop.gather(*[tideloop.sleep(0) for _ in range(20)], nothing())
    await tideloop.gather(barrier.wait(), barrier.wait())
    tasks = [loop.create_task(tideloop.sleep(60)) for _ in range(20)]
    tasks += [loop.create_task(queue.get()) for _ in range(5)]
    async with lock:
        tasks += [loop.create_task(lock.acquire()) for _ in range(5)]
        await tideloop.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def told():
        async with condition:
            return await condition.wait()

    waiter = loop.create_task(told())
    await tideloop.sleep(0)
    async with condition:
        condition.notify_all()
    assert await waiter
    with pytest.raises(TimeoutError):
        async with tideloop.timeout(0):
            await loop.create_future()
    async with tideloop.timeout(60):
        await queue.put(tideloop.sleep)
        await queue.get()
    loop.call_later(60, print).cancel()
    loop.call_soon(int)
    loop.call_soon_threadsafe(int)
    await tideloop.sleep(0)
    unfinished = queue.get()
    unfinished.close()


def counts():
    gc.collect()
    classes = (_tideloop.Task, _tideloop.Future, _tideloop.Handle, _tideloop.TimerHandle)
    return (_tideloop.live_natives(), *[sys.getrefcount(class_) for class_ in classes])


def test_what_is_made_is_destroyed():
    tideloop.run(everything())
    before = counts()
    for _ in range(3):
        tideloop.run(everything())
    assert counts() == before


def test_what_lives_is_counted():
    (operations, _), tasks, *_ = counts()

    async def main():
        loop = asyncio.get_running_loop()
        sleepers = [loop.create_task(tideloop.sleep(60)) for _ in range(7)]
        await tideloop.sleep(0)
        (now, _), known, *_ = counts()
        for sleeper in sleepers:
            sleeper.cancel()
        await asyncio.wait(sleepers)
        return now - operations, known - tasks

    # The task of main() is one more.
    assert tideloop.run(main()) == (7, 8)


def test_a_dead_object_is_noticed():
    child = subprocess.run(
        [sys.executable, "-c", "from tideloop import _tideloop; _tideloop.fail_a_reference_check()"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert child.returncode != 0
    assert "tideloop: reference check: a dead object at 0x" in child.stderr
    assert "it is dead" in child.stderr
