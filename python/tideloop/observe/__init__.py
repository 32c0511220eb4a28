"""What a loop does with its time, ``loop.metrics()``, who blocks it, ``on_block()``, how far graphs are, ``graphs()``.

On by default; ``docs/observe.md`` says what it costs.

What a loop does is measured by the loop itself. ``EventLoop(observe=False)``, or ``TIDELOOP_OBSERVE=0`` for every
loop of the process, turns it off.
"""

from typing import TYPE_CHECKING, Any

from tideloop.observe.gauges import Gauge, gauges
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

__all__ = [
    "Block",
    "Frame",
    "Gauge",
    "Histogram",
    "Instrumentation",
    "LoopMetrics",
    "SlowStep",
    "TimeSpent",
    "Utilization",
    "block_threshold",
    "gauges",
    "graphs",
    "instrument",
    "off_block",
    "on_block",
    "set_block_threshold",
]


def __getattr__(name: str) -> Any:
    """Few programs tell OpenTelemetry, and many import this while their loop runs."""
    if name not in ("Instrumentation", "instrument"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tideloop.observe import otel

    return getattr(otel, name)
