"""Queue, PriorityQueue and LifoQueue: asyncio's, with a native core.

Subclasses that override what asyncio's queue calls on itself (``_init``, ``_get``, ``_put``, ``full``,
…) get asyncio's implementation; so do instances whose class is made such later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tideloop import stock
from tideloop._tideloop import QueueCore, function

__all__ = ["LifoQueue", "PriorityQueue", "Queue"]

if TYPE_CHECKING:
    from asyncio import LifoQueue, PriorityQueue, Queue
else:
    # What asyncio's queue calls on itself, so that a subclass may override it.
    _HOOKS = (
        "_init",
        "_get",
        "_put",
        "_wakeup_next",
        "_get_loop",
        "full",
        "empty",
        "qsize",
        "get_nowait",
        "put_nowait",
    )

    def _overrides(cls, base):
        return any(getattr(cls, name) is not getattr(base, name) for name in _HOOKS)

    class Queue(QueueCore, stock.Queue):
        __doc__ = stock.Queue.__doc__
        __module__ = "tideloop"
        _order = "fifo"

        def __init__(self, maxsize=0):
            cls = type(self)
            if cls not in _PLAIN and _overrides(cls, _kind(cls)):
                self._divert()
                super().__init__(maxsize)
            else:
                self._begin(maxsize, self._order)

        get = function("Queue.get", stock.Queue.get)
        put = function("Queue.put", stock.Queue.put)
        join = function("Queue.join", stock.Queue.join)
        get_nowait = function("Queue.get_nowait", stock.Queue.get_nowait)
        put_nowait = function("Queue.put_nowait", stock.Queue.put_nowait)
        task_done = function("Queue.task_done", stock.Queue.task_done)
        qsize = function("Queue.qsize", stock.Queue.qsize)
        empty = function("Queue.empty", stock.Queue.empty)
        full = function("Queue.full", stock.Queue.full)
        if hasattr(stock.Queue, "shutdown"):
            shutdown = function("Queue.shutdown", stock.Queue.shutdown)

        def _format(self):
            items, getters, putters = self._contents()
            words = [f"maxsize={self._maxsize!r}"]
            if items:
                words.append(f"_queue={list(items)!r}")
            if getters:
                words.append(f"_getters[{getters}]")
            if putters:
                words.append(f"_putters[{putters}]")
            if self._unfinished_tasks:
                words.append(f"tasks={self._unfinished_tasks}")
            if self._is_shutdown:
                words.append("shutdown")
            return " ".join(words)

    class PriorityQueue(Queue, stock.PriorityQueue):
        __doc__ = stock.PriorityQueue.__doc__
        __module__ = "tideloop"
        _order = "priority"

    class LifoQueue(Queue, stock.LifoQueue):
        __doc__ = stock.LifoQueue.__doc__
        __module__ = "tideloop"
        _order = "lifo"

    _PLAIN = {Queue, PriorityQueue, LifoQueue}

    def _kind(cls):
        """Which of the three a subclass is made of."""
        return next(base for base in cls.__mro__ if base in _PLAIN)
