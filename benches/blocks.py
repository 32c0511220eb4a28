"""Blocks that are made on purpose, and what the watchdog says of them: python benches/blocks.py

    python benches/blocks.py [--blocks 20] [--seconds 0.2] [--collection 2] [--kinds sleep,python,regex,gc,starved]
    python benches/blocks.py --quiet 600

Each kind of block has a process of its own, whose loop does some short work between two blocks. Printed are the shares
of the blocks that were detected, and of these, those told with the function that blocks among the first three frames
and with the right cause; and how long after the threshold the first stack was there: the median, and the longest.

sleep    time.sleep()                           syscall
python   a loop in Python                       python (before 3.13: cpu)
regex    a regular expression, the GIL held     c (before 3.13: cpu, or python if its stacks differ)
gc       a full collection of many objects      gc
starved  a loop in Python; the thread is of the scheduling class IDLE, and busy processes share its processor
                                                cpu_starved

What computes does so for that long by its own clock, so that it blocks by itself, however busy the machine is: it takes
longer then. Only who is starved looks at the wall. Its stack is there when it gets the processor again, not before.

`--quiet` runs so many seconds of work that does not block, and counts what is told all the same; steps that
did last for the threshold, since the machine is busy, are counted apart, by a clock around each of them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

KINDS = ("sleep", "python", "regex", "gc", "starved")
CAUSES = {"sleep": {"syscall"}, "python": {"python"}, "regex": {"c"}, "gc": {"gc"}, "starved": {"cpu_starved"}}
EARLIER = {"python": {"python", "cpu"}, "regex": {"c", "cpu", "python"}}


class Node:
    """Something for the collector."""

    other: Node


class Ways:
    """What blocks, for about so many seconds."""

    def __init__(self, seconds: float, collection: float) -> None:
        self.seconds = seconds
        self.collection = collection
        self.length = 0
        self.nodes: list[Node] = []

    def sleep(self) -> None:
        time.sleep(self.seconds)

    def python(self) -> None:
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            for _ in range(1_000):
                pass

    def starved(self) -> None:
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass

    def regex(self) -> None:
        re.match(r"(a+)+$", "a" * self.length + "b")

    def gc(self) -> None:
        gc.collect()

    def prepare(self, kind: str) -> None:
        """Finds out how much takes so long on this machine."""
        if kind == "regex":
            self.length = 14
            # Each further letter doubles it.
            while self.took(self.regex) < self.seconds:
                self.length += 1
        if kind == "gc":
            while self.took(self.gc) < self.collection:
                self.nodes += [Node() for _ in range(max(100_000, len(self.nodes) // 2))]
                for node in self.nodes:
                    node.other = node
        if kind == "starved":
            # This thread alone: who watches it is to see what it does.
            processor = min(os.sched_getaffinity(0))
            os.sched_setaffinity(0, [processor])
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    def took(self, block: Callable[[], None]) -> float:
        started = time.thread_time()
        block()
        return time.thread_time() - started


async def blocks(kind: str, count: int, seconds: float, collection: float) -> list[dict[str, Any]]:
    """Makes the blocks, and returns what was told of each: nothing, or its figures."""
    import tideloop

    told: list[Any] = []
    tideloop.observe.on_block(told.append)
    threshold = tideloop.observe.block_threshold() or 0.1
    gc.disable()
    ways = Ways(seconds, collection)
    for _ in range(30):
        await asyncio.sleep(0.001)
    ways.prepare(kind)
    await asyncio.sleep(0.001)
    block: Callable[[], None] = getattr(ways, kind)
    found = []
    name = block.__func__.__name__  # type: ignore[attr-defined]
    for _ in range(count):
        told.clear()
        started = time.perf_counter()
        block()
        took = time.perf_counter() - started
        for _ in range(5):
            await asyncio.sleep(0.001)
        # The step that blocked is told of; a machine that is busy may have made others long.
        mine = sorted(told, key=lambda block: abs(block.duration - took))
        mine = [each for each in mine if each.duration >= took * 0.9]
        found.append(
            {"took": took}
            if not mine
            else {
                "took": took,
                "cause": mine[0].cause,
                "frame": any(frame.function == name for frame in mine[0].stack[:3]),
                "captured": None if mine[0].captured is None else mine[0].captured - threshold,
            }
        )
    return found


async def quiet(seconds: float) -> dict[str, Any]:
    """Work that does not block: which blocks were told all the same, and how many steps did last so long."""
    import tideloop

    told: list[Any] = []
    tideloop.observe.on_block(told.append)
    threshold = tideloop.observe.block_threshold() or 0.1
    end = time.monotonic() + seconds
    steps = really = 0
    while time.monotonic() < end:
        started = time.monotonic()
        sum(range(20_000))
        really += time.monotonic() - started >= threshold
        steps += 1
        await asyncio.sleep(0 if steps % 10 else 0.002)
    return {"steps": steps, "told": [f"{each.duration:.3f} s {each.cause}" for each in told], "really": really}


def child(kind: str, count: int, seconds: float, collection: float) -> None:
    import tideloop

    busy = []
    if kind == "starved":
        code = f"import os, time; os.sched_setaffinity(0, [{min(os.sched_getaffinity(0))}]); end = time.time() + 600"
        code += "\nwhile time.time() < end: pass"
        busy = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    try:
        with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
            work = quiet(seconds) if kind == "quiet" else blocks(kind, count, seconds, collection)
            print(json.dumps(runner.run(work)))
    finally:
        for process in busy:
            process.kill()
            process.wait()


def run(kind: str, count: int, seconds: float, collection: float = 0.0) -> Any:
    command = [sys.executable, __file__, "--child", kind, str(count), str(seconds), str(collection)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"blocks: {kind} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def share(part: int, of: int) -> str:
    return f"{100 * part / of:.0f} %" if of else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--collection", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--quiet", type=float, metavar="SECONDS")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, count, seconds, collection = options.child
        return child(kind, int(count), float(seconds), float(collection))
    print(f"{platform.python_implementation()} {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    if options.quiet:
        found = run("quiet", 0, options.quiet)
        print(
            f"quiet for {options.quiet:g} s: {found['steps']:,} steps, {len(found['told'])} blocks told, "
            f"{found['really']} steps that did last so long",
            *found["told"],
            sep="\n  ",
        )
        return None
    causes = CAUSES if sys.version_info >= (3, 13) else CAUSES | EARLIER
    print(f"{'kind':10}{'took, s':>10}{'detected':>10}{'frame':>10}{'cause':>10}{'stack after':>20}  causes told")
    for kind in options.kinds.split(","):
        rows = run(kind, options.blocks, options.seconds, options.collection)
        seen = [row for row in rows if "cause" in row]
        told = sorted({row["cause"] for row in seen})
        after = [row["captured"] * 1e3 for row in seen if row["captured"] is not None]
        right = sum(row["cause"] in causes[kind] for row in seen)
        captured = f"{statistics.median(after):.1f}, {max(after):.1f} ms" if after else "-"
        print(
            f"{kind:10}{statistics.median(row['took'] for row in rows):10.2f}{share(len(seen), len(rows)):>10}"
            f"{share(sum(row['frame'] for row in seen), len(seen)):>10}"
            f"{share(right, len(seen)):>10}{captured:>20}  {', '.join(told)}",
            flush=True,
        )
    return None


if __name__ == "__main__":
    main()
