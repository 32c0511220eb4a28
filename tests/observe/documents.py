"""What a process tells of itself, as the paths of its server do; for tests of those who ask."""

import copy

from tideloop.observe.client import Snapshot

AT = 1_800_000_000.0
"""Seconds since the epoch, of the first snapshot."""


def histogram(count=1000, total=0.5, longest=0.02):
    return {"count": count, "total": total, "longest": longest, "p50": 2e-4, "p90": 8e-4, "p99": 4e-3, "p999": 0.01}


def metrics(**changed):
    document = {
        "steps": 10_000,
        "polls": 4_000,
        "spent": {"callbacks": 20.0, "internal": 5.0, "idle": 75.0},
        "utilization": {"second": 0.25, "ten_seconds": 0.3, "minute": 0.2},
        "ready": 3,
        "timers": 12,
        "descriptors": 7,
        "transports": 4,
        "executor_queue": 0,
        "step_seconds": histogram(),
        "ready_delay": histogram(),
        "timer_lateness": histogram(count=100, total=0.01),
    }
    return document | changed


def loop(number=1, name="MainThread", level=1, **changed):
    document = {"id": number, "name": name, "level": level, "running": True, "blocked_for": None}
    return document | {"metrics": metrics(), "slowest": []} | changed


def loops(*each, **changed):
    document = {
        "version": 1,
        "pid": 4711,
        "python": "3.14.1",
        "tideloop": "0.1.0",
        "uptime": 100.0,
        "program": "app.py",
    }
    return document | {"loops": list(each or [loop()])} | changed


def block(number=1, **changed):
    stack = [["/srv/app.py", 12, "fetch"], ["/srv/app.py", 40, "main"]]
    document = {"id": number, "at": AT - 10.0, "loop": 1, "duration": 0.25, "cause": "syscall", "ended": True}
    document |= {"task": "fetch 3", "what": "fetch", "file": "/srv/app.py", "line": 12, "stack": stack}
    document |= changed
    return document | {"stacks": changed.get("stacks", [document["stack"]])}


def blocks(*each):
    return {"blocks": list(each)}


def task(number, name=None, coroutine="handle", **changed):
    document = {
        "id": number,
        "name": name or f"Task-{number}",
        "coroutine": coroutine,
        "file": "/srv/app.py",
        "line": 30,
    }
    document |= {"state": "waiting", "steps": 5, "busy": 0.002, "scheduled": 0.001, "idle": 3.0, "longest": 0.001}
    document |= {"age": 3.0, "waiting_on": "Event", "waits_for": [], "parent": None, "spawned_at": ["/srv/app.py", 44]}
    return document | {"stack": [["/srv/app.py", 31, coroutine]]} | changed


def function(coroutine="handle", **changed):
    document = {"coroutine": coroutine, "file": "/srv/app.py", "line": 30, "live": 2, "created": 200, "ok": 195}
    return (
        document
        | {"failed": 2, "cancelled": 1, "steps": 40, "busy": 0.5, "scheduled": 0.1, "idle": 9.0, "longest": 0.01}
        | changed
    )


def tasks(*each, functions=(), unretrieved=(), number=1, truncated=False, **changed):
    told = {"id": number, "tasks": list(each), "functions": list(functions), "unretrieved": list(unretrieved)}
    told["truncated"] = truncated
    return {"age": 0.01, "loops": [told]} | changed


def gauge(kind, number=1, name="api", **stats):
    return {"kind": kind, "name": name, "id": number, "stats": stats}


def gauges(*each):
    return {"age": 0.01, "gauges": list(each)}


def snapshot(after=0.0, *, loops=None, blocks=None, tasks=None, gauges=None):
    """What was told `after` seconds."""
    own = globals()
    return Snapshot(
        AT + after,
        after,
        copy.deepcopy(loops or own["loops"]()),
        copy.deepcopy(blocks or own["blocks"]()),
        copy.deepcopy(tasks or own["tasks"]()),
        copy.deepcopy(gauges or own["gauges"]()),
    )
