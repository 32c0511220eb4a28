"""What an item costs on its way through queues and channels, ours and others'.

    python benches/toolkit_queues.py [--repetitions 9] [--items 50000] [--json]

A cell is CPU time of the whole process (``time.process_time``, so that of both threads) per item put and taken,
in microseconds: the median of the repetitions and, behind it, the quartile spread. The cells of one table are run
in turn, forwards and backwards, in one process. Packages that are not installed are left out, and said so.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import importlib.metadata
import json
import platform
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import tideloop

BOUND = 1024

Body = Callable[[int], Awaitable[float]]


# --- in one loop ---------------------------------------------------------------------------------


def through_queue(make: Callable[[], Any]) -> Body:
    """A producer and a consumer, as two tasks."""

    async def body(items: int) -> float:
        queue = make()

        async def produce() -> None:
            put = queue.put
            for item in range(items):
                await put(item)

        async def consume() -> None:
            get = queue.get
            for _ in range(items):
                await get()

        begin = time.process_time()
        await asyncio.gather(produce(), consume())
        return time.process_time() - begin

    return body


def through_channel(bound: int) -> Body:
    async def body(items: int) -> float:
        tx, rx = tideloop.Channel[int](bound)

        async def produce() -> None:
            send = tx.send
            for item in range(items):
                await send(item)

        async def consume() -> None:
            recv = rx.recv
            for _ in range(items):
                await recv()

        begin = time.process_time()
        await asyncio.gather(produce(), consume())
        return time.process_time() - begin

    return body


async def put_then_get(queue: Any, items: int) -> float:
    """No waiting, no switch: what `await put()` and `await get()` cost by themselves."""
    begin = time.process_time()
    for item in range(items):
        await queue.put(item)
        await queue.get()
    return time.process_time() - begin


async def send_then_recv(items: int) -> float:
    tx, rx = tideloop.Channel[int](BOUND)
    begin = time.process_time()
    for item in range(items):
        await tx.send(item)
        await rx.recv()
    return time.process_time() - begin


async def many(items: int) -> float:
    """put_many and get_many by the hundred."""
    queue = tideloop.Queue[int](BOUND)
    hundred = list(range(100))
    begin = time.process_time()
    for _ in range(items // 100):
        await queue.put_many(hundred)
        await queue.get_many(100)
    return time.process_time() - begin


# --- from a thread to a loop ---------------------------------------------------------------------


async def from_thread(feed: Callable[[int], None], take: Callable[[], Awaitable[Any]], items: int) -> float:
    thread = threading.Thread(target=feed, args=(items,))
    begin = time.process_time()
    thread.start()
    for expected in range(items):
        assert await take() == expected
    # Not here: the loop may have to answer the thread still.
    await asyncio.to_thread(thread.join)
    return time.process_time() - begin


async def channel_from_thread(items: int) -> float:
    tx, rx = tideloop.Channel[int](BOUND)

    def feed(items: int) -> None:
        send = tx.blocking_send
        for item in range(items):
            send(item)

    return await from_thread(feed, rx.recv, items)


async def culsans_from_thread(items: int) -> float:
    queue = importlib.import_module("culsans").Queue(BOUND)

    def feed(items: int) -> None:
        put = queue.sync_q.put
        for item in range(items):
            put(item)

    return await from_thread(feed, queue.async_q.get, items)


async def janus_from_thread(items: int) -> float:
    queue = importlib.import_module("janus").Queue(BOUND)

    def feed(items: int) -> None:
        put = queue.sync_q.put
        for item in range(items):
            put(item)

    spent = await from_thread(feed, queue.async_q.get, items)
    await queue.aclose()
    return spent


async def run_coroutine_from_thread(items: int) -> float:
    """What documentation recommends: one round trip per item."""
    queue: asyncio.Queue[int] = asyncio.Queue(BOUND)
    loop = asyncio.get_running_loop()
    items //= 50

    def feed(items: int) -> None:
        for item in range(items):
            asyncio.run_coroutine_threadsafe(queue.put(item), loop).result()

    return 50 * await from_thread(feed, queue.get, items)


def loops() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    found = {"asyncio": asyncio.new_event_loop, "tideloop": tideloop.new_event_loop}
    try:
        found["uvloop"] = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        print("uvloop: not installed, left out", file=sys.stderr)
    return found


def tables() -> dict[str, dict[str, Body]]:
    found: dict[str, dict[str, Body]] = {
        f"one loop, two tasks, at most {BOUND} items": {
            "asyncio.Queue": through_queue(lambda: asyncio.Queue(BOUND)),
            "tideloop.Queue": through_queue(lambda: tideloop.Queue(BOUND)),
            "tideloop.Channel": through_channel(BOUND),
        },
        "one loop, two tasks, at most 1 item": {
            "asyncio.Queue": through_queue(lambda: asyncio.Queue(1)),
            "tideloop.Queue": through_queue(lambda: tideloop.Queue(1)),
            "tideloop.Channel": through_channel(1),
        },
        "one task, put and get": {
            "asyncio.Queue": lambda items: put_then_get(asyncio.Queue(BOUND), items),
            "tideloop.Queue": lambda items: put_then_get(tideloop.Queue(BOUND), items),
            "asyncio.PriorityQueue": lambda items: put_then_get(asyncio.PriorityQueue(BOUND), items),
            "tideloop.PriorityQueue": lambda items: put_then_get(tideloop.PriorityQueue(BOUND), items),
            "tideloop.Channel": send_then_recv,
            "tideloop.Queue, put_many/get_many(100)": many,
        },
        f"a thread to a loop, at most {BOUND} items": {"tideloop.Channel": channel_from_thread},
    }
    peers = {"culsans": culsans_from_thread, "janus": janus_from_thread}
    for name, body in peers.items():
        try:
            importlib.import_module(name)
        except ImportError:
            print(f"{name}: not installed, left out", file=sys.stderr)
        else:
            found[f"a thread to a loop, at most {BOUND} items"][name] = body
    found[f"a thread to a loop, at most {BOUND} items"]["run_coroutine_threadsafe(put)"] = run_coroutine_from_thread
    return found


def measure(bodies: dict[str, Body], repetitions: int, items: int) -> dict[str, dict[str, list[float]]]:
    cells = [(name, kind) for name in bodies for kind in loops()]
    samples: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in loops()} for name in bodies}
    for repetition in range(repetitions):
        for name, kind in cells if repetition % 2 == 0 else reversed(cells):
            gc.collect()
            with asyncio.Runner(loop_factory=loops()[kind]) as runner:
                samples[name][kind].append(runner.run(bodies[name](items)) / items * 1e6)  # type: ignore[arg-type]
    return samples


def show(title: str, samples: dict[str, dict[str, list[float]]]) -> None:
    kinds = list(loops())
    print(f"\n{title}; µs per item\n")
    print(f"{'':40}" + "".join(f"{kind:>20}" for kind in kinds))
    for name, row in samples.items():
        line = f"{name:40}"
        for kind in kinds:
            lower, middle, upper = statistics.quantiles(row[kind], n=4)
            line += f"{f'{middle:.3f} ±{(upper - lower) / 2:.3f}':>20}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.repetitions < 2 or options.items < 100:
        parser.error("at least 2 repetitions and 100 items are needed")
    results = {}
    for title, bodies in tables().items():
        results[title] = measure(bodies, options.repetitions, options.items)
        if not options.json:
            show(title, results[title])
    if options.json:
        print(json.dumps(results, indent=1))
        return
    versions = {name: importlib.metadata.version(name) for name in ("culsans", "janus", "uvloop") if found(name)}
    print(f"\n{platform.python_implementation()} {platform.python_version()}, {versions}")


def found(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
