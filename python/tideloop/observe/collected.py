"""What of this process only Python knows, for the server's collector: each function returns JSON, or Prometheus' text.

They are called by a native thread that holds the GIL, at any moment, while the loops run in theirs: everything
is looked at and nothing changed, and what does not answer as expected is left out.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from types import CodeType, FrameType
from typing import Any

from tideloop.observed import loops

__all__ = ["gauges", "note_loops", "samples", "tasks"]

_MOST = 10_000
"""Tasks of one loop that are told of."""

leaving = False
"""The server is about to stop: what is being collected is given up, for the interpreter must not end meanwhile."""

_DEEPEST = 50
"""Frames of one task that are told of."""


def note_loops() -> bytes:
    """Have the loops say what of themselves it takes the GIL to know."""
    for loop in loops():
        queue = getattr(getattr(loop, "_default_executor", None), "_work_queue", None)
        publish = getattr(loop, "_publish", None)
        if publish is not None:
            publish(queue.qsize() if queue is not None else 0)
    return b"{}"


def tasks() -> bytes:
    """The tasks of all loops, at most 10,000 of each."""
    return b'{"loops":[' + b",".join(_told(_of_loop(loop)) for loop in loops()) + b"]}"


def _told(of_loop: dict[str, Any]) -> bytes:
    # Task by task: json.dumps() lets nobody else have the GIL until it has ended.
    rows = b",".join(map(_json, of_loop.pop("tasks")))
    return _json(of_loop)[:-1] + b',"tasks":[' + rows + b"]}"


def gauges() -> bytes:
    """The toolkit's limiters, queues, pools and the like."""
    return _json({"gauges": _gauges()})


def samples() -> bytes:
    """Tasks and gauges as Prometheus' text."""
    lines = ["# HELP tideloop_tasks Tasks that are not done.", "# TYPE tideloop_tasks gauge"]
    for one in map(_of_loop, loops()):
        states = Counter(task["state"] for task in one["tasks"])
        for state in ("running", "ready", "waiting"):
            lines.append(f'tideloop_tasks{{loop="{one["id"]}",state="{state}"}} {states[state]}')
    families: dict[str, list[str]] = {}
    for gauge in _gauges():
        labels = f'{{name={_label(gauge["name"] or "")},id="{gauge["id"]}"}}'
        for field, value in gauge["stats"].items():
            if isinstance(value, bool | int | float):
                name = f"tideloop_{gauge['kind']}_{field}"
                families.setdefault(name, []).append(f"{name}{labels} {float(value)}")
    for name in sorted(families):
        lines += [f"# TYPE {name} gauge", *families[name]]
    return "".join(line + "\n" for line in lines).encode()


def _gauges() -> list[dict[str, Any]]:
    return []


def _label(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    return f'"{escaped}"'


def _json(document: dict[str, Any]) -> bytes:
    # The server speaks UTF-8; a name may hold what that cannot say.
    return json.dumps(document, ensure_ascii=True, separators=(",", ":"), default=str).encode()


_FUNCTION = ("coroutine", "file", "line")


def _of_loop(loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    there = asyncio.all_tasks(loop)
    try:
        running = asyncio.current_task(loop)
    except RuntimeError:
        running = None
    rows = []
    for task in itertools.islice(there, _MOST):
        if leaving:
            raise InterruptedError("the server stops")
        try:
            rows.append(_of_task(task, running))
        except Exception:
            # It has gone on meanwhile, or is of a strange kind.
            continue
    rows.sort(key=lambda row: row["name"])
    return {
        "id": getattr(loop, "_number", lambda: 0)(),
        "tasks": rows,
        "functions": _functions(rows),
        "unretrieved": [],
        "truncated": len(there) > _MOST,
    }


def _functions(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The coroutine functions of these tasks, with how many each has."""
    counted = Counter(tuple(task[key] for key in _FUNCTION) for task in tasks)
    unknown = dict.fromkeys(("created", "ok", "failed", "cancelled", "busy", "scheduled", "longest"))
    return [
        {**dict(zip(_FUNCTION, function, strict=True)), "live": live, **unknown}
        for function, live in counted.most_common()
    ]


def _of_task(task: asyncio.Task[Any], running: asyncio.Task[Any] | None) -> dict[str, Any]:
    coroutine = task.get_coro()
    waits_on = getattr(task, "_fut_waiter", None)
    code = _code(coroutine)
    if task.done():
        state = "done"
    elif task is running:
        state = "running"
    else:
        state = "waiting" if waits_on is not None else "ready"
    stack, last = _stack(coroutine)
    return {
        "id": id(task),
        "name": task.get_name(),
        "coroutine": getattr(coroutine, "__qualname__", None) or type(coroutine).__qualname__,
        "file": code.co_filename if code is not None else "",
        "line": code.co_firstlineno if code is not None else 0,
        "state": state,
        "steps": None,
        "busy": None,
        "scheduled": None,
        "idle": None,
        "longest": None,
        "age": None,
        "waiting_on": _described(waits_on if waits_on is not None else last),
        "waits_for": _tasks_behind(waits_on),
        "parent": None,
        "spawned_at": None,
        "stack": stack,
    }


def _code(awaited: Any) -> CodeType | None:
    for name in ("cr_code", "gi_code", "ag_code"):
        code = getattr(awaited, name, None)
        if code is not None:
            return code  # type: ignore[no-any-return]
    return None


def _stack(coroutine: Any) -> tuple[list[tuple[str, int, str]], Any]:
    """The frames of a coroutine and of what it awaits, innermost first, and what is awaited at the end."""
    frames: list[tuple[str, int, str]] = []
    awaited = coroutine
    while awaited is not None and len(frames) < _DEEPEST:
        for prefix in ("cr", "gi", "ag"):
            frame: FrameType | None = getattr(awaited, f"{prefix}_frame", None)
            if frame is not None:
                name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
                frames.append((frame.f_code.co_filename, frame.f_lineno or 0, name))
                awaited = getattr(awaited, f"{prefix}_{'yieldfrom' if prefix == 'gi' else 'await'}", None)
                break
        else:
            return frames[::-1], awaited
    return frames[::-1], None


def _described(awaited: Any) -> str:
    """In a few words what a task waits for."""
    if awaited is None:
        return ""
    if isinstance(awaited, asyncio.Task):
        return f"task {awaited.get_name()}"
    name = type(awaited).__qualname__
    if isinstance(awaited, asyncio.Future):
        return "future" if name == "Future" else name
    return getattr(awaited, "__qualname__", None) or name


def _tasks_behind(waiter: Any) -> list[int]:
    """The tasks that a future stands for: itself, those that it gathers, or what it shields."""
    if isinstance(waiter, asyncio.Task):
        return [id(waiter)]
    children = getattr(waiter, "_children", None)
    if isinstance(children, list):
        return [id(child) for child in children if isinstance(child, asyncio.Task)]
    return []
