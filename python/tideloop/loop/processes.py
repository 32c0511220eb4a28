"""Child processes: asyncio's transports, watched through process descriptors of the loop's own.

The descriptor of a process (``pidfd_open``, Linux 5.3) becomes readable when the process ends, so it takes
neither a SIGCHLD handler nor a thread, and works in any thread's loop. asyncio does the same from Python 3.12
on, but forgets its descriptors when the loop is closed first, and the exit status when Popen has asked for it
first. Where there is no such descriptor, and for a child watcher that the program has installed, asyncio's own
code runs; its default is a thread per child.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import warnings
from asyncio import events
from typing import Any, cast

from tideloop.exits import can_open_pidfds, collect, lost
from tideloop.loop.bases import LoopBase

if sys.platform != "win32":
    from asyncio import unix_events

__all__ = ["ProcessLoop"]

# What asyncio would use by itself: a program that has another one has chosen it.
_DEFAULT_WATCHERS = {"PidfdChildWatcher", "ThreadedChildWatcher", "_PidfdChildWatcher"}


class ProcessLoop(LoopBase):
    """The part of the loop that waits for child processes."""

    _pidfds: set[int] | None = None

    async def _make_subprocess_transport(
        self,
        protocol: asyncio.SubprocessProtocol,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: Any = None,
        **kwargs: Any,
    ) -> asyncio.SubprocessTransport:
        if not self._watches_children():
            made: asyncio.SubprocessTransport = await super()._make_subprocess_transport(
                protocol, args, shell, stdin, stdout, stderr, bufsize, extra, **kwargs
            )
            return made
        waiter = self.create_future()
        transport: Any = unix_events._UnixSubprocessTransport(  # type: ignore[attr-defined]
            self, protocol, args, shell, stdin, stdout, stderr, bufsize, waiter=waiter, extra=extra, **kwargs
        )
        self._watch_child(transport)
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            # A second cancellation must not leave a zombie.
            await asyncio.shield(transport._wait())
            raise
        return transport  # type: ignore[no-any-return]

    def _watches_children(self) -> bool:
        """Whether process descriptors work here, and nobody wants another way."""
        if sys.version_info >= (3, 14):
            watcher: object = getattr(self, "_watcher", None)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                try:
                    watcher = events.get_child_watcher()
                except NotImplementedError:  # a policy without watchers
                    return self._has_pidfds()
        return type(watcher).__name__ in _DEFAULT_WATCHERS and self._has_pidfds()

    def _has_pidfds(self) -> bool:
        """Whether there are process descriptors. Once there was one, _watch_child() knows what to do without."""
        return self._pidfds is not None or can_open_pidfds()

    def _watch_child(self, transport: Any) -> None:
        pid = transport.get_pid()
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            # Out of descriptors, most likely: a thread needs none, and the child runs already.
            _thread_watcher().add_child_handler(pid, self._child_watcher_callback, transport)
            return
        if self._pidfds is None:
            self._pidfds = set()
        self._pidfds.add(pidfd)
        self._add_reader(pidfd, self._child_has_ended, pidfd, transport._proc, transport)

    def _child_has_ended(self, pidfd: int, process: subprocess.Popen[Any], transport: Any) -> None:
        self._forget_child(pidfd)
        try:
            # It has ended, so there is a status.
            code = cast("int", collect(process.pid))
        except ChildProcessError:
            # Popen asks when it is told to send a signal; anybody else takes the answer away.
            code = lost(process.pid) if process.returncode is None else process.returncode
        # From now on the number may be another process's: no signal may go to it.
        process.returncode = code
        self._child_watcher_callback(process.pid, code, transport)

    def _forget_child(self, pidfd: int) -> None:
        self._remove_reader(pidfd)
        os.close(pidfd)
        if self._pidfds is not None:
            self._pidfds.discard(pidfd)

    def _forget_children(self) -> None:
        """The loop closes: nobody will wait for those that still run."""
        for pidfd in list(self._pidfds or ()):
            self._forget_child(pidfd)


def _thread_watcher() -> Any:
    found = getattr(unix_events, "_ThreadedChildWatcher", None) or unix_events.ThreadedChildWatcher
    return found()
