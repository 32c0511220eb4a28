"""What it costs the toolkit's constructors that each object is listed: python benches/gauges.py

A constructor with its entry in the roll (`tideloop.observe.gauges()`) against the same one without, in turns, by CPU
time: the median over the rounds of the difference, and what that is of the constructor. Objects die at once, which is
included.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from statistics import median
from time import thread_time_ns

import tideloop

ROUNDS, OBJECTS = 41, 3_000


class Listed(tideloop.Cache[object, object]):
    pass


class Unlisted(tideloop.Cache[object, object]):
    # A call that does as good as nothing.
    _enlist = staticmethod(tuple)  # type: ignore[assignment]


CONSTRUCTORS: dict[str, tuple[str, Callable[[], object]]] = {
    "AdaptiveLimiter": ("adaptive", tideloop.AdaptiveLimiter),
    "Background": ("background", tideloop.Background),
    "Batcher": ("batching", lambda: tideloop.Batcher(list)),
    "Breaker": ("breakers", tideloop.Breaker),
    "Graph": ("graphs.graph", tideloop.Graph),
    "KeyedLimiter": ("limits", lambda: tideloop.KeyedLimiter(1)),
    "KeyedPool": ("keyed_pools", lambda: tideloop.KeyedPool(str)),
    "KeyedRateLimiter": ("rates", lambda: tideloop.KeyedRateLimiter(tideloop.rate(1))),
    "Policy": ("policies", tideloop.Policy),
    "Pool": ("pools", lambda: tideloop.Pool(object)),
    "SingleFlight": ("flights", tideloop.SingleFlight),
}


def nanoseconds(make: Callable[[], object]) -> float:
    gc.collect()
    started = thread_time_ns()
    for _ in range(OBJECTS):
        make()
    return (thread_time_ns() - started) / OBJECTS


def told(name: str, listed: Callable[[], float], unlisted: Callable[[], float]) -> None:
    pairs = []
    for number in range(ROUNDS):
        order = (listed, unlisted) if number % 2 else (unlisted, listed)
        times = {run: run() for run in order}
        pairs.append((times[listed], times[unlisted]))
    more = median(one - other for one, other in pairs)
    base = median(other for _, other in pairs)
    print(f"{name:18} {base:8,.0f} ns {more:+8.1f} ns {100 * more / base:+6.1f} %", flush=True)


def main() -> None:
    gc.disable()
    print(f"{'':18} {'unlisted':>11} {'listed':>11}")
    for name, (module, make) in CONSTRUCTORS.items():
        where = importlib.import_module(f"tideloop.{module}")
        enlist = where.enlist

        def run(entry: object, make: Callable[[], object] = make, where: object = where) -> float:
            # A builtin of one argument that does as good as nothing takes the place of enlist().
            setattr(where, "enlist", entry)  # noqa: B010  mypy knows no such attribute of a module
            return nanoseconds(make)

        told(name, lambda run=run, enlist=enlist: run(enlist), lambda run=run: run(callable))  # type: ignore[misc]
        where.enlist = enlist
    told("Cache", lambda: nanoseconds(Listed), lambda: nanoseconds(Unlisted))


if __name__ == "__main__":
    main()
