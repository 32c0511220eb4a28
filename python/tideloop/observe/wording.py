"""How the commands put numbers, places and names into words."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "ago",
    "count",
    "frames",
    "kib",
    "loop_names",
    "natural",
    "percent",
    "place",
    "plural",
    "printable",
    "rate",
    "seconds",
    "whose",
]


def seconds(value: float | None) -> str:
    """A duration in its unit: ``850 µs``, ``12.4 ms``, ``3.2 s``, ``4 min``, ``2.5 h``; ``-``: not known."""
    if value is None:
        return "-"
    if value < 0.0000005:
        return "0"
    if value < 0.0009995:
        return f"{value * 1e6:.0f} µs"
    if value < 0.0999:
        return f"{value * 1e3:.1f} ms"
    if value < 0.9995:
        return f"{value * 1e3:.0f} ms"
    if value < 99.95:
        return f"{value:.1f} s"
    if value < 5970:
        return f"{value / 60:.0f} min"
    if value < 172_800:
        return f"{value / 3600:.1f} h"
    return f"{value / 86_400:.1f} d"


def ago(value: float) -> str:
    """How long ago, from seconds."""
    return "just now" if value < 1 else f"{seconds(value)} ago"


def percent(ratio: float | None) -> str:
    """A ratio as a percentage."""
    if ratio is None:
        return "-"
    return f"{ratio * 100:.1f} %" if 0 < ratio < 0.0995 else f"{ratio * 100:.0f} %"


def count(value: float | None) -> str:
    """A number that may be large: ``12,345``, ``1.2 M``."""
    if value is None:
        return "-"
    return f"{value / 1e6:.1f} M" if abs(value) >= 1e6 else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """So many in a second."""
    if value is None:
        return "-"
    return f"{value:.1f}/s" if 0 < value < 10 else f"{count(value)}/s"


def kib(size: int) -> str:
    """A size in bytes."""
    if size < 10_000:
        return f"{size} bytes"
    return f"{size / 1024:.0f} KiB" if size < 10 * 1024 * 1024 else f"{size / 1024 / 1024:.1f} MiB"


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 task``, ``12 tasks``."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def place(file: str | None, line: int | None) -> str:
    """``handlers.py:12``: enough of a path to know the file by; empty: not known."""
    if not file:
        return ""
    folder, name = os.path.split(file)
    if name == "__init__.py":
        name = os.path.join(os.path.basename(folder), name)
    return f"{name}:{line}" if line else name


def frames(stack: Sequence[Sequence[Any]], indent: str) -> list[str]:
    """A stack as Python writes it, the innermost frame first."""
    return [f'{indent}File "{file}", line {line}, in {function}' for file, line, function in stack]


def whose(what: Mapping[str, Any]) -> str:
    """``fetch (app.py:12)`` of a task, a block or a slow step."""
    name = str(what.get("coroutine") or what.get("what") or "a callback")
    where = place(what.get("file"), what.get("line"))
    return f"{name} ({where})" if where else name


def loop_names(said: Mapping[str, Any]) -> dict[int, str]:
    """The loops of ``/v1/loops`` by their numbers: the names of their threads."""
    return {loop["id"]: loop.get("name") or f"loop {loop['id']}" for loop in said["loops"]}


def natural(name: object) -> list[tuple[int, str]]:
    """What names are sorted by: ``Task-9`` before ``Task-10``."""
    parts = re.split(r"(\d+)", str(name))
    return [(int(part) if part.isdecimal() and part.isascii() else -1, part) for part in parts]


def printable(text: str) -> str:
    """Without what a terminal would take for a command: names of tasks are anybody's."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
