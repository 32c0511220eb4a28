"""The native primitives under asyncio's names, for those who import instead of patching.

Each is a drop-in for asyncio's of the same name: same signature, same behaviour in each Python version,
same errors, on any asyncio loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tideloop import stock
from tideloop._tideloop import function
from tideloop.queues import LifoQueue, PriorityQueue, Queue
from tideloop.sync import Barrier, BoundedSemaphore, Condition, Event, Lock, Semaphore
from tideloop.timeouts import Timeout, timeout, timeout_at
from tideloop.waits import TaskGroup, shield, wait, wait_for

if TYPE_CHECKING:
    from asyncio import create_task, gather, sleep
else:
    sleep = function("sleep", stock.sleep)
    create_task = function("create_task", stock.create_task)
    gather = function("gather", stock.gather)

__all__ = [
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "LifoQueue",
    "Lock",
    "PriorityQueue",
    "Queue",
    "Semaphore",
    "TaskGroup",
    "Timeout",
    "create_task",
    "gather",
    "shield",
    "sleep",
    "timeout",
    "timeout_at",
    "wait",
    "wait_for",
]

# What accelerate() puts in asyncio's place. The rest is asyncio's code, which finds these there.
REPLACED = [name for name in __all__ if globals()[name] is not getattr(stock, name)]
NAMES = __all__
