"""``tideloop web PID``: has a running program open its web page, and prints the address."""

from __future__ import annotations

import json
import socket
import sys

from tideloop.observe.client import Unreachable, find
from tideloop.observe.wording import printable

__all__ = ["main"]

_USAGE = """\
usage: tideloop web [--open] PID

Has an observed program (tideloop run --observe, or TIDELOOP_OBSERVE_SOCKET=1) serve its web page on 127.0.0.1, if it
does not yet, and prints its address with the token that opens it; --open opens it in the browser, too.
"""

_PATIENCE = 10.0
"""Seconds that the program may take to answer, from a thread that is never busy for long."""


def main(argv: list[str]) -> int:
    """Run the command; returns 0, 2 for wrong usage, 3 if the process cannot be asked."""
    match argv:
        case ["-h" | "--help"]:
            print(_USAGE, end="")
            return 0
        case ["--open", pid] | [pid, "--open"]:
            opens = True
        case [pid]:
            opens = False
        case _:
            print(_USAGE, end="", file=sys.stderr)
            return 2
    if not (pid.isascii() and pid.isdecimal()):
        print(f"tideloop web: PID is {pid!r}; expected the number of a process", file=sys.stderr)
        return 2
    try:
        url = _ask(int(pid))
    except Unreachable as error:
        print(f"tideloop web: {printable(str(error))}", file=sys.stderr)
        return 3
    except (OSError, ValueError) as error:
        print(f"tideloop web: process {pid} cannot be asked: {printable(str(error))}", file=sys.stderr)
        return 3
    print(url)
    if opens:
        import webbrowser

        webbrowser.open(url)
    return 0


def _ask(pid: int) -> str:
    if not hasattr(socket, "AF_UNIX"):
        raise OSError("this system's Python has no UNIX sockets")
    path = find(pid).path
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(_PATIENCE)
        asked.connect(str(path))
        asked.sendall(b"GET /v1/web HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with asked.makefile("rb") as answer:
            _head, _, body = answer.read().partition(b"\r\n\r\n")
    said = json.loads(body)
    url = said.get("url") if isinstance(said, dict) else None
    if not (isinstance(url, str) and url.isprintable() and url.startswith("http://127.0.0.1:")):
        error = said.get("error") if isinstance(said, dict) else None
        raise ValueError(error or "it has answered something else than was expected")
    return url
