"""OpenTelemetry: what the SDK's readers and exporters get of loops and blocks."""

import asyncio
import contextvars
import subprocess
import sys
import threading

import pytest
import tideloop
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id
from tideloop.observe import Histogram, LoopMetrics, TimeSpent, Utilization, otel
from tideloop.watchdog import tell

NOTHING = Histogram(0, 0.0, 0.0, 0, ())


class Loop:
    """As much of a loop as is read."""

    def __init__(self, name="MainThread"):
        self.name, self.closed, self.told = name, False, self.metrics_of()

    @staticmethod
    def metrics_of(steps=0, callbacks=0.0, idle=0.0, delays=NOTHING, ready=0):
        spent, load = TimeSpent(callbacks, 0.0, idle), Utilization(0.0, 0.0, 0.0)
        return LoopMetrics(steps, 2 * steps, spent, load, NOTHING, delays, NOTHING, ready, 0, 3, 0, 0, ())

    def tells(self, **changed):
        self.told = self.metrics_of(**changed)

    def metrics(self):
        return self.told

    def is_closed(self):
        return self.closed


@pytest.fixture
def loops(monkeypatch):
    """The loops of the process."""
    loops = []
    monkeypatch.setattr(otel, "loops", lambda: [loop for loop in loops if not loop.closed])
    monkeypatch.setattr(otel, "name_of", lambda loop: getattr(loop, "name", "MainThread"))
    return loops


@pytest.fixture
def reader():
    return InMemoryMetricReader()


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def instrumented(loops, reader, spans):
    """What instrument() returned, for these readers."""
    meters, tracers = MeterProvider([reader], shutdown_on_exit=False), TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    instrumented = tideloop.observe.instrument(meters, tracers)
    yield instrumented
    instrumented.close()
    meters.shutdown()
    tracers.shutdown()


def collect(reader):
    """The points of one collection, by the name of the metric without ``asyncio.eventloop.`` and by attributes."""
    data = reader.get_metrics_data()
    return {
        (
            metric.name.removeprefix("asyncio.eventloop."),
            *(point.attributes[name] for name in sorted(point.attributes)),
        ): point.value
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def of_loop(points, name, loop="MainThread"):
    return points.get((name, loop))


def test_what_is_collected(instrumented, loops, reader):
    loops.append(loop := Loop())
    loop.tells(steps=100, callbacks=2.0, idle=6.0, delays=Histogram(4, 0.4, 0.2, 0, ((200, 4),)), ready=7)
    points = collect(reader)
    assert of_loop(points, "steps") == 100
    assert of_loop(points, "polls") == 200
    assert [points["time", "MainThread", state] for state in ("callbacks", "internal", "idle")] == [2.0, 0.0, 6.0]
    assert of_loop(points, "utilization") == 0.25
    assert of_loop(points, "delay.mean") == pytest.approx(0.1)
    assert of_loop(points, "delay.max") == 0.2
    assert of_loop(points, "delay.p50") == pytest.approx(2 ** (200.5 / 8) * 1e-9)
    assert (of_loop(points, "ready"), of_loop(points, "descriptors")) == (7, 3)
    assert of_loop(points, "step.p99") is None, "there were none"


def test_gauges_are_of_the_time_since_the_last_collection(instrumented, loops, reader):
    loops.append(loop := Loop())
    loop.tells(callbacks=90.0, idle=10.0, delays=Histogram(1000, 100.0, 0.5, 0, ((216, 1000),)))
    collect(reader)
    loop.tells(callbacks=91.0, idle=19.0, delays=Histogram(1010, 100.01, 0.5, 0, ((160, 10), (216, 1000))))
    points = collect(reader)
    assert of_loop(points, "utilization") == pytest.approx(0.1)
    assert of_loop(points, "delay.mean") == pytest.approx(0.001)
    assert of_loop(points, "delay.max") < 0.0012
    assert of_loop(collect(reader), "delay.mean") is None, "nothing came"
    assert of_loop(collect(reader), "utilization") is None, "no time has passed"


def test_counters_go_on_where_a_loop_ended(instrumented, loops, reader):
    loops.append(first := Loop())
    first.tells(steps=100)
    assert of_loop(collect(reader), "steps") == 100
    first.tells(steps=130)
    first.closed = True
    loops.append(second := Loop())
    second.tells(steps=5)
    assert of_loop(collect(reader), "steps") == 135
    loops.remove(first)
    del first
    second.tells(steps=6)
    assert of_loop(collect(reader), "steps") == 136
    loops.clear()
    del second
    assert of_loop(collect(reader), "steps") == 136
    assert of_loop(collect(reader), "ready") == 0


def test_loops_of_one_name_are_one_and_of_two_are_two(instrumented, loops, reader):
    loops += [Loop(), Loop(), Loop("worker")]
    for loop in loops:
        loop.tells(steps=10, delays=Histogram(1, 0.1, 0.1, 0, ((212, 1),)))
    points = collect(reader)
    assert (of_loop(points, "steps"), of_loop(points, "steps", "worker")) == (20, 10)
    assert of_loop(points, "delay.mean") == pytest.approx(0.1)


def test_one_collection_reads_each_loop_once(instrumented, loops, reader):
    loops.append(loop := Loop())
    asked = []
    loop.metrics = lambda: asked.append(None) or loop.told
    for _ in range(3):
        collect(reader)
    assert len(asked) == 3


def blocks(took=2_500_000_000, stacks=([["/srv/app.py", 12, "fetch"], ["/srv/app.py", 40, "main"]],)):
    """The running loop is told that it was blocked by the current task; it is told in no context, as between steps."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    contextvars.Context().run(tell, loop, took, "syscall", task, ("fetch", "/srv/app.py", 12), list(stacks))


def test_a_block_is_a_span_in_the_context_of_the_task(instrumented, reader, spans, caplog):
    async def main():
        with instrumented._tracer.start_as_current_span("request"):
            blocks()
            blocks(500_000_000, ())
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
        runner.run(main())
    first, second, request = spans.get_finished_spans()
    assert (first.name, first.end_time - first.start_time) == ("event_loop_blocked", 2_500_000_000)
    assert first.start_time < request.start_time < first.end_time, "it began when the step did"
    if sys.version_info >= (3, 12):
        assert format_span_id(first.parent.span_id) == format_span_id(request.context.span_id)
    else:
        assert first.parent is None
    told = dict(first.attributes)
    assert told.pop("asyncio.task.name").startswith("Task-")
    assert told == {
        "asyncio.eventloop.block.cause": "syscall",
        "asyncio.eventloop.name": "MainThread",
        "code.function.name": "fetch",
        "code.file.path": "/srv/app.py",
        "code.line.number": 12,
        "code.stacktrace": 'File "/srv/app.py", line 40, in main\nFile "/srv/app.py", line 12, in fetch',
    }
    assert "code.stacktrace" not in second.attributes
    points = collect(reader)
    assert (points["blocked", "syscall", "MainThread"], points["blocked.time", "syscall", "MainThread"]) == (2, 3.0)


def test_closed_it_tells_no_more_and_another_may_begin(instrumented, loops, reader, spans):
    with pytest.raises(RuntimeError, match=r"is under way; close\(\) what it returned first"):
        tideloop.observe.instrument()
    loops.append(Loop())
    instrumented.close()
    instrumented.close()
    assert collect(reader) == {}
    another = InMemoryMetricReader()
    meters = MeterProvider([another], shutdown_on_exit=False)
    second = tideloop.observe.instrument(meters)
    instrumented.close()
    assert of_loop(collect(another), "steps") == 0, "what is closed closes nothing of the other's"
    second.close()
    meters.shutdown()


def test_a_real_loop(loops, reader, monkeypatch):
    monkeypatch.undo()
    meters = MeterProvider([reader], shutdown_on_exit=False)

    async def main():
        for _ in range(10):
            await asyncio.sleep(0)
        return collect(reader)

    instrumented = tideloop.observe.instrument(meters)
    try:
        with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
            points = runner.run(main())
            loop = runner.get_loop()
    finally:
        instrumented.close()
        meters.shutdown()
    assert 0 < of_loop(points, "steps") <= loop.metrics().steps
    assert of_loop(points, "descriptors") >= 1


def test_of_a_loop_that_is_attached_to_its_lag_is_told(loops, reader, monkeypatch):
    monkeypatch.undo()
    meters = MeterProvider([reader], shutdown_on_exit=False)

    async def main():
        with tideloop.observe.attach(asyncio.get_running_loop(), interval=0.001) as attached:
            while not attached.metrics().lag.count:  # noqa: ASYNC110  no event tells
                await asyncio.sleep(0.001)
            collected = collect(reader)
        return collected, collect(reader)

    thread = []

    def run():
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            thread.append(runner.run(main()))

    instrumented = tideloop.observe.instrument(meters)
    try:
        foreign = threading.Thread(target=run, name="foreign")
        foreign.start()
        foreign.join()
    finally:
        instrumented.close()
        meters.shutdown()
    ((points, after),) = thread
    assert of_loop(points, "timer.lateness.max", "foreign") > 0
    assert of_loop(points, "steps", "foreign") is None, "nobody counts them"
    assert of_loop(after, "timer.lateness.max", "foreign") is None


def test_without_the_package_the_extra_is_named():
    code = (
        "import sys, tideloop.observe\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
        "sys.modules['opentelemetry'] = None\n"
        "try:\n    tideloop.observe.instrument()\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25)
    assert done.stdout == (
        "tideloop.observe.instrument() needs the package opentelemetry-api: pip install 'tideloop[otel]'\n"
    ), done.stderr
