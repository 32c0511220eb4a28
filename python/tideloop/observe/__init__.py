"""What a loop does with its time, ``loop.metrics()``, and its tasks, ``loop.tasks()``; who blocks it, ``on_block()``.

Who awaits whom: ``tree()``. Failures that nobody has asked for: ``on_unretrieved()``. The toolkit: ``gauges()``;
how far graphs are: ``graphs()``.

On by default; ``docs/observe.md`` says what it costs.

What a loop does is measured by the loop itself. ``EventLoop(observe=False)``, or ``TIDELOOP_OBSERVE=0`` for every
loop of the process, turns it off.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tideloop.watchdog import (
    Block,
    Frame,
    block_threshold,
    off_block,
    on_block,
    set_block_threshold,
)

if TYPE_CHECKING:
    from tideloop.observe.attached import Attached, AttachedMetrics, attach
    from tideloop.observe.awaiting import TaskNode, TaskTree, tree
    from tideloop.observe.dumps import dump_traces, stop_dumping_traces
    from tideloop.observe.metrics import Histogram, LoopMetrics, SlowStep, TimeSpent, Utilization
    from tideloop.observe.otel import Instrumentation, instrument
    from tideloop.observe.roll import Gauge, gauges
    from tideloop.observe.runs import graphs
    from tideloop.observe.serving import Server, serve
    from tideloop.observe.tasks import CoroutineSeen, TaskSeen, TasksSeen
    from tideloop.observe.unretrieved import (
        Unretrieved,
        off_unretrieved,
        on_unretrieved,
        set_unretrieved_after,
        unretrieved_after,
    )

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
    "Server",
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
    "dump_traces",
    "gauges",
    "graphs",
    "instrument",
    "off_block",
    "off_unretrieved",
    "on_block",
    "on_unretrieved",
    "serve",
    "set_block_threshold",
    "set_unretrieved_after",
    "stop_dumping_traces",
    "tree",
    "unretrieved_after",
]


_HOMES = {
    "attached": ("Attached", "AttachedMetrics", "attach"),
    "awaiting": ("TaskNode", "TaskTree", "tree"),
    "dumps": ("dump_traces", "stop_dumping_traces"),
    "metrics": ("Histogram", "LoopMetrics", "SlowStep", "TimeSpent", "Utilization"),
    "otel": ("Instrumentation", "instrument"),
    "roll": ("Gauge", "gauges"),
    "runs": ("graphs",),
    "serving": ("Server", "serve"),
    "tasks": ("CoroutineSeen", "TaskSeen", "TasksSeen"),
    "unretrieved": (
        "Unretrieved",
        "off_unretrieved",
        "on_unretrieved",
        "set_unretrieved_after",
        "unretrieved_after",
    ),
}


def __getattr__(name: str) -> Any:
    """Many programs import this while their loop runs, for one of these."""
    for home, names in _HOMES.items():
        if name in names:
            found = getattr(importlib.import_module(f"tideloop.observe.{home}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
