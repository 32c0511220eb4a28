"""What the toolkit's primitives cost beside asyncio's and other libraries': CPU time per operation.

    python benches/toolkit.py [--rows semaphore,crowd] [--repetitions 7] [--json | --markdown]

A row is an operation, a cell what does it, on which loop (``@asyncio``, ``@tideloop``). Rows are data: a function that
takes the number of operations and is run on each of the row's loops with each of its contenders. All cells of a row
run in one process, interleaved A B C ... C B A, the garbage collector on and run before each sample. A sample is CPU
time of the process (``time.process_time``) per operation; the table shows medians in nanoseconds, the quartile spread,
and the ratio of the row's reference (its first contender) on the same loop to it. A contender that is not installed is
left out, and said so.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

Body = Callable[[Any, int], Awaitable[float]]
"""Does so many operations with what a contender makes; returns the CPU seconds they took, set-up excluded."""

LOOPS = ("asyncio", "tideloop")


@dataclass(frozen=True)
class Row:
    """One operation, and who does it: name of the contender to what makes the thing, the reference first."""

    name: str
    what: str
    body: Body
    operations: int
    contenders: dict[str, Callable[[], Any]]


def clock() -> float:
    return time.process_time()


def of(module: str, name: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """What makes an object of a class that is imported when it is wanted."""
    return lambda: getattr(importlib.import_module(module), name)(*args, **kwargs)


# --- limits --------------------------------------------------------------------------------------


async def enter_and_leave(limiter: Any, count: int) -> float:
    started = clock()
    for _ in range(count):
        async with limiter:
            pass
    return clock() - started


async def crowd(limiter: Any, count: int) -> float:
    async def work() -> None:
        async with limiter:
            await asyncio.sleep(0)

    started = clock()
    await asyncio.gather(*(work() for _ in range(count)))
    return clock() - started


async def weighted(limiter: Any, count: int) -> float:
    started = clock()
    for _ in range(count):
        async with limiter(3):
            pass
    return clock() - started


async def keyed(limiter: Any, count: int) -> float:
    started = clock()
    for key in range(count):
        async with limiter(key):
            pass
    return clock() - started


async def give_up(limiter: Any, count: int) -> float:
    async def work() -> None:
        async with limiter:
            pass

    async with limiter:
        tasks = [asyncio.ensure_future(work()) for _ in range(count)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        started = clock()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return clock() - started


def limiters(permits: int) -> dict[str, Callable[[], Any]]:
    return {
        "asyncio.Semaphore": lambda: asyncio.Semaphore(permits),
        "tideloop.Limiter": of("tideloop", "Limiter", permits),
        "tideloop.Semaphore": of("tideloop", "Semaphore", permits),
        "anyio.CapacityLimiter": of("anyio", "CapacityLimiter", permits),
        "aiologic.Semaphore": of("aiologic", "Semaphore", permits),
    }


def ours(name: str, *args: Any) -> dict[str, Callable[[], Any]]:
    return {f"tideloop.{name}": of("tideloop", name, *args)}


ROWS = [
    Row("semaphore", "async with, a permit is free", enter_and_leave, 50_000, limiters(10)),
    Row("crowd", "20,000 tasks over 50 permits, each with one sleep(0) inside", crowd, 20_000, limiters(50)),
    Row("give_up", "20,000 waiters are cancelled", give_up, 20_000, limiters(1)),
    Row("weighted", "async with limiter(3)", weighted, 50_000, ours("Limiter", 10)),
    Row("keyed", "async with limiter(key), every key new", keyed, 20_000, ours("KeyedLimiter", 2)),
]


# --- measuring -----------------------------------------------------------------------------------

Cell = tuple[str, str]
"""Contender and loop."""


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "asyncio":
        return asyncio.SelectorEventLoop()
    loop: asyncio.AbstractEventLoop = importlib.import_module(name).new_event_loop()
    return loop


def sample(row: Row, cell: Cell) -> float:
    """One run: nanoseconds per operation."""
    contender, loop = cell
    gc.collect()

    async def main() -> float:
        return await row.body(row.contenders[contender](), row.operations)

    with asyncio.Runner(loop_factory=lambda: new_loop(loop)) as runner:
        return runner.run(main()) / row.operations * 1e9


def measure(row: Row, loops: list[str], repetitions: int) -> dict[Cell, list[float]]:
    cells = [(contender, loop) for contender in row.contenders for loop in loops]
    for contender in row.contenders:
        try:
            sample(Row(row.name, row.what, row.body, 10, row.contenders), (contender, loops[0]))
        except ImportError as error:
            print(f"{contender}: left out ({error})", file=sys.stderr)
            cells = [cell for cell in cells if cell[0] != contender]
    samples: dict[Cell, list[float]] = {cell: [] for cell in cells}
    for repetition in range(repetitions + 1):
        for cell in cells:
            value = sample(row, cell)
            if repetition:  # the first round warms up
                samples[cell].append(value)
        cells.reverse()
    return samples


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def table(row: Row, samples: dict[Cell, list[float]], markdown: bool) -> str:
    reference = next(iter(row.contenders))
    lines = [f"{row.name}: {row.what}"]
    if markdown:
        lines = [f"| {row.name}: {row.what} | ns | quartiles | x {reference} |", "|---|---|---|---|"]
    for (contender, loop), values in samples.items():
        low, middle, high = quartiles(values)
        base = samples.get((reference, loop))
        ratio = f"{statistics.median(base) / middle:.2f}" if base else ""
        cells = [f"{contender} @{loop}", f"{middle:.0f}", f"{low:.0f} to {high:.0f}", ratio]
        if markdown:
            lines.append(f"| {' | '.join(cells)} |")
        else:
            lines.append(f"  {cells[0]:<36} {cells[1]:>8} ns  ({cells[2]}){'  x ' + ratio if ratio else ''}")
    return "\n".join(lines)


def main() -> None:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(names), help=f"of {', '.join(names)}")
    parser.add_argument("--loops", default=",".join(LOOPS), help="modules with new_event_loop, and asyncio")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of operations")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    wanted = options.rows.split(",")
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"unknown rows: {', '.join(unknown)}; there are {', '.join(names)}")
    if options.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    found: dict[str, dict[str, list[float]]] = {}
    if not options.json:
        print(f"Python {platform.python_version()}, medians of {options.repetitions}, CPU time")
    for row in ROWS:
        if row.name not in wanted:
            continue
        scaled = Row(row.name, row.what, row.body, max(1, int(row.operations * options.scale)), row.contenders)
        samples = measure(scaled, options.loops.split(","), options.repetitions)
        found[row.name] = {f"{contender}@{loop}": values for (contender, loop), values in samples.items()}
        if not options.json:
            print(table(row, samples, options.markdown), flush=True)
    if options.json:
        print(json.dumps({"python": platform.python_version(), "ns_per_operation": found}))


if __name__ == "__main__":
    main()
