"""start(): a program in a session of its own; and the children that nobody waits for any more.

Where the system's posix_spawn() can do all that is asked for, it starts the program: in less time than Popen, which
uses it, too, but not for a new session. Popen starts the rest. Either way the child is the caller's, who collects it
by ``os.waitpid()``, or leaves it to `abandon()`: then whoever starts the next program collects it, as Popen does
with those that it has lost.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["abandon", "start"]

_SHELL = "/bin/sh"
# What Python ignores, and programs do not expect to be.
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ) if sys.platform != "win32" else ()

# Children that have ended, or soon will, and that nobody will wait for.
_abandoned: set[int] = set()
if hasattr(os, "register_at_fork"):
    # They are the parent's; the numbers may be those of the new process's own children some day.
    os.register_at_fork(after_in_child=_abandoned.clear)


def start(
    args: str | bytes | Sequence[str | bytes | os.PathLike[str]],
    shell: bool,
    given: Sequence[int | None],
    cwd: str | bytes | os.PathLike[str] | None,
    env: Mapping[str, str] | None,
) -> int:
    """Start a program, and return its number.

    `given` are its stdin, stdout and stderr: descriptors, DEVNULL, STDOUT (for the last) or None, as for Popen. No
    other descriptor is passed on. Raises what Popen does.
    """
    if _abandoned:
        _collect_abandoned()
    pid = _spawn(args, shell, given, env) if cwd is None else None
    if pid is None:
        stdin, stdout, stderr = given
        process = subprocess.Popen(
            args, shell=shell, stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, env=env, start_new_session=True
        )
        pid = process.pid
        # It has done its part, and shall not wait for the child, nor warn of it.
        process.returncode = 0
    _abandoned.discard(pid)
    return pid


def abandon(pid: int) -> None:
    """Have a child collected some time after it has ended."""
    _abandoned.add(pid)


def _collect_abandoned() -> None:
    for pid in list(_abandoned):
        try:
            gone, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            gone = pid
        if gone:
            _abandoned.discard(pid)


if sys.version_info >= (3, 13) and hasattr(os, "POSIX_SPAWN_CLOSEFROM"):
    _CLOSE_THE_REST = (os.POSIX_SPAWN_CLOSEFROM, 3)

    def _spawn(args: Any, shell: bool, given: Sequence[int | None], env: Mapping[str, str] | None) -> int | None:
        """Start it by posix_spawn(). None if that cannot do what is asked for."""
        if not subprocess._USE_POSIX_SPAWN:
            return None
        actions: list[tuple[Any, ...]] = []
        for number, what in enumerate(given):
            if what is None:
                continue
            if what > 2:
                actions.append((os.POSIX_SPAWN_DUP2, what, number))
            elif what == subprocess.DEVNULL:
                actions.append((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0))
            elif what == subprocess.STDOUT:
                actions.append((os.POSIX_SPAWN_DUP2, 1, number))
            else:  # the program has closed its own stdin, stdout or stderr: they may be in each other's way
                return None
        actions.append(_CLOSE_THE_REST)
        argv = [_SHELL, "-c", args] if shell else args
        path = argv[0]
        if not path:  # which Popen has the system refuse
            return None
        if env is None:
            spawn = os.posix_spawnp
        elif os.path.dirname(path):
            spawn = os.posix_spawn
        else:  # to be looked for in that environment's PATH
            return None
        sys.audit("subprocess.Popen", path, argv, None, env)
        return spawn(path, argv, env, file_actions=actions, setsid=True, setsigdef=_RESTORED)

else:

    def _spawn(args: Any, shell: bool, given: Sequence[int | None], env: Mapping[str, str] | None) -> int | None:
        return None
