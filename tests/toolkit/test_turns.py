"""Whose turn it is in a pool with keys: as somebody says who looks at all of them each time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from tideloop import shelves, turns
from tideloop.turns import Turns


class Waiter(asyncio.Future):
    """Of no loop that runs; it is only asked whether it is done."""

    def __init__(self, loop):
        super().__init__(loop=loop)


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def by_looking_at_all(shelves, promised, limit):
    wanted = [
        (first, shelf)
        for shelf in shelves
        if shelf.size + promised[shelf] < limit and (first := shelf.unserved(promised[shelf])) is not None
    ]
    return min(wanted, key=lambda item: item[0], default=(None, None))[1]


@pytest.mark.parametrize("seed", range(20))
def test_random_programs(loop, seed, monkeypatch):
    monkeypatch.setattr(turns, "_FEW", 8)
    dice = random.Random(seed)
    limit = 3
    all_shelves = [shelves.Shelf(number) for number in range(6)]
    order = Turns(lambda shelf: limit)
    arrivals = 0
    for _ in range(400):
        shelf = dice.choice(all_shelves)
        action = dice.randrange(6)
        if action < 2:
            arrivals += 1
            shelf.queue(arrivals, Waiter(loop))
            order.note(shelf)
        elif action == 2 and shelf.waiters:
            # Gives up, and is told to nobody.
            shelf.waiters.pop(dice.choice(list(shelf.waiters))).cancel()
        elif action == 3 and shelf.waiters:
            # Served, and comes again, as after a check that has failed.
            number = shelf.first()
            waiter = shelf.waiters.pop(number)
            shelf.queue(number, waiter)
            order.note(shelf)
        elif action == 4 and shelf.size:
            # One goes.
            shelf.size -= 1
            shelf.creating = min(shelf.creating, shelf.size)
            order.note(shelf)
        promised = Counter()
        for _ in range(dice.randrange(3)):
            found = order.next(promised)
            assert found is by_looking_at_all(all_shelves, promised, limit)
            if found is not None:
                promised[found] += 1
        for found in promised:
            order.note(found)
        found = order.next({})
        assert found is by_looking_at_all(all_shelves, Counter(), limit)
        if found is not None and dice.random() < 0.3:
            found.size += 1
            found.creating += 1
        assert list(shelf.waiters) == sorted(shelf.waiters)


def test_who_has_given_up_is_forgotten(loop):
    order = Turns(lambda shelf: 1)
    first = shelves.Shelf("first")
    first.queue(0, Waiter(loop))
    order.note(first)
    for number in range(1, 1000):
        shelf = shelves.Shelf(number)
        shelf.queue(number, Waiter(loop))
        order.note(shelf)
        shelf.waiters.clear()
    assert order.next({}) is first
    assert len(order._heap) <= 2 * turns._FEW
