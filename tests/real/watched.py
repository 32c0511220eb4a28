"""A program with something to see, for the pictures of its web page: crawlers, a limiter, and now and then a block."""

import asyncio
import random
import time

import tideloop

chance = random.Random(7)


async def fetch(limiter, page):
    async with limiter:
        await asyncio.sleep(chance.expovariate(1 / 0.05))
        return sum(range(chance.randrange(20_000)))


async def crawl(limiter):
    for page in range(1_000_000):
        await asyncio.gather(*(fetch(limiter, page) for _ in range(4)))


def summarise():
    time.sleep(0.15)


async def report():
    while True:
        await asyncio.sleep(1.5)
        summarise()


async def main():
    limiter = tideloop.Limiter(20, name="pages")
    crawlers = [asyncio.create_task(crawl(limiter), name=f"crawler-{number}") for number in range(8)]
    await asyncio.gather(*crawlers, asyncio.create_task(report(), name="report"))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
        runner.run(main())
