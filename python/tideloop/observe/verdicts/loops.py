"""What is wrong with a loop as a whole: it is full, it lets wait, its executor is too small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tideloop.observe.verdicts.finding import Finding
from tideloop.observe.verdicts.window import Window, grown, lag
from tideloop.observe.wording import count, percent, place, plural, seconds

__all__ = ["executor_queue", "not_seen", "saturated", "slow_to_run"]

FULL, BUSY = 0.98, 0.9
"""Of the time not idle: a problem, a warning."""
LATE, SLOW = 0.1, 0.01
"""Seconds that what is ready waits on average: a problem, a warning."""
FEW = 20
"""Callbacks; the mean of fewer says nothing."""
OLD = 5.0
"""Seconds; what the collector has made earlier is told to be old."""


def _busy(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[float, float] | None:
    """How busy a loop was, and which part of that were callbacks; None: it has not run."""
    spent = {
        part: after["metrics"]["spent"][part] - before["metrics"]["spent"][part]
        for part in ("callbacks", "internal", "idle")
    }
    total = sum(spent.values())
    if total <= 0:
        return None
    busy = spent["callbacks"] + spent["internal"]
    return busy / total, spent["callbacks"] / busy if busy > 0 else 0.0


def saturated(window: Window) -> Iterator[Finding]:
    """A loop that hardly ever waits."""
    for before, after in window.loops():
        busy = _busy(before, after)
        if busy is None or busy[0] < BUSY:
            continue
        name = window.loop_name(after["id"])
        evidence: dict[str, Any] = {"loop": name, "busy": busy[0], "callbacks": busy[1], "seconds": window.seconds}
        says = (
            f"The loop of {name} was busy for {percent(busy[0])} of {seconds(window.seconds)}, "
            f"{percent(busy[1])} of that in callbacks and steps of tasks."
        )
        if most := _busiest(window, after["id"]):
            coroutine, share = most
            evidence |= {"coroutine": coroutine["coroutine"], "coroutine_share": share}
            where = place(coroutine.get("file"), coroutine.get("line"))
            says += (
                f" {coroutine['coroutine']}{f' ({where})' if where else ''} alone took {percent(share)} of the time."
            )
        yield Finding(
            "saturated",
            "problem" if busy[0] >= FULL else "warning",
            says,
            "move work that computes off the loop (tideloop.run_blocking), or run more processes",
            evidence,
        )


def _busiest(window: Window, loop: object) -> tuple[Mapping[str, Any], float] | None:
    """The coroutine function that has taken the most time, and its share."""
    for before, after in window.task_lists():
        if after["id"] != loop:
            continue
        earlier = {_key(function): function for function in before["functions"]}
        shares = [
            (function, took / window.seconds)
            for function in after["functions"]
            if (took := grown(earlier.get(_key(function), {"busy": 0.0}), function, "busy"))
        ]
        return max(shares, key=lambda share: share[1], default=None)
    return None


def _key(function: Mapping[str, Any]) -> tuple[Any, ...]:
    return function["coroutine"], function.get("file"), function.get("line")


def slow_to_run(window: Window) -> Iterator[Finding]:
    """What is ready waits behind others for too long."""
    for before, after in window.all_loops():
        was, now = lag(before), lag(after)
        ran = now["count"] - was["count"] if was and now else 0
        if not was or not now or ran < FEW:
            continue
        mean = max(now["total"] - was["total"], 0.0) / ran
        if mean < SLOW:
            continue
        name = window.loop_name(after["id"])
        yield Finding(
            "ready_delay",
            "problem" if mean >= LATE else "warning",
            f"What is ready on the loop of {name} waits {seconds(mean)} on average before it runs "
            f"({count(ran)} callbacks in {seconds(window.seconds)}; since the start 99 % waited less than "
            f"{seconds(now['p99'])}, one waited {seconds(now['longest'])}).",
            "shorter steps: every timeout, request and heartbeat is late by this much",
            {"loop": name, "mean": mean, "callbacks": ran, "p99": now["p99"], "longest": now["longest"]},
        )


def executor_queue(window: Window) -> Iterator[Finding]:
    """Calls wait for a thread of the default executor."""
    for before, after in window.loops():
        was, now = before["metrics"]["executor_queue"], after["metrics"]["executor_queue"]
        if not (was and now):
            continue
        name = window.loop_name(after["id"])
        yield Finding(
            "executor",
            "problem" if now > was else "warning",
            f"{plural(now, 'call')} wait for a thread of the default executor of {name} "
            f"({count(was)} did {seconds(window.seconds)} ago); name resolution waits there, too.",
            "loop.set_default_executor() with more threads, or tideloop.run_blocking() with a limit of its own",
            {"loop": name, "before": was, "after": now, "growth": (now - was) / window.seconds},
        )


def not_seen(window: Window) -> Iterator[Finding]:
    """What could not be seen, so that nobody takes silence for health."""
    loops = window.after.loops["loops"]
    if not loops:
        yield Finding("not_seen", "note", "No loop of this process is observed.", "has it begun to run one?")
    if any(loop.get("attached") for loop in loops):
        yield Finding(
            "not_seen",
            "note",
            "A loop that is not tideloop's tells its lag, its blocks and its tasks only.",
            "run it on tideloop for the rest (tideloop run)",
        )
    if any((loop.get("level") or 0) < 1 and not loop.get("attached") for loop in loops):
        yield Finding(
            "not_seen",
            "note",
            "Times of tasks are not counted at this level: tasks that spin and the busiest coroutines are not found.",
            "start it with TIDELOOP_OBSERVE=tasks",
        )
    for what, document in (("tasks", window.after.tasks), ("limiters, queues and pools", window.after.gauges)):
        if document is None:
            yield Finding("not_seen", "note", f"This process does not tell its {what}.", "a newer tideloop does")
        elif document.get("error"):
            yield Finding("not_seen", "note", f"Its {what} could not be collected: {document['error']}.", "")
        elif document.get("age") is None:
            yield Finding(
                "not_seen",
                "note",
                f"Nothing is known of its {what} so far: something keeps the GIL.",
                'see "tideloop blocked"',
            )
        elif document["age"] > OLD:
            yield Finding(
                "not_seen",
                "note",
                f"What is known of its {what} is {seconds(document['age'])} old: something keeps the GIL.",
                'see "tideloop blocked"',
                {"age": document["age"]},
            )
    told = window.after.tasks["loops"] if window.after.tasks is not None else []
    if any(loop.get("truncated") for loop in told):
        seen = sum(len(loop["tasks"]) for loop in told)
        yield Finding("not_seen", "note", f"Only {count(seen)} of its tasks were looked at.", "", {"tasks": seen})
