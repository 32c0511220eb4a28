"""Small results to look at without measuring anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from tideloop.lab.backends import BACKENDS
from tideloop.lab.plan import Cell, Job
from tideloop.lab.results import Outcome, Results, outcome_of
from tideloop.lab.runner import Run
from tideloop.lab.scenarios import QUICK, Scenario


@pytest.fixture
def scenario() -> Scenario:
    by_name = {scenario.name: scenario for scenario in QUICK.scenarios}
    return by_name["cancellation.each"]


@pytest.fixture
def make_results(scenario: Scenario) -> Callable[..., Results]:
    """Results in which each backend settled in the given times; an error instead of times makes a failed cell."""

    def make(times: dict[str, Sequence[float] | str], skipped: dict[str, str] | None = None) -> Results:
        runs: list[Run] = []
        outcomes: list[Outcome] = []
        for name, values in times.items():
            cell = Cell(scenario, BACKENDS[name])
            if isinstance(values, str):
                mine = [Run(Job(cell, 1, len(runs)), error=values)]
            else:
                mine = [
                    Run(Job(cell, rep, len(runs) + rep), {"settle_s": value, "cpu_s": value / 2}, value)
                    for rep, value in enumerate(values, 1)
                ]
            runs += mine
            outcomes.append(outcome_of(cell, None, mine))
        for name, reason in (skipped or {}).items():
            outcomes.append(outcome_of(Cell(scenario, BACKENDS[name]), reason, []))
        return Results(
            profile="quick",
            command="tideloop lab --benchmarks '<b>'",
            scenarios=(replace(scenario),),
            libraries=tuple(times),
            repetitions=3,
            order_seed=7,
            runs=tuple(runs),
            outcomes=tuple(outcomes),
        )

    return make
