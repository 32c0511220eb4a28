"""Child: a program that runs, its pipes and its end, watched by an event loop.

What ``loop.subprocess_exec()`` does, for the toolkit, on any loop that watches descriptors, and for less: no futures,
no tasks, no turns of the loop between a thing that happens and who is told of it. Once the program was started there
are at most four descriptors, which the loop watches by `add_reader()` and `add_writer()`:

* our ends of the pipes. They do not block: a process that was forked from this one has them, too, and may have read
  what was there.
* the descriptor of the process (``pidfd_open``, Linux 5.3), which becomes readable when it ends. No SIGCHLD is
  needed, nor a thread, and no other child of the program is waited for. If it cannot be opened after all, the child
  runs already: then a thread waits for its end.

Until a child is collected its number is its own. It is collected in one place (`_collect`), on the loop's thread, and
by then its descriptor tells nobody any more.

The loop's handles own this object, which owns the descriptors. They are closed when the child has ended and its pipes
have, too, or were given up. If the loop is closed before, it drops its handles; with the object the descriptors go
then, and the child with all that is in its session.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence

from tideloop.exits import can_open_pidfds, collect, lost
from tideloop.starts import abandon, start

__all__ = ["Child", "can_watch"]

# Bytes that are read at once: what a pipe holds on Linux.
_BLOCK = 65_536
# What asyncio uses by itself until 3.13: a program that has another one has chosen it.
_DEFAULT_WATCHERS = {"NoneType", "PidfdChildWatcher", "ThreadedChildWatcher"}

# Whether process descriptors were seen to work; once they did, a Child knows what to do without.
_has_pidfds = False


def can_watch() -> bool:
    """Whether this process can have a Child: the system tells of its end, and nobody else wants to be told."""
    global _has_pidfds
    if sys.version_info < (3, 14):
        watcher = getattr(asyncio.get_event_loop_policy(), "_watcher", None)
        if type(watcher).__name__ not in _DEFAULT_WATCHERS:
            return False
    if not _has_pidfds:
        _has_pidfds = can_open_pidfds()
    return _has_pidfds


class Child(asyncio.SubprocessTransport):
    """A program that was started in a session of its own. `protocol` is told as by asyncio's transports, but at once.

    `stdin`, `stdout` and `stderr` are PIPE, DEVNULL, STDOUT (the last) or None, and what they and the other arguments
    mean is what they mean for Popen. Raises what Popen does; then nothing is left.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.SubprocessProtocol,
        args: str | bytes | Sequence[str | bytes | os.PathLike[str]],
        *,
        shell: bool,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
        cwd: str | bytes | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.loop = loop
        self.protocol: asyncio.SubprocessProtocol | None = None
        self._pipes: dict[int, _Reading | _Writing] = {}
        self._code: int | None = None
        self._pidfd: int | None = None
        theirs: list[int] = []
        try:
            given = [
                self._connect(number, theirs) if what == subprocess.PIPE else what
                for number, what in enumerate((stdin, stdout, stderr))
            ]
            self._pid = pid = start(args, shell, given, cwd, env)
        except BaseException:
            for pipe in self._pipes.values():
                pipe.release()
            raise
        finally:
            for end in theirs:
                os.close(end)
        self.protocol = protocol
        try:
            self._pidfd = os.pidfd_open(pid)
            loop.add_reader(self._pidfd, self._collect)
        except OSError:
            # No more descriptors; or it has gone already, which nobody is told if SIGCHLD is ignored.
            self._wait_in_thread()
        protocol.connection_made(self)

    def _connect(self, number: int, theirs: list[int]) -> int:
        """Make a pipe, and return the child's end."""
        read, write = os.pipe()
        if number == 0:
            theirs.append(read)
            self._pipes[0] = _Writing(self, write)
            os.set_blocking(write, False)
            return read
        theirs.append(write)
        self._pipes[number] = ours = _Reading(self, number, read)
        os.set_blocking(read, False)
        self.loop.add_reader(read, ours._receive)
        return write

    # --- asyncio's words, as far as Process uses them -----------------------------------------

    def get_pid(self) -> int:
        return self._pid

    def get_returncode(self) -> int | None:
        return self._code

    def get_pipe_transport(self, fd: int) -> asyncio.BaseTransport | None:
        return self._pipes.get(fd)

    def close(self) -> None:
        """Give the pipes up, and end the child itself. OSError if that is not allowed."""
        if self.protocol is None:
            return
        for pipe in list(self._pipes.values()):
            pipe.abort()
        if self._code is None:
            os.kill(self._pid, signal.SIGKILL)

    # --- its end ------------------------------------------------------------------------------

    def _wait_in_thread(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

        # Weakly: if the loop is closed, the child shall go with this object.
        pid, loop, me = self._pid, self.loop, weakref.ref(self)

        def wait() -> None:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            child = me()
            if child is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(child._collect)

        threading.Thread(target=wait, name=f"tideloop-child-{pid}", daemon=True).start()

    def _collect(self, options: int = 0) -> None:
        """The child has ended; with WNOHANG: maybe."""
        if self._code is not None:
            return
        try:
            code = collect(self._pid, options)
        except ChildProcessError:
            code = lost(self._pid)
        if code is None:
            return
        self._code = code
        if self._pidfd is not None:
            self.loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        assert self.protocol is not None
        self.protocol.process_exited()
        if self._pipes:
            stdin = self._pipes.get(0)
            if isinstance(stdin, _Writing):
                stdin.watch_readers()
        else:
            self._finish()

    def pipe_closed(self, number: int) -> None:
        """A pipe's end of ours is closed."""
        del self._pipes[number]
        assert self.protocol is not None
        self.protocol.pipe_connection_lost(number, None)
        if not self._pipes:
            if self._code is None:
                # Most children close them by ending: then the loop need not wait for that as well.
                self._collect(os.WNOHANG)
            else:
                self._finish()

    def _finish(self) -> None:
        if self.protocol is not None:
            self.protocol.connection_lost(None)
            # They refer to each other.
            self.protocol = None

    def __repr__(self) -> str:
        state = "running" if self._code is None else f"returncode={self._code}"
        return f"<tideloop child pid={self._pid} {state}, open pipes: {sorted(self._pipes)}>"

    def __del__(self) -> None:
        if self.protocol is None:
            return
        warnings.warn(f"the loop was closed before the end of {self!r}", ResourceWarning, source=self, stacklevel=2)
        for pipe in self._pipes.values():
            os.close(pipe.fd)
        if self._pidfd is not None:
            os.close(self._pidfd)
        if self._code is None:
            with contextlib.suppress(OSError):
                # Not if this process was forked from the one whose child it is.
                if collect(self._pid, os.WNOHANG) is None:
                    abandon(self._pid)
                    os.killpg(self._pid, signal.SIGKILL)


class _Reading(asyncio.ReadTransport):
    """Our end of a pipe that the child writes to."""

    __slots__ = ("_child", "_number", "_open", "fd")

    def __init__(self, child: Child, number: int, fd: int) -> None:
        self.fd = fd
        self._child = child
        self._number = number
        self._open = True

    def _receive(self) -> None:
        try:
            data = os.read(self.fd, _BLOCK)
        except (BlockingIOError, InterruptedError):
            return
        if data:
            assert self._child.protocol is not None
            self._child.protocol.pipe_data_received(self._number, data)
        else:
            self.close()

    def pause_reading(self) -> None:
        if self._open:
            self._child.loop.remove_reader(self.fd)

    def resume_reading(self) -> None:
        if self._open:
            self._child.loop.add_reader(self.fd, self._receive)

    def close(self) -> None:
        if self._open:
            self.release()
            self._child.pipe_closed(self._number)

    abort = close

    def release(self) -> None:
        """Close the descriptor, and tell nobody."""
        self._open = False
        self._child.loop.remove_reader(self.fd)
        os.close(self.fd)


class _Writing(asyncio.WriteTransport):
    """Our end of the pipe that the child reads from. There is room for more when nothing is kept here."""

    __slots__ = ("_child", "_closing", "_open", "_rest", "fd")

    def __init__(self, child: Child, fd: int) -> None:
        self.fd = fd
        self._child = child
        self._rest: bytes | bytearray | memoryview = b""
        self._open = True
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            return
        if self._rest:
            self._rest = bytes(self._rest) + data
            return
        self._rest = data
        self._send()
        if self._rest:
            self._child.loop.add_writer(self.fd, self._go_on)
            assert self._child.protocol is not None
            self._child.protocol.pause_writing()

    def _send(self) -> None:
        try:
            sent = os.write(self.fd, self._rest)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # nobody reads it any more
            self.abort()
            return
        self._rest = self._rest[sent:]

    def _go_on(self) -> None:
        self._send()
        if self._rest or not self._open:
            return
        if self._closing:
            self.abort()
        else:
            self._child.loop.remove_writer(self.fd)
            assert self._child.protocol is not None
            self._child.protocol.resume_writing()

    def watch_readers(self) -> None:
        """The child has ended: close as soon as nobody else can read from the pipe."""
        poll = select.poll()
        poll.register(self.fd, 0)
        if poll.poll(0):
            self.abort()
        else:
            self._child.loop.add_reader(self.fd, self.abort)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Close once what is kept has gone."""
        self._closing = True
        if not self._rest:
            self.abort()

    def abort(self) -> None:
        self._closing = True
        if self._open:
            self.release()
            self._child.pipe_closed(0)

    def release(self) -> None:
        """Close the descriptor, and tell nobody."""
        self._open = False
        self._rest = b""
        self._child.loop.remove_reader(self.fd)
        self._child.loop.remove_writer(self.fd)
        os.close(self.fd)
