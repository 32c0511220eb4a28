"""Native tasks, and how asyncio finds them.

Since Python 3.14 asyncio lists the tasks of a thread through the tasks themselves, ours too. Before, it
keeps them in a WeakSet, which costs more than a task; there each loop lists its own, and the set that
``asyncio.all_tasks`` reads is replaced by one that includes them, so that it does not matter whether
``all_tasks`` was imported before tideloop was.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Iterator
from typing import Any

from tideloop import _tideloop
from tideloop.loop.bases import LoopBase

__all__ = ["Task", "is_stock", "list_tasks_of"]

# asyncio's own where this Python's tasks are laid out otherwise than expected.
Task: type[asyncio.Task[Any]] = getattr(_tideloop, "Task", asyncio.Task)

_STOCK = asyncio.tasks.Task
# The name of asyncio's set, where it has one.
_SET = "_all_tasks" if sys.version_info < (3, 12) else "_scheduled_tasks"

_loops: weakref.WeakSet[LoopBase] = weakref.WeakSet()


def is_stock(task_class: object) -> bool:
    """Whether this is what asyncio.Task was when tideloop was imported, not what somebody put there."""
    return task_class is _STOCK


if sys.version_info >= (3, 14):

    def list_tasks_of(loop: LoopBase) -> None:
        """Nothing: asyncio lists them."""

else:

    class _AllTasks(weakref.WeakSet[Any]):
        """asyncio's set of tasks, and the tasks of our loops."""

        def __init__(self, stock: weakref.WeakSet[Any]) -> None:
            # One content, two objects: asyncio's C code goes on filling the original.
            self.__dict__ = stock.__dict__

        def __iter__(self) -> Iterator[Any]:
            yield from super().__iter__()
            for loop in list(_loops):
                yield from loop._native_tasks()

        def __contains__(self, item: object) -> bool:
            return super().__contains__(item) or any(task is item for task in self)

        def __len__(self) -> int:
            return sum(1 for _ in self)

    def list_tasks_of(loop: LoopBase) -> None:
        """Makes a loop's tasks visible to asyncio.all_tasks()."""
        _loops.add(loop)
        stock = getattr(asyncio.tasks, _SET)
        if not isinstance(stock, _AllTasks):
            setattr(asyncio.tasks, _SET, _AllTasks(stock))


