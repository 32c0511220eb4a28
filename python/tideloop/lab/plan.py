"""Which runs there are and in which order: every cell once in each block, shuffled anew, from a recorded seed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tideloop.lab.backends import BLOCKING, Backend
from tideloop.lab.load import find_load_client
from tideloop.lab.scenarios import Scenario


@dataclass(frozen=True)
class Cell:
    """One backend in one scenario."""

    scenario: Scenario
    backend: Backend

    @property
    def key(self) -> tuple[str, str]:
        return self.scenario.name, self.backend.name

    def missing(self) -> str | None:
        """Why this cell cannot run here; None when it can."""
        if reason := self.backend.missing():
            return reason
        if self.backend.family != "blocking":
            for package in self.scenario.needs:
                if reason := Backend(package, "asyncio", package, (package,)).missing():
                    return reason
        if self.scenario.linux and sys.platform != "linux":
            return "measured on Linux only"
        if self.scenario.driven and find_load_client() is None:
            return "tideloop-load is not built; run `make build`"
        return None


@dataclass(frozen=True)
class Job:
    """One run of one cell: a process."""

    cell: Cell
    # Counted from 1, as in the reference's results; also the block that the job belongs to.
    rep: int
    # Position in the whole run, from 0.
    order: int


def cells_of(scenarios: Sequence[Scenario], backends: Sequence[Backend]) -> list[Cell]:
    """All cells that make sense; a trio backend has no cell in a scenario made of asyncio programs."""
    return [
        Cell(scenario, backend)
        for scenario in scenarios
        for backend in (*(BLOCKING[name] for name in scenario.blocking), *backends)
        if backend.family in scenario.families and (not scenario.only or backend.name in scenario.only)
    ]


def jobs_of(cells: Sequence[Cell], repetitions: int, seed: int) -> list[Job]:
    """Blocks, each with every cell once in random order: slow drifts of the machine hit all backends alike."""
    rng = Random(seed)
    jobs: list[Job] = []
    for rep in range(1, repetitions + 1):
        block = list(cells)
        rng.shuffle(block)
        jobs += [Job(cell, rep, len(jobs) + index) for index, cell in enumerate(block)]
    return jobs
