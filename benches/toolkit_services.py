"""Contenders of the rows of ``toolkit.py`` about what a service calls: pools and policies."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import tideloop

Call = Callable[[], Awaitable[int]]


class HandmadePool:
    """What one writes by hand: a queue of what is idle. It makes nothing, waits for ever and forgets what is broken."""

    def __init__(self) -> None:
        self._idle: asyncio.Queue[object] = asyncio.Queue()
        self._idle.put_nowait(object())

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *raised: object) -> None:
        pass

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[object]:
        resource = await self._idle.get()
        try:
            yield resource
        finally:
            self._idle.put_nowait(resource)


class OneKey:
    """A pool with keys, of which one is asked for."""

    def __init__(self) -> None:
        self._pool = tideloop.KeyedPool(lambda key: object())

    async def __aenter__(self) -> None:
        await self._pool.__aenter__()

    async def __aexit__(self, *raised: Any) -> None:
        await self._pool.__aexit__(*raised)

    def acquire(self) -> Any:
        return self._pool.acquire("one")


POOLS: dict[str, Callable[[], Any]] = {
    "a queue of resources": HandmadePool,
    "tideloop.Pool": lambda: tideloop.Pool(object),
    "tideloop.Pool, min and leak_after": lambda: tideloop.Pool(object, min=1, leak_after=60),
    "tideloop.KeyedPool": OneKey,
}


async def answer() -> int:
    return 1


def plain() -> Call:
    return answer


def stamina() -> Call:
    retry = importlib.import_module("stamina").retry
    call: Call = retry(on=OSError, attempts=4)(answer)
    return call


def retried() -> Call:
    return tideloop.policy(retry=tideloop.Retry(OSError))(answer)


def limited_in_time() -> Call:
    return tideloop.policy(timeout=60, retry=tideloop.Retry(OSError))(answer)


def with_everything() -> Call:
    return tideloop.policy(
        deadline=60,
        timeout=30,
        retry=tideloop.Retry(OSError, budget=0.1),
        breaker=tideloop.Breaker(),
        limit=tideloop.Limiter(10),
    )(answer)


POLICIES: dict[str, Callable[[], Call]] = {
    "the call itself": plain,
    "stamina.retry": stamina,
    "tideloop.policy, retry": retried,
    "tideloop.policy, retry and timeout": limited_in_time,
    "tideloop.policy, all but hedge": with_everything,
}
