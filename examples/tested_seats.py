"""Seats that are booked one by one, and the tests of them: what tideloop's pytest plugin is for.

python -m pytest --tideloop examples/tested_seats.py

docs/testing.md walks through it. Without --tideloop the same tests run on asyncio's loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import tideloop
from tideloop.testing import VirtualClock


class Seats:
    """So many seats; who comes later waits, first come, first served."""

    def __init__(self, free: int) -> None:
        self.free = free
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def book(self) -> AsyncIterator[None]:
        """Take a seat for as long as the block lasts."""
        await self._take()
        try:
            yield
        finally:
            self._leave()

    async def _take(self) -> None:
        if self.free:
            self.free -= 1
            return
        ticket = asyncio.get_running_loop().create_future()
        self._waiting.append(ticket)
        try:
            await ticket
        except asyncio.CancelledError:
            if ticket.cancelled():
                self._waiting.remove(ticket)
            else:
                self._leave()  # the seat had been given to us already
            raise

    def _leave(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self.free += 1


@pytest.fixture
def seats() -> Iterator[Seats]:
    """Two seats, both of which have to be free again in the end, whatever happened to the test."""
    made = Seats(2)
    yield made
    assert made.free == 2, f"{2 - made.free} of 2 seats are lost"


async def sit(seats: Seats, seconds: float) -> float:
    """Books a seat for some time; returns when that began."""
    async with seats.book():
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(seconds)
        return began


async def test_the_third_waits_for_the_first_to_go(seats: Seats, virtual_clock: VirtualClock) -> None:
    """An hour and a half, which take no time."""
    began = await asyncio.gather(*(sit(seats, seconds) for seconds in (3600, 5400, 60)))
    assert began == [0, 0, 3600]
    assert virtual_clock.time() == 5400


@pytest.mark.cancel_everywhere
@pytest.mark.usefixtures("virtual_clock", "no_task_leaks")
async def test_no_seat_is_lost(seats: Seats) -> None:
    """Somebody waits for a seat, sits and goes; cancelled at each of these awaits, the seats are free in the end."""
    async with tideloop.group() as others:
        others.spawn(sit, seats, 10)
        others.spawn(sit, seats, 20)
        await asyncio.sleep(1)
        await sit(seats, 5)


@pytest.mark.no_blocking(500)
async def test_a_crowd_blocks_nobody(seats: Seats) -> None:
    """Whatever the loop does for a hundred visitors takes it less than half a second at a time."""
    await asyncio.gather(*(sit(seats, 0) for _ in range(100)))
