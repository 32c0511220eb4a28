"""What is wrong with a program: sentences from two snapshots of it, for ``tideloop doctor``.

A verdict is a pure function of a `Window`, two snapshots and the time between them: it yields `Finding`s and asks
nobody anything. The thresholds are the constants beside each; docs/commands.md lists them. What a snapshot does not
have (times of tasks without level 1, gauges of an older tideloop) leads to no finding, never to a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tideloop.observe.client import Snapshot
from tideloop.observe.verdicts import blocking, loops, tasks, toolkit
from tideloop.observe.verdicts.finding import SEVERITIES, Finding
from tideloop.observe.verdicts.window import Window

__all__ = ["SEVERITIES", "VERDICTS", "Finding", "Window", "examine"]

VERDICTS: tuple[Callable[[Window], Iterator[Finding]], ...] = (
    blocking.blocked_now,
    blocking.who_blocks,
    loops.saturated,
    loops.slow_to_run,
    loops.executor_queue,
    tasks.deadlocks,
    tasks.leaks,
    tasks.stuck,
    tasks.spinning,
    tasks.unretrieved,
    toolkit.limiters,
    toolkit.rates,
    toolkit.adaptive,
    toolkit.pools,
    toolkit.queues,
    toolkit.caches,
    toolkit.batchers,
    toolkit.backgrounds,
    toolkit.breakers,
    loops.not_seen,
)
"""In the order in which findings of one severity are shown."""


def examine(before: Snapshot, after: Snapshot) -> list[Finding]:
    """Everything that is found, the worst first."""
    window = Window(before, after)
    found = [finding for verdict in VERDICTS for finding in verdict(window)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
