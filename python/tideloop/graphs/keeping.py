"""What a node keeps in its cache is computed once, also where several runs want it at the same time.

The first of them computes it, in its own run, with that run's limits and cluster; the others, of the same loop, wait
for it there. A failure is theirs as well, each with an exception of his own. But what happened to that run is not: if
it was cancelled, had no time left or lost its worker, the next of those who wait computes it. (This is not
SingleFlight's: its flights are tasks of their own, and a run that has ended must leave nothing that runs.)

**Who waits holds nothing**, neither a permit nor somebody who waits for him: a run inside of a node that computes such
a value does not wait for others, but computes what it does not find. So nobody can wait in a circle.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable, MutableMapping
from contextvars import ContextVar
from typing import Any

from tideloop.deadlines import DeadlineExceeded
from tideloop.failures import own_copy
from tideloop.graphs.results import NodeLost

__all__ = ["kept"]

# By loop, cache and key: what comes of it is None, or the failure that all share. Each is there while it is computed,
# so that the loop and the cache live, and their addresses are theirs.
_under_way: dict[tuple[int, int, Hashable], asyncio.Future[Exception | None]] = {}

_computing: ContextVar[bool] = ContextVar("tideloop.graph.computing", default=False)


async def kept(cache: MutableMapping[Any, Any], key: Hashable, compute: Callable[[], Awaitable[Any]]) -> Any:
    """The value that the cache has for a key, or what `compute` makes, which it has from then on.

    Raises TypeError for what cannot be a key, and what `compute` raises. Cancelled, it lets another compute it.
    """
    loop = asyncio.get_running_loop()
    place = (id(loop), id(cache), key)
    while True:
        if key in cache:
            return cache[key]
        if _computing.get():
            value = cache[key] = await compute()
            return value
        landed = _under_way.get(place)
        if landed is None:
            return await _computed(cache, place, compute, loop)
        # By a shield: it is not his who waits.
        failure = await asyncio.shield(landed)
        if failure is not None:
            try:
                raise own_copy(failure)
            finally:
                failure = None


async def _computed(
    cache: MutableMapping[Any, Any],
    place: tuple[int, int, Hashable],
    compute: Callable[[], Awaitable[Any]],
    loop: asyncio.AbstractEventLoop,
) -> Any:
    landed = _under_way[place] = loop.create_future()
    token = _computing.set(True)
    failure: Exception | None = None
    try:
        value = cache[place[2]] = await compute()
        return value
    except (DeadlineExceeded, NodeLost):
        raise
    except Exception as error:
        failure = error
        raise
    finally:
        del _under_way[place]
        with contextlib.suppress(ValueError):  # in another context: a task that is closed, not ended
            _computing.reset(token)
        with contextlib.suppress(RuntimeError):  # its loop is closed, and with it all who wait
            landed.set_result(failure)
        failure = None
