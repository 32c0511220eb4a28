"""A program with something to see, for pictures of its web page: crawlers, a limiter, a queue, now and then a block."""

import asyncio
import random
import time

import tideloop

chance = random.Random(7)


async def fetch(limiter, found):
    async with limiter:
        await asyncio.sleep(chance.expovariate(1 / 0.05))
    await found.put(sum(range(chance.randrange(20_000))))


async def crawl(limiter, found):
    while True:
        await asyncio.gather(*(fetch(limiter, found) for _ in range(chance.randrange(1, 5))))


async def store(found):
    while True:
        await found.get()
        await asyncio.sleep(0.0075)


def summarise():
    time.sleep(0.15)


async def report():
    while True:
        await asyncio.sleep(1.5)
        summarise()


async def main():
    limiter, found = tideloop.Limiter(6, name="pages"), tideloop.Queue(20, name="found")
    crawlers = [asyncio.create_task(crawl(limiter, found), name=f"crawler-{number}") for number in range(8)]
    await asyncio.gather(
        *crawlers, asyncio.create_task(store(found), name="store"), asyncio.create_task(report(), name="report")
    )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
        runner.run(main())
