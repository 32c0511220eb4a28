"""QueueShutDown and the shutting down of queues, for Python before 3.13, whose asyncio has neither.

Native methods know of it in every version. What is here is for the queues that asyncio's own methods serve: those
of subclasses that override what a queue calls on itself (``_put``, ``full``, …). asyncio's methods know of no
shutdown, but they go through the two lines of waiters and through ``put_nowait`` and ``get_nowait``, so these
refuse from then on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

__all__ = ["QueueShutDown", "shutdown"]


class QueueShutDown(Exception):
    """The queue was shut down: nothing can be put, or there is nothing left to get."""


class _NoLine(deque[Any]):
    """Where nobody can wait."""

    def append(self, waiter: Any) -> None:
        raise QueueShutDown


def _shutdown(self, immediate=False):  # type: ignore[no-untyped-def]
    """Shut the queue down: put() raises QueueShutDown, and get() does once the queue is empty.

    ``immediate``: it is emptied now, and what was in it counts as done for join(). Everybody who waits
    in put() or get() is woken.
    """
    cls = type(self)

    def put_nowait(item: Any) -> None:
        raise QueueShutDown

    def get_nowait() -> Any:
        if self.empty():
            raise QueueShutDown
        return cls.get_nowait(self)

    waiting: list[asyncio.Future[None]] = [*self._getters, *self._putters]
    self._is_shutdown = True
    self._getters, self._putters = _NoLine(), _NoLine()
    self.put_nowait, self.get_nowait = put_nowait, get_nowait
    if immediate:
        while not self.empty():
            self._get()
            if self._unfinished_tasks > 0:
                self._unfinished_tasks -= 1
        if self._unfinished_tasks == 0:
            self._finished.set()
    for place in waiting:
        if not place.done():
            place.set_exception(QueueShutDown())
            # Seen, also if whoever waits is cancelled before it runs.
            place.exception()


_shutdown.__name__ = "shutdown"
_shutdown.__qualname__ = "Queue.shutdown"
shutdown = _shutdown
