"""How well limits follow a backend whose capacity changes, in simulated time: for a row of ``toolkit.py``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import tideloop
from tideloop.testing import new_virtual_loop

STEPS = (20, 60, 10)
"""Servers of the backend, one after the other; each for 10 s to settle in, and 5 s that count."""

SERVICE = 0.02
CLIENTS = 200


class Backend:
    """So many servers; operations of a log-normal time queue behind them, and take longer when many are in flight."""

    def __init__(self, seed: int) -> None:
        self.servers = tideloop.Limiter(STEPS[0])
        self.dice = random.Random(seed)
        self.in_flight = 0
        self.done = 0

    async def operate(self) -> None:
        self.in_flight += 1
        async with self.servers:
            crowding = max(1.0, self.in_flight / (1.5 * self.servers.capacity))
            await asyncio.sleep(SERVICE * crowding * self.dice.lognormvariate(-0.08, 0.4))
        self.in_flight -= 1
        self.done += 1


async def follow(limiter: Any, scale: float, seed: int) -> list[float]:
    """Operations per second in the last third of each step."""
    loop = asyncio.get_running_loop()
    backend = Backend(seed)
    over = False

    async def client() -> None:
        while not over:
            async with limiter:
                await backend.operate()

    clients = [asyncio.ensure_future(client()) for _ in range(CLIENTS)]
    found = []
    for servers in STEPS:
        backend.servers.resize(servers)
        if isinstance(limiter, tideloop.Limiter):
            limiter.resize(servers)
        await asyncio.sleep(10 * scale)
        before, began = backend.done, loop.time()
        await asyncio.sleep(5 * scale)
        found.append((backend.done - before) / (loop.time() - began))
    over = True
    await asyncio.gather(*clients)
    return found


BEST = "the best static limit of each step"

LIMITS: dict[str, Callable[[], Any]] = {
    BEST: lambda: tideloop.Limiter(STEPS[0]),
    "AdaptiveLimiter(Gradient2())": lambda: tideloop.AdaptiveLimiter(tideloop.Gradient2(), initial=5),
    "AdaptiveLimiter(Vegas())": lambda: tideloop.AdaptiveLimiter(tideloop.Vegas(), initial=5),
    "a static limit of 100": lambda: tideloop.AdaptiveLimiter(min=100, max=100),
}


def least_share(contender: str, scale: float, seed: int) -> float:
    """The least of all steps, of what so many servers can do, which a limit of that many comes close to."""
    with asyncio.Runner(loop_factory=new_virtual_loop) as runner:
        rates = runner.run(follow(LIMITS[contender](), scale, seed))
    return min(rate * SERVICE / servers for rate, servers in zip(rates, STEPS, strict=True))
