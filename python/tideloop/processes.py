"""Processes: Process. A child, its pipes and its end.

A child process blocks as soon as nobody reads what it writes, and a parent that waits for it then waits for
ever. Here the pipes are always read: into a bounded capture, line by line into the program, or into nothing. What a
child has started itself goes with it, since it runs in a session of its own whose process group is signalled as
a whole; and somebody who has escaped from that and still holds the pipe in silence
cannot hold us.

The parts: how a child is started and watched (`starts`, `children`), what is kept of a stream (`captures`), what the
child writes and who reads it (`process_output`), what it leaves and fails with (`process_results`), and run_process(),
which is all of it in one call (`process_runs`).

Works on every asyncio loop that has subprocesses, and asks it for them where `children` cannot watch. On Windows there
are no process groups: there only the child itself is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, cast

from tideloop.cancellation import outlast
from tideloop.captures import Capture, checked_capture
from tideloop.changes import Changes
from tideloop.children import Child, can_watch
from tideloop.durations import seconds
from tideloop.process_output import Lines, Output, StreamName, longest_line
from tideloop.process_results import Command, ProcessResult, ProcessStats, ending, shown

__all__ = ["Process"]

_log = logging.getLogger("tideloop.processes")

_INPUTS = {"pipe": subprocess.PIPE, "null": subprocess.DEVNULL, "inherit": None}
_ERRORS = {"pipe": subprocess.PIPE, "stdout": subprocess.STDOUT, "inherit": None}
# Bytes that are written at once: what a pipe takes on Linux.
_BLOCK = 65_536
# Seconds between two looks at whether a process group has gone.
_LOOK_EVERY = 0.02


class _Protocol(asyncio.SubprocessProtocol):
    """Tells the process what has happened; the loop keeps this object, not the process."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not by isinstance(): uvloop's transports are asyncio's in what they do only.
        made = cast("asyncio.SubprocessTransport", transport)
        self.process._transport = self.process._output.transport = made

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.process._output.receive(fd, data)

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
        self.process._changes.tell()


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
    nothing has come for `linger` seconds. Who has not gone `patience` seconds after SIGKILL (a program that runs as
    another user, a system call that hangs) is logged and left alone; `returncode` is None then.

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
        patience: float = 5.0,
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
        self._grace = seconds("grace", grace)
        self._linger = seconds("linger", linger)
        self._patience = seconds("patience", patience)
        # Everybody but the reader waits for these: the end, room to write.
        self._changes = Changes()
        self._output = Output(checked_capture(capture), self._changes)
        self._entered = False
        self._transport: asyncio.SubprocessTransport | None = None
        self._stdin_open = stdin == "pipe"
        self._input_ended = False
        self._may_write = True
        self._stopped = False
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
        if can_watch():
            self.pid = Child(loop, protocol, self.args, shell=self._shell, **self._options).get_pid()
            return self
        await self._start(protocol)
        return self

    async def _start(self, protocol: _Protocol) -> None:
        """Have the loop start the child."""
        loop, options = self._loop, self._options
        if sys.platform != "win32":
            options["start_new_session"] = True
        if self._shell:
            assert isinstance(self.args, str | bytes)
            start = loop.subprocess_shell(lambda: protocol, self.args, **options)
        else:
            start = loop.subprocess_exec(lambda: protocol, *self.args, **options)
        # Cancelled in the middle, a loop ends the child alone, and not what that has started meanwhile.
        starting = loop.create_task(start)
        cancelled = await outlast([starting])
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
        output = self._output
        out, out_dropped = output.kept["stdout"].bytes() if output.kept else (b"", 0)
        err, err_dropped = output.kept["stderr"].bytes() if output.kept else (b"", 0)
        until = self._ended if output.over else self._loop.time()
        duration = until - self._began
        return ProcessResult(self.args, self.pid, self.returncode, out, err, out_dropped, err_dropped, duration)

    async def wait(self) -> int:
        """Wait until the process has ended and its output is read. Returns the exit status.

        What no other task reads with lines() meanwhile is dropped, so that the child never has to wait.
        Cancelling it leaves the process alone, and so does a deadline() that the task has inherited: DeadlineExceeded.
        RuntimeError if it was not started.
        """
        if self._transport is None:
            raise RuntimeError(f"{self!r} was not started; there is nothing to wait for")
        self._check_loop()
        output = self._output
        while True:
            if not output.dropping and not output.is_read_elsewhere():
                output.drop()
            if self._output.over:
                break
            await self._changes.wait(limited=self)
        assert self.returncode is not None
        return self.returncode

    def lines(self, max_line: int = 1 << 20) -> AsyncIterator[tuple[StreamName, bytes]]:
        """``async for stream, line in p.lines():``, where `stream` is ``"stdout"`` or ``"stderr"``.

        A line ends with its newline. One that is longer than `max_line` bytes comes in pieces of that size; so whatever
        does not end with a newline goes on in the next one, or is the last. Each stream is in order, and both
        come in the order in which they were received. A reader who is slow makes the child wait. One at a time:
        RuntimeError while there is another one, and for a second task that wants a line of the same one.
        """
        longest_line(max_line)
        if self._transport is None:
            raise RuntimeError(f"{self!r} was not started; there is nothing to read")
        self._check_loop()
        if self._output.reader is not None:
            raise RuntimeError(f"somebody reads the lines of {self!r} already")
        if self._output.dropping:
            raise RuntimeError(f"lines() of {self!r} comes too late: output was dropped that nobody read")
        reader = Lines(self._output, self)
        self._output.give_to(reader, max_line)
        return reader

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
            self._open_stdin()
            while not self._may_write:
                if self._output.paused and not self._output.is_read_elsewhere():
                    raise RuntimeError(
                        f"{self!r} waits for its output to be read; read lines() in another task, or give a capture"
                    )
                await self._changes.wait(limited=self)
                self._open_stdin()

    def close_stdin(self) -> None:
        """End the child's input, once what was written has gone. Does nothing if it has ended.

        RuntimeError before the child was started.
        """
        if self._transport is None:
            raise RuntimeError(f"{self!r} was not started; there is no input to end")
        if self._stdin_open:
            self._stdin_open = False
            self._input_ended = True
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

        Returns when the child is gone, or, if even that does not end it, after `patience` seconds more: that is logged,
        and `returncode` is None. Cancelled, it kills at once, and is cancelled when the child is gone or that is over.
        """
        if self._transport is None:
            return
        self._check_loop()
        limit = self._grace if grace is None else seconds("grace", grace)
        until = self._loop.time() + limit
        self._output.drop()
        cancelled: asyncio.CancelledError | None = None
        if limit > 0:
            self.terminate()
        while cancelled is None and self._group_is_alive() and (now := self._loop.time()) < until:
            # Nobody tells when the last member of a group has gone, so for those who outlive the child: look.
            try:
                await self._changes.wait(until if self.returncode is None else min(until, now + _LOOK_EVERY))
            except asyncio.CancelledError as error:
                cancelled = error
        self.kill()
        self._stopped = True
        until = self._loop.time() + self._patience
        while not self._output.over and self._loop.time() < until:
            try:
                await self._changes.wait(until)
            except asyncio.CancelledError as error:
                cancelled = error
        if not self._output.over:
            self._give_up()
        if cancelled is not None:
            raise cancelled

    def stats(self) -> ProcessStats:
        """The process in numbers."""
        output = self._output
        dropped = sum(stream.bytes()[1] for stream in output.kept.values()) if output.kept else 0
        return ProcessStats(self.pid, self.returncode, output.received, output.unread, dropped)

    def __repr__(self) -> str:
        if self.pid is None:
            state = "not started"
        elif self.returncode is None:
            state = f"pid={self.pid} running"
        else:
            state = f"pid={self.pid} {ending(self.returncode)}"
        return f"<tideloop.Process {f'{self.name!r} ' if self.name else ''}{shown(self.args)} {state}>"

    # --- what the loop tells ----------------------------------------------------------------

    def _exited(self) -> None:
        assert self._transport is not None
        self.returncode = self._transport.get_returncode()
        pipe = self._transport.get_pipe_transport
        if pipe(1) is not None or pipe(2) is not None or pipe(0) is not None:
            self._heard = self._output.received
            self._lingering = self._loop.call_later(self._linger, self._is_anybody_there)
        self._changes.tell()

    def _is_anybody_there(self) -> None:
        """Give the pipes up that somebody else holds, once nothing comes through them any more."""
        output = self._output
        if not self._stopped and (output.paused or self._heard != output.received):
            self._heard = output.received
            self._lingering = self._loop.call_later(self._linger, self._is_anybody_there)
            return
        self._close_pipes()

    def _close_pipes(self) -> None:
        assert self._transport is not None
        stdin = self._transport.get_pipe_transport(0)
        if stdin is not None:
            # close() would wait for whoever holds the other end to read what was written.
            cast("asyncio.WriteTransport", stdin).abort()
        for pipe in self._output.pipes():
            pipe.close()

    def _give_up(self) -> None:
        """Leave a child alone that does not end; the loop still waits for it."""
        assert self._transport is not None
        if self.returncode is None:
            _log.error("%r could not be ended, and is left alone", self)
        self._close_pipes()
        with contextlib.suppress(OSError):
            # Kills as well, of which it may be told that it must not.
            self._transport.close()

    def _pipe_closed(self, fd: int) -> None:
        if fd == 0:
            self._stdin_open = self._may_write = False
            self._changes.tell()

    def _closed(self) -> None:
        assert self._transport is not None
        # Nothing is left to close, but a transport that nobody has closed warns.
        self._transport.close()
        self._ended = self._loop.time()
        if self._lingering is not None:
            self._lingering.cancel()
        self._output.end()
        self._changes.tell()

    def _open_stdin(self) -> asyncio.WriteTransport:
        if self._transport is None:
            raise RuntimeError(f"{self!r} was not started; there is nothing to write to")
        self._check_loop()
        if self._options["stdin"] != subprocess.PIPE:
            raise RuntimeError(f"{self!r} has no pipe for its input; ask for stdin='pipe'")
        pipe = cast("asyncio.WriteTransport | None", self._transport.get_pipe_transport(0))
        if self._input_ended:
            raise RuntimeError(f"the input of {self!r} was closed")
        if not self._stdin_open or pipe is None or pipe.is_closing():
            raise BrokenPipeError(f"{self!r} does not read its input any more")
        return pipe

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"{self!r} belongs to another event loop")

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
