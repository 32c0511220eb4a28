"""A part of a Dask cluster: `python -m tests.real.dask_cluster asyncio|tideloop scheduler|ADDRESS`.

A scheduler, or a worker with two threads for the one at an address, on 127.0.0.1, each a process without a nanny: who
is killed stays dead. Its first line says where it is, and on which loop.
"""

from __future__ import annotations

import asyncio
import sys

import tideloop
from distributed import Scheduler, Worker


async def main(scheduler: str) -> None:
    if scheduler == "scheduler":
        made = Scheduler(host="127.0.0.1", port=0, dashboard=False, dashboard_address="127.0.0.1:0")
    else:
        made = Worker(
            scheduler, host="127.0.0.1", nthreads=2, memory_limit=0, dashboard=False, dashboard_address="127.0.0.1:0"
        )
    async with made as part:
        print("ready", part.address, type(asyncio.get_running_loop()).__module__, flush=True)
        await part.finished()


if __name__ == "__main__":
    runs = {"asyncio": asyncio.run, "tideloop": tideloop.run}[sys.argv[1]]
    runs(main(sys.argv[2]))
