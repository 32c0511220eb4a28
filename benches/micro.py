"""Scheduling workloads: what one callback, timer, task step or wake-up costs in CPU time.

    python benches/micro.py [--backends asyncio,uvloop,tideloop] [--repetitions 7] [--json]

All backends run in one process, interleaved A B C ... C B A, the garbage collector on and run before
each sample. A sample is CPU time of the process (``time.process_time``) per operation, set-up excluded;
the table shows medians in nanoseconds with the quartile spread, and the ratio to asyncio. One process
shares caches and allocator state between backends; ``tideloop lab`` measures in separate processes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

Workload = Callable[[asyncio.AbstractEventLoop], Awaitable[tuple[int, float]]]

WORKLOADS: dict[str, Workload] = {}


def workload(function: Workload) -> Workload:
    WORKLOADS[function.__name__] = function
    return function


def clock() -> float:
    return time.process_time()


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
    count, done = 20_000, loop.create_future()
    fired = 0

    def callback() -> None:
        nonlocal fired
        fired += 1
        if fired == count:
            done.set_result(None)

    started = clock()
    for _ in range(count):
        loop.call_later(0.002, callback)
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
async def spawn(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """20,000 tasks that do nothing, not kept."""

    async def one() -> None:
        pass

    started = clock()
    for _ in range(200):
        for _ in range(100):
            asyncio.create_task(one())  # noqa: RUF006  not keeping it is the point
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return 20_000, clock() - started


@workload
async def sleepers_10k(loop: asyncio.AbstractEventLoop) -> tuple[int, float]:
    """10,000 tasks that sleep 2 ms each."""
    started = clock()
    await asyncio.wait([loop.create_task(asyncio.sleep(0.002)) for _ in range(10_000)])
    return 10_000, clock() - started


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


def factories(names: list[str]) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    found: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {}
    for name in names:
        if name == "asyncio":
            found[name] = asyncio.SelectorEventLoop
            continue
        try:
            found[name] = __import__(name).new_event_loop
        except ImportError as error:
            print(f"{name}: skipped ({error})", file=sys.stderr)
    return found


def measure(repetitions: int, names: list[str], wanted: list[str]) -> dict[str, dict[str, list[float]]]:
    loops = factories(names)
    samples: dict[str, dict[str, list[float]]] = {w: {name: [] for name in loops} for w in wanted}
    for repetition in range(repetitions + 1):
        order = list(loops) if repetition % 2 == 0 else list(loops)[::-1]
        for w in wanted:
            for name in order:
                gc.collect()
                with asyncio.Runner(loop_factory=loops[name]) as runner:
                    loop = runner.get_loop()
                    operations, seconds = runner.run(WORKLOADS[w](loop))  # type: ignore[arg-type]
                if repetition:  # the first round warms up
                    samples[w][name].append(seconds / operations * 1e9)
        print(f"\r{repetition}/{repetitions} rounds", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return samples


def show(samples: dict[str, dict[str, list[float]]]) -> None:
    names = list(next(iter(samples.values())))
    print(f"{'ns per operation':<18}" + "".join(f"{name:>22}" for name in names))
    for w, row in samples.items():
        base = statistics.median(row["asyncio"]) if "asyncio" in row else None
        cells = []
        for name in names:
            values = sorted(row[name])
            median = statistics.median(values)
            spread = (values[len(values) * 3 // 4] - values[len(values) // 4]) / median
            ratio = f" {base / median:5.2f}x" if base else ""
            cells.append(f"{median:8.0f} ±{spread * 50:3.0f}%{ratio}")
        print(f"{w:<18}" + "".join(f"{cell:>22}" for cell in cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", default="asyncio,uvloop,rloop,zuvloop,tideloop")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wanted = options.workloads.split(",")
    unknown = [w for w in wanted if w not in WORKLOADS]
    if unknown or options.repetitions < 1:
        parser.error(f"unknown workloads {unknown}" if unknown else "--repetitions must be at least 1")
    samples = measure(options.repetitions, options.backends.split(","), wanted)
    if options.json:
        json.dump({"python": platform.python_version(), "ns_per_operation": samples}, sys.stdout, indent=1)
    else:
        print(f"CPython {platform.python_version()}, medians of {options.repetitions}, CPU time")
        show(samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
