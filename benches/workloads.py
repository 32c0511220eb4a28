"""What benches/micro.py times: small programs of tasks, callbacks and timers.

A workload runs on the loop it is given and returns the number of its operations and the CPU seconds they took;
set-up and the checks of its own result are not in the time. asyncio's functions are looked up when they are
called (``asyncio.sleep``), so that replaced ones are measured where they are in force.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

__all__ = ["PRIMITIVES", "WHOLE_PROCESSES", "WORKLOADS", "Workload"]

Workload = Callable[[asyncio.AbstractEventLoop], Awaitable[tuple[int, float]]]

WORKLOADS: dict[str, Workload] = {}
"""What the geometric means are made of."""

PRIMITIVES: dict[str, Workload] = {}
"""Reported apart: they never reach the loop, so that only what replaces asyncio's own code can change them."""

WHOLE_PROCESSES: dict[str, Workload] = {}
"""Reported apart: each sample has a process of its own, and other units."""


def workload(function: Workload) -> Workload:
    WORKLOADS[function.__name__] = function
    return function


def primitive(function: Workload) -> Workload:
    PRIMITIVES[function.__name__] = function
    return function


def whole_process(function: Workload) -> Workload:
    WHOLE_PROCESSES[function.__name__] = function
    return function


def clock() -> float:
    return time.process_time()


async def nothing() -> None:
    pass


# --- tasks ---------------------------------------------------------------------------------------


@workload
async def spawn_kept(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """20,000 tasks that do nothing, all alive until the last has run."""
    started = clock()
    tasks = [asyncio.create_task(nothing()) for _ in range(20_000)]
    await asyncio.sleep(0)
    took = clock() - started
    assert all(task.done() for task in tasks)
    return 20_000, took


@workload
async def spawn_freed(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """20,000 tasks that do nothing, in batches of 100, not kept."""
    started = clock()
    for _ in range(200):
        for _ in range(100):
            asyncio.create_task(nothing())  # noqa: RUF006  not keeping it is the point
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return 20_000, clock() - started


@workload
async def await_task(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """10,000 tasks, each awaited before the next is made."""
    started = clock()
    for _ in range(10_000):
        await asyncio.create_task(nothing())
    return 10_000, clock() - started


@workload
async def sleep0(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """30,000 sleep(0) of one task."""
    started = clock()
    for _ in range(30_000):
        await asyncio.sleep(0)
    return 30_000, clock() - started


@workload
async def sleep0_x100(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """100 tasks of 500 sleep(0) each."""

    async def worker() -> None:
        for _ in range(500):
            await asyncio.sleep(0)

    tasks = [loop.create_task(worker()) for _ in range(100)]
    started = clock()
    await asyncio.wait(tasks)
    return 50_000, clock() - started


@workload
async def sleepers_10k(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """10,000 tasks that sleep 2 ms each."""
    started = clock()
    await asyncio.wait([loop.create_task(asyncio.sleep(0.002)) for _ in range(10_000)])
    return 10_000, clock() - started


@workload
async def cancel_5k(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """5,000 sleeping tasks, cancelled and awaited; making them is not in the time."""
    tasks = [loop.create_task(asyncio.sleep(60)) for _ in range(5_000)]
    await asyncio.sleep(0)
    started = clock()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    took = clock() - started
    assert all(task.cancelled() for task in tasks)
    return 5_000, took


@workload
async def gather_10k(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """gather() of 10,000 coroutines that sleep(0)."""

    async def one() -> int:
        await asyncio.sleep(0)
        return 1

    started = clock()
    results = await asyncio.gather(*[one() for _ in range(10_000)])
    took = clock() - started
    assert sum(results) == 10_000
    return 10_000, took


@workload
async def taskgroup_10k(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """A TaskGroup of 10,000 tasks that sleep(0)."""
    count = 0

    async def one() -> None:
        nonlocal count
        await asyncio.sleep(0)
        count += 1

    started = clock()
    async with asyncio.TaskGroup() as group:
        for _ in range(10_000):
            group.create_task(one())
    took = clock() - started
    assert count == 10_000
    return 10_000, took


# --- waking each other ---------------------------------------------------------------------------


@workload
async def queue_ping_pong(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """Two tasks that pass 10,000 items to and fro."""
    there: asyncio.Queue[int] = asyncio.Queue()
    back: asyncio.Queue[int] = asyncio.Queue()

    async def echo() -> None:
        for _ in range(10_000):
            await back.put(await there.get())

    task = loop.create_task(echo())
    started = clock()
    for n in range(10_000):
        await there.put(n)
        await back.get()
    took = clock() - started
    await task
    return 10_000, took


@workload
async def future_wake(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """30,000 times: a future, a callback that sets it, a task that awaits it."""
    count = 30_000
    started = clock()
    for _ in range(count):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future
    return count, clock() - started


@workload
async def event_ping_pong(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """Two tasks that wake each other 10,000 times with two events."""
    there, back = asyncio.Event(), asyncio.Event()

    async def echo() -> None:
        for _ in range(10_000):
            await there.wait()
            there.clear()
            back.set()

    task = loop.create_task(echo())
    started = clock()
    for _ in range(10_000):
        there.set()
        await back.wait()
        back.clear()
    took = clock() - started
    await task
    return 10_000, took


@workload
async def semaphore_contended(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """30 tasks that share 3 permits, 300 times each."""
    semaphore = asyncio.Semaphore(3)

    async def worker() -> None:
        for _ in range(300):
            async with semaphore:
                await asyncio.sleep(0)

    tasks = [loop.create_task(worker()) for _ in range(30)]
    started = clock()
    await asyncio.wait(tasks)
    return 9_000, clock() - started


@workload
async def timeout(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """10,000 blocks under timeout(60) with one sleep(0) inside."""
    started = clock()
    for _ in range(10_000):
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
    return 10_000, clock() - started


# --- callbacks and timers ------------------------------------------------------------------------


@workload
async def call_soon(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """100 batches of 1,000 callbacks."""
    count = 0

    def callback() -> None:
        nonlocal count
        count += 1

    started = clock()
    for _ in range(100):
        for _ in range(1_000):
            loop.call_soon(callback)
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    took = clock() - started
    assert count == 100_000
    return count, took


@workload
async def call_later(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """20,000 timers with one delay, from call to callback."""
    return await timers(loop, [0.002] * 20_000)


@workload
async def call_later_random(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """20,000 timers with delays from 0 to 20 ms in random order, from call to callback."""
    random = Random(1)
    return await timers(loop, [random.random() * 0.02 for _ in range(20_000)])


async def timers(loop: asyncio.AbstractEventLoop, delays: list[float]) -> tuple[int, float]:
    count, done = len(delays), loop.create_future()
    fired = 0

    def callback() -> None:
        nonlocal fired
        fired += 1
        if fired == count:
            done.set_result(None)

    started = clock()
    for delay in delays:
        loop.call_later(delay, callback)
    await done
    return count, clock() - started


@workload
async def timer_cancel(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """50,000 timers, each cancelled at once."""
    count = 50_000
    started = clock()
    for _ in range(count):
        loop.call_later(60, int).cancel()
    return count, clock() - started


# --- what never reaches the loop -------------------------------------------------------------------


@primitive
async def semaphore_free(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """50,000 blocks under a semaphore that nobody else wants."""
    semaphore = asyncio.Semaphore(1)
    started = clock()
    for _ in range(50_000):
        async with semaphore:
            pass
    return 50_000, clock() - started


@primitive
async def queue_free(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """50,000 items, each put into a queue and got from it by the same task."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    started = clock()
    for n in range(50_000):
        await queue.put(n)
        await queue.get()
    return 50_000, clock() - started


# --- what needs a process of its own ---------------------------------------------------------------


@whole_process
async def bytes_per_sleeper(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """100,000 tasks that wait in asyncio.sleep(): resident bytes for each. In place of seconds, 1e-9 bytes."""

    async def sleeper() -> None:
        await asyncio.sleep(3600)

    gc.collect()
    before = resident()
    tasks = [loop.create_task(sleeper()) for _ in range(100_000)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gc.collect()
    grown = resident() - before
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return 100_000, grown / 1e9


@whole_process
async def life_100k(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """100,000 tasks: made, started, cancelled, awaited. Wall time."""
    started = time.perf_counter()
    tasks = [loop.create_task(asyncio.sleep(3600)) for _ in range(100_000)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    took = time.perf_counter() - started
    assert all(task.cancelled() for task in tasks)
    return 100_000, took


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
