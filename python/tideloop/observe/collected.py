"""What is collected for those who look from outside: the tasks of all loops, and the gauges, as JSON.

``tasks()`` and ``gauges()`` are called from a thread that is none of a loop's, with the GIL. They look at 10,000 tasks
at most; where there are more, ``"truncated"`` says so.

While they work no loop of the process does, and 10,000 tasks take a tenth of a second. So they work in slices of two
milliseconds and sleep in between, which gives the GIL to whoever waits for it. What has been looked at is turned into
text at once, so that no great number of objects is made that the garbage collector would have to go through. What is
told is of no single moment, therefore: a task may have ended, or have been made, since the first one was looked at.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tideloop.observe.exposition import Exposition, add_gauge, add_tasks
from tideloop.observe.roll import each_gauge, place
from tideloop.observe.tasks import MOST, CoroutineSeen, Place, TaskSeen, TasksLooked, look_at
from tideloop.observe.unretrieved import told_of
from tideloop.observed import loops, number_of

__all__ = ["gauges", "note_loops", "samples", "tasks"]

leaving = False
"""The server is about to stop: what is being collected is given up, for the interpreter must not end meanwhile."""

SLICE = 0.002
"""Seconds of work after which the others get the GIL."""

_PAUSE = 0.0002
"""Seconds for which they do, which is enough to take it: they keep it for as long as they like."""

_DEPTH = 30
_COUNTED = tuple(field for field in CoroutineSeen._fields if field not in ("coroutine", "file", "line", "live"))


class _Slices:
    """Work that gives the GIL away now and again."""

    def __init__(self) -> None:
        self._since = _clock()

    def go_on(self) -> None:
        """Called between two bits of work. Raises InterruptedError if it is to be given up."""
        if leaving:
            raise InterruptedError("the server stops")
        if _clock() - self._since >= SLICE:
            _give_way()
            self._since = _clock()


_clock = time.perf_counter


def _give_way() -> None:
    time.sleep(_PAUSE)


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


def _functions(looked: TasksLooked, living: Counter[tuple[str, str, int]]) -> list[dict[str, Any]]:
    """The coroutine functions of a loop; of one that does not count them those whose tasks live."""
    return [function._asdict() for function in looked.coroutines] or [
        {"coroutine": coroutine, "file": file, "line": line, "live": live, **dict.fromkeys(_COUNTED)}
        for (coroutine, file, line), live in living.most_common()
    ]


def _of_loops(go_on: Callable[[], object]) -> Iterator[tuple[Any, TasksLooked]]:
    """Each loop with its tasks, which are looked at while they are taken."""
    left = MOST
    for loop in loops():
        looked = look_at(loop, left, go_on)
        left -= looked.most
        yield loop, looked


def tasks() -> bytes:
    """The tasks of all loops, and what is counted of them: ``{"loops": [{"id", "tasks", "functions", …}, …]}``."""
    told = [_told(loop, looked) for loop, looked in _of_loops(_Slices().go_on)]
    return b'{"loops":[' + b",".join(told) + b"]}"


def _told(loop: Any, looked: TasksLooked) -> bytes:
    rows = []
    living: Counter[tuple[str, str, int]] = Counter()
    for task in looked.tasks:
        living[task.coroutine, task.file, task.line] += 1
        rows.append(_json(_task(task)))
    now = time.monotonic()
    of_loop = {
        "id": number_of(loop),
        "functions": _functions(looked, living),
        "unretrieved": [
            {"task": told.task, "coroutine": told.coroutine, "exception": told.exception, "age": now - told.at}
            for told in told_of(loop)
        ],
        "truncated": looked.truncated,
    }
    return _json(of_loop)[:-1] + b',"tasks":[' + b",".join(rows) + b"]}"


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


def _gauges(go_on: Callable[[], object]) -> list[dict[str, Any]]:
    return [
        {
            "kind": gauge.kind,
            "name": None if gauge.name is None else str(gauge.name),
            "id": gauge.id,
            "stats": _plain(gauge.stats),
        }
        for gauge in sorted(each_gauge(go_on), key=place)
    ]


def gauges() -> bytes:
    """What there is of the toolkit: ``{"gauges": [{"kind", "name", "id", "stats"}, …]}``."""
    go_on = _Slices().go_on
    found = _gauges(go_on)
    rows = []
    for gauge in found[:MOST]:
        go_on()
        rows.append(_json(gauge))
    return b'{"gauges":[' + b",".join(rows) + b'],"truncated":' + (b"true}" if len(found) > MOST else b"false}")


def samples() -> bytes:
    """Tasks, coroutine functions and gauges as Prometheus' text."""
    told = Exposition()
    go_on = _Slices().go_on
    for loop, looked in _of_loops(go_on):
        states = Counter(task.state for task in looked.tasks)
        add_tasks(told, number_of(loop), states, [function._asdict() for function in looked.coroutines])
    for gauge in _gauges(go_on)[:MOST]:
        go_on()
        add_gauge(told, gauge)
    return told.text()


def _json(document: dict[str, Any]) -> bytes:
    # In ASCII: a name may hold what UTF-8 cannot say.
    return json.dumps(document, separators=(",", ":")).encode()
