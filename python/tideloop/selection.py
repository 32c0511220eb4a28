"""select(): one item from whichever of several channels and queues has one first."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from tideloop._tideloop import channel_leave, channel_stand, channel_take, queue_leave, queue_stand
from tideloop.channels import ChannelClosed, Receiver
from tideloop.deadlines import limit_wait
from tideloop.queues import Queue, QueueShutDown

__all__ = ["Selected", "select"]


class Selected(NamedTuple):
    """What select() took, and where from."""

    source: Any
    item: Any


async def select(*sources: Receiver[Any] | Queue[Any]) -> Selected:
    """Take one item from the first of the sources that has one, in their order; wait if none has.

    Exactly one item is taken: the others stay where they are, at the head. Cancelled, none is. Sources that
    are closed and empty are passed over.

    Raises ChannelClosed if all of them are, QueueShutDown if one of those is a queue; TypeError for a source
    that is neither a Receiver nor a tideloop.Queue, ValueError without any.
    """
    if not sources:
        raise ValueError("select() of nothing would wait for ever")
    for source in sources:
        if not isinstance(source, (Receiver, Queue)):
            raise TypeError(f"select({source!r}): expected a tideloop.Receiver or a tideloop.Queue")
    while True:
        open_sources = []
        for source in sources:
            try:
                return Selected(source, source.try_recv() if isinstance(source, Receiver) else source.get_nowait())
            except asyncio.QueueEmpty:
                open_sources.append(source)
            except QueueShutDown:
                pass
        if not open_sources:
            if all(isinstance(source, Receiver) for source in sources):
                raise ChannelClosed("every source of select() is closed")
            raise QueueShutDown("every source of select() is closed")
        taken = await _wait(open_sources)
        if taken is not None:
            return taken


async def _wait(sources: list[Any]) -> Selected | None:
    """Stand in every line until called in one; leave them all, with an item if one is there.

    A channel keeps an item for whoever it calls; a queue only calls, as asyncio's do.
    """
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    limit_wait(future, sources)
    seats: list[tuple[Any, int]] = []
    called = False
    try:
        for source in sources:
            seats.append((source, stand(source, future)))
        await future
        called = True
        while seats:
            source, ticket = seats.pop(0)
            if isinstance(source, Receiver):
                item = channel_take(source, ticket)
                if item:
                    return Selected(source, item[0])
            else:
                queue_leave(source, future, ticket, False)
                if not source.empty():
                    return Selected(source, source.get_nowait())
        return None
    finally:
        called = called or (future.done() and not future.cancelled() and future.exception() is None)
        for source, ticket in seats:
            if isinstance(source, Receiver):
                channel_leave(source, ticket)
            else:
                queue_leave(source, future, ticket, called)


def stand(source: Receiver[Any] | Queue[Any], future: asyncio.Future[None]) -> int:
    """Let a future stand in a source's line; returns its ticket."""
    return channel_stand(source, future) if isinstance(source, Receiver) else queue_stand(source, future)  # type: ignore[arg-type]
