"""Queue, PriorityQueue and LifoQueue: asyncio's, with a native core and what asyncio's lack.

Beyond asyncio's they have ``shutdown`` on every Python, ``async for``, ``put_many`` and ``get_many``,
``stats()`` and a ``name``; and among equals a PriorityQueue is first in, first out, of which asyncio's makes no
promise.

Subclasses that override what asyncio's queue calls on itself (``_init``, ``_get``, ``_put``, ``full``,
…) get asyncio's implementation; so do instances whose class is made such later.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from tideloop import stock
from tideloop._tideloop import (
    QueueCore,
    function,
    queue_counts,
    queue_give_back,
    queue_put_some,
    queue_take_some,
)

if sys.version_info >= (3, 13):
    from asyncio import QueueShutDown

    shutdown = stock.Queue.shutdown
else:
    from tideloop.earlier_queues import QueueShutDown, shutdown

__all__ = ["LifoQueue", "PriorityQueue", "Queue", "QueueShutDown", "QueueStats"]

T = TypeVar("T")


class QueueStats(NamedTuple):
    """A queue at one moment."""

    name: str | None
    maxsize: int
    """How many items it holds at most; 0 or less for any number."""
    size: int
    """Items in it."""
    put: int
    """Items that were ever put."""
    getters: int
    """Tasks that wait in get()."""
    putters: int
    """Tasks that wait in put()."""
    unfinished: int
    """Items for which task_done() was not called."""
    shut_down: bool


def _check(most: int, within: float | None) -> None:
    if not isinstance(most, int) or most < 1:
        raise ValueError(f"get_many({most!r}): expected a number of items, 1 or more")
    if within is not None and not within >= 0:
        raise ValueError(f"get_many(within={within!r}): expected seconds, 0 or more, or None")


class _More(Generic[T]):
    """What tideloop's queues have beyond asyncio's."""

    name: str | None = None

    if TYPE_CHECKING:

        async def get(self) -> T: ...
        async def put(self, item: T) -> None: ...
        def shutdown(self, immediate: bool = False) -> None: ...
        def __anext__(self) -> Coroutine[Any, Any, T]: ...

    async def put_many(self, items: Iterable[T]) -> None:
        """Put all items in their order, waiting for room when there is none.

        Raises QueueShutDown once the queue is shut down. Cancelled or refused on the way, those before the one
        that had to wait are in the queue, and no other ones.
        """
        rest = list(items)
        at = 0
        native = _is_native(self)
        while True:
            if native:
                at = queue_put_some(self, rest, at)  # type: ignore[arg-type]
            if at == len(rest):
                return
            await self.put(rest[at])
            at += 1

    async def get_many(self, max: int, *, within: float | None = None) -> list[T]:
        """Take 1 to ``max`` items, waiting for the first one if need be.

        Without ``within``, takes what is there. With it, goes on taking items for so many seconds of the
        loop's time, from the first one on, or until there are ``max``. Each item counts for task_done().

        Raises QueueShutDown if the queue is empty and shut down. Cancelled, it has not taken anything: the
        items are back where they were, before all others of their kind.
        """
        _check(max, within)
        items: list[T] = []
        try:
            await self._take(items, max)
            if within and len(items) < max:
                try:
                    async with stock.timeout(within):
                        while len(items) < max:
                            await self._take(items, max)
                except (TimeoutError, QueueShutDown):
                    pass
        except BaseException:
            self._give_back(items)
            raise
        return items

    async def _take(self, items: list[T], most: int) -> None:
        """Take one item at least, and what else is there."""
        native = _is_native(self)
        if native:
            before = len(items)
            queue_take_some(self, items, most)  # type: ignore[arg-type]
            if len(items) > before:
                return
        items.append(await self.get())
        if native:
            queue_take_some(self, items, most)  # type: ignore[arg-type]
            return
        queue: Any = self
        while len(items) < most and not queue.empty():
            items.append(await queue.get())

    def _give_back(self, items: list[T]) -> None:
        if _is_native(self):
            queue_give_back(self, items)  # type: ignore[arg-type]
            return
        queue: Any = self
        for item in items:
            queue._put(item)
            queue._wakeup_next(queue._getters)

    def stats(self) -> QueueStats:
        """The state of the queue."""
        queue: Any = self
        put, getters, putters = queue_counts(queue)
        return QueueStats(
            self.name,
            queue.maxsize,
            queue.qsize(),
            put,
            getters,
            putters,
            queue._unfinished_tasks,
            queue._is_shutdown,
        )

    def __aiter__(self):  # type: ignore[no-untyped-def]
        """Take items until the queue is shut down and empty."""
        return self


async def _anext(self: Any) -> Any:
    """The next item, for ``async for``."""
    try:
        return await self.get()
    except QueueShutDown:
        raise StopAsyncIteration from None


if TYPE_CHECKING:

    def _is_native(queue: object) -> bool: ...

    class Queue(_More[T], asyncio.Queue[T]):
        def __init__(self, maxsize: int = 0, *, name: str | None = None) -> None: ...
        def __aiter__(self) -> Queue[T]: ...

    class PriorityQueue(Queue[T], asyncio.PriorityQueue[T]):  # type: ignore[type-var]
        """The least item first, among equals the one that came first."""

    class LifoQueue(Queue[T], asyncio.LifoQueue[T]):
        """The last item first."""
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

    def _overrides(cls, base, names=_HOOKS):
        return any(getattr(cls, name) is not getattr(base, name) for name in names)

    def _is_native(queue):
        """Whether many items may be moved without asking the queue's class for each."""
        cls = type(queue)
        return cls in _PLAIN or not _overrides(cls, _kind(cls), (*_HOOKS, "get", "put"))

    class Queue(QueueCore, _More, stock.Queue):
        __doc__ = stock.Queue.__doc__
        __module__ = "tideloop"
        _order = "fifo"

        def __init__(self, maxsize=0, *, name=None):
            if name is not None:
                self.name = name
            cls = type(self)
            if cls not in _PLAIN and _overrides(cls, _kind(cls)):
                self._divert()
                super().__init__(maxsize)
            else:
                self._begin(maxsize, self._order)

        __class_getitem__ = stock.Queue.__dict__["__class_getitem__"]

        get = function("Queue.get", stock.Queue.get)
        put = function("Queue.put", stock.Queue.put)
        join = function("Queue.join", stock.Queue.join)
        get_nowait = function("Queue.get_nowait", stock.Queue.get_nowait)
        put_nowait = function("Queue.put_nowait", stock.Queue.put_nowait)
        task_done = function("Queue.task_done", stock.Queue.task_done)
        qsize = function("Queue.qsize", stock.Queue.qsize)
        empty = function("Queue.empty", stock.Queue.empty)
        full = function("Queue.full", stock.Queue.full)
        shutdown = function("Queue.shutdown", shutdown)
        __anext__ = function("Queue.__anext__", _anext)

        def _format(self):
            items, getters, putters = self._contents()
            words = [f"maxsize={self._maxsize!r}"]
            if self.name is not None:
                words.append(f"name={self.name!r}")
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
