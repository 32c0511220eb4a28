"""How a child process has ended, for whoever learns that it has; and whether the system tells of it by a descriptor."""

from __future__ import annotations

import logging
import os
import sys

__all__ = ["can_open_pidfds", "collect", "lost"]

# asyncio's: who looks for what it says of children finds this there.
_log = logging.getLogger("asyncio")

_LOST = 255


def collect(pid: int, options: int = 0) -> int | None:
    """Collect a child and return its exit status, negative for a signal; None if it runs still.

    `options` are those of ``os.waitpid()``. ChildProcessError if somebody else has collected it.
    """
    pid, status = os.waitpid(pid, options)
    return os.waitstatus_to_exitcode(status) if pid else None


def lost(pid: int) -> int:
    """The exit status of a child that somebody else has collected, and kept it to himself: 255, which is logged."""
    _log.warning("child process pid %d exit status already read:  will report returncode %d", pid, _LOST)
    return _LOST


def can_open_pidfds() -> bool:
    """Whether there are process descriptors here. It costs two system calls."""
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True
