"""Event loops whose clock stands still while anything runs.

When such a loop has nothing to do but to wait for a timer, it sets its clock to the timer's time and goes on:
``await asyncio.sleep(3600)`` takes no time, every deadline is met exactly, and a program without threads and
sockets does the same in every run. All of asyncio's time comes from ``loop.time()``, so sleeps, timeouts and
whatever else uses the loop's timers follow without an edit. ``time.time()`` and ``time.monotonic()`` do not.

What else a loop may wait for:

* **Work in threads** (``run_in_executor``, ``asyncio.to_thread``): the clock stands until it is done.
* **Sockets, pipes, other threads' call_soon_threadsafe**: what has arrived is delivered before the clock moves,
  but with a timer pending nobody waits for what has not. ``hold_clock()`` around such a part makes waits real ones.
* **Nothing, with no timer pending**: the loop waits for real, as any other one; a test of a program that
  may be stuck bounds it with a timeout, which on this clock costs nothing: ``asyncio.wait_for(main(), 1e6)``.

Two loops have such a clock: tideloop's own, whose native timers know of it, and asyncio's selector loop. uvloop
cannot: its timers are libuv's, which reads the system's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, overload

from tideloop.loop import EventLoop

__all__ = ["VirtualAsyncioLoop", "VirtualLoop", "new_virtual_loop"]

_T = TypeVar("_T")


class _VirtualTime(asyncio.SelectorEventLoop):
    """What both loops have in common."""

    def advance(self, seconds: float) -> None:
        """Move the clock on by so many seconds, as if whatever runs now had taken that long.

        Raises ValueError for less than none: a loop's clock never goes back.
        """
        if not seconds >= 0:
            raise ValueError(f"seconds is {seconds!r}; expected at least 0, a loop's clock never goes back")
        self._set_clock(self.time() + seconds)

    @contextlib.contextmanager
    def hold_clock(self) -> Iterator[None]:
        """While the block runs the clock stands still, and waits for sockets and threads are real ones."""
        self._hold_clock()
        try:
            yield
        finally:
            self._release_clock()

    def run_in_executor(self, executor: Any, func: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:  # type: ignore[override]
        """As asyncio's; the clock stands until the call is done, or nobody waits for it any more."""
        future = super().run_in_executor(executor, func, *args)
        self._hold_clock()
        future.add_done_callback(lambda _: self._release_clock())
        return future

    async def shutdown_default_executor(self, *args: Any, **options: Any) -> None:
        """As asyncio's; its timeout is for threads, which take real time, so the clock stands meanwhile."""
        with self.hold_clock():
            await super().shutdown_default_executor(*args, **options)

    def _set_clock(self, seconds: float) -> None:
        raise NotImplementedError

    def _hold_clock(self) -> None:
        raise NotImplementedError

    def _release_clock(self) -> None:
        raise NotImplementedError


class VirtualLoop(EventLoop, _VirtualTime):
    """tideloop's event loop on a virtual clock, which shows `start` seconds at first."""

    def __new__(cls, start: float = 0.0, **options: Any) -> VirtualLoop:
        loop: VirtualLoop = super().__new__(cls, **options)  # type: ignore[assignment]
        return loop

    def __init__(self, start: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self._set_clock(start)


class VirtualAsyncioLoop(_VirtualTime):
    """asyncio's selector loop on a virtual clock, which shows `start` seconds at first."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._holds = 0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Seconds on the virtual clock."""
        return self._now

    @property
    def _clock_resolution(self) -> float:
        """How early asyncio lets a timer fire: so that one whose time has come exactly does, and no other."""
        return math.ulp(self._now)

    @_clock_resolution.setter
    def _clock_resolution(self, seconds: float) -> None:
        """asyncio sets that of the system's clock."""

    def _set_clock(self, seconds: float) -> None:
        self._now = seconds

    def _hold_clock(self) -> None:
        self._holds += 1

    def _release_clock(self) -> None:
        self._holds -= 1

    def _pass_over(self) -> bool:
        """Set the clock to the time of the next timer; false if waits are to be real ones."""
        if self._holds or not self._scheduled:  # type: ignore[attr-defined]
            return False
        # The timer's own time: adding up waits would miss it by a rounding error.
        self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
        return True


class _JumpingSelector(selectors.DefaultSelector):
    """A selector that does not wait for timers."""

    def __init__(self, loop: VirtualAsyncioLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if found or (timeout is not None and (timeout <= 0 or self._loop._pass_over())):
            return found
        return super().select(None)


@overload
def new_virtual_loop(kind: Literal["tideloop"] = "tideloop", *, start: float = 0.0) -> VirtualLoop: ...
@overload
def new_virtual_loop(kind: Literal["asyncio"], *, start: float = 0.0) -> VirtualAsyncioLoop: ...
@overload
def new_virtual_loop(kind: str, *, start: float = 0.0) -> VirtualLoop | VirtualAsyncioLoop: ...
def new_virtual_loop(kind: str = "tideloop", *, start: float = 0.0) -> VirtualLoop | VirtualAsyncioLoop:
    """A new event loop on a virtual clock: tideloop's, or asyncio's selector loop.

    start: what its clock shows at first, in seconds. Raises ValueError for another kind.
    """
    if kind == "tideloop":
        return VirtualLoop(start)
    if kind == "asyncio":
        return VirtualAsyncioLoop(start)
    raise ValueError(f"kind is {kind!r}; expected 'tideloop' or 'asyncio'")
