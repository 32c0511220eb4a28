"""Pools in the harness of all primitives: cancelled at every await, random schedules, loops that close, forks."""

from __future__ import annotations

import itertools
import os

import pytest
from tideloop import KeyedPool, Pool

from tests.toolkit import harness
from tests.toolkit.harness import Permits
from tests.toolkit.work import turns


async def check(made):
    await turns(1)
    return made % 3 > 0


async def visit(pool, inside):
    async with pool.acquire():
        await inside()


async def visit_a_key(pool, inside):
    async with pool.acquire(next(pool.keys)):
        await inside()


def keyed():
    pool = KeyedPool(lambda key: key, lambda made: None, max=2, max_per_key=1)
    pool.keys = itertools.cycle("abc")
    return pool


def all_back(pool):
    stats = pool.stats()
    assert (stats.borrowed, stats.waiting) == (0, 0)
    assert pool._size == stats.idle + stats.creating + pool._leaving <= 2


POOLS = [
    Permits("Pool", lambda: Pool(itertools.count().__next__, max=2), visit, all_back, limit=2),
    Permits("worn", lambda: Pool(itertools.count().__next__, max=2, max_uses=2), visit, all_back, limit=2),
    # Whose resource fails its check gets another one, and may see who came later pass.
    Permits("checked", lambda: Pool(itertools.count().__next__, check=check, max=2), visit, all_back, 2, fifo=False),
    Permits("KeyedPool", keyed, visit_a_key, all_back, limit=2, fifo=False),
]
each = pytest.mark.parametrize("primitive", POOLS, ids=str)


@each
def test_cancelled_at_every_await(kind, primitive):
    assert harness.cancel_everywhere(kind, harness.permits_scenario(primitive)) > 5


@each
def test_random_schedules(kind, primitive):
    for seed in range(30):
        harness.interleave(kind, primitive, seed)


@each
def test_loop_closed_with_waiters(backend, primitive):
    harness.close_loop(backend.name, primitive)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@each
def test_forked_with_waiters(backend, primitive):
    harness.fork_with_waiters(backend.name, primitive)
