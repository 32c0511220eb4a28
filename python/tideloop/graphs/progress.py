"""A bar for people who watch a run: on a terminal, on stderr."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from tideloop.graphs.run import GraphRun

__all__ = ["Bar"]

_EVERY = 0.1
"""Seconds between two looks."""


class Bar:
    """Shows how far a run is. Looks at its counts now and then, so that a node costs nothing more."""

    def __init__(self, run: GraphRun, stream: TextIO | None = None) -> None:
        self._run = run
        self._stream = sys.stderr if stream is None else stream
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Shows it from now on, if somebody can see it."""
        try:
            seen = self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return
        if seen:
            self._loop = loop
            self._look()

    def end(self) -> None:
        """Shows how it has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._write(self.line() + "\n")

    def line(self, columns: int | None = None) -> str:
        """What there is to see."""
        stats = self._run.stats()
        counts = f" {stats.done}/{stats.total}"
        counts += "".join(
            f", {count} {what}"
            for count, what in ((stats.running, "running"), (stats.failed, "failed"), (stats.skipped, "skipped"))
            if count
        )
        title = self._run._title
        columns = shutil.get_terminal_size().columns if columns is None else columns
        room = min(40, columns - len(title) - len(counts) - 4)
        if room < 4:
            return (title + counts)[: max(0, columns - 1)]
        full = room * stats.done // max(1, stats.total)
        return f"{title} [{'#' * full}{'.' * (room - full)}]{counts}"

    def _look(self) -> None:
        assert self._loop is not None
        self._write(self.line())
        self._timer = self._loop.call_later(_EVERY, self._look)

    def _write(self, text: str) -> None:
        # The rest of the line before is erased. A terminal that has gone is no reason for the run to fail.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()
