"""Whose code a frame is: the program's, a package's, Python's or ours; and which frame of a stack is to blame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

__all__ = ["Owner", "culprit", "inside", "owner"]

Owner = Literal["program", "package", "python"]

_PACKAGE = re.compile(r"[/\\](site|dist)-packages[/\\]|[/\\]python[/\\]tideloop[/\\]")
"""Of packages, and of ours in a checkout."""
_LIBRARY = re.compile(r"[/\\]lib(64)?[/\\]python3\.\d+t?[/\\]")


def owner(file: str) -> Owner:
    """Whose code a file is, by its path alone: the process may be on another file system."""
    if _PACKAGE.search(file):
        return "package"
    if file.startswith("<frozen ") or _LIBRARY.search(file):
        return "python"
    return "program"


_RUNS = re.compile(r"[/\\\\](tideloop[/\\\\]loop[/\\\\]event_loop|asyncio[/\\\\]base_events)\.py$")


def inside(stack: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
    """The frames of a step, innermost first: without those that run the loop, which are the same in every stack."""
    for number, (file, _, function) in enumerate(stack):
        if number and function.rpartition(".")[2] in ("run_forever", "_run_once") and _RUNS.search(file):
            return stack[:number]
    return stack


def culprit(stack: Sequence[Sequence[Any]]) -> tuple[str, int, str] | None:
    """The innermost frame that is the program's own, else the innermost one; None: nothing is known.

    That a call of a library took long is known from the frame inside; who made it is what can be changed.
    """
    # Further out is the program's call that runs the loop, which is not to blame.
    frames = inside(stack)
    chosen = next((frame for frame in frames if owner(frame[0]) == "program"), stack[0] if stack else None)
    return None if chosen is None else (chosen[0], chosen[1], chosen[2])
