"""Random task programs on stock asyncio and on tideloop, compared event by event.

    python -m tests.fuzz.tasks [--programs 20000] [--seed 1] [--minutes 5] [--variants asyncio,tideloop]

Seeds run upwards from `--seed`, each for one program, until so many programs have run or so many minutes have
passed. Each program runs on every variant of tests/task_variants.py that this build has; the first one is the
reference. On a difference the program is made smaller as long as it still differs, and printed with its seed,
the first event that differs, and the events before it. The exit code is then 1.

`--variants asyncio,asyncio` compares the reference with itself: what differs there is the fuzzer's own fault.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests import task_variants
from tests.fuzz import task_world
from tests.fuzz.task_actions import ACTIONS, KINDS
from tests.fuzz.task_programs import Program, count, program, shrink
from tests.fuzz.task_world import Event
from tests.task_variants import Variant

SHOWN = 12
"""Events shown before the first one that differs."""

FREEZE_EVERY = 500
"""Programs after which what lives is taken out of the garbage collector's sight, to keep its runs short."""


class Difference(NamedTuple):
    variant: str
    expected: list[Event]
    found: list[Event]

    def __str__(self) -> str:
        at = next((n for n, (a, b) in enumerate(zip(self.expected, self.found, strict=False)) if a != b), None)
        if at is None:
            at = min(len(self.expected), len(self.found))
        before = [f"      {event}" for event in self.expected[max(0, at - SHOWN) : at]]
        expected = self.expected[at] if at < len(self.expected) else "(the end)"
        found = self.found[at] if at < len(self.found) else "(the end)"
        return "\n".join([f"event {at}:", *before, f"  asyncio:   {expected}", f"  {self.variant}: {found}"])


class Machine:
    """A loop for each variant, used for one program after another."""

    def __init__(self, variants: list[Variant]) -> None:
        self.variants = variants
        self.actions = ACTIONS
        self.loops: list[asyncio.AbstractEventLoop] = []
        self.cpu = [0.0] * len(variants)
        self.runs = 0

    def outcome(self, index: int, program: Program) -> list[Event]:
        """Everything that a program does on one variant, what dying objects said at the end of it."""
        variant, started = self.variants[index], time.process_time()
        with variant.in_force():
            trace, reports = task_world.run(program, variant, self.loops[index], self.actions)
        self.cpu[index] += time.process_time() - started
        return trace + reports

    def difference(self, program: Program) -> Difference | None:
        """How some variant differs from the first one."""
        self.runs += 1
        if self.runs % FREEZE_EVERY == 0:
            gc.freeze()
        expected = self.outcome(0, program)
        for index in range(1, len(self.variants)):
            found = self.outcome(index, program)
            if found != expected:
                return Difference(self.variants[index].name, expected, found)
        return None


@contextlib.contextmanager
def machine(variants: list[Variant]) -> Iterator[Machine]:
    """A machine, the collector off and nothing of the process's past in its way, warnings and logs silent."""
    made = Machine(variants)
    hook = sys.unraisablehook
    logger = logging.getLogger("asyncio")
    disabled = logger.disabled
    collecting = gc.isenabled()
    try:
        made.loops = [variant.new_event_loop() for variant in variants]
        gc.collect()
        gc.freeze()
        gc.disable()
        # Programs leave coroutines unawaited and generators unclosed on purpose.
        sys.unraisablehook = lambda unraisable: None
        logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield made
    finally:
        sys.unraisablehook = hook
        logger.disabled = disabled
        for loop in made.loops:
            loop.close()
        gc.unfreeze()
        if collecting:
            gc.enable()


def told(seed: int, found: Program, smallest: Program, difference: Difference) -> str:
    return "\n".join(
        [
            f"seed {seed}: {difference.variant} differs from asyncio",
            f"program ({count(smallest.body)} of {count(found.body)} statements) {smallest}",
            str(difference),
        ]
    )


def check(made: Machine, seed: int) -> str | None:
    """Run the program of a seed on every variant; a description if one of them differs."""
    found = program(seed, KINDS)
    first = made.difference(found)
    if first is None:
        return None
    smallest = shrink(found, lambda candidate: made.difference(candidate) is not None)
    difference = made.difference(smallest)
    if difference is None:
        return f"seed {seed}: {first.variant} differed from asyncio once, and not again\n{found}\n{first}"
    return told(seed, found, smallest, difference)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--variants", default=",".join(v.name for v in task_variants.available()))
    parser.add_argument("--failures", type=int, default=1, help="stop after so many programs that differ")
    options = parser.parse_args(arguments)
    names: list[str] = options.variants.split(",")
    for name in names:
        if name not in task_variants.VARIANTS:
            parser.error(f"no variant {name!r}; there are {', '.join(task_variants.VARIANTS)}")
        if why := task_variants.missing(name):
            parser.error(why)
    variants: list[Any] = [task_variants.VARIANTS[name] for name in names]
    failures, ran, started = 0, 0, time.monotonic()
    with machine(variants) as made:
        for seed in range(options.seed, options.seed + options.programs):
            if time.monotonic() - started > options.minutes * 60:
                break
            ran += 1
            if said := check(made, seed):
                failures += 1
                print(said, flush=True)
                if failures >= options.failures:
                    break
        cost = ", ".join(f"{v.name} {cpu / made.runs * 1e3:.2f}" for v, cpu in zip(variants, made.cpu, strict=True))
    print(f"CPython {platform.python_version()}: {ran:,} programs from seed {options.seed}, {failures} differ")
    print(f"CPU ms per program: {cost}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
