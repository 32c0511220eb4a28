"""A process that shares flights with others: `python -m tests.real.flying PORT NAME LEASE`.

It asks for the key "work" once. Whose turn it is to work writes down his process id and the number of the flight, and
ends when the key `go` is there; unless he is killed first.
"""

from __future__ import annotations

import asyncio
import os
import sys

import redis.asyncio
import tideloop


async def main(port: int, name: str, lease: float) -> None:
    url = f"redis://127.0.0.1:{port}/0"
    async with (
        tideloop.RedisStore(url, lease=lease) as store,
        redis.asyncio.Redis.from_url(url, decode_responses=True) as client,
    ):
        flights: tideloop.SingleFlight[str, int] = tideloop.SingleFlight(store=store, name=name)

        async def work() -> int:
            await client.rpush(f"seen:{name}:workers", f"{os.getpid()} {flights.fence()}")
            while not await client.exists(f"go:{name}"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # real time: another process decides
            return os.getpid()

        asking = asyncio.ensure_future(flights.do("work", work))
        await asyncio.sleep(0)
        await client.incr(f"seen:{name}:asking")
        worker = await asking
        stats = flights.stats()
        print(f"done by {worker}, {'elsewhere' if stats.elsewhere else 'here'}, calls {stats.calls}", flush=True)


if __name__ == "__main__":
    port, name, lease = sys.argv[1:]
    tideloop.run(main(int(port), name, float(lease)))
