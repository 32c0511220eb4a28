"""Runs one module of CPython's own asyncio tests on tideloop and writes the outcome as JSON.

    python -m tests.conformance.worker loop test_events report.json

The tests are those of the interpreter that runs this; modes.py says what stands in asyncio's place.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
import unittest
from typing import Any

from tests.conformance import modes
from tests.conformance.exclusions import reason_for

# test_events runs its tests once for each of the system's selectors. Ours has its own, so once is enough.
SAME_LOOP_AGAIN = ("SelectEventLoopTests", "PollEventLoopTests")


class Outcome(unittest.TestResult):
    """Collects what happened, by test."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}
        self.left_out: dict[str, str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.passed.append(name_of(test))

    def addError(self, test: Any, err: Any) -> None:
        self.failed[name_of(test)] = self._exc_info_to_string(err, test)  # type: ignore[attr-defined]

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self.addError(test, err)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self.addError(test, err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.left_out[name_of(test)] = f"skipped by CPython: {reason}"


def name_of(test: unittest.TestCase) -> str:
    return test.id().removeprefix("test.test_asyncio.")


def tests_in(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    found: list[unittest.TestCase] = []
    for item in suite:
        found += tests_in(item) if isinstance(item, unittest.TestSuite) else [item]
    return found


def wanted(module: str, mode: str, outcome: Outcome) -> unittest.TestSuite:
    """The module's tests in their order and fixtures, without what the exclusions name."""
    loaded = unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module(f"test.test_asyncio.{module}"))

    def keep(suite: unittest.TestSuite) -> unittest.TestSuite:
        kept = unittest.TestSuite()
        for item in suite:
            if isinstance(item, unittest.TestSuite):
                kept.addTest(keep(item))
                continue
            if type(item).__name__ in SAME_LOOP_AGAIN:
                continue
            reason = reason_for(name_of(item), mode)
            if reason is None:
                kept.addTest(item)
            else:
                outcome.left_out[name_of(item)] = f"excluded: {reason}"
        return kept

    return keep(loaded)


def main() -> int:
    mode, module, path = sys.argv[1:]
    # Whoever runs this in the background has it ignored, and the tests of Ctrl-C would wait for ever.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    modes.install(mode)
    outcome = Outcome()
    wanted(module, mode, outcome).run(outcome)
    report = {"passed": outcome.passed, "failed": outcome.failed, "left_out": outcome.left_out}
    with open(path, "w") as file:
        json.dump(report, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
