"""Statistics: percentiles of one run, medians with bootstrap intervals over runs, and who is ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import floor
from random import Random
from statistics import median
from typing import Any

from tideloop.lab.scenarios import Metric, Scenario

RESAMPLES = 2_000
CONFIDENCE = 0.95
# A backend that wakes before its time in more than this share of its sleeps did less work than asked.
EARLY_SHARE = 0.01
# A lone sleep that takes less than this share of its time is no sleep.
NO_SLEEP = 0.25


def percentile(ordered: Sequence[float], p: float) -> float:
    """Linear interpolation at position (n - 1) * p of a sorted sequence; the reference suite's definition."""
    if not ordered:
        raise ValueError("percentile of nothing")
    position = (len(ordered) - 1) * p
    low = floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median_interval(values: Sequence[float], seed: str) -> tuple[float, float] | None:
    """The percentile-bootstrap interval of the median; the same for the same values and seed. None below 3 values.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", chapter 13. With few values it is close to their
    range, which is what they support.
    """
    if len(values) < 3:
        return None
    rng = Random(seed)
    n = len(values)
    medians = sorted(median(rng.choices(values, k=n)) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    return percentile(medians, tail), percentile(medians, 1 - tail)


@dataclass(frozen=True)
class Figure:
    """One metric of one cell, over its repetitions."""

    scenario: str
    library: str
    metric: str
    unit: str
    better: str
    n: int
    median: float
    ci_low: float | None
    ci_high: float | None
    min: float
    max: float
    # Not ranked, because of this.
    unranked: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def overlaps(self, other: Figure) -> bool:
        """Whether the intervals touch, so that the order of the medians may be chance."""
        mine, theirs = self._span(), other._span()
        return mine[0] <= theirs[1] and theirs[0] <= mine[1]

    def _span(self) -> tuple[float, float]:
        if self.ci_low is None or self.ci_high is None:
            return self.min, self.max
        return self.ci_low, self.ci_high


def figures_of(scenario: Scenario, library: str, runs: Sequence[dict[str, float]]) -> list[Figure]:
    """The figures of one cell from the metrics of its successful runs."""
    unranked = _not_asleep(scenario, runs)
    figures = []
    for metric in scenario.metrics:
        values = [run[metric.name] for run in runs if metric.name in run]
        if values:
            figures.append(_figure(scenario, library, metric, values, unranked))
    return figures


def _figure(scenario: Scenario, library: str, metric: Metric, values: Sequence[float], unranked: str | None) -> Figure:
    interval = median_interval(values, f"{scenario.name}/{library}/{metric.name}")
    return Figure(
        scenario=scenario.name,
        library=library,
        metric=metric.name,
        unit=metric.unit,
        better=metric.better,
        n=len(values),
        median=median(values),
        ci_low=interval and interval[0],
        ci_high=interval and interval[1],
        min=min(values),
        max=max(values),
        unranked=unranked,
    )


def _not_asleep(scenario: Scenario, runs: Sequence[dict[str, float]]) -> str | None:
    if scenario.sleeps is None:
        return None
    sleeps = sum(run[scenario.sleeps] for run in runs)
    early = sum(run["early_wakes"] for run in runs)
    if early > sleeps * EARLY_SHARE:
        return f"woke early in {early / sleeps:.0%} of its sleeps"
    asked = runs[0].get("payload_sleep_s", 0)
    probe = median(run.get("probe_sleep_s", asked) for run in runs)
    if probe < asked * NO_SLEEP:
        return f"woke early: a lone sleep of {asked * 1e3:g} ms takes it {probe * 1e3:.3f} ms"
    return None


def best(figures: Sequence[Figure]) -> Figure | None:
    """The best median among the ranked figures of one metric."""
    ranked = [figure for figure in figures if figure.unranked is None]
    if not ranked:
        return None
    pick = max if ranked[0].better == "higher" else min
    return pick(ranked, key=lambda figure: figure.median)


def times_better(figure: Figure, other: Figure) -> float | None:
    """How many times better `figure` is than `other`: above 1 is better. None when a ratio makes no sense."""
    if figure.median <= 0 or other.median <= 0:
        return None
    ratio = figure.median / other.median
    return ratio if figure.better == "higher" else 1 / ratio
