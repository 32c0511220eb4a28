"""The soak: a million tasks alive, a million cancelled, and nothing left afterwards. ``make soak``

    python -m tests.soak [--tasks 1000000] [--rounds 3] [--variants tideloop,...] [--loads alive,...]

Every load of task_loads.py runs `--rounds` times on one loop of each variant, in a process of its own, and must not
leave more behind in its last round than in its second; if it does, as many rounds again have to show the same. A
million tasks alive need about 1.5 GB. The exit code is 1 if something has grown or failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys

from tests import task_variants
from tests.soak.task_loads import LOADS, describe, grown, run_rounds


def run_one(variant: task_variants.Variant, name: str, tasks: int, rounds: int) -> int:
    with variant.in_force():
        loop = variant.new_event_loop()
        done = run_rounds(loop, name, tasks, rounds)
        if grown(done, tasks):
            # The allocator's unrest passes, as asyncio's own tasks show; a leak is the same in each round.
            print(describe(name, done), flush=True)
            done = run_rounds(loop, name, tasks, rounds)
        loop.close()
    print(describe(name, done), flush=True)
    if fault := grown(done, tasks):
        print(f"  {name}: {fault}", flush=True)
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [variant.name for variant in task_variants.available() if variant.name != "asyncio"]
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", default=",".join(names))
    parser.add_argument("--loads", default=",".join(LOADS))
    parser.add_argument("--here", action="store_true", help="in this process: for one variant and one load")
    options = parser.parse_args()
    if options.rounds < 3 or options.tasks < 1:
        parser.error("--rounds must be at least 3, --tasks at least 1")
    if options.here:
        variant = task_variants.VARIANTS[options.variants]
        return run_one(variant, options.loads, options.tasks, options.rounds)
    failures = 0
    print(f"CPython {platform.python_version()}, {options.tasks:,} tasks per round, {options.rounds} rounds")
    print("growth from the first round on: garbage-collected objects, resident memory", flush=True)
    for variant in options.variants.split(","):
        if why := task_variants.missing(variant):
            print(f"{variant}: {why}")
            continue
        print(variant, flush=True)
        for load in options.loads.split(","):
            sizes = ["--tasks", str(options.tasks), "--rounds", str(options.rounds)]
            chosen = ["--variants", variant, "--loads", load, "--here"]
            command = [sys.executable, "-m", "tests.soak", *sizes, *chosen]
            # So many at once are long steps, and what the watchdog says of them is not what this is about.
            quiet = os.environ | {"TIDELOOP_BLOCK_THRESHOLD": "off"}
            done = subprocess.run(command, check=False, env=quiet)
            if done.returncode:
                failures += 1
                print(f"  {load}: FAILED with exit code {done.returncode}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
