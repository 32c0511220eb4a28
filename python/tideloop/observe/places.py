"""Where a process that is observed has its UNIX socket: ``$XDG_RUNTIME_DIR/tideloop/PID.sock``, or else
``/tmp/tideloop-UID/PID.sock``.

Everybody may write to /tmp, so that the folder counts only if it is ours and nobody else can enter it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

__all__ = ["bind", "folder", "has_sockets", "socket_of", "unbind"]

_LONGEST = 100
"""Bytes of a path that a UNIX socket can have on every system."""


def has_sockets() -> bool:
    """Whether Python has UNIX sockets on this system, and users to ask about."""
    return hasattr(socket, "AF_UNIX") and hasattr(os, "geteuid")


def folder() -> Path:
    """The folder of this user's sockets, whether it is there or not."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime):
        return Path(runtime) / "tideloop"
    return Path(f"/tmp/tideloop-{os.geteuid()}")


def socket_of(pid: int) -> Path:
    """The socket of one process."""
    return folder() / f"{pid}.sock"


def check(where: Path) -> None:
    """Raise PermissionError unless the folder is this user's and closed to all others."""
    found = os.lstat(where)
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{where} is no folder; it is not trusted with a socket")
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{where} belongs to user {found.st_uid}, expected {os.geteuid()}")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise PermissionError(f"{where} has mode {mode:04o}, so that others can enter it; expected 0700")


def bind(path: Path) -> socket.socket:
    """A listening socket at this path, with mode 0600; the one that a dead process has left there is replaced.

    Raises PermissionError if the folder is not safe, FileExistsError if something else is there that is alive, or no
    socket at all, and OSError for whatever the system refuses.
    """
    if len(os.fsencode(path)) > _LONGEST:
        raise OSError(f"{path} is too long for a UNIX socket: {_LONGEST} bytes at most")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path.parent, 0o700)
    check(path.parent)
    _remove_dead(path)
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(os.fspath(path))
        # Nobody is let in before it listens.
        os.chmod(path, 0o600)
        listening.listen(64)
    except BaseException:
        listening.close()
        raise
    return listening


def _remove_dead(path: Path) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(f"{path} is there and is no socket")
    with socket.socket(socket.AF_UNIX) as asked:
        asked.setblocking(False)
        try:
            asked.connect(os.fspath(path))
        except ConnectionRefusedError:
            # Nobody listens: the number is ours now, so whoever had it has ended.
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise FileExistsError(f"{path} is another process's, which lives")


def unbind(path: Path, made: os.stat_result) -> None:
    """Remove the socket, if it is still the one that was made."""
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == (made.st_dev, made.st_ino):
            path.unlink()
