"""What the commands share: arguments, mistakes of one line, tables, colours on terminals only, waits that are seen."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

from tideloop.observe.client import Client, Unreachable, find
from tideloop.observe.wording import printable

__all__ = [
    "FOUND",
    "INTERRUPTED",
    "OK",
    "UNREACHABLE",
    "USAGE",
    "Fails",
    "Parser",
    "Style",
    "client_of",
    "command",
    "dump",
    "positive",
    "table",
    "wait",
]

OK, FOUND, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

_EXITS = "exit codes: 0 all is well, 1 {one}, 2 wrong usage, 3 the process cannot be reached"


class Fails(Exception):
    """What was asked for cannot be done; the text is one line for people. Exit code 1."""


class _Usage(Exception):
    pass


class Parser(argparse.ArgumentParser):
    """Arguments of a command. A mistake is one line, exit code 2."""

    def __init__(self, name: str, what: str, one: str, *, json: bool = True) -> None:
        super().__init__(prog=f"tideloop {name}", description=what, epilog=_EXITS.format(one=one), allow_abbrev=False)
        self.add_argument(
            "pid", nargs="?", type=_pid, metavar="PID", help="the process; not needed if it is the only one"
        )
        if json:
            self.add_argument("--json", action="store_true", help="as JSON, for programs")

    def error(self, message: str) -> NoReturn:
        raise _Usage(message)


def _pid(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and 0 < int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a process")
    return int(text)


def positive(text: str) -> float:
    """For an option's `type`: seconds above 0, of a day at the most."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and up to 86400")
    return seconds


def command(name: str, body: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run a command's body; whatever goes wrong is a line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets a question mark, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = body(argv)
        sys.stdout.flush()
        return code
    except _Usage as error:
        return _complain(name, error, USAGE)
    except Unreachable as error:
        return _complain(name, error, UNREACHABLE)
    except Fails as error:
        return _complain(name, error, FOUND)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except SystemExit as end:  # --help
        return OK if end.code is None else int(end.code)
    except BrokenPipeError:
        # Whoever read the output went away; closing stdout must not complain a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FOUND


def _complain(name: str, error: Exception, code: int) -> int:
    print(f"tideloop {name}: {printable(str(error))}", file=sys.stderr)
    return code


def client_of(pid: int | None) -> Client:
    """A client of the process, or of the only one. Raises Unreachable."""
    return Client(find(pid))


def dump(document: Any) -> None:
    """Print a document for programs."""
    json.dump(document, sys.stdout, indent=2)
    print()


class Style:
    """How something is shown: with colours where somebody looks, and as wide as there is room."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.coloured = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    @property
    def width(self) -> int | None:
        """How wide a line may be; None: it is not shown on a terminal."""
        return shutil.get_terminal_size().columns if self._out.isatty() else None

    def _paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.coloured else text

    def bold(self, text: str) -> str:
        return self._paint(text, "1")

    def dim(self, text: str) -> str:
        return self._paint(text, "2")

    def red(self, text: str) -> str:
        return self._paint(text, "31;1")

    def yellow(self, text: str) -> str:
        return self._paint(text, "33")

    def green(self, text: str) -> str:
        return self._paint(text, "32")


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    style: Style,
    align: str,
    *,
    known: bool = False,
) -> list[str]:
    """Aligned columns: `align` has a ``<`` for each of words and a ``>`` for each of numbers.

    No line is wider than there is room: what is on the right gives way. `known` leaves out columns of
    which nothing is known.
    """
    if known and rows:
        kept = [place for place in range(len(head)) if any(row[place] != "-" for row in rows)]
        head, align = [head[place] for place in kept], "".join(align[place] for place in kept)
        rows = [[row[place] for place in kept] for row in rows]
    rows = [[printable(cell) for cell in row] for row in rows]
    width = style.width
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        parts = [
            cell.ljust(size) if side == "<" else cell.rjust(size)
            for side, cell, size in zip(align, cells, widths, strict=True)
        ]
        text = "  ".join(parts).rstrip()
        return text if width is None or len(text) <= width else text[: max(width - 1, 1)] + "…"

    return [style.dim(line(head)), *map(line, rows)]


def wait(seconds: float, what: str, until: Callable[[], bool] = lambda: False) -> None:
    """Wait, or until `until` says so. A terminal sees how long it takes; a file or a pipe sees one line of it."""
    err = sys.stderr
    end = time.monotonic() + seconds
    if not err.isatty():
        print(f"{what} for {seconds:g} s", file=err, flush=True)
    while (left := end - time.monotonic()) > 0 and not until():
        if err.isatty():
            err.write(f"\r{what}: {left:.0f} s left ")
            err.flush()
        time.sleep(min(left, 0.25))
    if err.isatty():
        err.write("\r" + " " * (len(what) + 20) + "\r")
        err.flush()
