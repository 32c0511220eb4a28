"""``tideloop lab``: the command line. Every mistake of the user is one line and exit code 2, never a traceback."""

from __future__ import annotations

import io
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tideloop.lab import report, table
from tideloop.lab.backends import BACKENDS
from tideloop.lab.plan import Cell, cells_of, jobs_of
from tideloop.lab.progress import Progress
from tideloop.lab.request import Request, UsageError, parse
from tideloop.lab.results import Results, outcome_of, write_file
from tideloop.lab.runner import Run, run_job
from tideloop.lab.scenarios import PROFILES

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        request = parse(argv)
    except UsageError as error:
        print(f"tideloop lab: {error}", file=sys.stderr)
        return USAGE
    except SystemExit as end:  # --help
        return OK if end.code is None else int(end.code)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a micro sign gets a question mark, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if request is None:
        print(_listing(), end="")
        return OK
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


def _listing() -> str:
    lines = []
    for profile in PROFILES.values():
        lines.append(f"profile {profile.name}, runs of each cell: {profile.repetitions}")
        lines += [f"  {scenario.name:<20} {scenario.title}" for scenario in profile.scenarios]
    lines.append("backends")
    for backend in BACKENDS.values():
        lines.append(f"  {backend.name:<20} {backend.missing() or 'available'}")
    return "\n".join(lines) + "\n"


def _colours() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
