"""The loops that are observed, for those parts of observing that need the loops themselves. They are not kept alive."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tideloop._tideloop import _Pulse

__all__ = ["join", "leave", "loops"]

_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
# Of those that are not ours: what is known of them (native, and it knows no loop).
_pulses: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Pulse] = weakref.WeakKeyDictionary()


def join(loop: asyncio.AbstractEventLoop, pulse: _Pulse | None = None) -> None:
    """A loop that is observed is about to run; one that is not ours comes with its pulse."""
    if pulse is not None:
        _pulses[loop] = pulse
    _loops.add(loop)


def leave(loop: asyncio.AbstractEventLoop) -> None:
    """A loop that is not ours is observed no longer."""
    _loops.discard(loop)
    _pulses.pop(loop, None)


def pulse_of(loop: asyncio.AbstractEventLoop) -> _Pulse | None:
    """What is known of a loop that is not ours; None: it is."""
    return _pulses.get(loop)


def number_of(loop: asyncio.AbstractEventLoop) -> int:
    """What a loop is known by to who looks from outside; 0: it is none of those any more."""
    known: Any = _pulses.get(loop)
    number = getattr(loop, "_number", None) if known is None else known.number
    return 0 if number is None else number()


def name_of_thread() -> str:
    """The name of the calling thread; one may have any name, also one that is no text."""
    return threading.current_thread().name.encode(errors="replace").decode()


def serve_if_asked() -> None:
    """The first loop of the process is about to run: whoever looks from outside may, if the environment says so."""
    if "TIDELOOP_OBSERVE_SOCKET" in os.environ or "TIDELOOP_OBSERVE_WEB" in os.environ:
        from tideloop.observe import serving

        serving.serve_if_asked()


def loops() -> list[asyncio.AbstractEventLoop]:
    """Those that have run and are not closed. From any thread."""
    for _ in range(100):
        try:
            return [loop for loop in _loops if not loop.is_closed()]
        except RuntimeError:
            # Another thread has begun to run one meanwhile.
            continue
    return []
