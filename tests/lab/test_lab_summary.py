"""Percentiles, intervals, and who counts as best."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tideloop.lab.scenarios import QUICK, TASK_SPAWN
from tideloop.lab.summary import best, figures_of, median_interval, percentile, times_better


@pytest.mark.parametrize(
    ("values", "p", "expected"),
    [
        ([5.0], 0.95, 5.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([1.0, 2.0, 3.0, 4.0], 0.5, 2.5),
        ([0.0, 10.0, 20.0, 30.0, 40.0], 0.95, 38.0),
        ([0.0, 10.0], 0.0, 0.0),
        ([0.0, 10.0], 1.0, 10.0),
    ],
)
def test_percentile_interpolates_at_n_minus_1_times_p(values: list[float], p: float, expected: float) -> None:
    assert percentile(values, p) == pytest.approx(expected)


def test_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="of nothing"):
        percentile([], 0.5)


def test_the_interval_is_the_same_for_the_same_seed_and_holds_the_median() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0]
    interval = median_interval(values, "a")
    assert interval is not None
    assert interval == median_interval(values, "a")
    assert interval[0] <= 3.0 <= interval[1]
    assert min(values) <= interval[0]
    assert interval[1] <= max(values)


def test_the_seed_matters_and_two_values_have_no_interval() -> None:
    values = [float(x * x % 97) for x in range(40)]
    assert len({median_interval(values, str(seed)) for seed in range(20)}) > 1
    assert median_interval([1.0, 2.0], "a") is None


def test_an_early_waker_is_shown_and_not_ranked() -> None:
    fair = next(scenario for scenario in QUICK.scenarios if scenario.name == "io_bound.fair")
    metrics = {metric.name: 1.0 for metric in fair.metrics}
    slow = figures_of(fair, "asyncio", [metrics | {"ops": 100, "early_wakes": 1}])
    fast = figures_of(fair, "uvloop", [metrics | {"ops": 100, "early_wakes": 33, "efficiency": 2.0}])
    assert slow[0].unranked is None
    assert fast[0].unranked == "woke early in 33% of its sleeps"
    assert best([slow[0], fast[0]]) is slow[0]
    assert best([fast[0]]) is None


def test_a_loop_that_does_not_sleep_is_noticed_when_the_crowd_hides_it() -> None:
    metrics = {"tasks": 9.0, "tasks_per_sec": 1.0, "early_wakes": 0.0, "payload_sleep_s": 0.0005}
    awake = figures_of(TASK_SPAWN, "uvloop", [metrics | {"probe_sleep_s": 2e-6}])
    asleep = figures_of(TASK_SPAWN, "asyncio", [metrics | {"probe_sleep_s": 0.0011}])
    assert awake[0].unranked is not None
    assert asleep[0].unranked is None


def test_how_many_times_better_follows_the_direction_of_the_metric() -> None:
    higher, lower = (figures_of(TASK_SPAWN, name, [_spawn(rate, 2 / rate)]) for name, rate in (("a", 200), ("b", 100)))
    assert times_better(higher[0], lower[0]) == 2.0
    by_latency = {figure.metric: figure for figure in higher}, {figure.metric: figure for figure in lower}
    assert times_better(by_latency[0]["latency_p50_ms"], by_latency[1]["latency_p50_ms"]) == 2.0
    assert times_better(higher[0], replace(lower[0], median=0.0)) is None


def _spawn(rate: float, latency: float) -> dict[str, float]:
    return {"tasks": 1, "tasks_per_sec": rate, "latency_p50_ms": latency, "early_wakes": 0}
