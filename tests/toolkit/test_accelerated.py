"""The accelerated Semaphore, BoundedSemaphore, Lock, Condition and Queue through the harness.

Events have nothing to lose, and what becomes of a notification whose receiver is cancelled differs between versions of
asyncio: tests/accelerate compares these two with asyncio's.
"""

from __future__ import annotations

import asyncio

import pytest
import tideloop

from tests.toolkit import harness
from tests.toolkit.harness import Inside, Permits, Pipe


async def visit(lock: asyncio.Semaphore | asyncio.Lock | asyncio.Condition, inside: Inside) -> None:
    async with lock:
        await inside()


def all_permits(number: int):
    def idle(semaphore: asyncio.Semaphore) -> None:
        harness.demand(semaphore._value == number, f"{semaphore._value} permits of {number}: {semaphore!r}")
        harness.demand(not semaphore.locked(), f"locked: {semaphore!r}")

    return idle


def unlocked(lock: asyncio.Lock | asyncio.Condition) -> None:
    harness.demand(not lock.locked(), f"still locked: {lock!r}")


def drain(queue: asyncio.Queue) -> list:
    return [queue.get_nowait() for _ in range(queue.qsize())]


PERMITS = [
    Permits("Semaphore", lambda: tideloop.Semaphore(2), visit, all_permits(2), limit=2),
    Permits("BoundedSemaphore", lambda: tideloop.BoundedSemaphore(3), visit, all_permits(3), limit=3),
    Permits("Lock", lambda: tideloop.Lock(), visit, unlocked, limit=1),
    Permits("Condition", lambda: tideloop.Condition(), visit, unlocked, limit=1),
]
PIPES = [
    Pipe("Queue", lambda: tideloop.Queue(2), lambda q, item: q.put(item), lambda q: q.get(), drain),
    Pipe("unbounded Queue", lambda: tideloop.Queue(), lambda q, item: q.put(item), lambda q: q.get(), drain),
]


@pytest.mark.parametrize("primitive", PERMITS, ids=str)
def test_cancelled_at_every_await(kind, primitive):
    assert harness.cancel_everywhere(kind, harness.permits_scenario(primitive)) > 5


@pytest.mark.parametrize("primitive", PIPES, ids=str)
def test_queue_cancelled_at_every_await(kind, primitive):
    assert harness.cancel_everywhere(kind, harness.pipe_scenario(primitive)) >= 2


@pytest.mark.parametrize("primitive", [*PERMITS, *PIPES], ids=str)
def test_random_schedules(kind, primitive):
    for seed in range(60):
        harness.interleave(kind, primitive, seed)


@pytest.mark.parametrize("primitive", PERMITS, ids=str)
def test_loop_closed_with_waiters(backend, primitive):
    harness.close_loop(backend.name, primitive)


@pytest.mark.parametrize("primitive", PERMITS, ids=str)
def test_forked_with_waiters(backend, primitive):
    harness.fork_with_waiters(backend.name, primitive)
