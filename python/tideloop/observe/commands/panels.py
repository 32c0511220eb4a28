"""What ``tideloop top`` shows: tables from two snapshots, without a screen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tideloop.observe.client import Snapshot
from tideloop.observe.commands.blocked import where
from tideloop.observe.shapes import is_number
from tideloop.observe.verdicts.window import Window, grown, lag
from tideloop.observe.wording import ago, count, natural, percent, place, plural, printable, rate, seconds

__all__ = ["Cell", "Panel", "headline", "panels"]


class Cell(NamedTuple):
    """A value and how it is shown."""

    text: str
    order: float | str
    """What rows are sorted by."""


class Panel(NamedTuple):
    """A table."""

    name: str
    head: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    align: str
    """``<`` for each column of words, ``>`` for each of numbers."""
    sort: int
    """The column that it is sorted by, unless somebody chooses another."""

    def sorted(self, column: int | None = None) -> list[tuple[Cell, ...]]:
        """The rows: numbers from the highest, words from A, what is not known last."""
        by = self.sort if column is None else column

        def key(row: tuple[Cell, ...]) -> tuple[float, list[tuple[int, str]], list[tuple[int, str]]]:
            order = row[by].order
            if isinstance(order, str):
                return math.inf, natural(order), natural(row[0].text)
            return -order, [], natural(row[0].text)

        return sorted(self.rows, key=key)


def headline(before: Snapshot, after: Snapshot) -> str:
    """The first line: which process, and how it is."""
    said = after.loops
    parts = [f"{said.get('program') or 'process'} ({said['pid']})", f"Python {said.get('python')}"]
    parts += [f"up {seconds(said.get('uptime'))}"]
    if after.tasks is not None:
        parts.append(plural(sum(len(loop["tasks"]) for loop in after.tasks["loops"]), "task"))
    if lasting := [loop for loop in said["loops"] if loop.get("blocked_for") is not None]:
        parts += [f"{loop.get('name') or loop['id']} BLOCKED for {seconds(loop['blocked_for'])}" for loop in lasting]
    elif ended := [block for block in after.blocks["blocks"] if block["ended"]]:
        last = ended[-1]
        parts.append(f"last blocked {ago(after.at - last['at'] - last['duration'])} ({last['cause']})")
    return printable(", ".join(map(str, parts)))


def panels(before: Snapshot, after: Snapshot) -> list[Panel]:
    """All that there is to show. Rates are those between the snapshots."""
    window = Window(before, after)
    return [_loops(window), _coroutines(window), _tasks(window), _gauges(window), _blocks(window)]


def _words(text: object) -> Cell:
    shown = printable(str(text or "-"))
    return Cell(shown, shown)


def _number(value: float | None, words: Any = count) -> Cell:
    return Cell(words(value), "" if value is None else value)


def _loops(window: Window) -> Panel:
    head = ("loop", "busy 1 s", "10 s", "1 min", "steps", "delay", "p99", "ready", "timers", "fds", "conns", "executor")
    rows: list[tuple[Cell, ...]] = []
    pairs = {after["id"]: (before, after) for before, after in window.all_loops()}
    for loop in window.after.loops["loops"]:
        metrics = loop.get("metrics") or {}
        before, after = pairs.get(loop["id"], (loop, loop))
        load, delay = metrics.get("utilization") or {}, lag(loop) or {}
        state = "" if loop.get("running") else " (not running)"
        rows.append(
            (
                _words(f"{loop.get('name') or loop['id']}{state}"),
                *(_number(load.get(part), percent) for part in ("second", "ten_seconds", "minute")),
                _number(_per_second(window, before.get("metrics"), after.get("metrics"), "steps"), rate),
                _number(_mean(lag(before), lag(after)), seconds),
                _number(delay.get("p99"), seconds),
                *(
                    _number(metrics.get(part))
                    for part in ("ready", "timers", "descriptors", "transports", "executor_queue")
                ),
            )
        )
    return Panel("loops", head, rows, "<" + ">" * 11, 1)


def _per_second(
    window: Window, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, name: str
) -> float | None:
    grew = grown(before or {}, after or {}, name)
    return None if grew is None else grew / window.seconds


def _mean(was: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> float | None:
    if was is None or now is None:
        return None
    ran = now["count"] - was["count"]
    return max(now["total"] - was["total"], 0.0) / ran if ran > 0 else None


def _coroutines(window: Window) -> Panel:
    head = ("coroutine", "live", "new", "ended", "failed", "busy", "waits to run", "longest", "where")
    rows: list[tuple[Cell, ...]] = []
    for loop, earlier in _lists(window):
        was = {(each["coroutine"], each.get("file"), each.get("line")): each for each in earlier.get("functions", ())}
        for each in loop["functions"]:
            before = was.get((each["coroutine"], each.get("file"), each.get("line")), {})
            ended = [_per_second(window, before, each, how) for how in ("ok", "failed", "cancelled")]
            rows.append(
                (
                    _words(each["coroutine"] or "all others"),
                    _number(each["live"]),
                    _number(_per_second(window, before, each, "created"), rate),
                    _number(None if None in ended else sum(filter(None, ended)), rate),
                    _number(each.get("failed")),
                    _number(_per_second(window, before, each, "busy"), percent),
                    _number(_per_second(window, before, each, "scheduled"), percent),
                    _number(each.get("longest"), seconds),
                    _words(place(each.get("file"), each.get("line"))),
                )
            )
    timed = any(row[5].order != "" for row in rows)
    return Panel("coroutines", head, rows, "<>>>>>>><", 5 if timed else 1)


def _tasks(window: Window) -> Panel:
    head = ("task", "coroutine", "state", "age", "steps", "busy", "waits to run", "longest", "waits on")
    rows: list[tuple[Cell, ...]] = []
    for loop, earlier in _lists(window):
        was = {task["id"]: task for task in earlier.get("tasks", ())}
        for task in loop["tasks"]:
            before = was.get(task["id"], {})
            rows.append(
                (
                    _words(task["name"]),
                    _words(f"{task['coroutine']} ({place(task.get('file'), task.get('line'))})"),
                    _words(task["state"]),
                    _number(task.get("age"), seconds),
                    _number(_per_second(window, before, task, "steps"), rate),
                    _number(_per_second(window, before, task, "busy"), percent),
                    _number(_per_second(window, before, task, "scheduled"), percent),
                    _number(task.get("longest"), seconds),
                    _words(task.get("waiting_on")),
                )
            )
    timed = any(row[5].order != "" for row in rows)
    return Panel("tasks", head, rows, "<<<>>>>><", 5 if timed else 3)


def _lists(window: Window) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """What ``/v1/tasks`` says of each loop, and what it said before; an empty one: nothing."""
    earlier = {loop["id"]: loop for loop in (window.before.tasks or {}).get("loops", ())}
    for loop in (window.after.tasks or {}).get("loops", ()):
        yield loop, earlier.get(loop["id"], {})


_LEFT_OUT = ("name", "kind", "closed")


def _gauges(window: Window) -> Panel:
    rows: list[tuple[Cell, ...]] = []
    for gauge in (window.after.gauges or {}).get("gauges", ()):
        stats = gauge.get("stats") or {}
        told = [
            f"{name} {count(value) if isinstance(value, int) else f'{value:.3g}'}"
            for name, value in stats.items()
            if name not in _LEFT_OUT and is_number(value) and value
        ]
        rows.append(
            (
                _words(f"{gauge['kind']} {gauge.get('name') or gauge['id']}"),
                _number(next((stats[name] for name in ("waiting", "size") if is_number(stats.get(name))), None)),
                _words(", ".join(told)),
            )
        )
    return Panel("limits", ("what", "waiting", "numbers"), rows, "<><", 1)


def _blocks(window: Window) -> Panel:
    head = ("where", "when", "for", "cause", "task")
    rows: list[tuple[Cell, ...]] = []
    for block in window.after.blocks["blocks"]:
        since = window.after.at - block["at"] - block["duration"]
        rows.append(
            (
                _words(where(block)),
                Cell(ago(since) if block["ended"] else "now", -since if block["ended"] else 0.0),
                _number(block["duration"], seconds),
                _words(block["cause"]),
                _words(block.get("task")),
            )
        )
    return Panel("blocks", head, rows, "<>><<", 1)
