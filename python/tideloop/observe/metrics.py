"""LoopMetrics: what ``EventLoop.metrics()`` returns. All times are seconds.

The histograms are base-2 exponential with eight buckets to an octave: OpenTelemetry's exponential histogram at scale
3, which is the Prometheus native histogram with schema 3. Values read back from one are within 4.4 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Histogram", "LoopMetrics", "SlowStep", "TimeSpent", "Utilization"]

_NANO = 1e-9
_PER_OCTAVE = 8


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of durations."""

    count: int
    total: float
    """The sum of all that were counted."""
    longest: float
    zeros: int
    """How many were zero."""
    buckets: tuple[tuple[int, int], ...]
    """``(index, count)`` of the buckets that are not empty, in rising order: those above ``2**(index / 8)``
    nanoseconds, up to and including ``2**((index + 1) / 8)``."""

    @property
    def mean(self) -> float:
        """The mean; 0.0 of nothing."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """What the fraction ``q`` of the durations does not exceed, within 4.4 %; 0.0 of nothing.

        Raises ValueError unless 0 <= q <= 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q is {q!r}; expected a number from 0 to 1")
        rank = max(math.ceil(q * self.count), 1)
        seen = self.zeros
        if self.count == 0 or seen >= rank:
            return 0.0
        if rank == self.count:
            return self.longest
        for index, count in self.buckets:
            seen += count
            if seen >= rank:
                # The middle of the bucket, as a ratio.
                return float(min(2 ** ((index + 0.5) / _PER_OCTAVE) * _NANO, self.longest))
        return self.longest

    def since(self, earlier: Histogram) -> Histogram:
        """What was counted after ``earlier``, of the same loop; ``longest`` is the highest bucket's bound then."""
        before = dict(earlier.buckets)
        left = tuple((index, count - before.get(index, 0)) for index, count in self.buckets)
        buckets = tuple((index, count) for index, count in left if count > 0)
        top = 2 ** ((buckets[-1][0] + 1) / _PER_OCTAVE) * _NANO if buckets else 0.0
        zeros = self.zeros - earlier.zeros
        count = zeros + sum(count for _, count in buckets)
        return Histogram(count, self.total - earlier.total, min(top, self.longest), zeros, buckets)


class TimeSpent(NamedTuple):
    """Where the time of a loop went, over all its runs."""

    callbacks: float
    """Running steps of tasks, callbacks and protocols."""
    internal: float
    """System calls and bookkeeping."""
    idle: float
    """Waiting for something to happen."""


class Utilization(NamedTuple):
    """How busy a loop was of late: the fraction of the time, 0 to 1, in which it did not wait.

    Exponentially weighted averages, which a loop that is stopped, or blocked, goes on to change.
    """

    second: float
    ten_seconds: float
    minute: float


class SlowStep(NamedTuple):
    """One of the longest steps."""

    duration: float
    ended: float
    """On the clock of ``time.monotonic()`` (on Linux; elsewhere only differences mean anything)."""
    what: str
    """The qualified name of the coroutine, of the callback or of the protocol's class; empty: not known."""
    file: str
    line: int
    """Where the coroutine awaited when the step ended, or where the function begins; 0: not known."""
    task: str
    """The name of the task; empty: it was none."""
    among: int
    """1, or how many short steps were timed together with it, so that it is not known which of them it was."""


class LoopMetrics(NamedTuple):
    """What ``EventLoop.metrics()`` tells, counted since the loop was made."""

    steps: int
    """Steps of tasks, callbacks and deliveries to protocols that have run. While steps are short they are
    counted by dozens."""
    polls: int
    spent: TimeSpent
    utilization: Utilization
    step_seconds: Histogram
    """How long steps took. Of short ones a sample stands for the rest, also in the total; ``spent`` is exact."""
    ready_delay: Histogram
    """How long what was ready waited behind others before it ran."""
    timer_lateness: Histogram
    """How late timers fired; never early."""
    ready: int
    """Callbacks and steps that are ready to run now."""
    timers: int
    """Timers that are set; cancelled ones that have not been swept out are among them."""
    descriptors: int
    """Watched file descriptors."""
    transports: int
    """Open connections and datagram endpoints."""
    executor_queue: int
    """Calls that wait for a thread of the default executor."""
    slowest: tuple[SlowStep, ...]
    """The longest steps of 0.2 ms and more, the longest first; sixteen at most."""


def histogram_of(counted: Any) -> Histogram:
    """What the native half has counted, with names."""
    count, total, _shortest, longest, zeros, buckets = counted
    return Histogram(count, total * _NANO, longest * _NANO, zeros, tuple(buckets))


def _slow(step: dict[str, Any]) -> SlowStep:
    return SlowStep(
        duration=step["took"] * _NANO,
        ended=step["ended"] * _NANO,
        what=step["what"],
        file=step["file"],
        line=step["line"],
        task=step["task"],
        among=step["among"],
    )


def metrics_of(counted: Any, counts: tuple[int, int, int], executor_queue: int) -> LoopMetrics:
    """For EventLoop.metrics(): gives what the native half has counted its names."""
    (spent, load, (steps, polls), histograms, slowest), transports = counted
    step_seconds, ready_delay, timer_lateness = map(histogram_of, histograms)
    ready, timers, descriptors = counts
    return LoopMetrics(
        steps=steps,
        polls=polls,
        spent=TimeSpent(*(nanoseconds * _NANO for nanoseconds in spent)),
        utilization=Utilization(*load),
        step_seconds=step_seconds,
        ready_delay=ready_delay,
        timer_lateness=timer_lateness,
        ready=ready,
        timers=timers,
        descriptors=descriptors,
        transports=transports,
        executor_queue=executor_queue,
        slowest=tuple(map(_slow, slowest)),
    )
