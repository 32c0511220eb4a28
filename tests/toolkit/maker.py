"""What pools are tested with: resources with numbers, of which an account is kept; on a virtual clock."""

from __future__ import annotations

import asyncio
import itertools

from tideloop import Pool


class Maker:
    """Makes and closes numbered resources, and keeps account of them."""

    def __init__(self, seconds=0.0, closing=0.0):
        self.seconds = seconds
        self.closing = closing
        self.numbers = itertools.count(1)
        self.open = set()
        self.most = 0
        self.closed = []
        self.failures = []

    async def create(self, key=None):
        await asyncio.sleep(self.seconds)
        if self.failures:
            raise self.failures.pop(0)
        made = (key, next(self.numbers)) if key is not None else next(self.numbers)
        self.open.add(made)
        self.most = max(self.most, len(self.open))
        return made

    async def close(self, made):
        await asyncio.sleep(self.closing)
        self.open.remove(made)
        self.closed.append(made)


def pool_of(maker, **options):
    return Pool(maker.create, maker.close, **options)


async def hold(pool, seconds, *key):
    async with pool.acquire(*key) as made:
        await asyncio.sleep(seconds)
        return made
