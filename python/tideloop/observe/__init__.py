"""What a loop does with its time, ``loop.metrics()``, and its tasks, ``loop.tasks()``; who blocks it, ``on_block()``.

Who awaits whom: ``tree()``. Failures that nobody has asked for: ``on_unretrieved()``. The toolkit: ``gauges()``;
how far graphs are: ``graphs()``.

On by default; ``docs/observe.md`` says what it costs.

What a loop does is measured by the loop itself. ``EventLoop(observe=False)``, or ``TIDELOOP_OBSERVE=0`` for every
loop of the process, turns it off.
"""

from typing import TYPE_CHECKING, Any

from tideloop.observe.attached import Attached, AttachedMetrics, attach
from tideloop.observe.awaiting import TaskNode, TaskTree, tree
from tideloop.observe.gauges import Gauge, gauges
from tideloop.observe.metrics import Histogram, LoopMetrics, SlowStep, TimeSpent, Utilization
from tideloop.observe.runs import graphs
from tideloop.observe.tasks import CoroutineSeen, TaskSeen, TasksSeen
from tideloop.observe.unretrieved import (
    Unretrieved,
    off_unretrieved,
    on_unretrieved,
    set_unretrieved_after,
    unretrieved_after,
)
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
    "Attached",
    "AttachedMetrics",
    "Block",
    "CoroutineSeen",
    "Frame",
    "Gauge",
    "Histogram",
    "Instrumentation",
    "LoopMetrics",
    "SlowStep",
    "TaskNode",
    "TaskSeen",
    "TaskTree",
    "TasksSeen",
    "TimeSpent",
    "Unretrieved",
    "Utilization",
    "attach",
    "block_threshold",
    "gauges",
    "graphs",
    "instrument",
    "off_block",
    "off_unretrieved",
    "on_block",
    "on_unretrieved",
    "set_block_threshold",
    "set_unretrieved_after",
    "tree",
    "unretrieved_after",
]


def __getattr__(name: str) -> Any:
    """Few programs tell OpenTelemetry, and many import this while their loop runs."""
    if name not in ("Instrumentation", "instrument"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tideloop.observe import otel

    return getattr(otel, name)
