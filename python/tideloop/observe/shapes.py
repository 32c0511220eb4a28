"""What the documents of an observed process look like, for who asks it: nothing else gets past the client.

The process may run another tideloop, or be none at all: whoever is this user can make its socket. What the commands
take for granted is written down here, so that a document that is otherwise is one line for people and not a traceback.

A shape is ``str``, ``bool``, ``int``, ``float`` (any number), a list of one shape, a tuple of shapes (a list of so
many), or a dict of members, of which those whose names end in ``?`` may be absent or null: a list that is absent is
made an empty one.
"""

from __future__ import annotations

from typing import Any

__all__ = ["SHAPES", "amiss", "is_number"]

_HISTOGRAM = {"count": int, "total": float, "longest": float, "p50?": float, "p90?": float, "p99": float}
_STACK = [(str, int, str)]
_METRICS = {
    "steps": int,
    "polls": int,
    "spent": {"callbacks": float, "internal": float, "idle": float},
    "utilization": {"second": float, "ten_seconds": float, "minute": float},
    **dict.fromkeys(("ready", "timers", "descriptors", "transports", "executor_queue"), int),
    "ready_delay": _HISTOGRAM,
}
_LOOP = {
    "id": int,
    "name?": str,
    "level?": int,
    "running?": bool,
    "blocked_for?": float,
    "metrics?": _METRICS,
    "lag?": _HISTOGRAM,
}
_BLOCK = {
    "id": int,
    "at": float,
    "loop": int,
    "duration": float,
    "cause": str,
    "ended": bool,
    "task?": str,
    "what?": str,
    "file?": str,
    "line?": int,
    "captured?": float,
    "stack": _STACK,
    "stacks?": [_STACK],
}
_TASK = {
    "id": int,
    "name": str,
    "coroutine": str,
    "state": str,
    "file?": str,
    "line?": int,
    "steps?": int,
    **dict.fromkeys(("busy?", "scheduled?", "idle?", "longest?", "age?"), float),
    "waiting_on?": str,
    "waits_for?": [int],
    "parent?": int,
    "spawned_at?": (str, int),
    "stack?": _STACK,
}
_FUNCTION = {
    "coroutine": str,
    "live": int,
    "file?": str,
    "line?": int,
    **dict.fromkeys(("created?", "ok?", "failed?", "cancelled?", "steps?"), int),
    **dict.fromkeys(("busy?", "scheduled?", "idle?", "longest?"), float),
}
_UNRETRIEVED = {"task": str, "coroutine": str, "exception": str, "age?": float}
_COLLECTED = {"age?": float, "error?": str}
_PROCESS = {"pid": int, "python?": str, "tideloop?": str, "program?": str, "uptime?": float}

SHAPES: dict[str, dict[str, Any]] = {
    "/v1/loops": {"loops": [_LOOP], **_PROCESS},
    "/v1/blocks": {"blocks": [_BLOCK]},
    "/v1/tasks": {
        **_COLLECTED,
        "loops": [{"id": int, "tasks": [_TASK], "functions?": [_FUNCTION], "unretrieved?": [_UNRETRIEVED]}],
    },
    # Of stats each verdict takes what it knows.
    "/v1/gauges": {**_COLLECTED, "gauges": [{"kind": str, "id": int, "name?": str, "stats?": {}}]},
}
"""What each path is answered with. Members that are not named here are anything."""

_LARGEST = 2.0**64
"""Neither counters nor identities nor seconds are larger; a float has room for it."""


def amiss(value: Any, shape: Any, name: str) -> str | None:
    """What is wrong with a value that is called `name`; None: nothing."""
    match shape:
        case dict():
            return _members(value, shape, name) if isinstance(value, dict) else f"{name} is {value!r:.60}"
        case list():
            return _items(value, shape[0], name) if isinstance(value, list) else f"{name} is {value!r:.60}"
        case tuple():
            fits = isinstance(value, list) and len(value) == len(shape)
            wrong = not fits or any(amiss(each, inner, name) for each, inner in zip(value, shape, strict=True))
            return f"{name} has {value!r:.60}" if wrong else None
        case _ if shape in (int, float):
            return None if is_number(value, shape) else f"{name} is {value!r:.60}"
    return None if isinstance(value, shape) else f"{name} is {value!r:.60}"


def is_number(value: Any, kind: type[float] = float) -> bool:
    """Whether a value is a number that can be calculated with; neither truth nor infinity is."""
    return isinstance(value, int | kind) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


def _items(items: list[Any], shape: Any, name: str) -> str | None:
    for item in items:
        if isinstance(shape, dict) and not isinstance(item, dict):
            return f"{name} has {item!r:.60}"
        if (wrong := amiss(item, shape, name)) is not None:
            return wrong
    return None


def _members(value: dict[str, Any], shape: dict[str, Any], name: str) -> str | None:
    for member, inner in shape.items():
        key = member.removesuffix("?")
        found = value.get(key)
        if found is None and key != member:
            if isinstance(inner, list):
                value[key] = []
        elif key not in value:
            return f"{name} has one without {key!r}"
        elif (wrong := amiss(found, inner, key)) is not None:
            return wrong
    return None
