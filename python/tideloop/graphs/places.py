"""Where nodes run: on the loop, in what PLACES names, or on the cluster that a run is given (`cluster`).

A place is a coroutine function that is called with a function and its arguments and returns what that returns.
Cancelled, it ends only when the function has: a run that has ended has nothing left that runs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from tideloop.offload import run_blocking

__all__ = ["PLACES", "check"]


def _called(fn: Callable[..., Any], keywords: dict[str, Any]) -> Callable[..., Any]:
    return functools.partial(fn, **keywords) if keywords else fn


async def _in_thread(fn: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
    return await run_blocking(_called(fn, keywords), *args)


async def _in_process(fn: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
    """A process can be ended in the middle, so a run that is cancelled need not wait for it."""
    return await run_blocking(_called(fn, keywords), *args, kind="process", on_cancel="kill")


PLACES: dict[str, Callable[..., Awaitable[Any]]] = {"thread": _in_thread, "process": _in_process}


def check(title: str, fn: Callable[..., Any], where: object) -> None:
    """Complains about a place that there is not, or where the function cannot run."""
    if where in ("loop", "dask"):
        return
    if not isinstance(where, str) or where not in PLACES:
        known = ", ".join(map(repr, ["loop", *PLACES, "dask"]))
        raise ValueError(f"{title}where must be one of {known}, not {where!r}")
    if inspect.iscoroutinefunction(fn):
        raise TypeError(f"{title}{fn!r} is a coroutine function, which runs on the loop, not in a {where}")
