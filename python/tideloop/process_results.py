"""What processes leave and fail with: ProcessResult, ProcessError, ProcessTimeout, ProcessStats."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Command", "ProcessError", "ProcessResult", "ProcessStats", "ProcessTimeout", "ending", "shown"]

Command = str | bytes | Sequence[str | bytes | os.PathLike[str]]


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
        return f"{shown(self.result.args)} {ending(self.result.returncode)}" + (f": {last}" if last else "")


class ProcessTimeout(TimeoutError):
    """A process took too long and was ended, or could not be. `result` is what it had left by then."""

    def __init__(self, result: ProcessResult, timeout: float) -> None:
        super().__init__(result, timeout)
        self.result = result
        self.timeout = timeout

    def __str__(self) -> str:
        end = "could not be" if self.result.returncode is None else "was"
        return f"{shown(self.result.args)} was not done in {self.timeout:g} s and {end} ended"


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


def shown(args: Command) -> str:
    """A command as messages name it."""
    if isinstance(args, str | bytes):
        return repr(args)
    return repr(" ".join(os.fsdecode(arg) for arg in args))


def ending(returncode: int | None) -> str:
    """How a process has ended, in words."""
    if returncode is None:
        return "is running"
    if returncode >= 0:
        return f"ended with exit status {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"
