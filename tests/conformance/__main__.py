"""CPython's own asyncio tests on tideloop: ``make conformance``.

    python -m tests.conformance [--loop] [--tasks] [--stock] [--accelerated] [--streams] [module ...]

Each module runs in a process of its own with a time limit, once in each mode of modes.py: those named, or all
that this build has. The tables show what passed, failed and was left out, with the reasons; the exit code is
1 if anything failed, 2 if this interpreter has no tests or this build has none of the modes named.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import pkgutil
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.conformance import modes

ROOT = Path(__file__).parent.parent.parent
TIME_LIMIT = 180
# Modules of tests for other systems; CPython itself skips them here.
OTHER_SYSTEMS = {"test_proactor_events", "test_windows_events", "test_windows_utils"}


def all_modules() -> list[str]:
    """The names of this interpreter's asyncio test modules."""
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_asyncio") is None:
        return []
    package = importlib.import_module("test.test_asyncio")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return sorted(name for name in names if name.startswith("test_") and name not in OTHER_SYSTEMS)


def run(mode: str, module: str) -> dict[str, Any]:
    """Runs one module; a crash or a hang is a failure with the last lines of what was said."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.conformance.worker", mode, module, str(report)]
        where: dict[str, Any] = {"cwd": ROOT, "env": modes.environment(mode)}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, **where)
            said = done.stderr
        except subprocess.TimeoutExpired as error:
            said = f"{(error.stderr or b'')[-2000:]!r}\nno end after {TIME_LIMIT} s"
        if report.exists():
            return dict(json.loads(report.read_text()))
        return {"passed": [], "failed": {module: f"the process ended early:\n{said[-3000:]}"}, "left_out": {}}


def show(mode: str, names: list[str]) -> bool:
    """Run modules in one mode and print what came of them; whether nothing failed."""
    print(f"CPython {platform.python_version()}: its own asyncio tests on tideloop, mode {mode!r}")
    print(f"{'module':<28}{'passed':>8}{'failed':>8}{'excluded':>10}{'skipped':>9}")
    totals = [0, 0, 0, 0]
    failures: dict[str, str] = {}
    reasons: dict[str, str] = {}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for name, outcome in zip(names, pool.map(run, [mode] * len(names), names), strict=True):
            excluded = {test: why for test, why in outcome["left_out"].items() if why.startswith("excluded")}
            row = [len(outcome["passed"]), len(outcome["failed"]), len(excluded)]
            row.append(len(outcome["left_out"]) - len(excluded))
            print(f"{name:<28}{row[0]:>8}{row[1]:>8}{row[2]:>10}{row[3]:>9}", flush=True)
            totals = [a + b for a, b in zip(totals, row, strict=True)]
            failures |= outcome["failed"]
            reasons |= excluded
    print(f"{'all':<28}{totals[0]:>8}{totals[1]:>8}{totals[2]:>10}{totals[3]:>9}")
    for test, why in reasons.items():
        print(f"  {test}: {why}")
    for test, traceback in failures.items():
        print(f"\nFAILED {test} (mode {mode!r})\n{traceback}")
    return not failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for mode in modes.MODES:
        parser.add_argument(f"--{mode}", dest="modes", action="append_const", const=mode, help=f"mode {mode!r}")
    parser.add_argument("modules", nargs="*", help="test modules, as test_tasks; by default all of a mode")
    options = parser.parse_args()
    there = all_modules()
    if not there:
        print(f"conformance: Python {platform.python_version()} comes without its test package", file=sys.stderr)
        return 2
    passed: list[bool] = []
    for mode in options.modes or modes.MODES:
        if why := modes.missing(mode):
            print(f"mode {mode!r} is left out: {why}", file=sys.stderr if options.modes else sys.stdout)
            continue
        if passed:
            print()
        passed.append(show(mode, options.modules or modes.modules(mode, there)))
    if not passed:
        return 2
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
