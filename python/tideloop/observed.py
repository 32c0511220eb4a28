"""The loops that are observed, for those parts of observing that need the loops themselves. They are not kept alive."""

from __future__ import annotations

import asyncio
import weakref

__all__ = ["join", "leave", "loops"]

_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


def join(loop: asyncio.AbstractEventLoop) -> None:
    """A loop that is observed is about to run."""
    _loops.add(loop)


def leave(loop: asyncio.AbstractEventLoop) -> None:
    """A loop is observed no longer."""
    _loops.discard(loop)


def loops() -> list[asyncio.AbstractEventLoop]:
    """Those that have run and are not closed. From any thread."""
    for _ in range(100):
        try:
            return [loop for loop in _loops if not loop.is_closed()]
        except RuntimeError:
            # Another thread has begun to run one meanwhile.
            continue
    return []
