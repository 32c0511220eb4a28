"""One run in a fresh process: ``python -m tideloop.lab.worker``, a job as JSON on stdin, its figures as JSON on stdout.

Whatever the program under test prints goes to stderr, so that stdout holds the answer and nothing else.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback
from time import perf_counter, process_time
from typing import Any

from tideloop.lab.backends import backend_named
from tideloop.lab.bodies import WrongResult
from tideloop.lab.kit import KITS
from tideloop.lab.scenarios import Params


def run(body: str, backend: str, params: Params) -> dict[str, Any]:
    """The metrics of one run and what the process spent on it."""
    chosen = backend_named(backend)
    kit = KITS[chosen.family](chosen)
    module = importlib.import_module(f"tideloop.lab.bodies.{body}")
    gc.collect()
    wall, cpu = perf_counter(), process_time()
    metrics: dict[str, float] = module.measure(kit, params)
    cpu = process_time() - cpu
    wall = perf_counter() - wall
    metrics.setdefault("cpu_s", cpu)
    return {"metrics": metrics, "duration_s": metrics.get("duration_s", wall), "resources": _resources(cpu, wall)}


def _resources(cpu: float, wall: float) -> dict[str, float]:
    spent = {"cpu_s": cpu, "wall_s": wall}
    try:
        import resource
    except ImportError:  # not on Windows
        return spent
    usage = resource.getrusage(resource.RUSAGE_SELF)
    kib = usage.ru_maxrss / 1024 if sys.platform == "darwin" else usage.ru_maxrss
    return spent | {
        "user_s": usage.ru_utime,
        "system_s": usage.ru_stime,
        "max_rss_kib": kib,
        "voluntary_switches": usage.ru_nvcsw,
        "involuntary_switches": usage.ru_nivcsw,
    }


def _first(error: BaseException) -> BaseException:
    """What went wrong first, out of the groups that trio and anyio wrap around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> int:
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.load(sys.stdin)
    try:
        result = run(job["body"], job["backend"], job["params"])
    except WrongResult as error:
        result = {"error": f"wrong result: {error}"}
    except Exception as error:
        traceback.print_exc()
        first = _first(error)
        result = {"error": f"{type(first).__name__}: {first}"}
    with answer:
        json.dump(result, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
