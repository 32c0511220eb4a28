"""The line that says how far a run is: rewritten in place on a terminal, one plain line for each block elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from time import monotonic
from typing import TextIO


class Progress:
    def __init__(self, out: TextIO, total: int, clock: Callable[[], float] = monotonic) -> None:
        self._out = out
        self._total = total
        self._clock = clock
        self._start = clock()
        self._done = 0
        self._in_place = out.isatty()
        self._block = 0

    def note(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        print(text, file=self._out, flush=True)

    def starting(self, rep: int, what: str) -> None:
        if self._in_place:
            width = shutil.get_terminal_size().columns - 1
            line = f"[{self._done + 1}/{self._total}] {what}, run {rep}{self._left()}"
            self._out.write("\r" + line[:width].ljust(width))
            self._out.flush()
        elif rep != self._block:
            self._block = rep
            self.note(f"lab: run {rep} of each cell, {self._done} of {self._total} done{self._left()}")

    def finished(self) -> None:
        self._done += 1

    def end(self) -> None:
        self._clear()
        seconds = self._clock() - self._start
        print(f"lab: {self._done} of {self._total} runs in {seconds:.0f} s", file=self._out, flush=True)

    def _left(self) -> str:
        # The first few runs say little about the rest.
        if self._done < 5:
            return ""
        each = (self._clock() - self._start) / self._done
        return f", about {each * (self._total - self._done):.0f} s left"

    def _clear(self) -> None:
        if self._in_place:
            width = shutil.get_terminal_size().columns - 1
            self._out.write("\r" + " " * width + "\r")
