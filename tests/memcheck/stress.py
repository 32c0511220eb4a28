"""What runs under memcheck: task programs, handles and timers, references kept and dropped in every order.

    python -m tests.memcheck.stress --programs 300 --seed 1

By itself it is an ordinary program that asserts little; memcheck is what watches. The interpreter must take its
memory from malloc (PYTHONMALLOC=malloc), or a use after a free hides in its pools.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import sys

from tests import task_variants
from tests.fuzz import tasks
from tests.fuzz.task_actions import KINDS
from tests.fuzz.task_programs import program


def run_programs(first: int, count: int) -> None:
    """Task programs on every variant of this build but the reference."""
    variants = [variant for variant in task_variants.available() if variant.name != "asyncio"]
    with tasks.machine(variants) as machine:
        for seed in range(first, first + count):
            drawn = program(seed, KINDS)
            for index in range(len(variants)):
                machine.outcome(index, drawn)


def shuffle_handles(loop: asyncio.AbstractEventLoop, rng: random.Random) -> None:
    """Handles that are cancelled, dropped or kept, before, while and after they run."""
    handles: list[asyncio.Handle] = []

    def meddle(*arguments: object) -> None:
        if handles and rng.random() < 0.5:
            handles[rng.randrange(len(handles))].cancel()
        if handles and rng.random() < 0.3:
            del handles[rng.randrange(len(handles))]
        if rng.random() < 0.5:
            handles.append(loop.call_soon(meddle, object(), [], {}))

    for n in range(200):
        arguments = [object() for _ in range(rng.randrange(6))]
        if rng.random() < 0.5:
            handles.append(loop.call_soon(meddle, *arguments))
        else:
            handles.append(loop.call_later(rng.choice((0, 1e-6, 3600)), meddle, *arguments))
        if n % 50 == 49:
            loop.call_soon(loop.stop)
            loop.run_forever()
            gc.collect()
    for handle in handles:
        repr(handle)
        handle.cancel()


def drop_in_every_order(loop: asyncio.AbstractEventLoop, rng: random.Random) -> None:
    """Tasks, their futures and their coroutines, let go of in random order while they wait, run or end."""

    async def wait(future: asyncio.Future[object]) -> object:
        return await future

    async def main() -> None:
        held: list[object] = []
        for _ in range(100):
            future = loop.create_future()
            coroutine = wait(future)
            task = loop.create_task(coroutine)
            held += [future, coroutine, task]
            if rng.random() < 0.5:
                await asyncio.sleep(0)
            match rng.randrange(5):
                case 0:
                    future.set_result(object())
                case 1:
                    future.set_exception(LookupError())
                case 2:
                    task.cancel(object())
                case 3:
                    future.cancel()
            del future, coroutine, task
            rng.shuffle(held)
            while len(held) > 20:
                held.pop()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        del held
        gc.collect()
        await asyncio.sleep(0)

    loop.set_exception_handler(lambda loop, context: None)
    loop.run_until_complete(main())
    loop.run_until_complete(asyncio.sleep(0))
    gc.collect()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    run_programs(options.seed, options.programs)
    rng = random.Random(options.seed)
    for variant in task_variants.available():
        with variant.in_force():
            loop = variant.new_event_loop()
            shuffle_handles(loop, rng)
            drop_in_every_order(loop, rng)
            loop.close()
        del loop
        gc.collect()
    print("stress: done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
