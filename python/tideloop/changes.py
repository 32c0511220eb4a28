"""Waiting for something to change: Changes. What background work, pools, processes and shutdowns wait with."""

from __future__ import annotations

import asyncio
import math

from tideloop.deadlines import limit_wait

__all__ = ["Changes"]


class Changes:
    """Those who wait until they are told that something has changed, and look again then. Belongs to one loop."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def tell(self) -> None:
        """Wake all who wait."""
        for waiter in self._waiters:
            _wake(waiter)

    async def wait(self, until: float = math.inf, *, limited: object = None) -> None:
        """Wait to be told, or until a time of the loop. Cancelled, nothing is left.

        With `limited`, which is what errors say is waited for, a task that has inherited a deadline gets
        DeadlineExceeded at it.
        """
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters.add(waiter)
        timer = None if until == math.inf else loop.call_at(until, _wake, waiter)
        if limited is not None:
            limit_wait(waiter, limited)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
