"""How long I/O may wait for a loop that always has something else to do, counted in turns.

A spinning ring is the worst case: there is work in every turn, so a loop that polls only when it is idle would
never see the socket. asyncio polls in every turn; tideloop may go without for 61 turns and 50 µs.
"""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from tests.peers import socket_pair

UNPOLLED_TURNS = {"tideloop": 61}
"""By backend: how many turns in a row may pass without a poll."""

MORE_THAN_THE_TIME_LIMIT = 60e-6
"""Seconds; the limit is 50 µs."""


class Ring:
    """Callbacks that schedule themselves again, and what they do in certain turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int = 1) -> None:
        self.loop = loop
        self.turn = 0
        self.plan: dict[int, object] = {}
        self._going = True
        loop.call_soon(self._count)
        for _ in range(size - 1):
            loop.call_soon(self._spin)

    def _count(self) -> None:
        self.turn += 1
        if action := self.plan.pop(self.turn, None):
            action()
        if self._going:
            self.loop.call_soon(self._count)

    def _spin(self) -> None:
        if self._going:
            self.loop.call_soon(self._spin)

    def stop(self) -> None:
        self._going = False
        self.loop.stop()


class Reader:
    """Reads one byte at a time from a socket, and knows in which turn each one came."""

    def __init__(self, ring: Ring, count: int) -> None:
        self.ring = ring
        self.count = count
        self.turns: list[int] = []
        self.left, self.right = socket_pair()
        ring.loop.add_reader(self.left, self._read)

    def _read(self) -> None:
        self.left.recv(1)
        self.turns.append(self.ring.turn)
        if len(self.turns) == self.count:
            self.ring.loop.remove_reader(self.left)
            self.ring.stop()

    def write(self) -> None:
        self.right.send(b"x")

    def close(self) -> None:
        self.left.close()
        self.right.close()


def delays(loop, written, size=1):
    """The turns that passed between each write, in the turns given, and the turn that read it."""
    ring = Ring(loop, size)
    reader = Reader(ring, len(written))
    ring.plan = dict.fromkeys(written, reader.write)
    loop.run_forever()
    reader.close()
    return [read - write - 1 for read, write in zip(reader.turns, written, strict=True)]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize("seed", range(5))
def test_a_reader_waits_no_longer_than_the_limit(loop, backend, seed, size):
    rng = random.Random(seed)
    written, turn = [], 1
    for _ in range(40):
        # Further apart than any wait, so that each byte is read before the next one is written.
        turn += rng.randint(64, 200)
        written.append(turn)
    assert max(delays(loop, written, size)) <= UNPOLLED_TURNS.get(backend.name, 0)


def test_no_turn_is_worse_than_another(loop, backend):
    """A write in each of 64 turns in a row, counted from the start of the run: every phase of the policy."""
    written = [1 + 65 * n for n in range(64)]
    assert max(delays(loop, written)) <= UNPOLLED_TURNS.get(backend.name, 0)


@pytest.mark.parametrize("seed", range(3))
def test_a_ring_of_tasks_is_no_different(loop, backend, seed):
    rng = random.Random(seed)
    ring = Ring(loop)
    written = [100 + 100 * n + rng.randint(0, 30) for n in range(10)]
    reader = Reader(ring, len(written))
    ring.plan = dict.fromkeys(written, reader.write)

    async def spin():
        while True:  # noqa: ASYNC110  being busy is the point
            await asyncio.sleep(0)

    tasks = [loop.create_task(spin()) for _ in range(10)]
    loop.run_forever()
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    reader.close()
    waited = [read - write - 1 for read, write in zip(reader.turns, written, strict=True)]
    assert max(waited) <= UNPOLLED_TURNS.get(backend.name, 0)


def test_turns_that_last_longer_than_the_time_limit_all_poll(loop):
    """However few turns have passed: a ring of slow callbacks must not make I/O wait for 61 of them."""
    ring = Ring(loop)
    written = list(range(2, 200, 9))
    reader = Reader(ring, len(written))

    def write() -> None:
        reader.write()
        until = time.perf_counter() + MORE_THAN_THE_TIME_LIMIT
        while time.perf_counter() < until:
            pass

    ring.plan = dict.fromkeys(written, write)
    loop.run_forever()
    reader.close()
    assert max(read - write for read, write in zip(reader.turns, written, strict=True)) <= 1


def test_transports_are_polled_as_well(loop, backend):
    """A protocol's bytes under a spinning ring, through a native transport."""
    ring = Ring(loop)
    left, right = socket_pair()
    turns = []
    lost = loop.create_future()

    class Protocol(asyncio.Protocol):
        def data_received(self, data):
            turns.append(ring.turn)
            if len(turns) == len(written):
                ring.stop()

        def connection_lost(self, exc):
            lost.set_result(exc)

    written = [300 + 70 * n for n in range(20)]
    loop.call_soon(asyncio.ensure_future, loop.create_connection(Protocol, sock=left))
    ring.plan = {turn: (lambda: right.send(b"x")) for turn in written}
    loop.run_forever()
    right.close()
    loop.run_until_complete(lost)
    waited = [read - write - 1 for read, write in zip(turns, written, strict=True)]
    assert max(waited) <= UNPOLLED_TURNS.get(backend.name, 0)
