"""iter_in_thread(): the items of an iterator that blocks, to ``async for``.

A thread takes the items and puts them into a channel of bounded size, so it is ahead of the loop by as many items, and
no more; a batch of them costs one wake-up. It knows the channel, not the asynchronous iterator: when nobody has that
any more, the channel's receiving end is closed, the thread hears of it at its next item, closes the blocking iterator,
and is free.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

from tideloop.channels import Channel, ChannelClosed, Sender
from tideloop.limits import Limiter
from tideloop.offload import offload_limiter, submit
from tideloop.worker_threads import Job

__all__ = ["ThreadIterator", "ThreadIteratorStats", "iter_in_thread"]

_T = TypeVar("_T")

# Seconds after which a thread that waits for room looks whether its loop still exists.
_LOOK_EVERY = 1.0


class ThreadIteratorStats(NamedTuple):
    """A ThreadIterator in numbers."""

    name: str | None
    taken: int
    """Items that have been given out."""
    ahead: int
    """Items that wait to be."""
    running: bool
    """Whether it has a thread."""


class _Pump(Generic[_T]):
    """What the thread knows."""

    def __init__(
        self, source: Iterable[_T] | Callable[[], Iterable[_T]], sender: Sender[_T], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.source: Iterable[_T] | Callable[[], Iterable[_T]] | None = source
        self.sender = sender
        self.loop = loop
        self.error: BaseException | None = None

    def run(self) -> None:
        """Send the items, in a thread. What is raised is told before the channel ends."""
        try:
            source, self.source = self.source, None
            if not hasattr(type(source), "__iter__"):
                source = source()  # type: ignore[operator, misc]
            self._send_all(iter(source))  # type: ignore[arg-type]
        except BaseException as error:
            self.error = error
        finally:
            self.sender.close()

    def _send_all(self, items: Iterator[_T]) -> None:
        try:
            with contextlib.suppress(ChannelClosed):
                for item in items:
                    while not self._send(item):
                        pass
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def _send(self, item: _T) -> bool:
        try:
            self.sender.blocking_send(item, _LOOK_EVERY)
        except TimeoutError:
            if self.loop.is_closed():
                raise ChannelClosed("the loop of the receiver is closed") from None
            return False
        return True


class ThreadIterator(AsyncIterator[_T]):
    """What iter_in_thread() returns. ``async for`` it, and, to be sure of its end, ``async with`` it."""

    def __init__(
        self,
        source: Iterable[_T] | Callable[[], Iterable[_T]],
        buffer: int,
        limit: Limiter | None,
        name: str | None,
    ) -> None:
        if not hasattr(type(source), "__iter__") and not callable(source):
            raise TypeError(f"source must be an iterable, or a function that returns one, not {source!r}")
        if isinstance(buffer, bool) or not isinstance(buffer, int) or buffer < 1:
            raise ValueError(f"buffer must be a number of items of at least 1, not {buffer!r}")
        self.name = name
        self._source: Iterable[_T] | Callable[[], Iterable[_T]] | None = source
        self._limit = limit
        self._sender, self._receiver = Channel[_T](buffer, name=name)
        self._pump: _Pump[_T] | None = None
        self._job: Job | None = None
        self._taken = 0
        self._closed = False
        self._hold: Callable[[], contextlib.AbstractContextManager[None]] | None = None

    def __aiter__(self) -> ThreadIterator[_T]:
        return self

    async def __anext__(self) -> _T:
        if self._job is None:
            await self._start()
        try:
            if self._hold is None:
                item = await self._receiver.recv()
            else:
                # A loop of tideloop.testing: its clock stands while the thread works.
                with self._hold():
                    item = await self._receiver.recv()
        except ChannelClosed:
            await self._end()
            raise StopAsyncIteration from None
        self._taken += 1
        return item

    async def aclose(self) -> None:
        """Have the thread stop after the item that it is at, and wait until it has closed the iterator.

        Raises what closing it has raised. Cancelled, it waits all the same: nobody can stop the thread.
        """
        self._closed = True
        self._receiver.close()
        if self._job is None:
            self._source = None
            self._sender.close()
        else:
            await self._end()

    async def __aenter__(self) -> ThreadIterator[_T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def stats(self) -> ThreadIteratorStats:
        """How far it is."""
        ahead = 0 if self._closed else self._receiver.stats().size
        return ThreadIteratorStats(self.name, self._taken, ahead, self._job is not None and not self._job.done)

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        if self._closed:
            state = "closed"
        elif self._job is None:
            state = "not begun"
        else:
            state = "ended" if self._job.done else "running"
        return f"<tideloop.ThreadIterator{name} {state} taken={self._taken}>"

    async def _start(self) -> None:
        """Take a permit and begin. Cancelled, nothing has begun, and it may be tried again."""
        if self._closed:
            return
        limiter = offload_limiter() if self._limit is None else self._limit
        if not limiter.try_acquire():
            await limiter.acquire()
        if self._job is not None or self._closed:
            # Another task was there first.
            limiter.release()
            return
        assert self._source is not None
        loop = asyncio.get_running_loop()
        pump = self._pump = _Pump(self._source, self._sender, loop)
        job = Job(loop, limiter, pump.run, ())
        job.title = f"iter_in_thread({self.name or type(self._source).__name__})"
        try:
            submit(job)
        except BaseException:
            limiter.release()
            raise
        self._job, self._source = job, None
        self._hold = getattr(loop, "hold_clock", None)

    async def _end(self) -> None:
        """Wait for the thread, and raise what it has raised."""
        job, pump = self._job, self._pump
        if job is None or pump is None:
            return
        with contextlib.nullcontext() if self._hold is None else self._hold():
            await job.outlast()
        error, pump.error = pump.error, None
        if error is not None:
            raise error


def iter_in_thread(
    source: Iterable[_T] | Callable[[], Iterable[_T]],
    *,
    buffer: int = 16,
    limit: Limiter | None = None,
    name: str | None = None,
) -> ThreadIterator[_T]:
    """The items of an iterable that blocks, taken in a thread: ``async for line in iter_in_thread(open(path)): ...``.

    `source` is an iterable, or a function that returns one, which is then called in the thread as well. The thread is
    at most `buffer` items ahead, and another one that it holds. It has a permit of `limit` until it has ended, see
    run_blocking(). What the iterable raises is raised, after the items that were before it.

    Who stops early leaves an ``async with`` around it, or calls aclose(): that waits until the thread has let go of the
    iterator and closed it. If it is merely forgotten, the thread does the same at its next item, and nobody waits.
    Cancelling a step loses no item. Belongs to the loop that has taken the first item.
    """
    return ThreadIterator(source, buffer, limit, name)
