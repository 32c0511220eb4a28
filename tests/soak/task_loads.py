"""What the soak does to a loop: tasks by the hundred thousand, and what is left of them afterwards.

Each load leaves the loop as it was. What it costs is measured around it: objects that the garbage collector
knows, and resident memory. The allocator keeps some of what is freed, so memory may stand a little higher after the
first round of a load; a leak shows as growth from one round to the next.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

Load = Callable[[int], Awaitable[dict[str, float]]]

LOADS: dict[str, Load] = {}


def load(function: Load) -> Load:
    LOADS[function.__name__] = function
    return function


class Round(NamedTuple):
    """What one round of a load has measured, and what was there after it."""

    figures: dict[str, float]
    objects: int
    resident: int


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def run_rounds(loop: asyncio.AbstractEventLoop, name: str, tasks: int, rounds: int) -> list[Round]:
    """Run a load several times on one loop."""
    done = []
    for _ in range(rounds):
        figures = loop.run_until_complete(LOADS[name](tasks))
        assert asyncio.all_tasks(loop) == set()
        gc.collect()
        done.append(Round(figures, len(gc.get_objects()), resident()))
    return done


@load
async def alive(tasks: int) -> dict[str, float]:
    """So many tasks that wait at once, then end by themselves: resident bytes for each."""
    gate = asyncio.Event()
    count = 0

    async def one() -> None:
        nonlocal count
        await gate.wait()
        count += 1

    gc.collect()
    before = resident()
    made = [asyncio.create_task(one()) for _ in range(tasks)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    bytes_each = (resident() - before) / tasks
    assert len(asyncio.all_tasks()) == tasks + 1
    gate.set()
    await asyncio.gather(*made)
    assert count == tasks
    return {"bytes per task": bytes_each}


@load
async def cancelled(tasks: int) -> dict[str, float]:
    """So many cancellations of sleeping tasks, a thousand tasks at a time."""
    count = 0
    batch = min(1_000, tasks)
    for _ in range(tasks // batch):
        made = [asyncio.create_task(asyncio.sleep(3600)) for _ in range(batch)]
        await asyncio.sleep(0)
        for task in made:
            task.cancel("soak")
        for outcome in await asyncio.gather(*made, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError)
            count += 1
    assert count == tasks
    return {"cancelled": count}


@load
async def cancelled_at_once(tasks: int) -> dict[str, float]:
    """The whole life of so many tasks at the same time: made, asleep, cancelled, awaited."""
    made = [asyncio.create_task(asyncio.sleep(3600)) for _ in range(tasks)]
    await asyncio.sleep(0)
    for task in made:
        task.cancel()
    await asyncio.wait(made)
    assert all(task.cancelled() for task in made)
    return {}


@load
async def grouped(tasks: int) -> dict[str, float]:
    """So many tasks in groups of a hundred; one child of each group fails and takes the others along."""
    failed = 0

    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError

    for _ in range(max(1, tasks // 100)):
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(99):
                    group.create_task(asyncio.sleep(3600))
                group.create_task(fail())
        except* LookupError:
            failed += 1
    assert failed == max(1, tasks // 100)
    return {"groups": failed}


@load
async def timed_out(tasks: int) -> dict[str, float]:
    """So many waits that time out at once, in batches, each under two deadlines."""
    count = 0

    async def one() -> None:
        nonlocal count
        try:
            async with asyncio.timeout(3600), asyncio.timeout(0):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            count += 1

    batch = min(1_000, tasks)
    for _ in range(tasks // batch):
        await asyncio.gather(*[one() for _ in range(batch)])
    assert count == tasks
    return {"timed out": count}


@load
async def failing(tasks: int) -> dict[str, float]:
    """So many tasks whose exceptions, with tracebacks and contexts, are looked at and forgotten."""
    count = 0

    async def inner(n: int) -> None:
        await asyncio.sleep(0)
        raise LookupError(n)

    async def outer(n: int) -> None:
        try:
            await inner(n)
        except LookupError as error:
            raise ValueError(n) from error

    batch = min(1_000, tasks)
    for _ in range(tasks // batch):
        for outcome in await asyncio.gather(*[outer(n) for n in range(batch)], return_exceptions=True):
            assert isinstance(outcome, ValueError)
            count += 1
    assert count == tasks
    return {"failed": count}


@load
async def orphaned(tasks: int) -> dict[str, float]:
    """So many pending tasks in cycles of their own, which only the garbage collector can end."""
    loop = asyncio.get_running_loop()
    reports = 0

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        nonlocal reports
        reports += 1

    async def wait() -> None:
        future = loop.create_future()
        await future

    loop.set_exception_handler(report)
    try:
        batch = min(1_000, tasks)
        for _ in range(tasks // batch):
            for _ in range(batch):
                asyncio.create_task(wait())  # noqa: RUF006  being forgotten is the point
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            gc.collect()
    finally:
        loop.set_exception_handler(None)
    assert reports == tasks
    return {"destroyed": reports}


def describe(name: str, rounds: list[Round]) -> str:
    """A line of the soak's report."""
    figures = "  ".join(f"{what} {value:,.0f}" for what, value in rounds[0].figures.items())
    objects = " ".join(f"{r.objects - rounds[0].objects:+,}" for r in rounds[1:])
    memory = " ".join(f"{(r.resident - rounds[0].resident) / 1e6:+.1f}" for r in rounds[1:])
    return f"  {name:<18} {figures:<26} objects {objects}   resident MB {memory}"


def grown(rounds: list[Round], tasks: int) -> str | None:
    """How a load has left more behind in its last rounds; None if it has not.

    The first round may leave caches behind. A leaked object per task, or 16 bytes of memory per task and round, is
    far above what is allowed for; the allocator's own unrest is not.
    """
    settled = rounds[1:]
    objects = settled[-1].objects - settled[0].objects
    if objects > max(50, tasks // 1_000):
        return f"{objects:,} objects more after {len(settled)} rounds of {tasks:,} tasks"
    memory = settled[-1].resident - settled[0].resident
    if memory > 8_000_000 + 16 * tasks * (len(settled) - 1):
        return f"{memory:,} bytes more after {len(settled)} rounds of {tasks:,} tasks"
    return None
