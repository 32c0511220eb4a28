"""What of tideloop stands in asyncio's place while CPython's tests run.

`loop`         the event loop, in every way to get a default one: all modules
`tasks`        the loop, and tideloop's Task and Future under every name of asyncio's C classes: what tests tasks
`stock`        the loop with stock tasks, `TIDELOOP_TASKS=stock`: the same modules
`accelerated`  the loop with `tideloop.accelerate()` called before the test modules are imported: the same, and more
`streams`      the loop, and its stream classes under asyncio's names, not only where they meet a transport
"""

from __future__ import annotations

import asyncio
import os
import warnings
from typing import Any

import tideloop
from tideloop import _tideloop
from tideloop.loop import streams

__all__ = ["MODES", "environment", "install", "missing", "modules"]

MODES = ("loop", "tasks", "stock", "accelerated", "streams")

TASK_MODULES = (
    "test_context",
    "test_eager_task_factory",
    "test_free_threading",
    "test_futures",
    "test_futures2",
    "test_graph",
    "test_locks",
    "test_pep492",
    "test_queues",
    "test_runners",
    "test_staggered",
    "test_taskgroups",
    "test_tasks",
    "test_threads",
    "test_timeouts",
    "test_waitfor",
)
"""What tests tasks, futures and what is built on them; some are not in every Python."""

STREAM_MODULES = ("test_streams", "test_server", "test_sslproto", "test_buffered_proto")
"""What tests streams, alone and on connections."""


class Loop(tideloop.EventLoop):
    """Takes a selector, as asyncio.SelectorEventLoop does, and uses its own."""

    def __new__(cls, selector: object = None) -> Loop:
        return super().__new__(cls)  # type: ignore[return-value]

    def __init__(self, selector: Any = None) -> None:
        super().__init__()
        if selector is not None:
            selector.close()


def missing(mode: str) -> str | None:
    """Why this build does not have a mode; None when it does."""
    if mode in ("tasks", "stock") and not hasattr(_tideloop, "Task"):
        return "this build has no native tasks"
    if mode == "accelerated" and not hasattr(tideloop, "accelerate"):
        return "this build has no tideloop.accelerate()"
    return None


def modules(mode: str, there: list[str]) -> list[str]:
    """Which of the test modules that this Python has are run in a mode."""
    if mode == "loop":
        return there
    wanted = STREAM_MODULES if mode == "streams" else TASK_MODULES
    return [name for name in there if name in wanted]


def environment(mode: str) -> dict[str, str]:
    """The environment of a process that runs tests in a mode."""
    tasks = {"TIDELOOP_TASKS": "stock"} if mode == "stock" else {}
    return os.environ | tasks


def install(mode: str) -> None:
    """Put tideloop in asyncio's place. Before the test modules are imported: they look classes up then."""
    install_loop()
    if mode == "tasks":
        install_tasks(_tideloop.Task, _tideloop.Future)  # type: ignore[attr-defined]
    elif mode == "accelerated":
        tideloop.accelerate()  # type: ignore[attr-defined]
    elif mode == "streams":
        install_streams()


def install_loop() -> None:
    """Make every way to a default loop lead to ours."""
    asyncio.SelectorEventLoop = Loop
    if hasattr(asyncio, "EventLoop"):
        asyncio.EventLoop = Loop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        policy = getattr(asyncio, "DefaultEventLoopPolicy", None)
        if policy is not None:
            policy._loop_factory = Loop


def install_tasks(task: Any, future: Any) -> None:
    """Make every name of asyncio's C classes mean these; the classes written in Python stay what they are."""
    tasks: Any = asyncio.tasks
    futures: Any = asyncio.futures
    asyncio.Task = tasks.Task = tasks._CTask = task  # type: ignore[misc]
    asyncio.Future = futures.Future = futures._CFuture = future  # type: ignore[misc]
    if hasattr(tasks, "create_eager_task_factory"):
        asyncio.eager_task_factory = tasks.eager_task_factory = tasks.create_eager_task_factory(task)  # type: ignore[attr-defined]


def install_streams() -> None:
    """Make every name of asyncio's stream classes mean the loop's."""
    for name in ("StreamReader", "StreamReaderProtocol", "StreamWriter"):
        setattr(asyncio, name, getattr(streams, name))
        setattr(asyncio.streams, name, getattr(streams, name))
