"""What the command line asks for, checked: every mistake is a `UsageError` of one line."""

from __future__ import annotations

import argparse
import math
import secrets
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from tideloop.lab.backends import BACKENDS, Backend
from tideloop.lab.scenarios import PROFILES, Profile, Scenario

EPILOG = """\
exit codes:
  0    measured; a failed cell of another library is shown, and is a finding about that library
  1    a cell of tideloop failed, or nothing could be measured, or the results could not be written
  2    bad usage
  130  interrupted; what was measured until then is written

Method, metrics and biases: docs/lab.md.
"""

# Flags that set a parameter of every chosen scenario which has it.
TUNABLE = {
    "task_count": "--task-count",
    "payload_sleep": "--payload-sleep",
    "concurrency": "--concurrency",
    "ops_per_worker": "--ops-per-worker",
    "mean_io_ms": "--mean-io-ms",
    "io_seed": "--io-seed",
    "cancel_tasks": "--cancel-tasks",
    "cancel_after": "--cancel-after",
}


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


@dataclass(frozen=True)
class Request:
    """What the command line asks for, checked."""

    profile: Profile
    scenarios: tuple[Scenario, ...]
    backends: tuple[Backend, ...]
    repetitions: int
    order_seed: int
    output: Path
    json: bool
    command: str


def parse(argv: Sequence[str]) -> Request | None:
    """The request, or None for --list. --help prints and raises SystemExit."""
    options = _parser().parse_args(argv)
    return None if options.list else _request(options, argv)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tideloop lab",
        description="Compare event loops and async libraries on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--profile", default="quick", metavar="NAME", help="seed: the reference suite; quick (default): its mended form"
    )
    add("--benchmarks", nargs="+", metavar="NAME", help="scenarios, or the part of their names before the dot (all)")
    add("--libraries", nargs="+", metavar="NAME", help="backends to compare (all)")
    add("--repetitions", type=_whole(1), metavar="N", help="processes for each cell (quick 5, seed 1)")
    add("--output", type=Path, default=Path("results/latest.json"), metavar="PATH", help="(%(default)s)")
    add("--task-count", type=_whole(1), metavar="N", help="task_spawn: tasks")
    add("--payload-sleep", type=_real(0), metavar="S", help="task_spawn: sleep of each task, seconds")
    add("--concurrency", type=_whole(1), metavar="N", help="io_bound: workers")
    add("--ops-per-worker", type=_whole(1), metavar="N", help="io_bound: sleeps of each worker")
    add("--mean-io-ms", type=_real(0, above=True), metavar="MS", help="io_bound: mean sleep, milliseconds")
    add("--io-seed", type=_whole(0), metavar="N", help="io_bound: seed of the random sleeps")
    add("--cancel-tasks", type=_whole(1), metavar="N", help="cancellation: tasks")
    add("--cancel-after", type=_real(0), metavar="S", help="cancellation: seconds before the first cancel")
    add("--order-seed", type=_whole(0), metavar="N", help="seed of the order of the runs (random, and recorded)")
    add("--json", action="store_true", help="print the results as JSON instead of a table")
    add("--list", action="store_true", help="list profiles, scenarios and backends, and end")
    return parser


def _request(options: argparse.Namespace, argv: Sequence[str]) -> Request:
    profile = PROFILES.get(options.profile)
    if profile is None:
        raise UsageError(f"--profile is '{options.profile}'; expected one of: {', '.join(PROFILES)}")
    scenarios = _chosen_scenarios(profile, options.benchmarks)
    return Request(
        profile=profile,
        scenarios=_tuned(scenarios, options),
        backends=_chosen_backends(options.libraries),
        repetitions=profile.repetitions if options.repetitions is None else options.repetitions,
        order_seed=secrets.randbits(32) if options.order_seed is None else options.order_seed,
        output=_output(options.output),
        json=options.json,
        command=shlex.join(["tideloop", "lab", *argv]),
    )


def _chosen_scenarios(profile: Profile, names: Sequence[str] | None) -> tuple[Scenario, ...]:
    if names is None:
        return profile.scenarios
    wanted = _split(names)
    for name in wanted:
        if not any(name in (scenario.name, scenario.group) for scenario in profile.scenarios):
            known = ", ".join(scenario.name for scenario in profile.scenarios)
            raise UsageError(f"--benchmarks has '{name}'; the {profile.name} profile has: {known}")
    return tuple(s for s in profile.scenarios if s.name in wanted or s.group in wanted)


def _chosen_backends(names: Sequence[str] | None) -> tuple[Backend, ...]:
    if names is None:
        return tuple(BACKENDS.values())
    wanted = _split(names)
    for name in wanted:
        if name not in BACKENDS:
            raise UsageError(f"--libraries has '{name}'; expected some of: {', '.join(BACKENDS)}")
    return tuple(backend for backend in BACKENDS.values() if backend.name in wanted)


def _tuned(scenarios: tuple[Scenario, ...], options: argparse.Namespace) -> tuple[Scenario, ...]:
    given = {name: value for name in TUNABLE if (value := getattr(options, name)) is not None}
    for name in given:
        if not any(_takes(scenario, name) for scenario in scenarios):
            raise UsageError(f"{TUNABLE[name]} was given, but no chosen benchmark has it")
    return tuple(
        replace(scenario, params=scenario.params | {n: v for n, v in given.items() if _takes(scenario, n)})
        for scenario in scenarios
    )


def _takes(scenario: Scenario, name: str) -> bool:
    # The scenario of sleep(0) is about sleep(0).
    return name in scenario.params and not (name == "payload_sleep" and scenario.name == "task_spawn.yield")


def _output(path: Path) -> Path:
    if path.is_dir():
        raise UsageError(f"--output is '{path}', which is a folder; expected a file name such as results/latest.json")
    return path


def _split(names: Sequence[str]) -> list[str]:
    """Names may be separated by spaces or commas."""
    return [name for text in names for name in text.split(",") if name]


def _whole(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"'{text}' given; expected a whole number of at least {low}")
        return value

    return parse


def _real(low: float, above: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < low or (above and value == low):
            bound = "more than" if above else "at least"
            raise argparse.ArgumentTypeError(f"'{text}' given; expected a number of {bound} {low:g}")
        return value

    return parse
