"""A batch job that finds out for itself how much its database can take at a time.

    python examples/adaptive_batch.py

The database is made up: it serves 8 queries of 5 ms at a time, the rest queue. Half-way through it loses three quarters
of its capacity. Time is virtual, so this takes next to none.
"""

from __future__ import annotations

import asyncio

import tideloop
from tideloop.testing import new_virtual_loop


class Database:
    def __init__(self) -> None:
        self.servers = tideloop.Limiter(8)
        self.done = 0

    async def query(self) -> None:
        async with self.servers:
            await asyncio.sleep(0.005)
        self.done += 1


async def work(database: Database, limiter: tideloop.AdaptiveLimiter, until: float) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        async with limiter:
            await database.query()


async def main() -> None:
    loop = asyncio.get_running_loop()
    database = Database()
    limiter = tideloop.AdaptiveLimiter(initial=50, name="database")
    for servers in (8, 2):
        database.servers.resize(servers)
        start, done = loop.time(), database.done
        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(work(database, limiter, start + 20))
        rate = (database.done - done) / 20
        stats = limiter.stats()
        print(f"{servers} servers: limit {stats.limit:.0f}, {rate:.0f} queries per second of {servers / 0.005:.0f}")


if __name__ == "__main__":
    loop = new_virtual_loop()
    loop.run_until_complete(main())
    loop.close()
