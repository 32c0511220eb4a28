"""How much of a stream is kept: Capture."""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

__all__ = ["Capture", "Kept", "checked_capture"]

# Pieces are kept in blocks of so many bytes: what a pipe takes at once on Linux.
_BLOCK = 65_536


class Capture(NamedTuple):
    """How much of each output stream is kept, and which end of it."""

    limit: int = 8 << 20
    """Bytes, per stream."""
    keep: Literal["head", "tail"] = "tail"
    """What came first, or what came last."""


class Kept:
    """A bounded piece of a stream, made of blocks so that a byte at a time costs no object each."""

    __slots__ = ("blocks", "dropped", "head", "limit", "size")

    def __init__(self, capture: Capture) -> None:
        self.limit = capture.limit
        self.head = capture.keep == "head"
        self.blocks: deque[bytearray] = deque()
        self.size = 0
        self.dropped = 0

    def add(self, data: bytes) -> None:
        if self.head:
            fitting = data[: self.limit - self.size]
            self.dropped += len(data) - len(fitting)
            data = fitting
        if not data:
            return
        if self.blocks and len(self.blocks[-1]) + len(data) <= _BLOCK:
            self.blocks[-1] += data
        else:
            self.blocks.append(bytearray(data))
        self.size += len(data)
        while self.size - len(self.blocks[0]) >= self.limit:
            gone = len(self.blocks.popleft())
            self.size -= gone
            self.dropped += gone
            if not self.blocks:
                return

    def bytes(self) -> tuple[bytes, int]:
        """What is kept, and how many bytes are not."""
        if not self.size:
            return b"", self.dropped
        over = max(self.size - self.limit, 0)
        return b"".join(self.blocks)[over:], self.dropped + over


def checked_capture(capture: Capture | int | None) -> Capture | None:
    """What was asked for, as a Capture. ValueError if it is none."""
    if capture is None:
        return None
    if isinstance(capture, int) and not isinstance(capture, bool):
        capture = Capture(capture)
    if not isinstance(capture, Capture) or not isinstance(capture.limit, int) or capture.limit < 0:
        raise ValueError(f"capture must be a Capture, a number of bytes or None, not {capture!r}")
    if capture.keep not in ("head", "tail"):
        raise ValueError(f"a capture must keep 'head' or 'tail', not {capture.keep!r}")
    return capture
