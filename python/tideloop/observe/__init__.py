"""What a loop does with its time, ``loop.metrics()``, who blocks it, ``on_block()``, how far graphs are, ``graphs()``.

On by default; ``docs/observe.md`` says what it costs.

What a loop does is measured by the loop itself. ``EventLoop(observe=False)``, or ``TIDELOOP_OBSERVE=0`` for every
loop of the process, turns it off.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tideloop.observe.metrics import Histogram, LoopMetrics, SlowStep, TimeSpent, Utilization
from tideloop.observe.runs import graphs
from tideloop.watchdog import (
    Block,
    Frame,
    block_threshold,
    off_block,
    on_block,
    set_block_threshold,
)

if TYPE_CHECKING:
    from tideloop.observe.otel import Instrumentation, instrument
    from tideloop.observe.serving import Server, serve

__all__ = [
    "Block",
    "Frame",
    "Histogram",
    "Instrumentation",
    "LoopMetrics",
    "Server",
    "SlowStep",
    "TimeSpent",
    "Utilization",
    "block_threshold",
    "graphs",
    "instrument",
    "off_block",
    "on_block",
    "serve",
    "set_block_threshold",
]


def __getattr__(name: str) -> Any:
    """Few programs tell OpenTelemetry or are asked from outside, and many import this while their loop runs."""
    homes = {"Instrumentation": "otel", "instrument": "otel", "Server": "serving", "serve": "serving"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tideloop.observe.{homes[name]}"), name)
