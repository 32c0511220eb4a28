"""What the tasks of these tests do: return, fail or wait, after so many turns of the loop."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any


class Boom(Exception):
    """What fails here fails with."""


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def give(value: Any, after: int = 1) -> Any:
    await turns(after)
    return value


async def fail(message: str = "no", after: int = 1) -> None:
    await turns(after)
    raise Boom(message)


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def tasks_left(before: Any = ()) -> set[asyncio.Task[Any]]:
    """Tasks that are alive, besides those that were and the one that asks."""
    return asyncio.all_tasks() - {asyncio.current_task(), *before}  # type: ignore[arg-type]


def now() -> float:
    return asyncio.get_running_loop().time()


class Flaky:
    """Fails so often, then answers; notes when it was called."""

    def __init__(self, failures, error=Boom):
        self.failures = failures
        self.error = error
        self.times = []

    async def __call__(self, value="answer"):
        self.times.append(now())
        if len(self.times) <= self.failures:
            raise self.error
        return value

    def pauses(self):
        return [later - earlier for earlier, later in itertools.pairwise(self.times)]
