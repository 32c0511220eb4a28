"""checkpoint(): others have their turn, and not too often. Its clock is the system's: asked is what holds of any."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from tideloop import checkpoint

from tests.toolkit.work import turns


async def count_turns(work):
    """How often others have a turn while something is done, and what that returns."""
    task = asyncio.ensure_future(work)
    count = 0
    while not task.done():
        await asyncio.sleep(0)
        count += 1
    return count - 1, await task


async def test_zero_yields_each_time(loop):
    async def compute():
        for _ in range(10):
            assert await checkpoint(0) is None

    count, _ = await count_turns(compute())
    assert count in (9, 10, 11)


async def test_it_does_not_yield_before_it_is_time(loop):
    async def compute():
        await checkpoint(0)
        for _ in range(1000):
            await checkpoint(3600)
            await checkpoint(every=3600)

    count, _ = await count_turns(compute())
    assert count <= 2


async def test_it_yields_when_it_is_time_and_no_more_often(loop):
    async def compute():
        await checkpoint(0)
        began = now = time.monotonic()
        while now - began < 0.01:
            now = time.monotonic()
            await checkpoint()
        return now - began

    count, passed = await count_turns(compute())
    assert 1 < count <= passed / 0.001 + 3


async def test_it_can_be_cancelled_when_it_yields(loop):
    async def compute():
        while True:
            await checkpoint(0)

    task = asyncio.ensure_future(compute())
    await turns(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_threads_have_their_own_time(loop):
    async def compute():
        await checkpoint(0)
        thread = threading.Thread(target=asyncio.run, args=(count_turns(yield_often()),))
        thread.start()
        thread.join()
        await asyncio.sleep(0)
        return [next(iter(checkpoint(every)), "no") for every in (1e-9, 3600)]

    async def yield_often():
        for _ in range(10):
            await checkpoint(0)

    assert await compute() == [None, "no"]


def test_wrong_arguments():
    for every in (-1, float("nan")):
        with pytest.raises(ValueError, match="every must be a number of seconds of at least 0, not"):
            checkpoint(every)
    with pytest.raises(TypeError):
        checkpoint("often")
