"""Processes: run_process(), Process, Capture.

A child process blocks as soon as nobody reads what it writes, and a parent that waits for it then waits for
ever. Here the pipes are always read: into a bounded capture, line by line into the program, or into nothing. What a
child has started itself goes with it, since it runs in a session of its own whose process group is signalled as
a whole; and somebody who has escaped from that and still holds the pipe in silence
cannot hold us.

Works on every asyncio loop that has subprocesses. On Windows there are no process groups: there only the child
itself is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, cast

from tideloop import scopes
from tideloop.deadlines import remaining
from tideloop.durations import seconds

__all__ = ["Capture", "Process", "ProcessError", "ProcessResult", "ProcessStats", "ProcessTimeout", "run_process"]

Command = str | bytes | Sequence[str | bytes | os.PathLike[str]]
StreamName = Literal["stdout", "stderr"]
Input = bytes | bytearray | memoryview | Iterable[bytes] | AsyncIterable[bytes]

_NAMES: dict[int, StreamName] = {1: "stdout", 2: "stderr"}
_INPUTS = {"pipe": subprocess.PIPE, "null": subprocess.DEVNULL, "inherit": None}
_ERRORS = {"pipe": subprocess.PIPE, "stdout": subprocess.STDOUT, "inherit": None}
# What a pipe takes at once on Linux.
_BLOCK = 65_536
# Bytes that lie unread for lines() before the child has to wait, and how few there are when it may go on.
_HIGH, _LOW = 262_144, 65_536
# Seconds between two looks at whether a process group has gone.
_LOOK_EVERY = 0.02


class Capture(NamedTuple):
    """How much of each output stream is kept, and which end of it."""

    limit: int = 8 << 20
    """Bytes, per stream."""
    keep: Literal["head", "tail"] = "tail"
    """What came first, or what came last."""


class ProcessResult(NamedTuple):
    """What a process has left."""

    args: Command
    pid: int
    returncode: int | None
    """The exit status; minus the number of the signal that killed it; None while it runs."""
    stdout: bytes
    stderr: bytes
    stdout_dropped: int
    """Bytes that were not kept, since there were more than the capture's limit."""
    stderr_dropped: int
    duration: float
    """Seconds from its start to its end, or until now."""

    @property
    def ok(self) -> bool:
        """Whether the exit status is 0."""
        return self.returncode == 0

    @property
    def text(self) -> str:
        """`stdout` as UTF-8; what is none is replaced by U+FFFD."""
        return self.stdout.decode(errors="replace")

    def check(self) -> ProcessResult:
        """Raise ProcessError unless the exit status is 0; else return the result."""
        if self.returncode != 0:
            raise ProcessError(self)
        return self


class ProcessError(Exception):
    """A process has failed. `result` is what it has left."""

    def __init__(self, result: ProcessResult) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        last = self.result.stderr.rstrip().rpartition(b"\n")[2].decode(errors="replace")
        return f"{_shown(self.result.args)} {_ending(self.result.returncode)}" + (f": {last}" if last else "")


class ProcessTimeout(TimeoutError):
    """A process took too long and was ended. `result` is what it had left by then."""

    def __init__(self, result: ProcessResult, timeout: float) -> None:
        super().__init__(result, timeout)
        self.result = result
        self.timeout = timeout

    def __str__(self) -> str:
        return f"{_shown(self.result.args)} was not done in {self.timeout:g} s and was ended"


class ProcessStats(NamedTuple):
    """A process, in numbers."""

    pid: int | None
    returncode: int | None
    received: int
    """Bytes from both output streams."""
    unread: int
    """Bytes that wait for lines()."""
    dropped: int
    """Bytes that were not kept by the capture."""


class _Kept:
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
        over = max(self.size - self.limit, 0)
        return b"".join(self.blocks)[over:], self.dropped + over


class _Splitter:
    """Cuts a stream into lines, and lines that are too long into pieces."""

    __slots__ = ("longest", "rest", "searched")

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.rest = bytearray()
        self.searched = 0

    def feed(self, data: bytes) -> Iterable[bytes]:
        rest = self.rest
        rest += data
        begin = 0
        while True:
            end = rest.find(b"\n", max(begin, self.searched), begin + self.longest) + 1
            if not end:
                if len(rest) - begin < self.longest:
                    break
                end = begin + self.longest
            yield bytes(rest[begin:end])
            begin = self.searched = end
        del rest[:begin]
        self.searched = len(rest)

    def end(self) -> Iterable[bytes]:
        if self.rest:
            yield bytes(self.rest)
            self.rest.clear()


class _Lines(AsyncIterator[tuple[StreamName, bytes]]):
    """``p.lines()``. The process knows it weakly: whoever breaks out of the loop is no reader any more."""

    __slots__ = ("__weakref__", "_process", "task")

    def __init__(self, process: Process) -> None:
        self._process = process
        self.task: asyncio.Task[Any] | None = None

    async def __anext__(self) -> tuple[StreamName, bytes]:
        self.task = asyncio.current_task()
        return await self._process._next_line()


class _Protocol(asyncio.SubprocessProtocol):
    """Tells the process what has happened; the loop keeps this object, not the process."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not by isinstance(): uvloop's transports are asyncio's in what they do only.
        self.process._transport = cast("asyncio.SubprocessTransport", transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.process._received(fd, data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.process._pipe_closed(fd)

    def process_exited(self) -> None:
        self.process._exited()

    def connection_lost(self, exc: Exception | None) -> None:
        self.process._closed()

    def pause_writing(self) -> None:
        self.process._may_write = False

    def resume_writing(self) -> None:
        self.process._may_write = True
        self.process._changed()


class Process:
    """A child process whose pipes are always read: ``async with tideloop.Process(["make", "-j4"]) as p: ...``.

    `cmd` is a sequence: the program and its arguments; with ``shell=True`` a string that the shell is given. The
    child runs in a session of its own. `stdin` is ``"pipe"`` (see write()), ``"null"`` or ``"inherit"``; `stderr` is
    ``"pipe"``, ``"stdout"`` to have it among that, or ``"inherit"``.

    What the child writes can be read with lines(). With `capture` it is kept as well, as far as that goes, and
    found in `result`. What nobody wants is dropped by wait().

    Leaving the block waits for the child: to its end if the block was left in order; if by an exception or cancelled,
    the child and all it has started are ended, first politely (SIGTERM), after `grace` seconds not (SIGKILL). A second
    cancellation does not wait for that. If somebody still holds the pipe after the child's end, reading goes on until
    nothing has come for `linger` seconds.

    Belongs to one loop; entered once. Entering raises what the operating system says, like FileNotFoundError.
    """

    def __init__(
        self,
        cmd: Command,
        *,
        shell: bool = False,
        cwd: str | bytes | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Literal["pipe", "null", "inherit"] = "pipe",
        stderr: Literal["pipe", "stdout", "inherit"] = "pipe",
        capture: Capture | int | None = None,
        grace: float = 5.0,
        linger: float = 1.0,
        name: str | None = None,
    ) -> None:
        self.args = _command(cmd, shell)
        self.name = name
        self.returncode: int | None = None
        self.pid: int | None = None
        self._shell = shell
        self._options: dict[str, Any] = {
            "cwd": cwd,
            "env": env,
            "stdin": _choice("stdin", stdin, _INPUTS),
            "stdout": subprocess.PIPE,
            "stderr": _choice("stderr", stderr, _ERRORS),
        }
        if sys.platform != "win32":
            self._options["start_new_session"] = True
        self._grace = seconds("grace", grace)
        self._linger = seconds("linger", linger)
        self._kept = {name: _Kept(capture) for name in _NAMES.values()} if (capture := _capture(capture)) else None
        self._on_data: Callable[[StreamName, bytes], None] | None = None
        self._received_bytes = 0
        self._unread: deque[tuple[StreamName, bytes]] = deque()
        self._unread_bytes = 0
        self._paused = False
        self._dropping = False
        self._reader: weakref.ref[_Lines] | None = None
        self._splitters = {name: _Splitter(1) for name in _NAMES.values()}
        self._split: deque[tuple[StreamName, bytes]] = deque()
        # The future of the reader, who waits for output; those of the others, who wait for the end.
        self._hungry: asyncio.Future[None] | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._entered = False
        self._failure: BaseException | None = None
        self._transport: asyncio.SubprocessTransport | None = None
        self._stdin_open = stdin == "pipe"
        self._input_ended = False
        self._may_write = True
        self._over = self._stopped = False
        self._lingering: asyncio.TimerHandle | None = None
        self._heard = 0
        self._began = self._ended = 0.0

    # --- for the user -----------------------------------------------------------------------

    async def __aenter__(self) -> Process:
        if self._entered:
            raise RuntimeError(f"{self!r} was entered before; make another")
        self._entered = True
        loop = self._loop = asyncio.get_running_loop()
        self._began = loop.time()
        protocol = _Protocol(self)
        if self._shell:
            assert isinstance(self.args, str | bytes)
            start = loop.subprocess_shell(lambda: protocol, self.args, **self._options)
        else:
            start = loop.subprocess_exec(lambda: protocol, *self.args, **self._options)
        # Cancelled in the middle, a loop ends the child alone, and not what that has started meanwhile.
        starting = loop.create_task(start)
        starting.add_done_callback(lambda _: self._changed())
        cancelled: asyncio.CancelledError | None = None
        while not starting.done():
            try:
                await self._change()
            except asyncio.CancelledError as error:
                cancelled = error
        failed = starting.exception()
        if failed is None:
            assert self._transport is not None
            self.pid = self._transport.get_pid()
            if cancelled is not None:
                await self.stop()
        if cancelled is not None:
            raise cancelled
        if failed is not None:
            raise failed
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close_stdin()
            try:
                await self.wait()
            except BaseException:
                await self.stop()
                raise
        else:
            await self.stop()

    @property
    def result(self) -> ProcessResult:
        """What the process has left so far: also while it runs, after a timeout and when cancelled."""
        if self.pid is None:
            raise RuntimeError(f"{self!r} was not started; there is no result")
        (out, out_dropped), (err, err_dropped) = (
            (kept.bytes() for kept in self._kept.values()) if self._kept else ((b"", 0), (b"", 0))
        )
        until = self._ended if self._over else self._loop.time()
        duration = until - self._began
        return ProcessResult(self.args, self.pid, self.returncode, out, err, out_dropped, err_dropped, duration)

    async def wait(self) -> int:
        """Wait until the process has ended and its output is read. Returns the exit status.

        What no other task reads with lines() meanwhile is dropped, so that the child never has to wait.
        Cancelling it leaves the process alone.
        """
        while True:
            if not self._dropping and not self._is_read_elsewhere():
                self._drop_unread()
            if self._over:
                break
            await self._change()
        if self._failure is not None:
            raise self._failure
        assert self.returncode is not None
        return self.returncode

    def lines(self, max_line: int = 1 << 20) -> AsyncIterator[tuple[StreamName, bytes]]:
        """``async for stream, line in p.lines():``, where `stream` is ``"stdout"`` or ``"stderr"``.

        A line ends with its newline. One that is longer than `max_line` bytes comes in pieces of that size; so whatever
        does not end with a newline goes on in the next one, or is the last. Each stream is in order, and both
        come in the order in which they were received. A reader who is slow makes the child wait. One at a time:
        RuntimeError while there is another one.
        """
        if not isinstance(max_line, int) or max_line < 1:
            raise ValueError(f"max_line must be a number of bytes of at least 1, not {max_line!r}")
        if self._current_reader() is not None:
            raise RuntimeError(f"somebody reads the lines of {self!r} already")
        if self._dropping:
            raise RuntimeError(f"lines() of {self!r} comes too late: output was dropped that nobody read")
        for splitter in self._splitters.values():
            splitter.longest = max_line
        iterator = _Lines(self)
        process = weakref.ref(self)

        def gone(_: object) -> None:
            if (left := process()) is not None:
                left._changed()

        self._reader = weakref.ref(iterator, gone)
        return iterator

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write to the child's stdin, and wait until there is room for more.

        Raises BrokenPipeError if the child does not read it any more; RuntimeError if there is no pipe, if it was
        closed, and if the child itself waits for somebody to read its output, which would be for ever.
        Cancelled, a part may have been written.
        """
        view = memoryview(data).cast("B")
        for begin in range(0, len(view), _BLOCK):
            pipe = self._open_stdin()
            # A copy: the caller may change his buffer once this has returned.
            pipe.write(bytes(view[begin : begin + _BLOCK]))
            while not self._may_write:
                if self._paused and not self._is_read_elsewhere():
                    raise RuntimeError(
                        f"{self!r} waits for its output to be read; read lines() in another task, or give a capture"
                    )
                await self._change()
                self._open_stdin()

    def close_stdin(self) -> None:
        """End the child's input, once what was written has gone. Does nothing if it has ended."""
        if self._stdin_open:
            self._stdin_open = False
            self._input_ended = True
            assert self._transport is not None
            pipe = self._transport.get_pipe_transport(0)
            if pipe is not None:
                pipe.close()

    def signal(self, number: int) -> None:
        """Send a signal to the child and all it has started that is still in its session."""
        if self.pid is None:
            raise RuntimeError(f"{self!r} was not started; there is nothing to signal")
        if sys.platform != "win32":
            # The group is there as long as one of its members is. That its number has become another group's would
            # take as many new processes as there are numbers, since these are given out in a circle.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
        elif self._transport is not None and self.returncode is None:
            self._transport.send_signal(number)

    def terminate(self) -> None:
        """Ask the child, and all it has started, to end: SIGTERM."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the child, and all it has started, at once: SIGKILL."""
        self.signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)

    async def stop(self, grace: float | None = None) -> None:
        """End the child and all it has started: SIGTERM, after `grace` seconds SIGKILL.

        Returns when the child is gone. Cancelled, it kills at once, and is cancelled when the child is gone.
        """
        if self._transport is None:
            return
        limit = self._grace if grace is None else seconds("grace", grace)
        until = self._loop.time() + limit
        self._drop_unread()
        cancelled: asyncio.CancelledError | None = None
        if limit > 0:
            self.terminate()
        while cancelled is None and self._group_is_alive() and (left := until - self._loop.time()) > 0:
            # Nobody tells when the last member of a group has gone, so for those who outlive the child: look.
            try:
                await self._change(left if self.returncode is None else min(left, _LOOK_EVERY))
            except asyncio.CancelledError as error:
                cancelled = error
        self.kill()
        self._stopped = True
        while not self._over:
            try:
                await self._change()
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def stats(self) -> ProcessStats:
        """The process in numbers."""
        dropped = sum(kept.bytes()[1] for kept in self._kept.values()) if self._kept else 0
        return ProcessStats(self.pid, self.returncode, self._received_bytes, self._unread_bytes, dropped)

    def __repr__(self) -> str:
        if self.pid is None:
            state = "not started"
        elif self.returncode is None:
            state = f"pid={self.pid} running"
        else:
            state = f"pid={self.pid} {_ending(self.returncode)}"
        return f"<tideloop.Process {f'{self.name!r} ' if self.name else ''}{_shown(self.args)} {state}>"

    # --- what the loop tells ----------------------------------------------------------------

    def _received(self, fd: int, data: bytes) -> None:
        name = _NAMES[fd]
        self._received_bytes += len(data)
        if self._kept is not None:
            self._kept[name].add(data)
        if self._on_data is not None:
            try:
                self._on_data(name, data)
            except BaseException as error:
                self._fail(error)
        elif not self._dropping:
            self._unread.append((name, data))
            self._unread_bytes += len(data)
            if self._unread_bytes > _HIGH:
                if self._kept is not None and self._current_reader() is None:
                    self._drop_unread()
                else:
                    self._pause()
        if self._hungry is not None and not self._hungry.done():
            self._hungry.set_result(None)

    def _exited(self) -> None:
        assert self._transport is not None
        self.returncode = self._transport.get_returncode()
        self._heard = self._received_bytes
        self._lingering = self._loop.call_later(self._linger, self._is_anybody_there)
        self._changed()

    def _is_anybody_there(self) -> None:
        """Give the pipes up that somebody else holds, once nothing comes through them any more."""
        assert self._transport is not None
        if not self._stopped and (self._paused or self._heard != self._received_bytes):
            self._heard = self._received_bytes
            self._lingering = self._loop.call_later(self._linger, self._is_anybody_there)
            return
        for fd in (0, *_NAMES):
            pipe = self._transport.get_pipe_transport(fd)
            if fd == 0 and pipe is not None:
                # close() would wait for whoever holds the other end to read what was written.
                cast("asyncio.WriteTransport", pipe).abort()
            elif pipe is not None:
                pipe.close()

    def _pipe_closed(self, fd: int) -> None:
        if fd == 0:
            self._stdin_open = self._may_write = False
        self._changed()

    def _closed(self) -> None:
        assert self._transport is not None
        # Nothing is left to close, but a transport that nobody has closed warns.
        self._transport.close()
        self._over = True
        self._ended = self._loop.time()
        if self._lingering is not None:
            self._lingering.cancel()
        if self._hungry is not None and not self._hungry.done():
            self._hungry.set_result(None)
        self._changed()

    def _fail(self, error: BaseException) -> None:
        """The program's own code has failed on what the child has written: nobody wants any more of it."""
        self._on_data = lambda name, data: None
        self._failure = error
        self._changed()

    # --- waiting ----------------------------------------------------------------------------

    def _changed(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self, limit: float | None = None) -> None:
        """Wait until something has happened besides output, or so many seconds."""
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        timer = None if limit is None else self._loop.call_later(limit, _wake, waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()

    async def _next_line(self) -> tuple[StreamName, bytes]:
        while not self._split:
            if self._unread:
                name, data = self._unread.popleft()
                self._unread_bytes -= len(data)
                if self._paused and self._unread_bytes <= _LOW:
                    self._resume()
                self._split.extend((name, line) for line in self._splitters[name].feed(data))
            elif self._over:
                for name, splitter in self._splitters.items():
                    self._split.extend((name, line) for line in splitter.end())
                if not self._split:
                    raise StopAsyncIteration
            else:
                self._hungry = self._loop.create_future()
                try:
                    await self._hungry
                finally:
                    self._hungry = None
        return self._split.popleft()

    # --- reading and not reading ------------------------------------------------------------

    def _current_reader(self) -> _Lines | None:
        return None if self._reader is None else self._reader()

    def _is_read_elsewhere(self) -> bool:
        """Whether another task reads the lines."""
        reader = self._current_reader()
        task = None if reader is None else reader.task
        return task is not None and not task.done() and task is not asyncio.current_task()

    def _drop_unread(self) -> None:
        self._dropping = True
        self._unread.clear()
        self._unread_bytes = 0
        if self._paused:
            self._resume()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            for pipe in self._output_pipes():
                pipe.pause_reading()
            self._changed()

    def _resume(self) -> None:
        self._paused = False
        for pipe in self._output_pipes():
            pipe.resume_reading()

    def _output_pipes(self) -> list[asyncio.ReadTransport]:
        assert self._transport is not None
        pipes = (self._transport.get_pipe_transport(fd) for fd in _NAMES)
        return [cast("asyncio.ReadTransport", pipe) for pipe in pipes if pipe is not None]

    def _open_stdin(self) -> asyncio.WriteTransport:
        if self._transport is None:
            raise RuntimeError(f"{self!r} was not started; there is nothing to write to")
        if self._options["stdin"] != subprocess.PIPE:
            raise RuntimeError(f"{self!r} has no pipe for its input; ask for stdin='pipe'")
        pipe = cast("asyncio.WriteTransport | None", self._transport.get_pipe_transport(0))
        if self._input_ended:
            raise RuntimeError(f"the input of {self!r} was closed")
        if not self._stdin_open or pipe is None or pipe.is_closing():
            raise BrokenPipeError(f"{self!r} does not read its input any more")
        return pipe

    def _group_is_alive(self) -> bool:
        if self.returncode is None:
            return True
        if sys.platform == "win32":
            return False
        assert self.pid is not None
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def run_process(
    cmd: Command,
    *,
    input: Input | None = None,
    timeout: float | None = None,  # noqa: ASYNC109  # also ends the child
    grace: float = 5.0,
    capture: Capture | int | None = Capture(),  # noqa: B008  # immutable
    on_line: Callable[[StreamName, bytes], object] | None = None,
    max_line: int = 1 << 20,
    check: bool = False,
    shell: bool = False,
    cwd: str | bytes | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stderr: Literal["pipe", "stdout", "inherit"] = "pipe",
    linger: float = 1.0,
    name: str | None = None,
) -> ProcessResult:
    """Run a program to its end, and return what it has left.

    `input` is what it reads from its stdin: bytes, or an iterable or async iterable of bytes, which is read as fast
    as the child reads. Without it the child's stdin is empty. Whether the child reads all of it is its own business.

    `capture` is how much of each output stream is kept, the last 8 MiB by default; None keeps nothing. The pipes are
    always read. `on_line(stream, line)` is called for each line while the child runs; longer ones than `max_line` bytes
    come in pieces. If it raises, the child is ended, and that is raised.

    Raises ProcessTimeout after `timeout` seconds; inside of a deadline() that is earlier, that raises
    DeadlineExceeded, whose cause has what the child had left as `result`. Either way the
    child and all it has started are ended: SIGTERM, after `grace` seconds SIGKILL. The same happens when it is
    cancelled; the CancelledError then has what the child had left as its attribute `result`. With `check` raises
    ProcessError if the exit status is not 0. The other arguments are those of Process.
    """
    process = Process(
        cmd,
        shell=shell,
        cwd=cwd,
        env=env,
        stdin="null" if input is None else "pipe",
        stderr=stderr,
        capture=capture,
        grace=grace,
        linger=linger,
        name=name,
    )
    if on_line is None:
        process._on_data = lambda name, data: None
    else:
        if not isinstance(max_line, int) or max_line < 1:
            raise ValueError(f"max_line must be a number of bytes of at least 1, not {max_line!r}")
        process._on_data = _caller(process, on_line, max_line)
    limit = min(seconds("timeout", timeout) if timeout is not None else math.inf, remaining())
    try:
        with scopes.move_on_after(limit) as scope:
            async with process:
                await _attend(process, input)
                if on_line is not None:
                    for stream, splitter in process._splitters.items():
                        for line in splitter.end():
                            on_line(stream, line)
    except asyncio.CancelledError as error:
        if process.pid is not None:
            error.result = process.result  # type: ignore[attr-defined]
        raise
    if scope.cancelled_caught:
        if process.pid is None:
            raise TimeoutError(f"{_shown(process.args)} was not started in {limit:g} s")
        raise ProcessTimeout(process.result, limit)
    return process.result.check() if check else process.result


def _caller(
    process: Process, on_line: Callable[[StreamName, bytes], object], max_line: int
) -> Callable[[StreamName, bytes], None]:
    for splitter in process._splitters.values():
        splitter.longest = max_line

    def call(name: StreamName, data: bytes) -> None:
        for line in process._splitters[name].feed(data):
            on_line(name, line)

    return call


async def _attend(process: Process, input: Input | None) -> None:
    """Feed a process and wait for its end, or for the failure of what it is fed by or told to."""
    feeder = None if input is None else asyncio.get_running_loop().create_task(_feed(process, input))
    try:
        if feeder is not None:
            feeder.add_done_callback(lambda feeder: process._changed())
        while not process._over and process._failure is None:
            if feeder is not None and feeder.done() and not feeder.cancelled() and feeder.exception() is not None:
                break
            await process._change()
    finally:
        if feeder is not None:
            feeder.cancel()
            await asyncio.wait([feeder])
    if process._failure is not None:
        raise process._failure
    if feeder is not None and not feeder.cancelled():
        feeder.result()


async def _feed(process: Process, input: Input) -> None:
    try:
        if isinstance(input, bytes | bytearray | memoryview):
            await process.write(input)
        elif isinstance(input, AsyncIterable):
            async for piece in input:
                await process.write(piece)
        else:
            for piece in input:
                await process.write(piece)
    except BrokenPipeError:
        return
    process.close_stdin()


def _command(cmd: Command, shell: bool) -> Command:
    if shell:
        if not isinstance(cmd, str | bytes):
            raise TypeError(f"cmd must be a string for the shell, not {cmd!r}")
        return cmd
    if isinstance(cmd, str | bytes) or not isinstance(cmd, Sequence):
        raise TypeError(f"cmd must be a sequence of the program and its arguments (or give shell=True), not {cmd!r}")
    if not cmd:
        raise ValueError("cmd must name a program, but is empty")
    return tuple(cast("Sequence[str | bytes | os.PathLike[str]]", cmd))


def _choice(name: str, value: str, choices: Mapping[str, int | None]) -> int | None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    return choices[value]


def _capture(capture: Capture | int | None) -> Capture | None:
    if capture is None:
        return None
    if isinstance(capture, int) and not isinstance(capture, bool):
        capture = Capture(capture)
    if not isinstance(capture, Capture) or not isinstance(capture.limit, int) or capture.limit < 0:
        raise ValueError(f"capture must be a Capture, a number of bytes or None, not {capture!r}")
    if capture.keep not in ("head", "tail"):
        raise ValueError(f"a capture must keep 'head' or 'tail', not {capture.keep!r}")
    return capture


def _shown(args: Command) -> str:
    if isinstance(args, str | bytes):
        return repr(args)
    return repr(" ".join(os.fsdecode(arg) for arg in args))


def _ending(returncode: int | None) -> str:
    if returncode is None:
        return "is running"
    if returncode >= 0:
        return f"ended with exit status {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"
