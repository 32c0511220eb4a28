"""Which runs there are, and that their order is shuffled, fair and reproducible."""

from __future__ import annotations

import sys

import pytest
from tideloop.lab.backends import BACKENDS
from tideloop.lab.plan import Cell, cells_of, jobs_of
from tideloop.lab.scenarios import IDLE, OBSERVE, QUICK, SEED

CELLS = cells_of(SEED.scenarios, list(BACKENDS.values()))


def test_each_block_has_every_cell_once() -> None:
    jobs = jobs_of(CELLS, 4, seed=1)
    assert [job.order for job in jobs] == list(range(len(CELLS) * 4))
    for rep in range(1, 5):
        block = [job.cell.key for job in jobs if job.rep == rep]
        assert sorted(block) == sorted(cell.key for cell in CELLS)
        assert {job.rep for job in jobs[(rep - 1) * len(CELLS) : rep * len(CELLS)]} == {rep}


def test_the_order_is_shuffled_and_depends_on_the_seed_alone() -> None:
    first, again, other = ([job.cell.key for job in jobs_of(CELLS, 3, seed)] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first[: len(CELLS)] != [cell.key for cell in CELLS]
    assert first[: len(CELLS)] != first[len(CELLS) : 2 * len(CELLS)]


def test_a_library_without_an_asyncio_loop_has_no_cell_in_an_aiohttp_scenario() -> None:
    http = [scenario for scenario in QUICK.scenarios if scenario.name == "http_50"]
    names = [cell.backend.name for cell in cells_of(http, list(BACKENDS.values()))]
    assert names[:2] == ["sequential", "threads"]
    assert "trio" not in names
    assert "tideloop" in names


def test_what_observing_costs_is_asked_of_tideloop_alone() -> None:
    cells = cells_of(OBSERVE.scenarios, list(BACKENDS.values()))
    assert [cell.key for cell in cells] == [(scenario.name, "tideloop") for scenario in OBSERVE.scenarios]


def test_what_only_linux_can_tell_is_skipped_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(IDLE, BACKENDS["asyncio"])
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cell.missing() == "measured on Linux only"
