"""What a primitive keeps for each event loop that uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["PerLoop"]

_T = TypeVar("_T")


class PerLoop(Generic[_T]):
    """One thing for each running loop, made when the loop first asks for it.

    What a closed loop has left behind goes when another loop comes; so at most one dead loop's things are kept.
    """

    __slots__ = ("_last", "_make", "_things")

    def __init__(self, make: Callable[[asyncio.AbstractEventLoop], _T]) -> None:
        self._make = make
        self._things: dict[asyncio.AbstractEventLoop, _T] = {}
        # Replaced as a whole: another thread sees this pair or that one.
        self._last: tuple[asyncio.AbstractEventLoop | None, _T | None] = (None, None)

    def here(self) -> _T:
        """That of the running loop. RuntimeError without one."""
        loop = asyncio.get_running_loop()
        last, thing = self._last
        if last is loop:
            return thing  # type: ignore[return-value]
        found = self._things.get(loop)
        if found is None:
            for other in list(self._things):
                if other.is_closed():
                    self._things.pop(other, None)
            found = self._things.setdefault(loop, self._make(loop))
        self._last = (loop, found)
        return found

    def all(self) -> list[_T]:
        """Those of all loops."""
        return list(self._things.values())
