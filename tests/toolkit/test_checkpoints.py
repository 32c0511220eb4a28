"""checkpoint(): others have their turn, not too often; what passes is measured by a clock that the tests set."""

from __future__ import annotations

import asyncio

import pytest
from tideloop import checkpoint, checkpoints

from tests.toolkit.work import turns


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    checkpoints._due.since = 0.0
    monkeypatch.setattr(checkpoints, "perf_counter", lambda: Clock.now)
    return Clock


async def count_turns(work):
    """How often others have a turn while something is done."""
    task = asyncio.ensure_future(work)
    count = 0
    while not task.done():
        await asyncio.sleep(0)
        count += 1
    await task
    return count - 1


async def test_it_yields_when_it_is_time(loop, clock):
    async def compute():
        for _ in range(100):
            clock.now += 0.0003
            await checkpoint()

    clock.now += 1
    # 0.3 ms each: the first yields, then every fourth.
    assert await count_turns(compute()) in (25, 26)


async def test_it_does_not_yield_before(loop, clock):
    async def compute():
        await checkpoint()
        clock.now += 0.01
        for _ in range(100):
            await checkpoint(0.02)

    clock.now += 1
    assert await count_turns(compute()) <= 2


async def test_zero_yields_each_time(loop, clock):
    async def compute():
        for _ in range(10):
            await checkpoint(0)

    assert await count_turns(compute()) in (10, 11)


async def test_it_can_be_cancelled_when_it_yields(loop, clock):
    passed = []

    async def compute():
        while True:
            passed.append(clock.now)
            clock.now += 0.001
            await checkpoint(0.01)

    task = asyncio.ensure_future(compute())
    await turns(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 20 <= len(passed) <= 50


async def test_the_time_of_others_is_not_its_own(loop, clock):
    async def compute():
        await checkpoint()
        before = clock.now
        await checkpoint()
        assert clock.now == before

    clock.now += 1
    loop.call_soon(loop.call_soon, setattr, clock, "now", 2000.0)
    assert await count_turns(compute()) <= 2
