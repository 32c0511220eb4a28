"""Two snapshots of one process, and what lies between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tideloop.observe.client import Snapshot
from tideloop.observe.shapes import is_number
from tideloop.observe.wording import loop_names

__all__ = ["Gauge", "Window", "grown", "lag", "number"]

Document = Mapping[str, Any]


class Gauge(NamedTuple):
    """A limiter, a queue, a pool: what it was and what it is."""

    kind: str
    label: str
    """``limiter 'api'``, or by its number if it has no name."""
    before: Document
    after: Document

    def growth(self, name: str) -> float:
        """By how much one of its counters has grown."""
        return grown(self.before, self.after, name) or 0.0

    def both(self, name: str) -> float:
        """The lesser of then and now: what was there all the time, as far as is known."""
        return min(number(self.before.get(name)), number(self.after.get(name)))


class Window:
    """What two snapshots tell. Whatever is in the later one alone has no growth and is left out of pairs."""

    def __init__(self, before: Snapshot, after: Snapshot) -> None:
        self.before = before
        self.after = after
        self.seconds = max(after.clock - before.clock, 1e-6)

    def all_loops(self) -> Iterator[tuple[Document, Document]]:
        """The loops, then and now."""
        earlier = {loop["id"]: loop for loop in self.before.loops["loops"]}
        for loop in self.after.loops["loops"]:
            if (was := earlier.get(loop["id"])) is not None:
                yield was, loop

    def loops(self) -> Iterator[tuple[Document, Document]]:
        """Those of them that are counted."""
        return ((was, loop) for was, loop in self.all_loops() if was.get("metrics") and loop.get("metrics"))

    def loop_name(self, number: object) -> str:
        """Of a loop, by its number: its thread's."""
        return next((name for known, name in loop_names(self.after.loops).items() if known == number), f"loop {number}")

    def task_lists(self) -> Iterator[tuple[Document, Document]]:
        """What ``/v1/tasks`` says of each loop, then and now."""
        if self.before.tasks is None or self.after.tasks is None:
            return
        earlier = {loop["id"]: loop for loop in self.before.tasks["loops"]}
        for loop in self.after.tasks["loops"]:
            if loop["id"] in earlier:
                yield earlier[loop["id"]], loop

    def gauges(self, *kinds: str) -> Iterator[Gauge]:
        """The gauges of some kinds, then and now."""
        if self.before.gauges is None or self.after.gauges is None:
            return
        earlier = {(gauge["kind"], gauge["id"]): gauge for gauge in self.before.gauges["gauges"]}
        for gauge in self.after.gauges["gauges"]:
            was = earlier.get((gauge["kind"], gauge["id"]))
            if gauge["kind"] in kinds and was is not None and was.get("stats") and gauge.get("stats"):
                label = f"{gauge['kind']} {gauge['name']!r}" if gauge.get("name") else f"{gauge['kind']} {gauge['id']}"
                yield Gauge(gauge["kind"], label, was["stats"], gauge["stats"])


def number(value: object) -> float:
    """A number that may be absent."""
    return float(value) if is_number(value) else 0.0  # type: ignore[arg-type]


def grown(before: Document, after: Document, name: str) -> float | None:
    """By how much a counter has grown; None: it is not counted."""
    was, now = before.get(name), after.get(name)
    return max(now - was, 0) if is_number(was) and is_number(now) else None  # type: ignore[operator]


def lag(loop: Document) -> Document | None:
    """How long what is ready waits on a loop; of one that is only attached to, how late its timers are."""
    metrics = loop.get("metrics")
    found: Document | None = metrics["ready_delay"] if metrics else loop.get("lag")
    return found
