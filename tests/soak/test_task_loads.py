"""The soak in small: 20,000 tasks in each load, and the same demand that nothing is left."""

from __future__ import annotations

import asyncio

import pytest

from tests import task_variants
from tests.soak.task_loads import LOADS, Round, grown, run_rounds

TASKS = 20_000
"""In all rounds of a load."""


@pytest.mark.parametrize("name", LOADS)
@pytest.mark.parametrize("variant", task_variants.params())
def test_nothing_is_left(variant, name):
    with variant.in_force():
        loop = variant.new_event_loop()
        try:
            rounds = run_rounds(loop, name, TASKS // 4, rounds=4)
        finally:
            loop.close()
    assert grown(rounds, TASKS // 4) is None


def test_growth_is_noticed():
    kept = []

    async def leak(tasks):
        kept.extend(asyncio.get_running_loop().create_future() for _ in range(tasks))
        return {}

    LOADS["leak"] = leak
    loop = asyncio.SelectorEventLoop()
    try:
        rounds = run_rounds(loop, "leak", 5_000, rounds=3)
    finally:
        del LOADS["leak"]
        loop.close()
    assert "objects more" in grown(rounds, 5_000)


def test_memory_that_no_object_owns_is_noticed():
    before, after = Round({}, 10, 100_000_000), Round({}, 10, 200_000_000)
    assert "bytes more" in grown([before, before, after], 1_000)
