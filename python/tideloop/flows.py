"""What the streams but amap()'s run on: an asynchronous generator that belongs to one loop and is counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Sized
from typing import Any, Generic, TypeVar

from tideloop.mapping import StreamStats
from tideloop.pumps import check_loop, close

__all__ = ["Counts", "Flow"]

_T = TypeVar("_T")


class Counts:
    """How far a flow is, in items of its sources; its generators write it."""

    __slots__ = ("given", "pulled", "ready")

    def __init__(self) -> None:
        self.pulled = 0
        self.given = 0
        self.ready: Sized = ()
        """What its pumps have laid out."""


class Flow(Generic[_T]):
    """An async iterator over a generator. Belongs to the loop on which the first item is asked for."""

    __slots__ = ("_counts", "_generator", "_loop", "_name", "_sources")

    def __init__(self, generator: AsyncGenerator[_T, None], counts: Counts, name: str, *sources: object) -> None:
        self._generator = generator
        self._counts = counts
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sources = sources
        """Closed here if the generator has not begun: it has not seen them then."""

    def __anext__(self) -> Awaitable[_T]:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # made for run_until_complete(), and begun by it
            return self._generator.__anext__()
        if self._loop is not loop:
            check_loop(self._name, self._loop)
            self._loop = loop
        return self._generator.__anext__()

    async def aclose(self) -> None:
        generator: Any = self._generator
        if generator.ag_frame is not None:  # else it has ended
            check_loop(self._name, self._loop)
        await self._generator.aclose()
        sources, self._sources = self._sources, ()
        if self._loop is None:
            async with contextlib.AsyncExitStack() as stack:
                for source in sources:
                    if isinstance(source, AsyncIterator | Iterator):
                        stack.push_async_callback(close, source)

    def stats(self) -> StreamStats:
        counts, ready = self._counts, len(self._counts.ready)
        return StreamStats(counts.pulled, counts.pulled - counts.given - ready, ready, 0)
