"""A service with many faults, for looking at it from outside: by tideloop doctor, top, tasks, blocked, flame, web.

TIDELOOP_OBSERVE=tasks tideloop run --observe examples/ill_service.py [seconds]
"""

import asyncio
import contextlib
import re
import sys
import time

import tideloop

requests = tideloop.Limiter(2, name="upstream")
answers: asyncio.Queue[int] = tideloop.Queue(50, name="answers")


async def fetch(number: int) -> int:
    async with requests:
        await asyncio.sleep(0.05)
        return number


async def report() -> None:
    while True:
        time.sleep(0.15)  # noqa: ASYNC251  it blocks
        await asyncio.sleep(1)


def parse(line: str) -> bool:
    return re.match(r"(a+)+$", line) is not None  # exponential


async def read_lines() -> None:
    while True:
        parse("a" * 21 + "b")
        await asyncio.sleep(2)


async def listen(never: asyncio.Event) -> None:
    await never.wait()


async def accept() -> None:
    never = asyncio.Event()
    listeners = set()
    while True:
        listeners.add(asyncio.create_task(listen(never)))  # nobody ever ends them
        await asyncio.sleep(0.02)


async def save() -> None:
    raise OSError("the disk is full")


async def fill() -> None:
    number = 0
    while True:
        number += 1
        await answers.put(number)


async def main() -> None:
    lost = [asyncio.create_task(save(), name="save")]  # nobody asks how it ended
    services = [asyncio.create_task(service()) for service in (report, read_lines, accept, fill)]
    callers: set[asyncio.Task[int]] = set()
    while lost and not any(service.done() for service in services):
        callers = {caller for caller in callers if not caller.done()}
        callers |= {asyncio.create_task(fetch(number), name=f"fetch {number}") for number in range(40 - len(callers))}
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    with contextlib.suppress(TimeoutError, KeyboardInterrupt):
        asyncio.run(asyncio.wait_for(main(), float(sys.argv[1]) if sys.argv[1:] else None))
