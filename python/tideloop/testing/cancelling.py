"""cancel_everywhere, outside of the loop: one test, run again and again by pytest, reported as one.

First the test runs unharmed, which must pass and tells how many awaits there are. Then it runs once for each await and
each moment, with its fixtures of function scope made anew, so that what a fixture asserts at its end is asserted after
each cancellation. Fixtures of wider scopes stay, as they would for the next test.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import pytest
from _pytest.runner import runtestprotocol

from tideloop.testing.attacks import MOMENTS, Attack
from tideloop.testing.steps import described

__all__ = ["attack", "options_of", "run_again"]

attack = pytest.StashKey[Attack]()
"""The attack of the run that a test is in."""

_SHOWN = 5
"""Failures that are told in full."""


@dataclass(frozen=True)
class Options:
    """What the marker says; docs/testing.md tells what each is."""

    limit: int = 200
    moments: tuple[str, ...] = tuple(MOMENTS)
    patience: float = 10.0
    may_swallow: bool = False


@dataclass
class _Failure:
    attack: Attack
    reports: list[pytest.TestReport]

    def text(self, awaits: int, full: bool) -> str:
        at = self.attack
        assert at.at is not None
        lines = [f"cancelled at await {at.at + 1} of {awaits}, {MOMENTS[at.moment]}:"]
        lines.append(described(at.place) or "    (not reached)")
        for report in self.reports:
            lines.append(f"  {'the test' if report.when == 'call' else 'its ' + str(report.when)} failed:")
            lines.append(textwrap.indent(report.longreprtext if full else _brief(report), "    "))
        return "\n".join(lines)


def options_of(item: pytest.Item) -> Options:
    """The options of a test. Raises pytest.UsageError for those that are wrong."""
    marker = item.get_closest_marker("cancel_everywhere")
    if marker is None:
        return Options()
    try:
        found = Options(*marker.args, **marker.kwargs)
    except TypeError as error:
        raise pytest.UsageError(f"{item.nodeid}: cancel_everywhere: {error}") from None
    if isinstance(found.moments, str) or not found.moments or not set(found.moments) <= set(MOMENTS):
        raise pytest.UsageError(
            f"{item.nodeid}: cancel_everywhere: moments is {found.moments!r}; expected some of {tuple(MOMENTS)}"
        )
    for name in ("limit", "patience"):
        value = getattr(found, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise pytest.UsageError(f"{item.nodeid}: cancel_everywhere: {name} is {value!r}; expected more than 0")
    return found


def run_again(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Run a test unharmed and at each of its awaits cancelled; the reports of all that as those of one run."""
    options = options_of(item)
    unharmed = Attack(patience=options.patience)
    reports = _run(item, unharmed)
    failures: list[_Failure] = []
    if len(reports) == 3 and all(report.passed or _should_fail(report) for report in reports):
        call = reports[1]
        if unharmed.awaits > options.limit:
            call.outcome = "failed"
            call.longrepr = (
                f"cancel_everywhere: the test awaits {unharmed.awaits} times, which is more than "
                f"limit={options.limit}; make it smaller, or say cancel_everywhere(limit=...)"
            )
        else:
            failures = _attack(item, unharmed.awaits, options)
            if failures:
                _fail(call, _told(failures, unharmed.awaits, options), failures)
    reports.append(_tear_down(item, nextitem))
    return _as_one(reports)


def _attack(item: pytest.Item, awaits: int, options: Options) -> list[_Failure]:
    failures = []
    for at in range(awaits):
        for moment in options.moments:
            this = Attack(at, moment, options.patience, options.may_swallow)
            failed = [report for report in _run(item, this) if _is_failure(report)]
            if failed:
                failures.append(_Failure(this, failed))
            if item.session.shouldstop:
                return failures
    return failures


def _should_fail(report: pytest.TestReport) -> bool:
    """Whether a test passed that is marked to fail, strictly: which may still come."""
    return report.when == "call" and report.failed and str(report.longrepr).startswith("[XPASS(strict)]")


def _is_failure(report: pytest.TestReport) -> bool:
    return (report.failed and not _should_fail(report)) or (report.skipped and hasattr(report, "wasxfail"))


def _fail(call: pytest.TestReport, why: str, failures: list[_Failure]) -> None:
    """Make the report of a run that passed that of one that failed, as it was expected to if it was."""
    reports = [report for failure in failures for report in failure.reports]
    expected = all(hasattr(report, "wasxfail") for report in reports)
    call.longrepr = why
    call.outcome = "skipped" if expected else "failed"
    if expected:
        call.wasxfail = reports[0].wasxfail
    elif hasattr(call, "wasxfail"):
        del call.wasxfail


def _run(item: pytest.Item, this: Attack) -> list[pytest.TestReport]:
    item.stash[attack] = this
    try:
        # As if the next test were of the same module: what is the test's own is torn down, all else stays.
        return runtestprotocol(item, log=False, nextitem=item.parent)  # type: ignore[arg-type]
    finally:
        del item.stash[attack]


def _tear_down(item: pytest.Item, nextitem: pytest.Item | None) -> pytest.TestReport:
    """Now the fixtures that the next test does not want either."""

    def tear_down() -> None:
        item.session._setupstate.teardown_exact(nextitem)

    call = pytest.CallInfo.from_call(tear_down, when="teardown", reraise=(KeyboardInterrupt, pytest.exit.Exception))
    report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    return report


def _as_one(reports: list[pytest.TestReport]) -> list[pytest.TestReport]:
    """The last teardown matters only if it failed: a test has one."""
    *own, last = reports
    if not last.failed:
        return own
    return [*own[:-1], last] if own[-1].passed else reports


def _told(failures: list[_Failure], awaits: int, options: Options) -> str:
    runs = awaits * len(options.moments)
    numbers = sorted({failure.attack.at + 1 for failure in failures if failure.attack.at is not None})
    which = ", ".join(map(str, numbers))
    lines = [f"cancel_everywhere: {len(failures)} of {runs} cancelled runs failed, at await {which} of {awaits}"]
    lines += [failure.text(awaits, number < _SHOWN) for number, failure in enumerate(failures)]
    return "\n\n".join(lines)


def _brief(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longreprtext).splitlines()[0]
