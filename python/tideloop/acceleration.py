"""accelerate(): native primitives in the place of asyncio's, until told otherwise.

What is replaced are names in asyncio's modules (``asyncio.sleep``, ``asyncio.queues.Queue``, and so on),
wherever they stand for asyncio's own object. So a program that says ``asyncio.Queue()`` gets the
native one; whoever did ``from asyncio import Queue`` before keeps the stock one, which works beside it.
A name that somebody else has replaced is left alone.
"""

from __future__ import annotations

import sys
import threading
from types import ModuleType, TracebackType
from typing import Any

from tideloop import accelerated, stock
from tideloop.loop import streams

__all__ = ["Acceleration", "accelerate", "decelerate"]

_lock = threading.Lock()
_active: list[Acceleration] = []
_replaced: list[tuple[ModuleType, str, Any, Any]] = []


class Acceleration:
    """One call of accelerate(), to be undone by ``undo()`` or at the end of a ``with`` block.

    asyncio stays accelerated until every such call is undone, in whatever order.
    """

    def undo(self) -> None:
        """Take this acceleration back. Doing so twice does nothing.

        What exists by then keeps what it is: a native queue stays a native queue.
        """
        with _lock:
            if self not in _active:
                return
            _active.remove(self)
            if not _active:
                _restore()

    @property
    def active(self) -> bool:
        """Whether this acceleration has not been undone."""
        return self in _active

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<tideloop.Acceleration {'active' if self.active else 'undone'}>"


def accelerate() -> Acceleration:
    """Put native primitives in the place of asyncio's, in this process; returns what undoes it.

    Replaces sleep, gather, wait, wait_for (not on Python 3.11), shield, create_task, TaskGroup, timeout and
    its class, Event, Lock, Condition, Semaphore, BoundedSemaphore, Barrier, Queue, PriorityQueue,
    LifoQueue, StreamWriter (so that ``asyncio.open_connection()`` returns a native one, as servers on tideloop's
    loop get it without this), and with them what asyncio builds on them. They behave as those of this Python
    version do, on any loop, and are fastest on tideloop's.

    Calling it again is allowed; each call is undone by itself.
    """
    acceleration = Acceleration()
    with _lock:
        if not _active:
            _replace()
        _active.append(acceleration)
    return acceleration


def decelerate() -> None:
    """Undo every acceleration that is active."""
    with _lock:
        _active.clear()
        _restore()


def _replace() -> None:
    natives = {id(getattr(stock, name)): getattr(accelerated, name) for name in accelerated.REPLACED}
    natives[id(streams.StockWriter)] = streams.StreamWriter
    # Everything is looked up before anything is replaced.
    found = [
        (module, name, value, natives[id(value)])
        for module in _asyncio_modules()
        for name, value in vars(module).items()
        if id(value) in natives
    ]
    for module, name, _, native in found:
        setattr(module, name, native)
    _replaced.extend(found)


def _restore() -> None:
    for module, name, value, native in reversed(_replaced):
        if getattr(module, name, None) is native:
            setattr(module, name, value)
    _replaced.clear()


def _asyncio_modules() -> list[ModuleType]:
    return [
        module
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and (name == "asyncio" or name.startswith("asyncio."))
    ]
