"""What RateLimiter costs beside aiolimiter: CPU time per waiter, and when the last one was admitted.

    python benches/toolkit_rates.py [--waiters 20000] [--rate 5000] [--repetitions 5] [--loops asyncio,tideloop]

So many tasks come at once and are admitted at a rate per second, with a burst of as much; each cell is one fresh loop,
cells interleaved A B C D ... D C B A, medians of all rounds but the first. CPU is that of the process
(``time.process_time``), creating and ending the tasks included; finish is the time from the first admission to the
last over (waiters - burst) / rate. The last column is an acquisition that need not wait.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any


def aiolimiter(rate: int) -> Any:
    return importlib.import_module("aiolimiter").AsyncLimiter(rate, 1)


def tideloop(rate: int) -> Any:
    module = importlib.import_module("tideloop")
    return module.RateLimiter(module.rate(rate))


LIMITERS: dict[str, Callable[[int], Any]] = {"aiolimiter": aiolimiter, "tideloop": tideloop}


async def crowd(limiter: Any, waiters: int) -> tuple[float, float]:
    """CPU seconds until everybody was admitted, and wall seconds from the first admission to the last."""
    admissions: list[float] = []

    async def come() -> None:
        async with limiter:
            admissions.append(time.monotonic())

    gc.collect()
    cpu = time.process_time()
    await asyncio.gather(*(come() for _ in range(waiters)))
    return time.process_time() - cpu, admissions[-1] - admissions[0]


async def free(limiter: Any, count: int) -> float:
    """CPU seconds for acquisitions that need not wait."""
    gc.collect()
    cpu = time.process_time()
    for _ in range(count):
        async with limiter:
            pass
    return time.process_time() - cpu


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "asyncio":
        return asyncio.SelectorEventLoop()
    loop: asyncio.AbstractEventLoop = importlib.import_module(name).new_event_loop()
    return loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiters", type=int, default=20_000)
    parser.add_argument("--rate", type=int, default=5_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--loops", default="asyncio,tideloop")
    options = parser.parse_args()
    limiters = dict(LIMITERS)
    try:
        aiolimiter(1)
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
        del limiters["aiolimiter"]
    cells = [(limiter, loop) for loop in options.loops.split(",") for limiter in limiters]
    crowds: dict[tuple[str, str], list[tuple[float, float]]] = {cell: [] for cell in cells}
    frees: dict[tuple[str, str], list[float]] = {cell: [] for cell in cells}
    for repetition in range(options.repetitions + 1):
        for cell in cells:
            limiter, loop = cell
            with asyncio.Runner(loop_factory=lambda loop=loop: new_loop(loop)) as runner:  # type: ignore[misc]
                crowded = runner.run(crowd(LIMITERS[limiter](options.rate), options.waiters))
                unhindered = runner.run(free(LIMITERS[limiter](10_000_000), 20_000)) / 20_000
            if repetition:
                crowds[cell].append(crowded)
                frees[cell].append(unhindered)
        if repetition < options.repetitions:
            cells.reverse()
    ideal = (options.waiters - options.rate) / options.rate
    print(f"Python {platform.python_version()}, medians (lowest to highest) of {options.repetitions}")
    print("| limiter | loop | CPU per waiter, µs | finish / ideal | free, ns |")
    print("|---|---|---|---|---|")
    for limiter, loop in sorted(cells, key=lambda cell: cell[::-1]):
        cpu = [seconds / options.waiters * 1e6 for seconds, _ in crowds[limiter, loop]]
        finish = [wall / ideal for _, wall in crowds[limiter, loop]]
        nanoseconds = [seconds * 1e9 for seconds in frees[limiter, loop]]
        print(
            f"| {limiter} | {loop} | {statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f}) "
            f"| {statistics.median(finish):.4f} | {statistics.median(nanoseconds):.0f} |"
        )


if __name__ == "__main__":
    main()
