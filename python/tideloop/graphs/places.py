"""Where nodes run: on the loop, or in what PLACES names.

A place is a coroutine function that is called with a function and its arguments and returns what that returns.
Cancelled, it ends only when the function has: a run that has ended has nothing left that runs.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["PLACES", "check"]


async def _in_thread(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """As asyncio.to_thread(), but it waits for the thread also if it is cancelled."""
    call = functools.partial(contextvars.copy_context().run, fn, *args, **kwargs)
    future = asyncio.get_running_loop().run_in_executor(None, call)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not future.cancelled():
            future.exception()
        raise cancelled
    return future.result()


PLACES: dict[str, Callable[..., Awaitable[Any]]] = {"thread": _in_thread}
_PLANNED = ("process", "dask")


def check(title: str, fn: Callable[..., Any], where: object) -> None:
    """Complains about a place that there is not, or where the function cannot run."""
    if where == "loop":
        return
    if where in _PLANNED and where not in PLACES:
        raise NotImplementedError(f"{title}where={where!r} is not available in this version of tideloop")
    if not isinstance(where, str) or where not in PLACES:
        known = ", ".join(map(repr, ["loop", *PLACES]))
        raise ValueError(f"{title}where must be one of {known}, not {where!r}")
    if inspect.iscoroutinefunction(fn):
        raise TypeError(f"{title}{fn!r} is a coroutine function, which runs on the loop, not in a {where}")
