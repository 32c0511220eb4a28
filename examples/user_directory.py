"""Looks users up for many requests at once: what is not in the cache is asked for in batches.

    python examples/user_directory.py [--requests 200] [--loop tideloop]

The database is made up and notes what it is asked. Without the two decorators it would be asked once per request and
user. Runs on any asyncio loop.
"""

from __future__ import annotations

import argparse
import asyncio
import random

import tideloop


class Database:
    def __init__(self) -> None:
        self.queries = 0
        self.rows = 0

    async def users(self, ids: list[int]) -> dict[int, str]:
        self.queries += 1
        self.rows += len(ids)
        await asyncio.sleep(0.001)
        return {number: f"user {number}" for number in ids if number != 13}


database = Database()


@tideloop.cached(maxsize=1000, ttl=60, jitter=0.1, stale=600, negative_ttl=5)
@tideloop.batched(max_size=50)
async def user(ids: list[int]) -> dict[int, str]:
    return await database.users(ids)


async def request(dice: random.Random) -> int:
    """A page that shows ten users."""
    shown = [min(int(dice.expovariate(0.05)), 99) for _ in range(10)]
    names = await asyncio.gather(*(user(number) for number in shown), return_exceptions=True)
    return sum(isinstance(name, str) for name in names)


async def main(requests: int) -> None:
    dice = random.Random(7)
    shown = sum(await asyncio.gather(*(request(dice) for _ in range(requests))))
    shown += sum([await request(dice) for _ in range(requests)])
    print(f"{shown} users shown, {database.queries} queries for {database.rows} rows")
    try:
        await user(13)
    except KeyError as error:
        print(f"no user {error}, and the database was not asked again")
    stats = user.stats()
    print(f"{stats.hits + stats.negative_hits} hits, {stats.loads} loads, {stats.joined} waited for another's load")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--loop", choices=["asyncio", "tideloop"], default="tideloop")
    options = parser.parse_args()
    run = tideloop.run if options.loop == "tideloop" else asyncio.run
    run(main(options.requests))
