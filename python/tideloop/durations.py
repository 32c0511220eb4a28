"""Durations as users give them: checked where they come in, so that the error names the argument."""

from __future__ import annotations

__all__ = ["seconds"]

_INFINITY = float("inf")


def seconds(name: str, value: float) -> float:
    """`value` as it is, if it is a number of seconds of at least 0; else ValueError, which says `name`."""
    if type(value) is float and 0.0 <= value < _INFINITY:  # most are, and need no second look
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _INFINITY:
        raise ValueError(f"{name} must be a number of seconds, at least 0, not {value!r}")
    return value
