"""What the loops do, as OpenTelemetry: `instrument()`. The extra ``otel``; the program brings the SDK and exporters.

Everything is read when the SDK collects, from counters that no loop waits for. Of durations OpenTelemetry's API takes
one at a time only, and a loop has millions: they are gauges of quantiles, as Node's are, over what came since the last
collection. Two readers share what comes between them.

Loops are told apart by the name of the thread that they run in. What is added up (time, steps) goes on where a loop
ended and the next one of its thread began; one that began and ended between two collections is not seen. Of loops that
are only attached to, how late their timers are is told, and who blocks them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from tideloop.observe.metrics import Histogram, LoopMetrics, TimeSpent, Utilization, histogram_of
from tideloop.observed import loops, pulse_of
from tideloop.watchdog import Block, off_block, on_block

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import TracerProvider

__all__ = ["Instrumentation", "instrument"]

_SCOPE = "tideloop.observe"
_LOOP = "asyncio.eventloop.name"
_STATE = "asyncio.eventloop.state"
_CAUSE = "asyncio.eventloop.block.cause"

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class _Totals(NamedTuple):
    """What only grows."""

    steps: int = 0
    polls: int = 0
    spent: TimeSpent = TimeSpent(0.0, 0.0, 0.0)

    def plus(self, other: _Totals) -> _Totals:
        spent = TimeSpent(*(mine + theirs for mine, theirs in zip(self.spent, other.spent, strict=True)))
        return _Totals(self.steps + other.steps, self.polls + other.polls, spent)


class _Reading(NamedTuple):
    """Of all loops of one name, at one collection."""

    totals: _Totals | None
    """None: no loop of ours has had this name, and of others nothing is known but how late their timers are."""
    utilization: float | None
    """Since the collection before; None: no time has passed in it."""
    histograms: dict[str, Histogram]
    """What came since the collection before."""
    now: dict[str, int]


_HISTOGRAMS = {
    "delay": ("ready_delay", "What was ready waited so long before it ran"),
    "step": ("step_seconds", "Steps of tasks and callbacks took so long"),
    "timer.lateness": ("timer_lateness", "Timers fired so late"),
}
_NOW = {
    "ready": ("ready", "{callback}", "Callbacks and steps that are ready to run"),
    "timers": ("timers", "{timer}", "Timers that are set"),
    "descriptors": ("descriptors", "{descriptor}", "Watched file descriptors"),
    "transports": ("transports", "{transport}", "Open connections and datagram endpoints"),
    "executor.queue": ("executor_queue", "{call}", "Calls that wait for a thread of the default executor"),
}


_NOTHING = Histogram(0, 0.0, 0.0, 0, ())


def _metrics(loop: asyncio.AbstractEventLoop) -> LoopMetrics | None:
    """None: it was attached to, and is no longer."""
    pulse = pulse_of(loop)
    if pulse is None:
        return loop.metrics() if hasattr(loop, "metrics") else None
    spent, load = TimeSpent(0.0, 0.0, 0.0), Utilization(0.0, 0.0, 0.0)
    return LoopMetrics(0, 0, spent, load, _NOTHING, _NOTHING, histogram_of(pulse.lag()), 0, 0, 0, 0, 0, ())


def _totals(metrics: LoopMetrics) -> _Totals:
    return _Totals(metrics.steps, metrics.polls, metrics.spent)


class _Sampler:
    """Reads all loops once for each collection, which asks for one instrument after the other.

    An instrument that asks again is another collection. Collections may run in any threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: set[str] = set()
        self._readings: dict[str, _Reading] = {}
        self._seen: WeakKeyDictionary[Any, tuple[str, LoopMetrics]] = WeakKeyDictionary()
        # By name, of each loop that was seen: its last totals, also when it is gone.
        self._totals: dict[str, dict[int, _Totals]] = defaultdict(dict)
        self._numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._count = 0

    def readings(self, instrument: str) -> dict[str, _Reading]:
        """By the loops' name, for one instrument of a collection."""
        with self._lock:
            if instrument in self._asked or not self._asked:
                self._asked.clear()
                self._readings = self._read()
            self._asked.add(instrument)
            return self._readings

    def _read(self) -> dict[str, _Reading]:
        found: defaultdict[str, list[tuple[LoopMetrics, LoopMetrics | None]]] = defaultdict(list)
        for loop in loops():
            metrics = _metrics(loop)
            before = self._seen.get(loop)
            name = name_of(loop) or (before[0] if before else "")
            if metrics is None or not name:
                continue
            if loop not in self._numbers:
                self._count += 1
                self._numbers[loop] = self._count
            self._seen[loop] = (name, metrics)
            if pulse_of(loop) is None:
                self._totals[name][self._numbers[loop]] = _totals(metrics)
            found[name].append((metrics, before[1] if before else None))
        for loop, (name, _) in list(self._seen.items()):
            if loop.is_closed():
                # What it did after it was seen last.
                if hasattr(loop, "metrics"):
                    self._totals[name][self._numbers[loop]] = _totals(loop.metrics())
                del self._seen[loop]
        living = set(self._numbers.values())
        readings = {}
        for name, totals in self._totals.items():
            self._fold(totals, living)
            whole = _Totals()
            for part in totals.values():
                whole = whole.plus(part)
            readings[name] = _reading(whole, found.pop(name, []))
        readings |= {name: _reading(None, pairs) for name, pairs in found.items()}
        return readings

    @staticmethod
    def _fold(totals: dict[int, _Totals], living: set[int]) -> None:
        """One sum for all loops that are gone: a program may make any number of them."""
        for number in [number for number in totals if number and number not in living]:
            totals[0] = totals.get(0, _Totals()).plus(totals.pop(number))


def _reading(totals: _Totals | None, pairs: list[tuple[LoopMetrics, LoopMetrics | None]]) -> _Reading:
    busy = idle = 0.0
    for now, before in pairs:
        was = before.spent if before else TimeSpent(0.0, 0.0, 0.0)
        idle += now.spent.idle - was.idle
        busy += now.spent.callbacks - was.callbacks + now.spent.internal - was.internal
    histograms = {}
    for field, _ in _HISTOGRAMS.values():
        parts = []
        for now, before in pairs:
            histogram: Histogram = getattr(now, field)
            parts.append(histogram.since(getattr(before, field)) if before else histogram)
        histograms[field] = _merged(parts)
    return _Reading(
        totals=totals,
        utilization=busy / (busy + idle) if busy + idle > 0 else None,
        histograms=histograms,
        now={field: sum(getattr(now, field) for now, _ in pairs) for field, _, _ in _NOW.values()},
    )


def _merged(parts: list[Histogram]) -> Histogram:
    if len(parts) == 1:
        return parts[0]
    buckets: defaultdict[int, int] = defaultdict(int)
    for part in parts:
        for index, count in part.buckets:
            buckets[index] += count
    return Histogram(
        count=sum(part.count for part in parts),
        total=sum(part.total for part in parts),
        longest=max((part.longest for part in parts), default=0.0),
        zeros=sum(part.zeros for part in parts),
        buckets=tuple(sorted(buckets.items())),
    )


def name_of(loop: asyncio.AbstractEventLoop) -> str:
    """The name of the thread that a loop runs in; empty: it does not run."""
    pulse = pulse_of(loop)
    if pulse is not None:
        return pulse.name()
    number = getattr(loop, "_thread_id", None)
    return next((thread.name for thread in threading.enumerate() if thread.ident == number), "") if number else ""


class Instrumentation:
    """What `instrument()` returns; `close()` ends it."""

    def __init__(self, meter_provider: MeterProvider | None, tracer_provider: TracerProvider | None) -> None:
        try:
            from opentelemetry import metrics, trace
        except ImportError:
            raise ImportError(
                "tideloop.observe.instrument() needs the package opentelemetry-api: pip install 'tideloop[otel]'"
            ) from None
        self._observation: Callable[..., Observation] = metrics.Observation
        self._sampler = _Sampler()
        self._closed = False
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        self._meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._make_instruments()
        self._blocks = self._meter.create_counter(
            "asyncio.eventloop.blocked", "{block}", "Steps that have blocked the loop"
        )
        self._blocked = self._meter.create_counter(
            "asyncio.eventloop.blocked.time", "s", "Time in which the loop was blocked"
        )
        on_block(self._tell)

    def close(self) -> None:
        """Tell no more. Closing twice does nothing."""
        global _current
        if not self._closed:
            self._closed = True
            off_block(self._tell)
            _current = None

    def _make_instruments(self) -> None:
        def each(field: str) -> Callable[[_Reading], Iterator[tuple[float, dict[str, str]]]]:
            return lambda reading: iter([(getattr(reading.totals, field), {})] if reading.totals else [])

        def time_spent(reading: _Reading) -> Iterator[tuple[float, dict[str, str]]]:
            spent = reading.totals.spent._asdict() if reading.totals else {}
            return ((seconds, {_STATE: state}) for state, seconds in spent.items())

        def utilization(reading: _Reading) -> Iterator[tuple[float, dict[str, str]]]:
            return iter([] if reading.utilization is None else [(reading.utilization, {})])

        counter, gauge = self._meter.create_observable_counter, self._meter.create_observable_gauge
        self._observe(counter, "time", "s", "Where the time of the loop went", time_spent)
        self._observe(
            counter, "steps", "{step}", "Steps of tasks, callbacks and deliveries that have run", each("steps")
        )
        self._observe(counter, "polls", "{poll}", "Questions to the selector", each("polls"))
        self._observe(gauge, "utilization", "1", "How busy the loop was since the last collection", utilization)
        for name, (field, words) in _HISTOGRAMS.items():
            for part, value in _parts(field).items():
                self._observe(gauge, f"{name}.{part}", "s", f"{words}: {part}, since the last collection", value)
        for name, (field, unit, words) in _NOW.items():
            self._observe(self._meter.create_observable_up_down_counter, name, unit, words, _now(field))

    def _observe(
        self,
        create: Callable[..., object],
        name: str,
        unit: str,
        words: str,
        values: Callable[[_Reading], Iterator[tuple[float, dict[str, str]]]],
    ) -> None:
        def observations(_options: CallbackOptions) -> Iterable[Observation]:
            if self._closed:
                return []
            return [
                self._observation(value, {_LOOP: loop, **attributes})
                for loop, reading in self._sampler.readings(name).items()
                for value, attributes in values(reading)
            ]

        create(f"asyncio.eventloop.{name}", [observations], unit, words)

    def _tell(self, block: Block) -> None:
        """A hook of blocks: it runs in the context of the task, whose current span is the parent."""
        end = time.time_ns()
        attributes: dict[str, str | int] = {_CAUSE: block.cause, _LOOP: name_of(asyncio.get_running_loop())}
        self._blocks.add(1, attributes)
        self._blocked.add(block.duration, attributes)
        file, line, function = block.stack[0] if block.stack else (block.file, block.line, block.what)
        attributes |= {"code.function.name": function, "code.file.path": file, "code.line.number": line}
        if block.task is not None:
            attributes["asyncio.task.name"] = block.task.get_name()
        if block.stack:
            attributes["code.stacktrace"] = "\n".join(
                f'File "{file}", line {line}, in {function}' for file, line, function in reversed(block.stack)
            )
        start = end - int(block.duration * 1e9)
        self._tracer.start_span("event_loop_blocked", start_time=start, attributes=attributes).end(end)


def _parts(field: str) -> dict[str, Callable[[_Reading], Iterator[tuple[float, dict[str, str]]]]]:
    """The gauges of a histogram; of one to which nothing came, none."""

    def part(value: Callable[[Histogram], float]) -> Callable[[_Reading], Iterator[tuple[float, dict[str, str]]]]:
        def values(reading: _Reading) -> Iterator[tuple[float, dict[str, str]]]:
            histogram = reading.histograms[field]
            if histogram.count:
                yield value(histogram), {}

        return values

    parts = {name: part(lambda histogram, q=q: histogram.quantile(q)) for name, q in _QUANTILES.items()}  # type: ignore[misc]
    return {"mean": part(lambda histogram: histogram.mean), **parts, "max": part(lambda histogram: histogram.longest)}


def _now(field: str) -> Callable[[_Reading], Iterator[tuple[float, dict[str, str]]]]:
    return lambda reading: iter([(reading.now[field], {})] if reading.totals else [])


_current: Instrumentation | None = None


def instrument(
    meter_provider: MeterProvider | None = None, tracer_provider: TracerProvider | None = None
) -> Instrumentation:
    """Tell OpenTelemetry what the observed loops of this process do, present and future ones.

    Metrics are named ``asyncio.eventloop.*`` (docs/commands.md lists them). Each block is a span
    ``event_loop_blocked``, from when it began to when it ended, below the span that is current in the task that
    blocked (from Python 3.12 on; before, it has no parent). The providers are the global ones unless others are given.

    Raises ImportError without opentelemetry-api (the extra ``otel``), RuntimeError if it is under way: ``close()`` what
    it returned first.
    """
    global _current
    if _current is not None:
        raise RuntimeError("tideloop.observe.instrument() is under way; close() what it returned first")
    _current = Instrumentation(meter_provider, tracer_provider)
    return _current
