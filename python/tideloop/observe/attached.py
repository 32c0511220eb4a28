"""attach(): what can be observed of any asyncio loop, asyncio's own or uvloop's, without ours.

A timer of the loop beats. How late it comes is the loop's lag, and the watchdog (``crates/py/src/observe/watchdog.rs``)
looks at what runs when it does not come at all: the same stacks, causes and hooks as with a loop of tideloop's. What
such a loop does not tell is which step it was: a block may have begun before the beat was due, and its task is not
known.

Who looks from outside (the commands, the web page, Prometheus) is told of the loop as of ours, with what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from types import TracebackType
from typing import Any, NamedTuple

from tideloop import observed
from tideloop._tideloop import _Pulse
from tideloop.observe.metrics import Histogram, histogram_of
from tideloop.observe.tasks import TasksSeen, tasks_of
from tideloop.watchdog import tell, watch

__all__ = ["Attached", "AttachedMetrics", "attach"]

_NANO = 1e-9


class AttachedMetrics(NamedTuple):
    """What ``Attached.metrics()`` tells, counted since the loop was attached to."""

    lag: Histogram
    """How late its timers fire: how long what is ready waits. Many short steps count as well as a long one."""
    blocks: int
    """How often it was blocked for the threshold."""
    tasks: int
    """Tasks that are not done now."""
    running: bool
    blocked_for: float | None
    """So long it has been blocked now; None: it is not."""


class _Ends:
    """Goes with its thread, and with it the runs in it whose end nobody has told: it must not be signalled any more."""

    def __init__(self) -> None:
        self.begun: weakref.WeakSet[Attached] = weakref.WeakSet()

    def __del__(self, this_thread: Any = threading.get_ident) -> None:
        for attached in tuple(self.begun):
            if attached._thread == this_thread():
                attached._pause()


_here = threading.local()


class Attached:
    """What observes a loop; made by attach(). A context manager that detaches at its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interval: float) -> None:
        self._loop = loop
        self._interval = interval
        self._pulse = _Pulse(int(interval / _NANO))
        self._timer: asyncio.TimerHandle | None = None
        self._blocks = 0
        self._runs = False
        self._thread: int | None = None
        self._wrapped: dict[str, Any] = {}
        self._detached = False
        observed.join(loop, self._pulse)
        for name, wrapper in (("run_forever", self._run_forever), ("stop", self._stop), ("close", self._close)):
            # A loop without a __dict__ only has to be detached from by hand before it stops.
            with contextlib.suppress(AttributeError, TypeError):
                before = vars(loop).get(name)
                setattr(loop, name, wrapper)
                self._wrapped[name] = before

    # --- the loop's life -------------------------------------------------------------------------

    def _original(self, name: str) -> Any:
        before = self._wrapped.get(name)
        return getattr(type(self._loop), name).__get__(self._loop) if before is None else before

    def _run_forever(self) -> None:
        # A run in which it was attached may have ended by an exception, untold.
        self._pause()
        self._runs = True
        self._begin()
        try:
            self._original("run_forever")()
        finally:
            self._runs = False
            self._pause()

    def _stop(self) -> None:
        self._original("stop")()
        if not self._runs:
            # The end of a run in which it was attached is told by nothing else.
            self._pause()

    def _close(self) -> None:
        self._original("close")()
        self.detach()

    def _begin(self) -> None:
        if self._detached or self._timer is not None:
            return
        watch()
        self._thread = threading.get_ident()
        self._pulse.begin(observed.name_of_thread())
        if not hasattr(_here, "ends"):
            _here.ends = _Ends()
        _here.ends.begun.add(self)
        observed.serve_if_asked()
        self._timer = self._loop.call_later(self._interval, self._beat)

    def _pause(self) -> None:
        self._pulse.pause()
        self._thread = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        if self._detached:
            return
        ended = self._pulse.beat()
        self._timer = self._loop.call_later(self._interval, self._beat)
        if ended is None:
            return
        took, cause, stacks, captured = ended
        self._blocks += 1
        innermost = stacks[0][0] if stacks else ("", 0, "")
        tell(self._loop, took, cause, None, (innermost[2], innermost[0], innermost[1]), stacks, captured)

    # --- for the program ------------------------------------------------------------------------

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that is observed."""
        return self._loop

    def metrics(self) -> AttachedMetrics:
        """How the loop has fared since. From any thread."""
        blocked_for = self._pulse.blocked_for()
        return AttachedMetrics(
            lag=histogram_of(self._pulse.lag()),
            blocks=self._blocks,
            tasks=len(asyncio.all_tasks(self._loop)),
            running=self._loop.is_running(),
            blocked_for=None if blocked_for is None else blocked_for * _NANO,
        )

    def tasks(self) -> TasksSeen:
        """The tasks of the loop that are not done; what they did with their time is not known. From any thread."""
        return tasks_of(self._loop)

    def detach(self) -> None:
        """Leave the loop as it was. In the loop's thread, or while it does not run; twice does nothing more.

        Raises RuntimeError in another thread while the loop runs.
        """
        if self._detached:
            return
        if self._loop.is_running() and self._thread not in (None, threading.get_ident()):
            raise RuntimeError(f"{self!r}: detach in the loop's thread, as by call_soon_threadsafe()")
        self._detached = True
        self._pause()
        self._pulse.close()
        observed.leave(self._loop)
        for name, before in self._wrapped.items():
            with contextlib.suppress(AttributeError):
                if before is None:
                    delattr(self._loop, name)
                else:
                    setattr(self._loop, name, before)

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"<tideloop.observe.Attached {'detached from' if self._detached else 'to'} {self._loop!r}>"


def attach(loop: asyncio.AbstractEventLoop, *, interval: float = 0.02) -> Attached:
    """Observe a loop that is not tideloop's: its lag, its tasks, and who blocks it.

    Blocks are told of as those of tideloop's loops: to the log and to ``on_block()``. `interval` is the seconds between
    two beats, by which a block may be longer than it is said to be. Before the loop runs, or in its thread.

    Raises ValueError for a loop of tideloop's, which observes itself, and for an interval that is not between a
    millisecond and a minute; RuntimeError for a closed loop, one that is attached to already, or that runs in another
    thread.
    """
    if hasattr(loop, "_is_observed"):
        raise ValueError(f"{loop!r} observes itself: see its metrics() and tasks()")
    if not 0.001 <= interval <= 60:
        raise ValueError(f"interval is {interval!r}; expected seconds from 0.001 to 60")
    if loop.is_closed():
        raise RuntimeError(f"{loop!r} is closed")
    if observed.pulse_of(loop) is not None:
        raise RuntimeError(f"{loop!r} is attached to already")
    here = asyncio._get_running_loop()
    if loop.is_running() and here is not loop:
        raise RuntimeError(f"{loop!r} runs in another thread: attach there, as by call_soon_threadsafe()")
    attached = Attached(loop, interval)
    if here is loop:
        attached._begin()
    return attached
