"""``tideloop lab``: the command line. Every mistake of the user is one line and exit code 2, never a traceback."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import secrets
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from tideloop.lab import report, table
from tideloop.lab.backends import BACKENDS, Backend
from tideloop.lab.plan import Cell, cells_of, jobs_of
from tideloop.lab.progress import Progress
from tideloop.lab.results import Results, outcome_of, write_file
from tideloop.lab.runner import Run, run_job
from tideloop.lab.scenarios import PROFILES, Profile, Scenario

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

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


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        options = _parser().parse_args(argv)
        if options.list:
            print(_listing(), end="")
            return OK
        request = _request(options, argv)
    except UsageError as error:
        print(f"tideloop lab: {error}", file=sys.stderr)
        return USAGE
    except SystemExit as end:  # --help
        return OK if end.code is None else int(end.code)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a micro sign gets a question mark, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        return _lab(request)
    except BrokenPipeError:
        # Whoever read the output went away; closing stdout must not complain a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED


def measure(request: Request, progress: Progress, skipped: dict[tuple[str, str], str | None]) -> Results:
    """Runs every cell that is not skipped. An interrupt ends it early, with what there is."""
    cells = cells_of(request.scenarios, request.backends)
    runnable = [cell for cell in cells if skipped[cell.key] is None]
    runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
    complete = True
    try:
        for job in jobs_of(runnable, request.repetitions, request.order_seed):
            progress.starting(job.rep, " on ".join(job.cell.key))
            run = run_job(job)
            if not run.ok:
                progress.note(f"lab: failed: {' on '.join(job.cell.key)}, run {job.rep}: {run.error}")
            runs[job.cell.key].append(run)
            progress.finished()
    except KeyboardInterrupt:
        complete = False
    progress.end()
    return Results(
        profile=request.profile.name,
        command=request.command,
        scenarios=request.scenarios,
        libraries=tuple(backend.name for backend in request.backends),
        repetitions=request.repetitions,
        order_seed=request.order_seed,
        runs=tuple(sorted((run for each in runs.values() for run in each), key=lambda run: run.job.order)),
        outcomes=tuple(outcome_of(cell, skipped[cell.key], runs[cell.key]) for cell in cells),
        complete=complete,
    )


def _lab(request: Request) -> int:
    cells = cells_of(request.scenarios, request.backends)
    skipped = {cell.key: cell.missing() for cell in cells}
    total = sum(reason is None for reason in skipped.values()) * request.repetitions
    progress = Progress(sys.stderr, total)
    for line in _skips(cells, skipped):
        progress.note(line)
    if not total:
        print("tideloop lab: nothing can run here; the lines above say why", file=sys.stderr)
        return FAILED
    results = measure(request, progress, skipped)
    document = results.to_json()
    # Before anything is printed: whoever reads the output may have gone.
    written = _write(request, results, document)
    if request.json:
        json.dump(document, sys.stdout, indent=2)
        print()
    else:
        print(table.render(results, colours=_colours()))
    if written:
        print(f"lab: results in {request.output}, report in {_report(request)}", file=sys.stderr)
    if not results.complete:
        return INTERRUPTED
    return OK if written and _went_well(results) else FAILED


def _went_well(results: Results) -> bool:
    ours = [outcome for outcome in results.outcomes if outcome.cell.backend.name == "tideloop"]
    measured = any(outcome.status == "ok" for outcome in results.outcomes)
    return measured and all(outcome.status != "failed" for outcome in ours)


def _write(request: Request, results: Results, document: dict[str, Any]) -> bool:
    folder = request.output.parent
    try:
        write_file(request.output, json.dumps(document, indent=2) + "\n")
        write_file(_report(request), report.render(results, document))
        try:
            from tideloop.lab import plots
        except ImportError:
            print("lab: matplotlib is not installed, so there are no PNG and SVG pictures", file=sys.stderr)
        else:
            plots.write_all(results, folder)
    except OSError as error:
        print(f"tideloop lab: cannot write results to '{folder}': {error.strerror or error}", file=sys.stderr)
        return False
    return True


def _report(request: Request) -> Path:
    return request.output.parent / "report.html"


def _skips(cells: Sequence[Cell], skipped: dict[tuple[str, str], str | None]) -> list[str]:
    """One line for each reason, not one for each cell."""
    where: dict[str, list[str]] = defaultdict(list)
    backends: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        if reason := skipped[cell.key]:
            where[reason].append(cell.scenario.name)
            backends[reason].add(cell.backend.name)
    lines = []
    for reason, scenarios in where.items():
        names = sorted(backends[reason])
        what = names[0] if len(names) == 1 else ", ".join(dict.fromkeys(scenarios))
        lines.append(f"lab: skipped: {what}: {reason}")
    return lines


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


def _listing() -> str:
    lines = []
    for profile in PROFILES.values():
        lines.append(f"profile {profile.name} ({profile.repetitions} runs of each cell)")
        lines += [f"  {scenario.name:<20} {scenario.title}" for scenario in profile.scenarios]
    lines.append("backends")
    for backend in BACKENDS.values():
        lines.append(f"  {backend.name:<20} {backend.missing() or 'available'}")
    return "\n".join(lines) + "\n"


def _colours() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
