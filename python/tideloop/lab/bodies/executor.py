"""run_in_executor: a loop hands calls to threads and is told of their ends.

The calls do nothing, so the figure is what the way there and back costs, most of it the executor's own. Many end while
the loop does something else, and a loop that is awake need not be woken for each.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, process_time

from tideloop.lab.bodies import WrongResult
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params


def measure(kit: Kit, params: Params) -> dict[str, float]:
    async def main() -> tuple[float, float]:
        with ThreadPoolExecutor(params["threads"]) as pool:
            await _hand_over(pool, params["calls"] // 10, params["at_once"])
            cpu, start = process_time(), perf_counter()
            await _hand_over(pool, params["calls"], params["at_once"])
            return process_time() - cpu, perf_counter() - start

    cpu, seconds = kit.run(main)
    calls = params["calls"]
    return {"cpu_us_per_call": cpu / calls * 1e6, "calls_per_sec": calls / seconds, "duration_s": seconds}


async def _hand_over(pool: ThreadPoolExecutor, calls: int, at_once: int) -> None:
    loop = asyncio.get_running_loop()
    for first in range(0, calls, at_once):
        asked = range(first, min(first + at_once, calls))
        answers = await asyncio.gather(*[loop.run_in_executor(pool, int, number) for number in asked])
        if answers != list(asked):
            raise WrongResult(f"the calls from {first} on have other results than they returned")
