"""What is asked of a pool, checked, and what it answers with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

from tideloop.durations import seconds

__all__ = [
    "KeyedPoolOptions",
    "PoolClosed",
    "PoolOptions",
    "PoolStats",
    "PoolTimeout",
    "bounds",
    "count",
    "limit",
]


class PoolTimeout(TimeoutError):
    """No resource could be had in time. The message tells what the pool was doing."""


class PoolClosed(RuntimeError):
    """The pool lends nothing any more."""


class PoolStats(NamedTuple):
    """A pool in numbers, from which its size can be judged.

    Too small: `waiting` is often above 0, and `waited` grows. Too large: `idle` is never 0.
    """

    idle: int
    borrowed: int
    creating: int
    waiting: int
    lent: int
    """Times that a resource was lent."""
    waited: float
    """Seconds that borrowers have waited, all together."""
    timeouts: int
    created: int
    failed: int
    """Creations that have failed."""
    retired: int
    """Resources that were closed: worn, discarded, failing their check or their reset."""
    leaked: int
    """Loans that were reported as too long."""


class KeyedPoolOptions(TypedDict, total=False):
    """What both kinds of pools take, so that a checker knows."""

    check: Callable[[Any], Any] | None
    reset: Callable[[Any], Any] | None
    max_idle: float | None
    max_lifetime: float | None
    max_uses: int | None
    keepalive: float | None
    jitter: float
    acquire_timeout: float | None
    create_timeout: float | None
    close_timeout: float | None
    create_limit: int
    leak_after: float | None
    name: str | None


class PoolOptions(KeyedPoolOptions, total=False):
    min: int
    max: int


def count(name: str, value: int) -> int:
    """`value` as it is, if it is a whole number of at least 1; else ValueError, which says `name`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a number of at least 1, not {value!r}")
    return value


def bounds(least: int, most: int) -> tuple[int, int]:
    """A pool's min and max, if they are that."""
    most = count("max", most)
    if isinstance(least, bool) or not isinstance(least, int) or not 0 <= least <= most:
        raise ValueError(f"min must be a number from 0 to max, which is {most}, not {least!r}")
    return least, most


def limit(name: str, value: float | None) -> float:
    """Seconds; None, which is no limit, is infinite."""
    return math.inf if value is None else seconds(name, value)
