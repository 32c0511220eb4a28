"""no_task_leaks: a test fails whose tasks outlive it."""

from __future__ import annotations

import asyncio
from typing import Any

from tideloop.testing.findings import TaskLeak
from tideloop.testing.steps import described, where

__all__ = ["end", "left_over"]

_TURNS = 5
"""Turns of the loop in which tasks that are ending may end: a cancelled one needs one, who awaits it another."""

_PATIENCE = 5.0
"""Seconds that a task may take to end after it was cancelled, before the next test begins all the same."""


async def left_over(before: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    """Tasks of the running loop that were not there before, and do not end by themselves in a few turns."""
    me = asyncio.current_task()
    for _ in range(_TURNS):
        left = [task for task in asyncio.all_tasks() if task not in before and task is not me]
        if not left:
            return []
        await asyncio.sleep(0)
    return sorted((task for task in left if not task.done()), key=lambda task: task.get_name())


async def end(tasks: list[asyncio.Task[Any]]) -> TaskLeak:
    """Cancels what was left, so that it does not reach into the next test; returns what is to be said of it."""
    lines = [f"{len(tasks)} task{'s' if len(tasks) > 1 else ''} left behind:"]
    for task in tasks:
        coroutine = task.get_coro()
        lines.append(f"  {task.get_name()!r}, {getattr(coroutine, '__qualname__', coroutine)}(), which waits at")
        lines.append(described(where(coroutine)) or "    (a place that is not Python)")
        task.cancel()
    _, stubborn = await asyncio.wait(tasks, timeout=_PATIENCE)
    lines += [f"  {task.get_name()!r} was cancelled and goes on" for task in stubborn]
    return TaskLeak("\n".join(lines))
