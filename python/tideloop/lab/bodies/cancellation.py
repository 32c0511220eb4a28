"""A storm of cancellations: how long until many sleeping tasks have ended, from the first cancel to the last end.

The libraries differ in what cancelling means, so there are two fair forms: every task cancelled by itself (``each``:
`Task.cancel()`, or a cancel scope in each task) and all at once (``scope``: one scope, or an aborted task group). The
reference mixes them: asyncio and trio each, anyio scope.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter

from tideloop.lab.bodies import expect
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params


@dataclass
class Storm:
    """One run's tally."""

    tasks: int
    after: float
    cancelled: int = 0
    exceptions: int = 0
    settle: float = 0.0


def measure(kit: Kit, params: Params) -> dict[str, float]:
    how = params["how"]
    if how == "reference":
        how = "scope" if kit.family == "anyio" else "each"
    storm = Storm(params["cancel_tasks"], params["cancel_after"])
    start = perf_counter()
    kit.run(lambda: WAYS[kit.family, how](storm))
    duration = perf_counter() - start
    expect("tasks cancelled", storm.cancelled, storm.tasks)
    expect("tasks that raised something else", storm.exceptions, 0)
    return {
        "cancelled": storm.cancelled,
        "exceptions": storm.exceptions,
        "settle_s": storm.settle,
        "tasks": storm.tasks,
        "cancel_after_s": storm.after,
        "duration_s": duration,
    }


async def _asyncio_each(storm: Storm) -> None:
    tasks = [asyncio.create_task(_forever(asyncio.sleep)) for _ in range(storm.tasks)]
    await asyncio.sleep(storm.after)
    start = perf_counter()
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    storm.settle = perf_counter() - start
    storm.cancelled = sum(isinstance(end, asyncio.CancelledError) for end in ends)
    storm.exceptions = len(ends) - storm.cancelled


class _AbortError(Exception):
    pass


async def _asyncio_scope(storm: Storm) -> None:
    tasks: list[asyncio.Task[None]] = []
    start = 0.0
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(storm.tasks):
                tasks.append(group.create_task(_forever(asyncio.sleep)))
            await asyncio.sleep(storm.after)
            start = perf_counter()
            raise _AbortError
    except* _AbortError:
        storm.settle = perf_counter() - start
    storm.cancelled = sum(task.cancelled() for task in tasks)
    storm.exceptions = len(tasks) - storm.cancelled


async def _trio_each(storm: Storm) -> None:
    import trio

    scopes = [trio.CancelScope() for _ in range(storm.tasks)]

    async def job(scope: trio.CancelScope) -> None:
        with scope:
            await _forever(trio.sleep)

    async with trio.open_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(job, scope)
        await trio.sleep(storm.after)
        start = perf_counter()
        for scope in scopes:
            scope.cancel()
    storm.settle = perf_counter() - start
    storm.cancelled = sum(scope.cancelled_caught for scope in scopes)


async def _trio_scope(storm: Storm) -> None:
    import trio

    async def job() -> None:
        try:
            await _forever(trio.sleep)
        except trio.Cancelled:
            storm.cancelled += 1
            raise

    async with trio.open_nursery() as nursery:
        for _ in range(storm.tasks):
            nursery.start_soon(job)
        await trio.sleep(storm.after)
        start = perf_counter()
        nursery.cancel_scope.cancel()
    storm.settle = perf_counter() - start


async def _anyio_each(storm: Storm) -> None:
    import anyio

    scopes = [anyio.CancelScope() for _ in range(storm.tasks)]

    async def job(scope: anyio.CancelScope) -> None:
        with scope:
            await _forever(anyio.sleep)

    async with anyio.create_task_group() as group:
        for scope in scopes:
            group.start_soon(job, scope)
        await anyio.sleep(storm.after)
        start = perf_counter()
        for scope in scopes:
            scope.cancel()
    storm.settle = perf_counter() - start
    storm.cancelled = sum(scope.cancelled_caught for scope in scopes)


async def _anyio_scope(storm: Storm) -> None:
    import anyio

    cancelled = anyio.get_cancelled_exc_class()

    async def job() -> None:
        try:
            await _forever(anyio.sleep)
        except cancelled:
            storm.cancelled += 1
            raise

    async with anyio.create_task_group() as group:
        for _ in range(storm.tasks):
            group.start_soon(job)
        await anyio.sleep(storm.after)
        start = perf_counter()
        group.cancel_scope.cancel()
    storm.settle = perf_counter() - start


async def _forever(sleep: Callable[[float], Awaitable[None]]) -> None:
    while True:
        await sleep(1)


WAYS = {
    ("asyncio", "each"): _asyncio_each,
    ("asyncio", "scope"): _asyncio_scope,
    ("trio", "each"): _trio_each,
    ("trio", "scope"): _trio_scope,
    ("anyio", "each"): _anyio_each,
    ("anyio", "scope"): _anyio_scope,
}
