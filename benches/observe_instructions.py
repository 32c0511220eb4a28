"""Instructions of one operation on loops that are observed more and less: python benches/observe_instructions.py

    python benches/observe_instructions.py [--work churn,single] [--levels off,counts,tasks,trace] [--operations 20000]

The work is that of the lab's profile `observe`. Each cell is two processes under callgrind, one with twice as many
operations as the other: the difference of their instructions, over that of their operations, is what one costs,
start and end of the process excluded. It is the same on a busy machine, give or take a tenth of a percent. valgrind
makes a program some fifty times slower, and how much is timed and polled depends on how long steps take; so the
children have a clock that is as much slower, by a library of one function that is compiled for it. Needs valgrind and
a C compiler; a minute for a cell.

The percentages are over the first of the levels. `--program PATH` has another interpreter run the same, such as one
whose tideloop is the build to compare with.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SLOWER = 50
CLOCK = """
#define _GNU_SOURCE
#include <time.h>
#include <sys/syscall.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && id == CLOCK_MONOTONIC) {
        unsigned long long ns = (now->tv_sec * 1000000000ull + now->tv_nsec) / SLOWER;
        now->tv_sec = ns / 1000000000ull;
        now->tv_nsec = ns % 1000000000ull;
    }
    return failed;
}
"""

LEVELS: dict[str, Any] = {"off": False, "counts": True, "tasks": "tasks", "trace": "trace"}


def work(name: str, level: str, operations: int) -> None:
    """What valgrind looks at."""
    import asyncio

    import tideloop
    from tideloop.lab.bodies.observe_overhead import TASKS, WORK

    with asyncio.Runner(loop_factory=lambda: tideloop.EventLoop(observe=LEVELS[level])) as runner:
        runner.run((TASKS.get(name) or WORK[name])(operations))


def slow_clock(folder: Path) -> Path:
    """The library with the clock."""
    library = folder / "clock.so"
    compiler = ["cc", "-O2", "-shared", "-fPIC", f"-DSLOWER={SLOWER}", "-x", "c", "-", "-o", str(library)]
    subprocess.run(compiler, input=CLOCK, text=True, check=True)
    return library


def instructions(program: str, name: str, level: str, operations: int, folder: Path) -> int:
    """Of a whole process."""
    out = folder / f"{name}.{level}.{operations}"
    valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
    child = [program, __file__, "--child", name, level, str(operations)]
    # Hashes decide how dictionaries collide; the watchdog's thread looks at what valgrind slows down.
    environment = os.environ | {"PYTHONHASHSEED": "0", "TIDELOOP_BLOCK_THRESHOLD": "off"}
    environment["LD_PRELOAD"] = str(folder / "clock.so")
    run = subprocess.run([*valgrind, *child], capture_output=True, text=True, env=environment)
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode or found is None:
        sys.exit(f"observe_instructions: {name} on {level} failed: {run.stderr.strip().splitlines()[-1]}")
    return int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", default="churn,echo,single,many,spawn,wakes")
    parser.add_argument("--levels", default="off,counts")
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--program", default=sys.executable)
    parser.add_argument("--keep", type=Path, help="keep callgrind's files in this folder")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, level, operations = options.child
        return work(name, level, int(operations))
    for tool in ("valgrind", "cc"):
        if shutil.which(tool) is None:
            sys.exit(f"observe_instructions: {tool} is not installed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        slow_clock(folder)
        levels = options.levels.split(",")
        print("instructions of one operation".ljust(32), *(level.rjust(16) for level in levels))
        for name in options.work.split(","):
            costs = []
            for level in levels:
                few, many = (
                    instructions(options.program, name, level, operations, folder)
                    for operations in (options.operations, 2 * options.operations)
                )
                costs.append((many - few) / options.operations)
            more = [f"{cost:,.0f} {100 * (cost / costs[0] - 1):+.1f} %".rjust(16) for cost in costs]
            print(name.ljust(32), *more, flush=True)


if __name__ == "__main__":
    main()
