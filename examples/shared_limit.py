"""Several processes call a service that allows so many calls at a time, and so many per second, from all of them.

    python examples/shared_limit.py --redis redis://127.0.0.1:6379/0 [--processes 3] [--calls 20]

Needs a Redis server and `pip install 'tideloop[redis]'`. The service is made up: it is a counter at the server, which
also sees the largest number of calls that were under way at once.
"""

from __future__ import annotations

import argparse
import sys

import redis.asyncio
import tideloop

AT_ONCE, PER_SECOND = 4, 200
COUNTER = "example:shared_limit"


async def log_in() -> str:
    return "the service's token"


async def work(url: str, calls: int) -> None:
    """What each process does."""
    async with tideloop.RedisStore(url, lease=5, batch=4) as store, redis.asyncio.Redis.from_url(url) as client:
        limiter = tideloop.Limiter(AT_ONCE, store=store, name="service")
        rates = tideloop.RateLimiter(tideloop.rate(PER_SECOND, burst=20), store=store, name="service")
        # Of processes that ask at once one logs in; the others get its token.
        flights: tideloop.SingleFlight[str, str] = tideloop.SingleFlight(store=store, name="service")
        token = await flights.do("token", log_in)

        async def call() -> None:
            async with limiter, rates:
                inside = await client.incr(COUNTER) if token else 0
                await client.zadd(f"{COUNTER}:seen", {"most": inside}, gt=True)
                await client.decr(COUNTER)

        async with tideloop.group() as group:
            for _ in range(calls):
                group.spawn(call)


async def main(url: str, processes: int, calls: int) -> None:
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.delete(COUNTER, f"{COUNTER}:seen")
        async with tideloop.group() as group:
            for _ in range(processes):
                command = [sys.executable, __file__, "--redis", url, "--calls", str(calls), "--worker"]
                group.spawn(tideloop.run_process, command)
        most = int(await client.zscore(f"{COUNTER}:seen", "most") or 0)
        print(f"{processes * calls} calls by {processes} processes")
        print(f"at most {AT_ONCE} at a time: {0 < most <= AT_ONCE}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/0")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--worker", action="store_true", help="be one of the processes")
    options = parser.parse_args()
    if options.worker:
        tideloop.run(work(options.redis, options.calls))
    else:
        tideloop.run(main(options.redis, options.processes, options.calls))
