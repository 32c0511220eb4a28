"""Calls a service that allows so many requests per second and so many tokens per minute, and says 429 once.

    python examples/rate_limited_calls.py [--calls 60]

The service is made up. What a call will cost in tokens is only estimated before it, and settled after it. Runs on any
asyncio loop.
"""

from __future__ import annotations

import argparse
import asyncio

import tideloop


class TooManyRequests(Exception):
    def __init__(self, retry_after: float) -> None:
        super().__init__(f"429, Retry-After: {retry_after}")
        self.retry_after = retry_after


class Service:
    """Answers with what a call has really cost; its 20th call is refused, for no reason of ours."""

    def __init__(self) -> None:
        self.calls: list[float] = []

    async def ask(self, number: int) -> int:
        self.calls.append(asyncio.get_running_loop().time())
        position = len(self.calls)
        await asyncio.sleep(0.001)
        if position == 20:
            raise TooManyRequests(0.1)
        return 50 + number % 10


async def main(calls: int) -> None:
    service = Service()
    limiter = tideloop.RateLimiter(
        tideloop.rate(200, per=1, burst=10),
        tideloop.rate(6_000, per=1, burst=2_000, unit="tokens"),
        name="service",
    )
    used = 0

    async def call(number: int) -> None:
        nonlocal used
        while True:
            async with limiter(cost={"tokens": 100}) as charge:
                try:
                    tokens = await service.ask(number)
                except TooManyRequests as refusal:
                    charge.cancel()
                    limiter.penalise(refusal.retry_after)
                    continue
                charge.settle(tokens=tokens)
                used += tokens
                return

    await asyncio.gather(*(call(number) for number in range(calls)))
    busiest = max(
        sum(1 for other in service.calls if at <= other < at + 0.1)  # of any tenth of a second
        for at in service.calls
    )
    stats = limiter.stats()
    print(f"{calls} calls, {used} tokens, {stats.penalties} refused")
    print(f"at most 30 in a tenth of a second: {busiest <= 31}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--loop", choices=("asyncio", "tideloop"), default="tideloop")
    options = parser.parse_args()
    run = tideloop.run if options.loop == "tideloop" else asyncio.run
    run(main(options.calls))
