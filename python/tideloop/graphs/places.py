"""Where nodes run: on the loop, in what PLACES names, or on the cluster that a run is given (`cluster`).

A place is a coroutine function that is called with a function and its arguments and returns what that returns.
Cancelled, it ends only when the function has: a run that has ended has nothing left that runs.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from tideloop.graphs.results import NodeLost
from tideloop.offload import run_blocking

if TYPE_CHECKING:
    from tideloop.graphs.nodes import Node

__all__ = ["PLACES", "brought", "check"]


def _called(fn: Callable[..., Any], keywords: dict[str, Any]) -> Callable[..., Any]:
    return functools.partial(fn, **keywords) if keywords else fn


async def _in_thread(fn: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
    return await run_blocking(_called(fn, keywords), *args)


async def _in_process(fn: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
    """A process can be ended in the middle, so a run that is cancelled need not wait for it."""
    return await run_blocking(_called(fn, keywords), *args, kind="process", on_cancel="kill")


async def brought(node: Node[Any], value: Any) -> Any:
    """What a node here is given of one on a cluster: the value, if that was left there.

    Raises NodeLost if it is not there any more, as when the client was closed.
    """
    # If it is one of Dask's, that is imported.
    future = getattr(sys.modules.get("distributed"), "Future", None)
    if future is None or not isinstance(value, future):
        return value
    if value.cancelled():
        raise NodeLost(f"{node!r} needs {value!r}, which is not there any more")
    return await value.result()


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
