"""Fetches many pages politely: so many at a time in all, so many per host, and a large page counts for more.

    python examples/polite_crawler.py [--pages 60]

The hosts are made up; a "fetch" is a short sleep. What is shown is how the limits are put together and what they
report afterwards. Runs on any asyncio loop.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter

import tideloop
from tideloop import KeyedLimiter, Limiter, ResourceLimits

HOSTS = ("alpha.example", "beta.example", "gamma.example")


class Crawler:
    def __init__(self) -> None:
        # 20 units of bandwidth: a page takes one, an archive ten.
        self.bandwidth = Limiter(20, name="bandwidth")
        self.hosts = KeyedLimiter(2, capacities={"beta.example": 1}, name="hosts")
        # Writing takes a file handle and a slot of the disk, both or neither.
        self.local = ResourceLimits(file=4, disk=2, name="local")
        self.inside: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.saved = 0

    async def fetch(self, host: str, weight: int) -> None:
        async with self.hosts(host), self.bandwidth(weight, timeout=30):
            self.inside[host] += 1
            self.most[host] = max(self.most[host], self.inside[host])
            await asyncio.sleep(0.001 * weight)
            self.inside[host] -= 1
        async with self.local(file=1, disk=1):
            await asyncio.sleep(0)
            self.saved += 1


async def main(pages: int) -> Crawler:
    crawler = Crawler()
    fetches = [crawler.fetch(HOSTS[number % 3], 10 if number % 15 == 0 else 1) for number in range(pages)]
    await asyncio.gather(*fetches)
    return crawler


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=60)
    crawler = tideloop.run(main(parser.parse_args().pages))
    print(f"saved {crawler.saved} pages; most at once: {dict(crawler.most)}")
    stats = crawler.bandwidth.stats()
    print(f"bandwidth: {stats.waited} of {stats.granted} waited, the longest {stats.wait_times.longest * 1e3:.1f} ms")
    print(f"hosts: {crawler.hosts.stats()}")
    print(f"local: {crawler.local.stats()}")
