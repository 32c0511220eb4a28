"""The ``tideloop`` command.

Exit codes: those of the program for ``run``; otherwise 0 for success, 1 for failure, 2 for wrong usage.
"""

from __future__ import annotations

import sys
from importlib import metadata

__all__ = ["main"]

_USAGE = """\
usage: tideloop run [--accelerate] script.py [args ...]
       tideloop run [--accelerate] -m module [args ...]
       tideloop lab [options]
       tideloop --version

run   runs an asyncio program on tideloop, unedited: arguments, exit code and tracebacks as with python;
      --accelerate puts native primitives in the place of asyncio's, too
lab   compares event loops on this machine; tideloop lab --help tells more
"""


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
            print(f"tideloop: no command {other!r}; expected run, lab, --help or --version", file=sys.stderr)
            return 2
    return 2
