"""A process that shares a limiter with others: `python -m tests.real.sharing PORT NAME CAPACITY BATCH LEASE TASKS`.

Its tasks take a permit, stay inside for some round trips and leave, until the key `stop` is there. Who is inside is
written down at the server in one step, so that the largest number that ever was inside is exact.
"""

from __future__ import annotations

import asyncio
import os
import sys

import redis.asyncio
import tideloop

ENTER = """
redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
redis.call('HINCRBY', KEYS[3], ARGV[1], 1)
local inside = 0
for _, count in ipairs(redis.call('HVALS', KEYS[1])) do
  inside = inside + tonumber(count)
end
if inside > tonumber(redis.call('GET', KEYS[2]) or 0) then
  redis.call('SET', KEYS[2], inside)
end
return inside
"""


def keys(name: str) -> list[str]:
    """Who is inside, the most that ever were, and how often each process has entered."""
    return [f"seen:{name}:inside", f"seen:{name}:most", f"seen:{name}:entered"]


async def visit(limiter: tideloop.Limiter, client: redis.asyncio.Redis, name: str) -> None:
    inside, most, entered = keys(name)
    enter = client.register_script(ENTER)
    me = os.getpid()
    while not await client.exists(f"stop:{name}"):
        async with limiter:
            await enter(keys=[inside, most, entered], args=[me])
            await client.ping()
            await client.hincrby(inside, me, -1)


async def main(port: int, name: str, capacity: int, batch: int, lease: float, tasks: int) -> None:
    url = f"redis://127.0.0.1:{port}/0"
    async with (
        tideloop.RedisStore(url, lease=lease, batch=batch) as store,
        redis.asyncio.Redis.from_url(url) as client,
    ):
        limiter = tideloop.Limiter(capacity, store=store, name=name)
        print("ready", flush=True)
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(visit(limiter, client, name))
        assert limiter.in_use == 0


if __name__ == "__main__":
    port, name, capacity, batch, lease, tasks = sys.argv[1:]
    tideloop.run(main(int(port), name, int(capacity), int(batch), float(lease), int(tasks)))
