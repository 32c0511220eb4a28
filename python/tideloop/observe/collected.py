"""What is collected for those who look from outside: the tasks of all loops, and the gauges, as JSON.

``tasks()`` and ``gauges()`` are called from a thread that is none of a loop's, with the GIL. They look at 10,000 tasks
at most; where there are more, ``"truncated"`` says so.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tideloop.observe.exposition import Exposition, add_gauge, add_tasks
from tideloop.observe.roll import gauges as all_gauges
from tideloop.observe.tasks import MOST, CoroutineSeen, Place, TaskSeen, tasks_of
from tideloop.observe.unretrieved import told_of
from tideloop.observed import loops, number_of

__all__ = ["gauges", "note_loops", "samples", "tasks"]

leaving = False
"""The server is about to stop: what is being collected is given up, for the interpreter must not end meanwhile."""

_DEPTH = 30
_COUNTED = tuple(field for field in CoroutineSeen._fields if field not in ("coroutine", "file", "line", "live"))


def note_loops() -> bytes:
    """Have the loops say what of themselves it takes the GIL to know."""
    for loop in loops():
        publish = getattr(loop, "_publish", None)
        if publish is not None:
            queue = getattr(getattr(loop, "_default_executor", None), "_work_queue", None)
            publish(0 if queue is None else queue.qsize())
    return b"{}"


def _stack(places: tuple[Place, ...]) -> list[list[Any]]:
    return [[place.file, place.line, place.function] for place in places[:_DEPTH]]


def _task(task: TaskSeen) -> dict[str, Any]:
    return task._asdict() | {"waits_for": list(task.waits_for), "stack": _stack(task.stack)}


def _living(tasks: tuple[TaskSeen, ...]) -> list[dict[str, Any]]:
    """The coroutine functions of a loop that does not count them: whose tasks live."""
    living = Counter((task.coroutine, task.file, task.line) for task in tasks)
    return [
        {"coroutine": coroutine, "file": file, "line": line, "live": live, **dict.fromkeys(_COUNTED)}
        for (coroutine, file, line), live in living.most_common()
    ]


def _go_on() -> None:
    if leaving:
        raise InterruptedError("the server stops")


def _seen() -> list[dict[str, Any]]:
    found = []
    left = MOST
    for loop in loops():
        seen = tasks_of(loop, left, _go_on)
        left -= len(seen.tasks)
        now = time.monotonic()
        found.append(
            {
                "id": number_of(loop),
                "tasks": [_task(task) for task in seen.tasks],
                "functions": [function._asdict() for function in seen.coroutines] or _living(seen.tasks),
                "unretrieved": [
                    {"task": told.task, "coroutine": told.coroutine, "exception": told.exception, "age": now - told.at}
                    for told in told_of(loop)
                ],
                "truncated": seen.truncated,
            }
        )
    return found


def tasks() -> bytes:
    """The tasks of all loops, and what is counted of them: ``{"loops": [{"id", "tasks", "functions", …}, …]}``."""
    return b'{"loops":[' + b",".join(map(_told, _seen())) + b"]}"


def _told(of_loop: dict[str, Any]) -> bytes:
    # Task by task: json.dumps() lets nobody else have the GIL until it has ended.
    rows = b",".join(map(_json, of_loop.pop("tasks")))
    return _json(of_loop)[:-1] + b',"tasks":[' + rows + b"]}"


def _plain(value: Any) -> Any:
    """As JSON has it: named tuples by their names, what it has no words for in Python's."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "_asdict"):
        return {name: _plain(field) for name, field in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(field) for name, field in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return repr(value)


def _gauges() -> list[dict[str, Any]]:
    return [
        {
            "kind": gauge.kind,
            "name": None if gauge.name is None else str(gauge.name),
            "id": gauge.id,
            "stats": _plain(gauge.stats),
        }
        for gauge in all_gauges()
    ]


def gauges() -> bytes:
    """What there is of the toolkit: ``{"gauges": [{"kind", "name", "id", "stats"}, …]}``."""
    found = _gauges()
    return _json({"gauges": found[:MOST], "truncated": len(found) > MOST})


def samples() -> bytes:
    """Tasks, coroutine functions and gauges as Prometheus' text."""
    told = Exposition()
    for loop in _seen():
        add_tasks(told, loop["id"], Counter(task["state"] for task in loop["tasks"]), loop["functions"])
    for gauge in _gauges()[:MOST]:
        add_gauge(told, gauge)
    return told.text()


def _json(document: dict[str, Any]) -> bytes:
    # In ASCII: a name may hold what UTF-8 cannot say.
    return json.dumps(document, separators=(",", ":")).encode()
