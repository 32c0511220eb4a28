"""asyncio's own classes and functions, as they are before anything is put in their place.

The native ones derive from them and fall back on them, so they are kept here whatever
``tideloop.accelerate()`` does to asyncio's modules.
"""

from __future__ import annotations

from asyncio.locks import Barrier, BoundedSemaphore, Condition, Event, Lock, Semaphore
from asyncio.queues import LifoQueue, PriorityQueue, Queue
from asyncio.taskgroups import TaskGroup
from asyncio.tasks import create_task, gather, shield, sleep, wait, wait_for
from asyncio.timeouts import Timeout, timeout, timeout_at

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
