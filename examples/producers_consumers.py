"""Producers and consumers: three producers, a bounded number of consumers, and an end without guessing.

    python examples/producers_consumers.py
    python examples/producers_consumers.py --loop asyncio --producers 5 --items 200 --consumers 20

Each producer is an asynchronous generator; `merge` runs them at once and `amap` the consumers. Nobody waits for
an idle time-out to know that there is no more: the streams end when the producers do. Nor does anybody cancel the
consumers, or lose an error: what a producer or a consumer raises comes out of the `async for`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import AsyncIterator

import tideloop


async def produce(name: str, count: int, dice: random.Random) -> AsyncIterator[str]:
    """`count` items, each after some milliseconds of work."""
    for number in range(count):
        await asyncio.sleep(dice.uniform(0.0005, 0.002))
        yield f"{name}.{number}"


async def consume(item: str) -> int:
    """What is done with an item: some milliseconds of work."""
    await asyncio.sleep(0.002)
    return len(item)


async def main(producers: int, items: int, consumers: int) -> tuple[int, int]:
    """How many items were consumed, and how many letters they had."""
    dice = random.Random(1)
    sources = [produce(f"producer{number}", items, dice) for number in range(producers)]
    count = letters = 0
    # At most `consumers` items are worked on and 20 more wait; a producer that is ahead of that waits, too.
    async with tideloop.merge(*sources, buffer=20).amap(consume, limit=consumers) as results:
        async for length in results:
            count += 1
            letters += length
    return count, letters


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=("asyncio", "tideloop"), default="tideloop")
    parser.add_argument("--producers", type=int, default=3)
    parser.add_argument("--items", type=int, default=50, help="items of each producer")
    parser.add_argument("--consumers", type=int, default=8, help="items that are worked on at once")
    given = parser.parse_args()
    run = tideloop.run if given.loop == "tideloop" else asyncio.run
    count, letters = run(main(given.producers, given.items, given.consumers))
    print(f"{count} items consumed, {letters} letters")
