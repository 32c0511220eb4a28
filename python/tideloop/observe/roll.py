"""Gauges: every limiter, queue, pool, cache, … of the process with its stats(), for whoever looks from outside.

The toolkit's objects enter a roll when they are made (native: ``crates/py/src/ffi/roll.rs``), which neither keeps them
alive nor costs what could be noticed. What is a part of something else, like the limiter of one key, is told of by
the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tideloop._tideloop import enlisted
from tideloop.observe.runs import graphs

__all__ = ["Gauge", "gauges"]

KINDS = {
    "AdaptiveLimiter": "adaptive",
    "Background": "background",
    "Batcher": "batcher",
    "Breaker": "breaker",
    "Cache": "cache",
    "ChannelCore": "channel",
    "Graph": "graph",
    "GraphRun": "graph_run",
    "Group": "group",
    "KeyedLimiter": "keyed_limiter",
    "KeyedPool": "keyed_pool",
    "KeyedRateLimiter": "keyed_rate",
    "Limiter": "limiter",
    "LifoQueue": "queue",
    "Policy": "policy",
    "Pool": "pool",
    "PriorityQueue": "queue",
    "Queue": "queue",
    "RateLimiter": "rate",
    "ResourceLimits": "resource_limits",
    "SharedLimiter": "shared_limiter",
    "SharedRateLimiter": "shared_rate",
    "SharedSingleFlight": "shared_single_flight",
    "SingleFlight": "single_flight",
}
"""The kinds of gauges, by the name of the class."""


class Gauge(NamedTuple):
    """One object of the toolkit at one moment."""

    kind: str
    """``"limiter"``, ``"queue"``, ``"pool"``, …: one of the values of ``tideloop.observe.roll.KINDS``."""
    name: str | None
    """The name that it was given."""
    stats: Any
    """What its ``stats()`` returned."""
    id: int
    """Tells it from the others of its kind for as long as it lives."""


def _kind(cls: type) -> str | None:
    """The kind of a class, or of the class that it derives from; None: it is a part of something else."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "tideloop":
            # A private class of ours is for the inside of another.
            return KINDS.get(base.__name__)
    return None


def gauges() -> list[Gauge]:
    """All limiters, queues, channels, pools, caches, groups, … that there are, and the graphs that run.

    They are sorted by kind and name.

    From any thread; what other threads do meanwhile is in it or not. An object whose stats() raises, as one that is
    just being made may, is left out.
    """
    return sorted(each_gauge(), key=place)


def place(gauge: Gauge) -> tuple[str, str, int]:
    """Where a gauge is in the list of all."""
    return (gauge.kind, str(gauge.name or ""), gauge.id)


def each_gauge(go_on: Callable[[], object] = lambda: None) -> Iterator[Gauge]:
    """All of them, in no order; `go_on` is called before each is asked."""
    kinds: dict[type, str | None] = {}
    for gauge in [*enlisted(), *graphs()]:
        go_on()
        cls = type(gauge)
        if cls not in kinds:
            kinds[cls] = _kind(cls)
        kind = kinds[cls]
        if kind is None:
            continue
        try:
            asked = Gauge(kind, gauge.name if hasattr(gauge, "name") else None, gauge.stats(), id(gauge))
        except Exception:
            # One that is just being made, say: there is nobody to tell it to, and the others matter.
            continue
        yield asked
