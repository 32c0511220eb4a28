"""VirtualClock: what a test that asks for the fixture `virtual_clock` gets."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager

from tideloop.testing.virtual_time import VirtualAsyncioLoop, VirtualLoop

__all__ = ["VirtualClock"]


class VirtualClock:
    """The clock of the virtual loop that the test runs on. It knows that loop only while the test runs."""

    def time(self) -> float:
        """Seconds on the clock; 0.0 when the test begins, unless the marker says another `start`."""
        return _running().time()

    def advance(self, seconds: float) -> None:
        """Move the clock on, as if what runs now had taken that long. ValueError for less than 0 seconds."""
        _running().advance(seconds)

    def hold(self) -> AbstractContextManager[None]:
        """``with virtual_clock.hold():`` while it lasts the clock stands, and waits for sockets are real ones."""
        return _running().hold_clock()

    def __repr__(self) -> str:
        loop = asyncio._get_running_loop()
        shows = f"{loop.time():g} s" if loop is not None and is_virtual(loop) else "not running"
        return f"<tideloop.testing.VirtualClock {shows}>"


def is_virtual(loop: object) -> bool:
    """Whether a loop is on a virtual clock."""
    return isinstance(loop, VirtualLoop | VirtualAsyncioLoop)


def _running() -> VirtualLoop | VirtualAsyncioLoop:
    loop = asyncio._get_running_loop()
    if loop is None:
        raise RuntimeError("virtual_clock is asked outside of a running loop; it is the clock of an async test")
    if not isinstance(loop, VirtualLoop | VirtualAsyncioLoop):
        raise RuntimeError(f"virtual_clock is asked on {loop!r}, which has no virtual clock")
    return loop
