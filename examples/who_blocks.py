"""Who blocks the loop? A handler that calls time.sleep() is found while it sleeps.

python examples/who_blocks.py
"""

import asyncio
import time

import tideloop
from tideloop.observe import Block


async def fetch(number: int) -> int:
    await asyncio.sleep(0.001)
    if number == 3:
        time.sleep(0.4)  # noqa: ASYNC251  the mistake
    return number


async def main() -> list[Block]:
    found: list[Block] = []
    tideloop.observe.on_block(found.append)
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(fetch(number), name=f"fetch {number}")
        await asyncio.sleep(0)
    finally:
        tideloop.observe.off_block(found.append)
    return found


if __name__ == "__main__":
    tideloop.observe.set_block_threshold(0.05)
    with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
        for block in runner.run(main()):
            where = block.stack[0].function if block.stack else block.what
            print(block.task.get_name() if block.task else "no task", block.cause, where)
        metrics = runner.get_loop().metrics()  # type: ignore[attr-defined]
        print(f"{metrics.step_seconds.longest:.2f} s, {metrics.slowest[0].what}")
