"""The scenarios and profiles as data: what is run, with which parameters, and which figures come out.

The `seed` profile is the reference suite, definition by definition, with its known defects. The `quick` profile is
its mended form plus real sockets. docs/lab.md describes every scenario and metric in words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from tideloop.lab.backends import Family

Params = dict[str, Any]

ASYNC: tuple[Family, ...] = ("asyncio", "trio", "anyio")


@dataclass(frozen=True)
class Metric:
    name: str
    unit: str
    better: Literal["higher", "lower"]
    title: str
    # What it is meant to be at most.
    goal: float | None = None


@dataclass(frozen=True)
class Scenario:
    name: str
    # What is done, with the parameters by name in braces.
    template: str
    # The module of `tideloop.lab.bodies` that measures it.
    body: str
    params: Params
    # The first one ranks; all are printed.
    metrics: tuple[Metric, ...]
    families: tuple[Family, ...] = ASYNC
    # Blocking approaches that belong to this scenario.
    blocking: tuple[str, ...] = ()
    # Packages that a family needs here beside its own.
    needs: tuple[str, ...] = ()
    baseline: str = "asyncio"
    limit_s: float = 60.0
    # Whether the native load client drives it.
    driven: bool = False
    # Whether what it measures is known on Linux only.
    linux: bool = False
    # The backends that it is about; none: all of its families.
    only: tuple[str, ...] = ()
    # The metric that counts its sleeps. Waking before the time asked for is less work, and such a cell is not ranked.
    sleeps: str | None = None

    @property
    def primary(self) -> Metric:
        return self.metrics[0]

    @property
    def title(self) -> str:
        return self.template.format(**self.params)

    @property
    def group(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Profile:
    name: str
    scenarios: tuple[Scenario, ...]
    repetitions: int


TASKS_PER_SEC = Metric("tasks_per_sec", "tasks/s", "higher", "task throughput")
OPS_PER_SEC = Metric("ops_per_sec", "ops/s", "higher", "simulated I/O throughput")
SETTLE = Metric("settle_s", "s", "lower", "time until all cancelled tasks ended")
LATENCY_P50 = Metric("latency_p50_ms", "ms", "lower", "median latency")
LATENCY_P95 = Metric("latency_p95_ms", "ms", "lower", "95th percentile latency")
LATENCY_P99 = Metric("latency_p99_ms", "ms", "lower", "99th percentile latency")
EFFICIENCY = Metric("efficiency", "ratio", "higher", "ideal / actual makespan")
OVERSHOOT_P50 = Metric("overshoot_p50_ms", "ms", "lower", "median oversleep")
OVERSHOOT_P99 = Metric("overshoot_p99_ms", "ms", "lower", "99th percentile oversleep")
EARLY = Metric("early_wakes", "sleeps", "lower", "sleeps that ended before their time")
CPU = Metric("cpu_s", "s", "lower", "CPU time of the process")
CPU_PER_REQUEST = Metric("server_cpu_us_per_request", "us", "lower", "server CPU time per request")
REQUESTS_PER_SEC = Metric("requests_per_sec", "req/s", "higher", "requests answered")
ECHO_P50 = Metric("latency_p50_us", "us", "lower", "median latency, closed loop")
ECHO_P99 = Metric("latency_p99_us", "us", "lower", "99th percentile latency, closed loop")
TOTAL_MS = Metric("total_ms", "ms", "lower", "time for all requests")
CLIENT_CPU_MS = Metric("cpu_ms", "ms", "lower", "CPU time of the client")

TASK_SPAWN = Scenario(
    "task_spawn",
    "{task_count:,} tasks that each sleep {payload_sleep:g} s, all created first",
    "task_spawn",
    {"task_count": 20_000, "payload_sleep": 0.0005},
    (TASKS_PER_SEC, LATENCY_P50, LATENCY_P95, EARLY),
    sleeps="tasks",
)
IO_BOUND = Scenario(
    "io_bound",
    "{concurrency} workers, {ops_per_worker} sleeps each of {mean_io_ms:g} ms on average, one random generator",
    "io_bound",
    {"concurrency": 200, "ops_per_worker": 200, "mean_io_ms": 5.0, "io_seed": 1337, "shared_rng": True},
    (OPS_PER_SEC, Metric("latency_mean_ms", "ms", "lower", "mean latency"), LATENCY_P95, LATENCY_P99),
)
CANCELLATION = Scenario(
    "cancellation",
    "{cancel_tasks:,} sleeping tasks cancelled; each library in the reference's own way",
    "cancellation",
    {"cancel_tasks": 5_000, "cancel_after": 0.05, "how": "reference"},
    (SETTLE,),
)

CPU_PER_CALL = Metric("cpu_us_per_call", "us", "lower", "CPU time per call")
CALLS_PER_SEC = Metric("calls_per_sec", "calls/s", "higher", "calls run")
ECHO_METRICS = (CPU_PER_REQUEST, REQUESTS_PER_SEC, ECHO_P50, ECHO_P99)
ECHO = Scenario(
    "tcp_echo",
    "TCP echo on loopback, native client: {connections} connections, {size:,} B requests",
    "tcp_echo",
    {"connections": 100, "size": 1024, "seconds": 0.5, "warmup_s": 0.15, "how": "usual"},
    ECHO_METRICS,
    limit_s=30.0,
    driven=True,
)
BULK = Scenario(
    "bulk_tcp",
    "one-way bulk transfer over TCP on loopback, {connections} connection(s), writes of {size:,} B",
    "bulk_tcp",
    # A gigabyte: each request is answered by 16 MiB.
    {"connections": 1, "size": 64 * 1024, "times": 256, "requests": 64, "warmup_s": 0.05},
    (
        Metric("server_cpu_us_per_mib", "us", "lower", "server CPU time per MiB"),
        Metric("mib_per_sec", "MiB/s", "higher", "transferred"),
    ),
    families=("asyncio", "native"),
    limit_s=30.0,
    driven=True,
)
TAIL_METRICS = (
    Metric("latency_p50_us", "us", "lower", "median round trip"),
    Metric("latency_p99_us", "us", "lower", "99th percentile round trip"),
)
BUSY = Scenario(
    "tail.callbacks",
    "a byte's round trip every {pause_s:g} s while a ring of {ring} {how} keeps the loop busy",
    "busy_echo",
    {"how": "callbacks", "ring": 1, "connections": 1, "pause_s": 0.0005, "requests": 1000, "warmup_s": 0.1},
    TAIL_METRICS,
    families=("asyncio",),
    limit_s=30.0,
    driven=True,
)
UVICORN = Scenario(
    "tail.uvicorn",
    "uvicorn with a plain text of 13 bytes on loopback: {connections} connections, closed loop",
    "uvicorn_plain",
    {"connections": 50, "seconds": 1.0, "warmup_s": 0.3},
    (TAIL_METRICS[1], TAIL_METRICS[0], REQUESTS_PER_SEC, CPU_PER_REQUEST),
    families=("asyncio",),
    needs=("uvicorn", "httptools"),
    limit_s=30.0,
    driven=True,
)
IDLE = Scenario(
    "idle_connections",
    "{connections:,} connections that were answered once and do nothing",
    "idle_connections",
    {"connections": 10_000, "requests": 1, "warmup_s": 0},
    (Metric("bytes_per_connection", "B", "lower", "resident memory per connection"),),
    families=("asyncio",),
    limit_s=30.0,
    driven=True,
    linux=True,
)
THREADSAFE = Scenario(
    "threadsafe",
    "{threads} thread(s) hand {calls:,} calls each to a loop",
    "threadsafe",
    {"threads": 1, "calls": 50_000},
    (CPU_PER_CALL, CALLS_PER_SEC),
    families=("asyncio",),
)
EXECUTOR = Scenario(
    "executor",
    "a loop hands {calls:,} calls to {threads} threads of an executor, {at_once} at once",
    "executor",
    {"threads": 4, "calls": 10_000, "at_once": 100},
    (CPU_PER_CALL, CALLS_PER_SEC),
    families=("asyncio",),
)
SLOW = Scenario(
    "slow_reader",
    "writes of {size:,} B to a peer that reads while the protocol is paused, {pauses} pauses",
    "slow_reader",
    {"size": 16 * 1024, "pauses": 200},
    (Metric("over_high_water_writes", "writes", "lower", "most above the high-water mark"),),
    families=("asyncio",),
)
HTTP = Scenario(
    "http",
    "HTTP on loopback: {connections} connections, {pipelined} GET at once, {writes} write(s) to each response",
    "http",
    {"connections": 100, "pipelined": 1, "writes": 1, "seconds": 0.5, "warmup_s": 0.15},
    ECHO_METRICS,
    families=("asyncio",),
    limit_s=30.0,
    driven=True,
)

OVERHEAD = Scenario(
    "observe_overhead",
    "what observing adds to the CPU time of {what}",
    "observe_overhead",
    {"what": "a task that sleeps for 0 s", "work": "single", "operations": 20_000, "rounds": 40},
    (
        Metric("counts_percent", "%", "lower", "level 0"),
        Metric("tasks_percent", "%", "lower", "level 1"),
        Metric("trace_percent", "%", "lower", "level 2"),
        Metric("noise_percent", "%", "lower", "off, again"),
        Metric("off_ns", "ns", "lower", "an operation, off"),
        Metric("watchdog_percent", "%", "lower", "the watchdog, of a core"),
    ),
    families=("asyncio",),
    baseline="tideloop",
    only=("tideloop",),
)

QUICK = Profile(
    "quick",
    (
        replace(
            TASK_SPAWN,
            name="task_spawn.yield",
            template="{task_count:,} tasks that each yield once: sleep(0)",
            params={"task_count": 5_000, "payload_sleep": 0.0, "warmup": 0.1},
            metrics=(TASKS_PER_SEC, CPU),
            sleeps=None,
        ),
        replace(
            TASK_SPAWN,
            name="task_spawn.sleep",
            params={"task_count": 5_000, "payload_sleep": 0.001, "warmup": 0.1},
            metrics=(TASKS_PER_SEC, OVERSHOOT_P50, EARLY, CPU),
        ),
        replace(
            IO_BOUND,
            name="io_bound.fair",
            template="{concurrency} workers with {ops_per_worker} fixed sleeps each, {mean_io_ms:g} ms on average",
            params={"concurrency": 200, "ops_per_worker": 60, "mean_io_ms": 5.0, "io_seed": 1337, "shared_rng": False},
            metrics=(EFFICIENCY, OVERSHOOT_P50, OVERSHOOT_P99, OPS_PER_SEC, EARLY, CPU),
            sleeps="ops",
        ),
        replace(
            CANCELLATION,
            name="cancellation.each",
            template="{cancel_tasks:,} sleeping tasks, each cancelled on its own",
            params={"cancel_tasks": 5_000, "cancel_after": 0.05, "how": "each"},
            metrics=(SETTLE, CPU),
        ),
        replace(
            CANCELLATION,
            name="cancellation.scope",
            template="{cancel_tasks:,} sleeping tasks, all cancelled by one scope or task group",
            params={"cancel_tasks": 5_000, "cancel_after": 0.05, "how": "scope"},
            metrics=(SETTLE, CPU),
        ),
        ECHO,
        Scenario(
            "http_50",
            "{requests} HTTP requests to a local server that answers after {delay_s:g} s",
            "http_50",
            {"requests": 50, "delay_s": 0.02, "threads": 10},
            (TOTAL_MS, REQUESTS_PER_SEC, CLIENT_CPU_MS),
            families=("asyncio", "blocking"),
            blocking=("sequential", "threads"),
            needs=("aiohttp",),
            baseline="sequential",
            limit_s=30.0,
        ),
    ),
    repetitions=5,
)

SERVED: tuple[Family, ...] = ("asyncio", "native")
WIRE = Profile(
    "wire",
    (
        *(
            replace(ECHO, name=f"tcp_echo.{name}", params=ECHO.params | params, families=SERVED)
            for name, params in (
                ("1k_10", {"connections": 10}),
                ("1k_100", {}),
                ("1k_1000", {"connections": 1000}),
                ("100k_10", {"connections": 10, "size": 100 * 1024}),
                ("buffered", {"how": "buffered"}),
            )
        ),
        replace(
            ECHO,
            name="tcp_echo.streams",
            template="TCP echo by asyncio's streams, native client: {connections} connections, {size:,} B requests",
            params=ECHO.params | {"how": "streams"},
            families=("asyncio",),
        ),
        replace(
            ECHO,
            name="tcp_echo.sock",
            template="TCP echo by sock_* methods, native client: {connections} connections, {size:,} B requests",
            params=ECHO.params | {"how": "sock"},
            families=("asyncio",),
        ),
        replace(
            ECHO,
            name="unix_echo",
            template="UNIX socket echo, native client: {connections} connections, {size:,} B requests",
            params=ECHO.params | {"unix": True},
            families=SERVED,
        ),
        *(
            replace(
                ECHO,
                name=f"udp_echo.{connections}",
                template="UDP echo, native client: {connections} sockets, {size:,} B requests",
                body="udp_echo",
                params={"connections": connections, "size": 512, "seconds": 0.5, "warmup_s": 0.15},
                families=SERVED,
            )
            for connections in (10, 100)
        ),
        *(
            replace(
                ECHO,
                name=f"tls_echo.{name}",
                template="TLS 1.3 echo ({how}), native client: {connections} connections, {size:,} B requests",
                params=ECHO.params | {"tls": True} | params,
                families=("asyncio",),
                needs=("trustme",),
            )
            for name, params in (
                ("1k_100", {}),
                ("100k_10", {"connections": 10, "size": 100 * 1024}),
                ("streams", {"how": "streams"}),
            )
        ),
        replace(
            ECHO,
            name="conn_churn",
            template="{requests:,} connections that live for one byte, {connections} at a time",
            body="conn_churn",
            params={"connections": 20, "requests": 20_000, "warmup_s": 0.15},
            families=("asyncio",),
        ),
        replace(HTTP, name="http.one"),
        replace(HTTP, name="http.two", params=HTTP.params | {"writes": 2}),
        replace(HTTP, name="http.pipelined", params=HTTP.params | {"pipelined": 16}),
        replace(BULK, name="bulk_tcp.64k"),
        replace(BULK, name="bulk_tcp.1m", params=BULK.params | {"size": 1 << 20, "times": 16}),
        BUSY,
        replace(BUSY, name="tail.tasks", params=BUSY.params | {"how": "tasks"}),
        UVICORN,
        IDLE,
        SLOW,
        replace(THREADSAFE, name="threadsafe.1"),
        replace(THREADSAFE, name="threadsafe.4", params=THREADSAFE.params | {"threads": 4}),
        EXECUTOR,
    ),
    repetitions=5,
)


def _with_goals(scenario: Scenario, **percents: float) -> Scenario:
    metrics = tuple(
        replace(metric, goal=percents.get(metric.name.removesuffix("_percent"))) for metric in scenario.metrics
    )
    return replace(scenario, metrics=metrics)


CHURN = replace(
    OVERHEAD,
    name="observe_overhead.churn",
    params=OVERHEAD.params | {"what": "a task that is created, sleeps for 0 s and ends", "work": "churn"},
)
ECHOES = replace(
    OVERHEAD,
    name="observe_overhead.echo",
    params={"what": "a TCP echo of 1 KiB on 10 connections", "work": "echo", "operations": 2_000, "rounds": 40},
)
OBSERVE = Profile(
    "observe",
    (
        _with_goals(CHURN, counts=2, tasks=5, trace=10, noise=0.3, watchdog=0.1),
        _with_goals(ECHOES, counts=0.5),
        replace(OVERHEAD, name="observe_overhead.single"),
        *(
            replace(OVERHEAD, name=f"observe_overhead.{work}", params=OVERHEAD.params | {"what": what, "work": work})
            for work, what in (
                ("many", "a hundred tasks that sleep for 0 s"),
                ("spawn", "tasks that do nothing, created a hundred at a time"),
                ("wakes", "a future that the next callback sets"),
            )
        ),
    ),
    repetitions=5,
)

SEED = Profile("seed", (TASK_SPAWN, IO_BOUND, CANCELLATION), repetitions=1)

PROFILES = {profile.name: profile for profile in (QUICK, SEED, WIRE, OBSERVE)}
