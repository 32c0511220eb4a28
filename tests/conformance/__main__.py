"""CPython's own asyncio tests on tideloop: ``make conformance``.

    python -m tests.conformance [module ...]

Each module runs in a process of its own with a time limit. The table shows what passed, failed and was
left out, with the reasons; the exit code is 1 if anything failed, 2 if this interpreter has no tests.
"""

from __future__ import annotations

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

ROOT = Path(__file__).parent.parent.parent
TIME_LIMIT = 180
# Modules of tests for other systems; CPython itself skips them here.
OTHER_SYSTEMS = {"test_proactor_events", "test_windows_events", "test_windows_utils"}


def modules() -> list[str]:
    """The names of this interpreter's asyncio test modules."""
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_asyncio") is None:
        return []
    package = importlib.import_module("test.test_asyncio")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return sorted(name for name in names if name.startswith("test_") and name not in OTHER_SYSTEMS)


def run(module: str) -> dict[str, Any]:
    """Runs one module; a crash or a hang is a failure with the last lines of what was said."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.conformance.worker", module, str(report)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIME_LIMIT)
            said = done.stderr
        except subprocess.TimeoutExpired as error:
            said = f"{(error.stderr or b'')[-2000:]!r}\nno end after {TIME_LIMIT} s"
        if report.exists():
            return dict(json.loads(report.read_text()))
        return {"passed": [], "failed": {module: f"the process ended early:\n{said[-3000:]}"}, "left_out": {}}


def main() -> int:
    names = sys.argv[1:] or modules()
    if not names:
        print(f"conformance: Python {platform.python_version()} comes without its test package", file=sys.stderr)
        return 2
    print(f"CPython {platform.python_version()}: its own asyncio tests on tideloop")
    print(f"{'module':<28}{'passed':>8}{'failed':>8}{'excluded':>10}{'skipped':>9}")
    totals = [0, 0, 0, 0]
    failures: dict[str, str] = {}
    reasons: dict[str, str] = {}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for name, outcome in zip(names, pool.map(run, names), strict=True):
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
        print(f"\nFAILED {test}\n{traceback}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
