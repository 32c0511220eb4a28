"""Asking an observed process: HTTP over the UNIX socket that it has opened because somebody has asked it to.

Only the standard library, and nothing here knows a loop: whoever asks may be another Python than who answers. What
cannot be had is an `Unreachable`, whose text is one sentence for people. Nothing is trusted because of its name: in
a folder that everybody may write to, anybody can make a ``4711.sock``, so that a socket counts only in a folder that
belongs to the owner of the process and that nobody else can write to.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tideloop.observe.places import has_sockets
from tideloop.observe.shapes import SHAPES, amiss

__all__ = ["VERSION", "Client", "Found", "Snapshot", "Unreachable", "find", "visible"]

VERSION = 1
"""Of what is said: ``version`` of ``/v1/loops``."""

_PATIENCE = 10.0
"""Seconds without a byte of an answer. The process answers from a thread that needs no GIL."""

_AT_ONCE = 5
"""Processes that a message names."""


class Unreachable(Exception):
    """The process cannot be asked: there is none, it is not observed, it is not yours, or it does not answer."""


class Found(NamedTuple):
    """A process that can be asked."""

    pid: int
    path: Path
    """Of its socket."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a process has told at about one moment."""

    at: float
    """Seconds since the epoch."""
    clock: float
    """Seconds on a clock that nobody sets; differences mean something."""
    loops: dict[str, Any]
    blocks: dict[str, Any]
    tasks: dict[str, Any] | None
    """None: not told by this process."""
    gauges: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """All of it as one document."""
        document = {"at": self.at, **self.loops, **self.blocks}
        document["tasks"] = self.tasks
        document["gauges"] = self.gauges and self.gauges.get("gauges")
        return document


class Client:
    """Asks one process. One question at a time; a context manager.

    Every method raises Unreachable if there is no answer that can be understood.
    """

    def __init__(self, found: Found) -> None:
        self.pid = found.pid
        self._connection = _Connection(found.path)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. The next question connects anew."""
        self._connection.close()

    def loops(self) -> dict[str, Any]:
        """``/v1/loops``: the process and its loops."""
        return self._document("/v1/loops", "loops", version=VERSION)

    def blocks(self) -> dict[str, Any]:
        """``/v1/blocks``: the last blocks, also one that lasts."""
        return self._document("/v1/blocks", "blocks")

    def tasks(self) -> dict[str, Any]:
        """``/v1/tasks``: the tasks of each loop, and its coroutine functions."""
        return self._document("/v1/tasks", "loops")

    def gauges(self) -> dict[str, Any]:
        """``/v1/gauges``: limiters, queues, pools and the like."""
        return self._document("/v1/gauges", "gauges")

    def snapshot(self) -> Snapshot:
        """All four. What a process does not have (its tideloop is another one) is None."""
        loops, blocks = self.loops(), self.blocks()
        tasks = gauges = None
        with contextlib.suppress(_Absent):
            tasks = self.tasks()
        with contextlib.suppress(_Absent):
            gauges = self.gauges()
        return Snapshot(time.time(), time.monotonic(), loops, blocks, tasks, gauges)

    def record(self, seconds: float | None = None) -> bytes:
        """``/v1/record``: what the flight recorder has of the last `seconds`, as the process writes it."""
        return self._ask("/v1/record" if seconds is None else f"/v1/record?seconds={seconds:g}")

    def web(self) -> str:
        """``/v1/web``: the address of its web page, which it opens if it has not yet."""
        body = self._ask("/v1/web")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            url = json.loads(body)["url"]
            if isinstance(url, str) and url.isprintable() and url.startswith("http://127.0.0.1:"):
                return url
        raise Unreachable(f"process {self.pid} answered /v1/web with something else than was expected: {body[:60]!r}")

    def _document(self, path: str, part: str, version: int | None = None) -> dict[str, Any]:
        body = self._ask(path)
        document: dict[str, Any] = {}
        with contextlib.suppress(ValueError, RecursionError):
            document = json.loads(body)
        wrong: str | None = f"{body[:60]!r}"
        if isinstance(document, dict) and isinstance(document.get(part), list):
            if version is not None and (told := document.get("version")) != version:
                theirs = document.get("tideloop", "not known")
                raise Unreachable(
                    f"process {self.pid} speaks version {told!r:.20} of what this tideloop understands as version "
                    f"{version}; ask it with the tideloop that it runs on ({theirs!s:.20})"
                )
            wrong = amiss(document, SHAPES[path], "the document")
        if wrong is not None:
            raise Unreachable(f"process {self.pid} answered {path} with something else than was expected: {wrong}")
        return document

    def _ask(self, path: str) -> bytes:
        try:
            try:
                return self._asked(path)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # It hangs up on those who have been silent for a while.
                self.close()
                return self._asked(path)
        except TimeoutError:
            self.close()
            raise Unreachable(f"process {self.pid} did not answer {path} within {_PATIENCE:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(self._why(error)) from None

    def _asked(self, path: str) -> bytes:
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            said = body.decode(errors="replace").strip().partition("\n")[0][:200]
            kind = _Absent if answer.status == 404 else Unreachable
            raise kind(f"process {self.pid} answered {path} with {answer.status} {answer.reason}: {said}")
        return body

    def _why(self, error: Exception) -> str:
        if isinstance(error, ConnectionRefusedError | FileNotFoundError):
            return f"process {self.pid} is not observed any more: {_state(self.pid)}"
        if isinstance(error, PermissionError):
            return f"process {self.pid} does not let you ask: {error.strerror}"
        told = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        return f"process {self.pid} broke off: {told}"


class _Absent(Unreachable):
    """It answers, and has no such path."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_PATIENCE)
        self._path = path

    def connect(self) -> None:
        if sys.platform == "win32" or not has_sockets():
            raise OSError("there are no UNIX sockets here")
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(os.fspath(self._path))
        except BaseException:
            self.sock.close()
            raise


def find(pid: int | None) -> Found:
    """The process with this number; None: the only one that there is.

    Raises Unreachable, which says what is the matter: no such process, not observed, not yours, several.
    """
    if sys.platform == "win32" or not has_sockets():
        raise Unreachable("observed processes are asked over UNIX sockets, which this system's Python has not")
    if pid is not None:
        return _find(pid)
    found = visible()
    if len(found) == 1:
        return found[0]
    if not found:
        raise Unreachable(f"no observed process of yours: {_HOW}")
    named = ", ".join(str(one.pid) for one in found[:_AT_ONCE])
    more = f" and {len(found) - _AT_ONCE} more" if len(found) > _AT_ONCE else ""
    raise Unreachable(f"{len(found)} processes are observed: {named}{more}; say which")


_HOW = 'start it with "tideloop run --observe", or with TIDELOOP_OBSERVE_SOCKET=1 in its environment'


def visible() -> list[Found]:
    """The observed processes of this user that live, in the order of their numbers."""
    found: dict[int, Found] = {}
    for folder in _folders(os.getuid()):
        if not _is_safe(folder, os.getuid()):
            continue
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                if path.suffix == ".sock" and path.stem.isdecimal() and _listens(path):
                    found.setdefault(int(path.stem), Found(int(path.stem), path))
    return [found[pid] for pid in sorted(found)]


def _find(pid: int) -> Found:
    owner = _owner(pid)
    if owner is None:
        raise Unreachable(f"no such process: {pid}")
    if owner != os.getuid() and os.getuid() != 0:
        raise Unreachable(f"process {pid} is not yours: it belongs to {_name(owner)}")
    for folder in _folders(owner):
        path = folder / f"{pid}.sock"
        if not os.path.exists(path):
            continue
        if not _is_safe(folder, owner):
            raise Unreachable(f"{folder} is not trusted: others than {_name(owner)} can write to it")
        return Found(pid, path)
    raise Unreachable(f"process {pid} is not observed: {_HOW}")


def _folders(user: int) -> Iterator[Path]:
    """Where the processes of a user have their sockets."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and user == os.getuid():
        yield Path(runtime) / "tideloop"
    # A service may have been started without the session that this one is in, or the other way round.
    usual = Path(f"/run/user/{user}")
    if not runtime or Path(runtime) != usual:
        yield usual / "tideloop"
    for folder in dict.fromkeys(("/tmp", tempfile.gettempdir())):
        yield Path(folder) / f"tideloop-{user}"


def _is_safe(folder: Path, owner: int) -> bool:
    try:
        seen = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(seen.st_mode) and seen.st_uid in (owner, 0) and not seen.st_mode & 0o022


def _listens(path: Path) -> bool:
    """Whether somebody answers there; a process that was killed leaves its socket behind."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(1.0)
        try:
            asked.connect(os.fspath(path))
        except OSError:
            return False
    return True


def _owner(pid: int) -> int | None:
    """The number of the user whose process it is; None: there is none. -1: not known, and not yours."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return None
    else:
        if not os.path.exists(f"/proc/{pid}"):
            return os.getuid()
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}").st_uid
    return -1


def _name(user: int) -> str:
    import pwd

    if user < 0:
        return "somebody else"
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _state(pid: int) -> str:
    return "it has ended" if _owner(pid) is None else "it has closed its socket"
