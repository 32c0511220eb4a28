"""call_soon_threadsafe: threads hand calls to a loop that runs them.

Nothing else runs, so the figure is what a hand-over costs: the call, waking the loop where it sleeps, and the run of a
callback that counts.
"""

from __future__ import annotations

import asyncio
from threading import Thread
from time import perf_counter, process_time

from tideloop.lab.bodies import WrongResult
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params


def measure(kit: Kit, params: Params) -> dict[str, float]:
    async def main() -> tuple[float, float]:
        await _hand_over(params["threads"], params["calls"] // 10)
        cpu, start = process_time(), perf_counter()
        await _hand_over(params["threads"], params["calls"])
        return process_time() - cpu, perf_counter() - start

    cpu, seconds = kit.run(main)
    calls = params["threads"] * params["calls"]
    return {"cpu_us_per_call": cpu / calls * 1e6, "calls_per_sec": calls / seconds, "duration_s": seconds}


async def _hand_over(threads: int, calls: int) -> None:
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1

    def work() -> None:
        call_soon_threadsafe = loop.call_soon_threadsafe
        for _ in range(calls):
            call_soon_threadsafe(count)
        call_soon_threadsafe(ended)

    left = threads

    def ended() -> None:
        nonlocal left
        left -= 1
        if not left:
            over.set_result(None)

    workers = [Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    await over
    for worker in workers:
        worker.join()
    if seen != threads * calls:
        raise WrongResult(f"{seen} of {threads * calls} calls were run")
