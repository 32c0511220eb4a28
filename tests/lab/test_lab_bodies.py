"""The scenarios do what their definitions say, and notice when the program under test does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest
from tideloop.lab.backends import BACKENDS, Backend, Family
from tideloop.lab.bodies import (
    WrongResult,
    cancellation,
    idle_connections,
    io_bound,
    observe_overhead,
    task_spawn,
    udp_echo,
)
from tideloop.lab.kit import KITS, AsyncioKit, Job, Kit, Main, T
from tideloop.lab.scenarios import IO_BOUND, OBSERVE, QUICK, SEED, Params
from tideloop.lab.serving import Meter

SMALL: dict[str, Params] = {
    "task_spawn": {"task_count": 30, "payload_sleep": 0.0, "warmup": 0.1},
    "io_bound": {"concurrency": 3, "ops_per_worker": 4, "mean_io_ms": 0.01, "io_seed": 1, "shared_rng": False},
}


class ImmediateKit:
    """asyncio whose sleep only notes what was asked and yields once."""

    family: Family = "asyncio"
    backend = BACKENDS["asyncio"]

    def __init__(self) -> None:
        self.asked: list[float] = []
        self._kit = AsyncioKit(self.backend)

    @property
    def sleep(self) -> Callable[[float], Awaitable[Any]]:
        async def sleep(delay: float) -> None:
            self.asked.append(delay)
            await asyncio.sleep(0)

        return sleep

    def run(self, main: Main[T]) -> T:
        return self._kit.run(main)

    async def start_all(self, job: Job, count: int) -> None:
        await self._kit.start_all(job, count)


class LosingKit(ImmediateKit):
    """Forgets the last job."""

    async def start_all(self, job: Job, count: int) -> None:
        await self._kit.start_all(job, count - 1)


def kit_of(name: str) -> Kit:
    backend: Backend = BACKENDS[name]
    if reason := backend.missing():
        pytest.skip(reason)
    return KITS[backend.family](backend)


def test_the_seed_profile_sleeps_as_the_reference_does() -> None:
    kit = ImmediateKit()
    metrics = io_bound.measure(kit, IO_BOUND.params)
    rng = Random(1337)
    assert kit.asked == [rng.expovariate(1 / 5.0) / 1000 for _ in range(200 * 200)]
    assert list(metrics) == [
        *("workers", "ops_per_worker", "mean_delay_ms", "duration_s", "ops", "ops_per_sec"),
        *("latency_mean_ms", "latency_p95_ms", "latency_p99_ms"),
    ]


def test_the_seed_profile_has_the_reference_s_defaults() -> None:
    spawn, io, cancel = (scenario.params for scenario in SEED.scenarios)
    assert (spawn["task_count"], spawn["payload_sleep"]) == (20_000, 0.0005)
    assert (io["concurrency"], io["ops_per_worker"], io["mean_io_ms"], io["io_seed"]) == (200, 200, 5.0, 1337)
    assert (cancel["cancel_tasks"], cancel["cancel_after"]) == (5000, 0.05)
    assert SEED.repetitions == 1


def test_the_fair_ideal_is_the_longest_worker() -> None:
    ideal = max(sum(io_bound.worker_delays(IO_BOUND.params, worker)) for worker in range(200))
    assert ideal == pytest.approx(1.14805, abs=1e-5)


def test_a_sleep_that_ends_early_is_counted() -> None:
    params = SMALL["io_bound"] | {"mean_io_ms": 10_000.0}
    metrics = io_bound.measure(ImmediateKit(), params)
    assert metrics["early_wakes"] == metrics["ops"] == 12
    assert metrics["efficiency"] > 1


@pytest.mark.parametrize("body", [task_spawn, io_bound])
def test_lost_work_is_a_wrong_result(body: Any) -> None:
    with pytest.raises(WrongResult, match="that finished"):
        body.measure(LosingKit(), SMALL[body.__name__.rpartition(".")[2]])


def test_an_exception_that_a_loop_would_only_log_is_a_wrong_result() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)

    with pytest.raises(WrongResult, match="ZeroDivisionError"):
        AsyncioKit(BACKENDS["asyncio"]).run(main)


@pytest.mark.parametrize("name", ["asyncio", "uvloop", "trio", "anyio", "anyio+trio", "tideloop"])
@pytest.mark.parametrize("how", ["each", "scope", "reference"])
def test_every_task_of_a_storm_is_cancelled(name: str, how: str) -> None:
    metrics = cancellation.measure(kit_of(name), {"cancel_tasks": 20, "cancel_after": 0.0, "how": how})
    assert (metrics["cancelled"], metrics["exceptions"]) == (20, 0)


@pytest.mark.parametrize("name", ["asyncio", "trio", "anyio", "anyio+trio", "tideloop"])
@pytest.mark.parametrize("body", [task_spawn, io_bound])
def test_the_figures_of_a_scenario_are_among_its_metrics(name: str, body: Any) -> None:
    module = body.__name__.rpartition(".")[2]
    metrics = body.measure(kit_of(name), SMALL[module])
    declared = {m.name for s in QUICK.scenarios if s.body == module and s.sleeps for m in s.metrics}
    assert declared <= metrics.keys() | {"cpu_s"}


@pytest.mark.parametrize("work", ["churn", "single", "many", "spawn", "wakes", "echo"])
def test_each_level_is_compared_with_a_loop_that_is_not_observed(work: str) -> None:
    metrics = observe_overhead.measure(kit_of("tideloop"), {"work": work, "operations": 400, "rounds": 2})
    assert {"counts_percent", "noise_percent", "off_ns"} <= metrics.keys()
    assert metrics.keys() <= {metric.name for scenario in OBSERVE.scenarios for metric in scenario.metrics}
    assert all(value > -100 for value in metrics.values())


def test_a_level_s_cost_is_the_median_of_what_it_adds_in_each_round() -> None:
    assert observe_overhead.percent([2.0, 1.5, 1.1], [1.0, 1.0, 1.0]) == pytest.approx(50)
    # A round that was slow for both counts like any other.
    assert observe_overhead.percent([20.4, 1.02, 1.02], [20.0, 1.0, 1.0]) == pytest.approx(2)


def test_the_first_mark_begins_the_window_and_the_second_one_ends_it() -> None:
    meter = Meter(1)
    with pytest.raises(WrongResult, match="no beginning: the server saw 0 of 1"):
        meter.seconds()
    meter.marked()
    with pytest.raises(WrongResult, match="no end"):
        meter.seconds()
    meter.marked()
    ended = meter.ended
    meter.marked()
    assert meter.ended == ended
    assert meter.seconds() >= 0


def test_an_error_of_a_datagram_endpoint_is_a_wrong_result() -> None:
    async def main() -> None:
        protocol = udp_echo.Echo(Meter(1))
        asyncio.get_running_loop().call_soon(protocol.error_received, OSError("lost"))
        await asyncio.sleep(0)

    with pytest.raises(WrongResult, match="OSError\\('lost'\\)"):
        AsyncioKit(BACKENDS["asyncio"]).run(main)


def test_connections_that_the_system_does_not_allow_are_a_wrong_result() -> None:
    resource = pytest.importorskip("resource")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("the system sets no limit")
    with pytest.raises(WrongResult, match=f"the system allows {hard}"):
        idle_connections.measure(kit_of("asyncio"), {"connections": hard, "requests": 1, "warmup_s": 0})
