"""Pumps: tasks that iterate sources into one place of bounded size, and closing().

Each source has a task of its own, which alone iterates and closes it: generators may use time limits and cancel
scopes around their ``yield``. A pump stops before it pulls when the place is full.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sized
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

from tideloop.cancellation import outlast

__all__ = ["Pumps", "cancel_and_wait", "check_loop", "close", "closing"]

_T = TypeVar("_T")


class _Mark:
    pass


@contextlib.asynccontextmanager
async def closing(iterator: object) -> AsyncIterator[None]:
    """Closes an iterator on the way out, if it is one that can be."""
    try:
        yield
    finally:
        await close(iterator)


async def close(iterator: object) -> None:
    """Closes a generator or a stream. Other iterators may be somebody's file, which is theirs to close."""
    if hasattr(iterator, "aclose"):
        await iterator.aclose()
    elif isinstance(iterator, Generator):
        iterator.close()


def check_loop(name: str, loop: asyncio.AbstractEventLoop | None) -> None:
    """RuntimeError on another loop than the one that a stream belongs to: its tasks would be waited for in vain."""
    if loop is not None and loop is not asyncio.get_running_loop():
        raise RuntimeError(f"tideloop.{name}(): the stream belongs to the event loop on which it was begun")


async def cancel_and_wait(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancels tasks and waits for them, also when it is cancelled itself, which it raises in the end.

    What is being cancelled already is not cancelled again: that would interrupt its clean-up.
    """
    for task in tasks:
        if not task.cancelling():
            task.cancel()
    interrupted = await outlast(tasks)
    try:
        if interrupted is not None:
            raise interrupted
    finally:
        interrupted = None


class Pumps(Generic[_T]):
    """``async with Pumps(room, name) as pumps``: add sources, take their items, leave to cancel and close all."""

    END: Final[Any] = _Mark()
    LATE: Final[Any] = _Mark()

    def __init__(self, room: int, name: str) -> None:
        self._room = room
        self._name = name
        self._items: deque[_T] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: BaseException | None = None
        self._consumer: asyncio.Future[None] | None = None
        self._blocked: deque[asyncio.Future[None]] = deque()
        self._ending = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._promised = 0
        """Places that pumps have taken for the item that they are pulling."""

    async def __aenter__(self) -> Pumps[_T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._tasks:
            check_loop(self._name, self._loop)
        self._ending = True
        await cancel_and_wait(self._tasks.copy())

    def add(self, source: AsyncGenerator[_T, None]) -> None:
        """Begins to pump a source, which is closed at its end."""
        self._loop = asyncio.get_running_loop()
        task = self._loop.create_task(self._pump(source), name=f"tideloop.{self._name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    @property
    def ready(self) -> Sized:
        """What was pulled and not yet taken."""
        return self._items

    async def take(self, deadline: float | None = None) -> Any:
        """The next item; END when all sources have ended, LATE at the deadline. Raises what a source raised."""
        while not self._items:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                try:
                    raise failure
                finally:
                    del failure
            if not self._tasks:
                return self.END
            check_loop(self._name, self._loop)
            loop = asyncio.get_running_loop()
            timer = None
            self._consumer = loop.create_future()
            if deadline is not None:
                if deadline <= loop.time():
                    return self.LATE
                timer = loop.call_at(deadline, self._wake)
            try:
                await self._consumer
            finally:
                self._consumer = None
                if timer is not None:
                    timer.cancel()
        item = self._items.popleft()
        self._unblock()
        return item

    async def _pump(self, source: AsyncGenerator[_T, None]) -> None:
        async with contextlib.aclosing(source):
            while not self._ending:
                while len(self._items) + self._promised >= self._room:
                    await self._wait_for_room()
                self._promised += 1
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    return
                finally:
                    self._promised -= 1
                    if len(self._items) + self._promised < self._room:
                        self._unblock()
                self._items.append(item)
                self._wake()

    async def _wait_for_room(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._blocked.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # woken and cancelled: the place is another's
                self._unblock()
            raise

    def _unblock(self) -> None:
        while self._blocked:
            waiter = self._blocked.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _wake(self) -> None:
        if self._consumer is not None and not self._consumer.done():
            self._consumer.set_result(None)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error: BaseException | None
        if task.cancelled():
            error = asyncio.CancelledError(f"a source of tideloop.{self._name}() was cancelled")
        else:
            error = task.exception()
        if error is not None and self._failure is None and not self._ending:
            self._failure = error
            self._ending = True
            for other in self._tasks:
                other.cancel()
        self._wake()
