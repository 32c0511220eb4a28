"""Runs jobs as processes, one at a time. A crash, a wrong result or a lapsed limit is a failed run, not the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tideloop.lab.plan import Job

WORKER = (sys.executable, "-m", "tideloop.lab.worker")


@dataclass(frozen=True)
class Run:
    """What came of a job."""

    job: Job
    metrics: dict[str, float] = field(default_factory=dict)
    duration_s: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    def to_json(self) -> dict[str, Any]:
        """A row of `results`: the reference's keys first, ours after them."""
        cell = self.job.cell
        return {
            "library": cell.backend.name,
            "scenario": cell.scenario.name,
            "params": cell.scenario.params,
            "metrics": self.metrics,
            "rep": self.job.rep,
            "duration_s": self.duration_s,
            "ok": self.ok,
            "error": self.error,
            "order": self.job.order,
            "resources": self.resources,
        }


def run_job(job: Job, worker: Sequence[str] = WORKER) -> Run:
    scenario = job.cell.scenario
    task = {"body": scenario.body, "backend": job.cell.backend.name, "params": scenario.params}
    process = subprocess.Popen(
        worker,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONHASHSEED": "0"},
        # Its own group, so that a worker which is given up takes its children along.
        start_new_session=True,
    )
    try:
        out, err = process.communicate(json.dumps(task), timeout=scenario.limit_s)
    except subprocess.TimeoutExpired:
        _end(process)
        return Run(job, error=f"took longer than {scenario.limit_s:g} s")
    except BaseException:
        _end(process)
        raise
    if process.returncode:
        return Run(job, error=_last_line(err, process.returncode))
    try:
        answer = json.loads(out)
    except ValueError:
        return Run(job, error=_last_line(err, process.returncode))
    if "error" in answer:
        return Run(job, error=answer["error"])
    return Run(job, answer["metrics"], answer["duration_s"], answer["resources"])


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the worker and the children it started, by its own process id."""
    with suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _last_line(err: str, code: int) -> str:
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    if code < 0:
        with suppress(ValueError):
            return f"crashed: {signal.Signals(-code).name}"
    return lines[-1] if lines else f"the worker ended with code {code} and said nothing"
