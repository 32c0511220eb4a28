"""Hosts for a guest: a bare queue of calls, and stock asyncio."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable

from tideloop import Guest


class QueueHost:
    """Calls what it is asked to, one after another, until told to stop; counts its own calls between."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._stopped = False
        self.called = 0

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        self._calls.put(callback)

    def run(self) -> None:
        self._stopped = False
        while not self._stopped:
            self.run_one()

    def run_one(self) -> None:
        self._calls.get()()
        self.called += 1

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        while not self._calls.empty():
            left = self._calls.get()
            assert getattr(left, "__func__", None) is not Guest.step, "a guest that has ended asks for nothing"


class AsyncioHost:
    """A stock asyncio loop."""

    def __init__(self) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self.call_soon_threadsafe = self.loop.call_soon_threadsafe
        self.run = self.loop.run_forever
        self.stop = self.loop.stop
        self.close = self.loop.close
