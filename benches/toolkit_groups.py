"""What groups and streams cost beside what they are measured against: CPU time per task or item.

    python benches/toolkit_groups.py                       on asyncio's loop and ours
    python benches/toolkit_groups.py --repetitions 15 --loops asyncio,uvloop,tideloop

All rows of a loop run in one process and take turns, in another order each time; medians and half the
quartile range are printed, and the ratio to the row that is to be beaten. What is not installed is said to be absent.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.metadata
import platform
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import tideloop

TASKS = 10_000
ITEMS = 20_000
WIDE = 100

Row = Callable[[], Awaitable[int]]


async def nothing() -> None:
    pass


async def turn(number: int) -> int:
    await asyncio.sleep(0)
    return number


# --- groups --------------------------------------------------------------------------------------


async def asyncio_task_group() -> int:
    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(nothing())
    return TASKS


async def tideloop_group() -> int:
    async with tideloop.group() as group:
        for _ in range(TASKS):
            group.spawn(nothing)
    return TASKS


async def asyncio_task_group_semaphore() -> int:
    permits = asyncio.Semaphore(WIDE)

    async def limited(number: int) -> int:
        async with permits:
            return await turn(number)

    async with asyncio.TaskGroup() as group:
        for number in range(TASKS):
            group.create_task(limited(number))
    return TASKS


async def tideloop_group_limit() -> int:
    async with tideloop.group(limit=WIDE) as group:
        for number in range(TASKS):
            group.spawn(turn, number)
    return TASKS


async def asyncio_cancel() -> int:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asyncio.sleep(3600)) for _ in range(TASKS // 2)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
    return TASKS // 2


async def tideloop_cancel() -> int:
    async with tideloop.group() as group:
        for _ in range(TASKS // 2):
            group.spawn(asyncio.sleep, 3600)
        await asyncio.sleep(0)
        group.cancel()
    return TASKS // 2


async def asyncio_timeout() -> int:
    for _ in range(TASKS):
        async with asyncio.timeout(60):
            await nothing()
    return TASKS


async def tideloop_fail_after() -> int:
    for _ in range(TASKS):
        with tideloop.fail_after(60):
            await nothing()
    return TASKS


# --- streams -------------------------------------------------------------------------------------


async def gather_semaphore() -> int:
    permits = asyncio.Semaphore(WIDE)

    async def limited(number: int) -> int:
        async with permits:
            return await turn(number)

    return len(await asyncio.gather(*(limited(number) for number in range(ITEMS))))


async def shared_iterator() -> int:
    """The least that it can cost in Python: tasks that share an iterator, results in a list."""
    numbers, results = iter(range(ITEMS)), []

    async def worker() -> None:
        for number in numbers:
            results.append(await turn(number))

    async with asyncio.TaskGroup() as group:
        for _ in range(WIDE):
            group.create_task(worker())
    return len(results)


async def tideloop_amap() -> int:
    count = 0
    async for _ in tideloop.amap(turn, range(ITEMS), limit=WIDE):
        count += 1
    return count


async def tideloop_amap_ordered() -> int:
    count = 0
    async for _ in tideloop.amap(turn, range(ITEMS), limit=WIDE, ordered=True):
        count += 1
    return count


async def tideloop_amap_async() -> int:
    async def numbers():  # type: ignore[no-untyped-def]
        for number in range(ITEMS):
            yield number

    count = 0
    async for _ in tideloop.amap(turn, numbers(), limit=WIDE):
        count += 1
    return count


async def aiostream_map() -> int:
    from aiostream import stream

    count = 0
    numbers = stream.iterate(range(ITEMS))
    async with stream.map(numbers, turn, ordered=False, task_limit=WIDE).stream() as results:
        async for _ in results:
            count += 1
    return count


async def aiometer_amap() -> int:
    import aiometer

    count = 0
    async with aiometer.amap(turn, list(range(ITEMS)), max_at_once=WIDE) as results:
        async for _ in results:
            count += 1
    return count


CONTESTS: dict[str, list[tuple[str, Row]]] = {
    "spawn and await": [("asyncio.TaskGroup", asyncio_task_group), ("tideloop.group", tideloop_group)],
    "spawn and await, 100 at once": [
        ("asyncio.TaskGroup + Semaphore", asyncio_task_group_semaphore),
        ("tideloop.group(limit=100)", tideloop_group_limit),
    ],
    "cancel 5,000": [("asyncio.TaskGroup", asyncio_cancel), ("tideloop.group", tideloop_cancel)],
    "a time limit": [("asyncio.timeout", asyncio_timeout), ("tideloop.fail_after", tideloop_fail_after)],
    "map 20,000 x sleep(0), 100 at once": [
        ("gather + Semaphore", gather_semaphore),
        ("100 tasks, one iterator", shared_iterator),
        ("aiostream", aiostream_map),
        ("aiometer", aiometer_amap),
        ("tideloop.amap", tideloop_amap),
        ("tideloop.amap, ordered", tideloop_amap_ordered),
        ("tideloop.amap, async source", tideloop_amap_async),
    ],
}

LOOPS = {
    "asyncio": lambda: asyncio.SelectorEventLoop(),
    "uvloop": lambda: __import__("uvloop").new_event_loop(),
    "tideloop": tideloop.new_event_loop,
}


async def measure(row: Row) -> float:
    """Nanoseconds of CPU time per operation."""
    gc.collect()
    started = time.process_time()
    count = await row()
    return (time.process_time() - started) / count * 1e9


def sample(loops: list[str], repetitions: int, only: str) -> dict[tuple[str, str, str], list[float]]:
    """Samples by loop, contest and row."""
    rows = [(loop, contest, *row) for loop in loops for contest, rows in CONTESTS.items() for row in rows]
    rows = [row for row in rows if only in row[1]]
    found: dict[tuple[str, str, str], list[float]] = {row[:3]: [] for row in rows}
    dice = random.Random(1)
    for _ in range(repetitions + 1):
        dice.shuffle(rows)
        for loop, contest, name, row in rows:
            try:
                with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                    found[loop, contest, name].append(runner.run(measure(row)))
            except ImportError:
                continue
    return {row: samples[1:] for row, samples in found.items()}  # the first of each is the warm-up


def report(found: dict[tuple[str, str, str], list[float]]) -> None:
    base: dict[tuple[str, str], float] = {}
    for loop, contest, name in sorted(found, key=lambda row: (list(LOOPS).index(row[0]), list(CONTESTS).index(row[1]))):
        samples = found[loop, contest, name]
        if not samples:
            print(f"| {loop} | {contest} | {name} | absent | |")
            continue
        low, middle, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else samples * 3
        first = base.setdefault((loop, contest), middle)
        print(
            f"| {loop} | {contest} | {name} | {middle:,.0f} ±{(high - low) / 2 / middle:.0%} | {first / middle:.2f}x |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loops", default="asyncio,tideloop", help="of asyncio, uvloop, tideloop")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--only", default="", help="contests with this in their name")
    given = parser.parse_args()
    loops = given.loops.split(",")
    if unknown := set(loops) - LOOPS.keys():
        parser.error(f"unknown loops: {', '.join(sorted(unknown))}; there are {', '.join(LOOPS)}")
    versions = [f"CPython {platform.python_version()}"]
    for package in "aiostream", "aiometer", "uvloop":
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    print(
        f"`python benches/toolkit_groups.py {' '.join(sys.argv[1:])}`: {', '.join(versions)}; ns of CPU time, medians"
    )
    print(f"of {given.repetitions} ± half the quartile range, and the ratio to each contest's first row.\n")
    print("| loop | contest | | ns | |\n|---|---|---|---:|---:|")
    report(sample(loops, given.repetitions, given.only))


if __name__ == "__main__":
    main()
