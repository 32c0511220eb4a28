"""checkpoint(): a place in a computation where others may have their turn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Generator
from time import perf_counter
from typing import Any

__all__ = ["checkpoint"]


class _Nothing(tuple[()]):
    """Awaited, it is done: its __await__ makes an iterator that has ended, without a line of Python."""

    __slots__ = ()
    __await__ = tuple.__iter__


class _Turn:
    """Awaited, it lets the loop have a turn."""

    __slots__ = ("due",)

    def __await__(self) -> Generator[Any, None, None]:
        try:
            yield
        finally:
            # What the others have taken is not this computation's.
            self.due.since = perf_counter()

    def __init__(self, due: _Due) -> None:
        self.due = due


class _Due(threading.local):
    """When a thread's loop last had its turn, as far as checkpoints know."""

    since = 0.0


_due = _Due()
_nothing: Awaitable[None] = _Nothing()  # type: ignore[assignment]


def checkpoint(every: float = 0.001) -> Awaitable[None]:
    """``await tideloop.checkpoint()``: let others have their turn if the last one was `every` seconds ago.

    For loops that compute: it may stand in the innermost one, as it costs a tenth of a microsecond when it does not
    yield. The time is shared by all computations of a thread, so each goes on for `every` seconds at a time, and is that of
    the processor's clock, not loop.time(). When it yields it can be cancelled; 0 yields each time.
    """
    if perf_counter() - _due.since < every:
        return _nothing
    return _Turn(_due)
