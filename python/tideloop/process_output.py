"""What a child writes: Output, the reader of its lines, and how lines are cut.

A child blocks as soon as nobody reads what it writes, so all of it is read at once, and then kept as far as a capture
goes, told to a function, laid ready for `lines()` as far as that may go, or dropped.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Literal, cast

from tideloop.captures import Capture, Kept
from tideloop.changes import Changes

__all__ = ["NAMES", "Lines", "Output", "StreamName", "longest_line"]

StreamName = Literal["stdout", "stderr"]

NAMES: dict[int, StreamName] = {1: "stdout", 2: "stderr"}

# Bytes that lie unread for lines() before the child has to wait, and how few there are when it may go on.
_HIGH, _LOW = 262_144, 65_536


class Output:
    """Both streams of a child. Tells `changes` of whatever may let somebody go on besides the reader."""

    def __init__(self, capture: Capture | None, changes: Changes) -> None:
        self.kept: dict[StreamName, Kept] | None = None
        if capture is not None:
            self.kept = {"stdout": Kept(capture), "stderr": Kept(capture)}
        self.received = 0
        self.unread = 0
        self.paused = False
        self.dropping = False
        self.over = False
        self.failure: BaseException | None = None
        self.transport: asyncio.SubprocessTransport | None = None
        self._on_line: Callable[[StreamName, bytes], object] | None = None
        self._longest = 1
        self._splitters: dict[StreamName, _Splitter] = {}
        self._blocks: deque[tuple[StreamName, bytes]] = deque()
        self._lines: deque[tuple[StreamName, bytes]] = deque()
        self._reader: weakref.ref[Lines] | None = None
        self._changes = changes
        self._more = Changes()

    # --- from the child ---------------------------------------------------------------------

    def receive(self, fd: int, data: bytes) -> None:
        name = NAMES[fd]
        self.received += len(data)
        if self.kept is not None:
            self.kept[name].add(data)
        if self._on_line is not None:
            self._tell(self._on_line, name, data)
        elif not self.dropping:
            self._blocks.append((name, data))
            self.unread += len(data)
            if self.unread > _HIGH:
                if self.kept is not None and self.reader is None:
                    self.drop()
                else:
                    self._pause()
        self._more.tell()

    def end(self) -> None:
        """Nothing comes any more."""
        self.over = True
        self._more.tell()

    def pipes(self) -> list[asyncio.ReadTransport]:
        assert self.transport is not None
        pipes = (self.transport.get_pipe_transport(fd) for fd in NAMES)
        return [cast("asyncio.ReadTransport", pipe) for pipe in pipes if pipe is not None]

    def _pause(self) -> None:
        if not self.paused:
            self.paused = True
            for pipe in self.pipes():
                pipe.pause_reading()
            self._changes.tell()

    def _resume(self) -> None:
        self.paused = False
        for pipe in self.pipes():
            pipe.resume_reading()

    # --- to nobody, or a function -----------------------------------------------------------

    def drop(self) -> None:
        """Have what lies ready, and all that comes, read by nobody."""
        self.dropping = True
        self._blocks.clear()
        self.unread = 0
        if self.paused:
            self._resume()

    def call(self, on_line: Callable[[StreamName, bytes], object] | None, max_line: int) -> None:
        """Have each line told to a function instead of a reader, or to nobody."""
        if on_line is None:
            self.drop()
        self._on_line = on_line
        self._longest = max_line

    def _tell(self, on_line: Callable[[StreamName, bytes], object], name: StreamName, data: bytes) -> None:
        try:
            for line in self._split(name, data):
                on_line(name, line)
        except BaseException as error:
            # The program's own code has failed on what the child has written: nobody wants any more of it.
            self.failure = error
            self._on_line = None
            self.drop()
            self._changes.tell()

    # --- to a reader ------------------------------------------------------------------------

    @property
    def reader(self) -> Lines | None:
        """Who reads the lines, and was not dropped since."""
        return None if self._reader is None else self._reader()

    def is_read_elsewhere(self) -> bool:
        """Whether another task reads the lines."""
        reader = self.reader
        task = None if reader is None else reader.task
        return task is not None and not task.done() and task is not asyncio.current_task()

    def reader_ended(self, _: object) -> None:
        self._changes.tell()

    def give_to(self, reader: Lines, max_line: int) -> None:
        """Have the lines read by this one, as long as it lives."""
        self._longest = max_line
        changes = self._changes
        self._reader = weakref.ref(reader, lambda _: changes.tell())

    async def next_line(self, process: object) -> tuple[StreamName, bytes]:
        """The next line of either stream; StopAsyncIteration at the end. Cancelled, none is lost.

        A task that has inherited a deadline gets DeadlineExceeded at it, which names the process.
        """
        while not self._lines:
            if self._blocks:
                name, data = self._blocks.popleft()
                self.unread -= len(data)
                if self.paused and self.unread <= _LOW:
                    self._resume()
                self._lines.extend((name, line) for line in self._split(name, data))
            elif self.over:
                self._lines.extend(self.rest())
                if not self._lines:
                    raise StopAsyncIteration
            else:
                await self._more.wait(limited=process)
        return self._lines.popleft()

    def rest(self) -> Iterable[tuple[StreamName, bytes]]:
        """What had no newline at the end of the streams."""
        for name in NAMES.values():
            if name in self._splitters:
                for line in self._splitters[name].end():
                    yield name, line

    def _split(self, name: StreamName, data: bytes) -> Iterable[bytes]:
        if name not in self._splitters:
            self._splitters[name] = _Splitter()
        return self._splitters[name].feed(data, self._longest)


class Lines(AsyncIterator[tuple[StreamName, bytes]]):
    """``p.lines()``. The output knows it weakly: whoever breaks out of the loop is no reader any more."""

    __slots__ = ("__weakref__", "_output", "_process", "_waiting", "task")

    def __init__(self, output: Output, process: object) -> None:
        self._output = output
        # For messages, and so that it lives as long as somebody reads.
        self._process = process
        self._waiting = False
        self.task: asyncio.Task[object] | None = None

    async def __anext__(self) -> tuple[StreamName, bytes]:
        if self._waiting:
            raise RuntimeError(f"another task waits for a line of {self._process!r} already")
        task = asyncio.current_task()
        if task is not self.task and task is not None:
            self.task = task
            # With him ends that somebody reads, also if he leaves this object behind.
            task.add_done_callback(self._output.reader_ended)
        self._waiting = True
        try:
            return await self._output.next_line(self._process)
        finally:
            self._waiting = False


class _Splitter:
    """Cuts a stream into lines, and lines that are too long into pieces."""

    __slots__ = ("rest", "searched")

    def __init__(self) -> None:
        self.rest = bytearray()
        self.searched = 0

    def feed(self, data: bytes, longest: int) -> Iterable[bytes]:
        rest = self.rest
        rest += data
        begin = 0
        while True:
            end = rest.find(b"\n", max(begin, self.searched), begin + longest) + 1
            if not end:
                if len(rest) - begin < longest:
                    break
                end = begin + longest
            yield bytes(rest[begin:end])
            begin = self.searched = end
        del rest[:begin]
        self.searched = len(rest)

    def end(self) -> Iterable[bytes]:
        if self.rest:
            yield bytes(self.rest)
            self.rest.clear()


def longest_line(max_line: int) -> int:
    """`max_line` as it is, if it is a number of bytes; else ValueError."""
    if isinstance(max_line, bool) or not isinstance(max_line, int) or max_line < 1:
        raise ValueError(f"max_line must be a number of bytes of at least 1, not {max_line!r}")
    return max_line
