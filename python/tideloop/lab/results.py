"""The results document, a superset of the reference suite's JSON, and writing files so that none is ever half there.

The reference has ``meta`` (python, platform, timestamp, benchmarks, libraries, repetitions) and ``results`` (library,
scenario, params, metrics, rep, duration_s). Added: more meta, ``ok``, ``error``, ``order`` and ``resources`` in each
result, ``summary`` (one entry for each figure) and ``cells`` (ran, skipped or failed, and why).
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tideloop.lab.plan import Cell
from tideloop.lab.runner import Run
from tideloop.lab.scenarios import Scenario
from tideloop.lab.summary import Figure, figures_of

SCHEMA = 2


@dataclass(frozen=True)
class Outcome:
    """What came of a cell over all its runs."""

    cell: Cell
    status: Literal["ok", "skipped", "failed"]
    reason: str | None = None
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Results:
    profile: str
    command: str
    scenarios: tuple[Scenario, ...]
    libraries: tuple[str, ...]
    repetitions: int
    order_seed: int
    runs: tuple[Run, ...]
    outcomes: tuple[Outcome, ...]
    # False when the user stopped it.
    complete: bool = True

    def figures(self, scenario: str, metric: str) -> list[Figure]:
        """All backends' figures of one metric, in table order."""
        found = (figure for outcome in self.outcomes for figure in outcome.figures)
        return [figure for figure in found if (figure.scenario, figure.metric) == (scenario, metric)]

    def outcomes_in(self, scenario: Scenario) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.cell.scenario.name == scenario.name]

    def versions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for outcome in self.outcomes:
            if outcome.status != "skipped":
                found |= outcome.cell.backend.versions()
        return dict(sorted(found.items()))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "meta": {
                "python": platform.python_version(),
                "platform": platform.platform(),
                "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
                "benchmarks": [scenario.name for scenario in self.scenarios],
                "libraries": list(self.libraries),
                "repetitions": self.repetitions,
                "profile": self.profile,
                "command": self.command,
                "order_seed": self.order_seed,
                "complete": self.complete,
                "implementation": platform.python_implementation(),
                "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
                "cpus": os.cpu_count(),
                "versions": self.versions(),
            },
            "results": [run.to_json() for run in self.runs],
            "summary": [figure.to_json() for outcome in self.outcomes for figure in outcome.figures],
            "cells": [
                {
                    "scenario": outcome.cell.scenario.name,
                    "library": outcome.cell.backend.name,
                    "status": outcome.status,
                    "reason": outcome.reason,
                }
                for outcome in self.outcomes
            ],
        }


def outcome_of(cell: Cell, skipped: str | None, runs: Sequence[Run]) -> Outcome:
    """A cell fails with its first failing run; the runs that went well are in the JSON but make no figure."""
    if skipped is not None:
        return Outcome(cell, "skipped", skipped)
    failures = [run for run in runs if not run.ok]
    if failures:
        count = f" ({len(failures)} of {len(runs)} runs)" if len(runs) > 1 else ""
        return Outcome(cell, "failed", f"{failures[0].error}{count}")
    if not runs:
        return Outcome(cell, "skipped", "stopped before its first run")
    figures = figures_of(cell.scenario, cell.backend.name, [run.metrics for run in runs])
    return Outcome(cell, "ok", figures=tuple(figures))


def write_file(path: Path, content: str | bytes) -> None:
    """Writes all or nothing: to a temporary file in the same folder, then renamed over the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # mkstemp makes files for the owner alone; results are as public as the folder they are in.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
