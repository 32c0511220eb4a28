"""What Prometheus is told of tasks and of the toolkit. Of loops it is told natively: ``serve/exposition.rs``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

__all__ = ["Exposition", "add_gauge", "add_tasks"]

_STATES = ("running", "ready", "waiting")
_OUTCOMES = ("ok", "failed", "cancelled")
_TIMES = {
    "busy": "How long the steps of a coroutine function's tasks ran.",
    "scheduled": "How long they were ready and waited behind others.",
}
_FIELD = re.compile(r"[a-zA-Z0-9_:]+")
_MOST = 1 << 1023
"""Numbers from here on are none of a float's."""

_QUANTILES = {"p50": "0.5", "p90": "0.9", "p99": "0.99"}


def add_tasks(to: Exposition, loop: int, states: Counter[str], functions: Iterable[dict[str, Any]]) -> None:
    """The tasks of a loop: how many are in which state, and what is counted of coroutine functions."""
    number = {"loop": str(loop)}
    living = to.family("tideloop_tasks", "gauge", "Tasks that are not done.")
    for state in _STATES:
        living.add(states[state], **number, state=state)
    counted = [function for function in functions if function["busy"] is not None]
    if not counted:
        return
    ended = to.family("tideloop_tasks_total", "counter", "Tasks that have ended.")
    for outcome in _OUTCOMES:
        ended.add(sum(function[outcome] for function in counted), **number, outcome=outcome)
    for part, words in _TIMES.items():
        # Several functions may have one name.
        seconds: Counter[str] = Counter()
        for function in counted:
            seconds[function["coroutine"]] += function[part]
        of_all = to.family(f"tideloop_coroutine_{part}_seconds_total", "counter", words)
        for coroutine, took in seconds.items():
            of_all.add(took, **number, coroutine=coroutine)


def add_gauge(to: Exposition, gauge: dict[str, Any]) -> None:
    """The numbers of a gauge, as ``/v1/gauges`` has it. What a program's own class tells may be anything."""
    labels = {"name": gauge["name"] or "", "id": str(gauge["id"])}
    name, stats = f"tideloop_{gauge['kind']}", gauge["stats"]
    if not isinstance(stats, dict):
        return
    for field, value in stats.items():
        if field == "wait_times" and isinstance(value, dict):
            _add_waits(to, f"{name}_wait_seconds", value, stats.get("waited"), labels)
        elif gauge["kind"] == "resource_limits" and isinstance(value, dict):
            _add_numbers(to, name, value, labels | {"resource": field})
    _add_numbers(to, name, stats, labels)


def _add_numbers(to: Exposition, name: str, stats: dict[str, Any], labels: dict[str, str]) -> None:
    for field, value in stats.items():
        # What a program's own class tells may have any names, and any numbers.
        is_number = isinstance(value, float) or (isinstance(value, int) and -_MOST < value < _MOST)
        if is_number and _FIELD.fullmatch(field):
            to.family(f"{name}_{field}", "gauge").add(value, **labels)


def _add_waits(to: Exposition, name: str, times: dict[str, Any], count: object, labels: dict[str, str]) -> None:
    waits = to.family(name, "summary", "How long those waited who got what they waited for.")
    for part, quantile in _QUANTILES.items():
        waits.add(times.get(part, 0), **labels, quantile=quantile)
    waits.add(times.get("total", 0), "_sum", **labels)
    waits.add(count if isinstance(count, int) else 0, "_count", **labels)


class _Family:
    """A metric."""

    def __init__(self, name: str, kind: str, words: str) -> None:
        self._name = name
        self.lines = [f"# HELP {name} {words}"] if words else []
        self.lines.append(f"# TYPE {name} {kind}")

    def add(self, value: float, part: str = "", /, **labels: str) -> None:
        """A sample; `part` is what the name ends in."""
        told = ",".join(f"{name}={_quoted(label)}" for name, label in labels.items())
        self.lines.append(f"{self._name}{part}{{{told}}} {str(float(value)).removesuffix('.0')}")


class Exposition:
    """A text that grows, in which the samples of a metric are beside each other."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def family(self, name: str, kind: str, words: str = "") -> _Family:
        """The metric of this name."""
        if name not in self._families:
            self._families[name] = _Family(name, kind, words)
        return self._families[name]

    def text(self) -> bytes:
        """All of it."""
        lines = (line for family in self._families.values() for line in family.lines)
        return "".join(line + "\n" for line in lines).encode("utf-8", "replace")


def _quoted(label: str) -> str:
    escaped = label.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'"{escaped}"'
