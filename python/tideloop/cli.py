"""The ``tideloop`` command.

Exit codes: those of the program for ``run``; otherwise 0 for success, 1 for failure (``doctor``: something is
wrong), 2 for wrong usage, 3 for a process that cannot be reached.
"""

from __future__ import annotations

import sys
from importlib import metadata

__all__ = ["main"]

_USAGE = """\
usage: tideloop run [--accelerate] script.py [args ...]
       tideloop run [--accelerate] -m module [args ...]
       tideloop top|tasks|blocked|doctor|flame|record|web [PID] [options]
       tideloop lab [options]
       tideloop --version

run   runs an asyncio program on tideloop, unedited: arguments, exit code and tracebacks as with python;
      --accelerate puts native primitives in the place of asyncio's, too; --observe and --observe-web[=PORT] let you
      look at it from outside
lab   compares event loops on this machine

Of a program that runs, by its process number (not needed where it is the only one), if it was started to be
observed (tideloop run --observe, TIDELOOP_OBSERVE_SOCKET=1):
top      what its loops do, live
tasks    its tasks; --tree: who waits for whom
blocked  who has blocked its loops, and where
doctor   what is wrong with it, in sentences
flame    a flame graph of what has blocked its loops
record   saves what its flight recorder has
web      a live page in the browser

tideloop COMMAND --help tells more.
"""

_OBSERVING = ("top", "tasks", "blocked", "doctor", "flame", "record", "web")

_EXPECTED = f"run, lab, {', '.join(_OBSERVING)}, --help or --version"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    match arguments:
        case ["run", *rest]:
            from tideloop.program import main as run

            return run(rest)
        case ["lab", *rest]:
            from tideloop.lab import main as lab

            return lab(rest)
        case [command, *rest] if command in _OBSERVING:
            from tideloop.observe.commands import run as observe

            return observe(command, rest)
        case ["-h" | "--help" | "help"]:
            print(_USAGE, end="")
            return 0
        case ["-V" | "--version"]:
            print(f"tideloop {metadata.version('tideloop')}")
            return 0
        case []:
            print(_USAGE, end="", file=sys.stderr)
            return 2
        case [other, *_]:
            print(f"tideloop: no command {other!r}; expected {_EXPECTED}", file=sys.stderr)
            return 2
    return 2
