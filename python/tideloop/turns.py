"""Whose turn it is: the keys of a pool of which one more is wanted, by who has waited longest. Turns.

A heap of shelves by the arrival of who has waited longest there without that one is being made for him. It is kept
lazily, as what is in it changes with every waiter that comes, is served or gives up: a shelf's number may be too early,
which is seen when it is on top. It is never too late: whatever brings somebody back who came earlier says so by note().
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from tideloop.shelves import Shelf

__all__ = ["Turns"]

_T = TypeVar("_T")

_FEW = 64


class Turns(Generic[_T]):
    """Shelves that may have one more resource (`limit` says how many they may have), and somebody who waits for it."""

    def __init__(self, limit: Callable[[Shelf[_T]], int]) -> None:
        self._limit = limit
        self._heap: list[tuple[int, int, Shelf[_T]]] = []
        self._serials = itertools.count()
        # At how many those are swept out that need nothing any more.
        self._many = _FEW

    def note(self, shelf: Shelf[_T]) -> None:
        """Somebody may wait here for one more, who did not, or was not first, before."""
        if shelf.size < self._limit(shelf):
            first = shelf.unserved()
            if first is not None and (shelf.turn is None or first < shelf.turn):
                self._put(shelf, first)

    def next(self, promised: Mapping[Shelf[_T], int]) -> Shelf[_T] | None:
        """Whose turn it is, if so many more are as good as made for some."""
        while self._heap:
            turn, _, shelf = self._heap[0]
            if turn != shelf.turn:
                # It was noted again since, with who came earlier.
                heapq.heappop(self._heap)
                continue
            ahead = promised.get(shelf, 0)
            first = shelf.unserved(ahead) if shelf.size + ahead < self._limit(shelf) else None
            if first == turn:
                return shelf
            heapq.heappop(self._heap)
            shelf.turn = None
            if first is not None:
                self._put(shelf, first)
        return None

    def _put(self, shelf: Shelf[_T], turn: int) -> None:
        shelf.turn = turn
        heapq.heappush(self._heap, (turn, next(self._serials), shelf))
        if len(self._heap) > self._many:
            self._sweep()

    def _sweep(self) -> None:
        """Those who have given up leave it only when they are on top, which may be never."""
        kept = []
        for entry in self._heap:
            turn, _, shelf = entry
            if turn == shelf.turn:
                if shelf.size < self._limit(shelf) and shelf.unserved() is not None:
                    kept.append(entry)
                else:
                    shelf.turn = None
        heapq.heapify(kept)
        self._heap = kept
        self._many = max(2 * len(kept), _FEW)
