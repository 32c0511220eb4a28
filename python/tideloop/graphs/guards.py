"""What stands around a node's function: its cache, its policy (retries, limit, time limit), its place.

A node without any of these is called by the driver directly.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tideloop.graphs.keeping import kept
from tideloop.graphs.places import PLACES, brought
from tideloop.groups import Acquirable
from tideloop.limits import Limiter, ResourceLimits
from tideloop.policies import Policy

if TYPE_CHECKING:
    from tideloop.graphs.cluster import Cluster
    from tideloop.graphs.nodes import Node

__all__ = ["Guard", "Limits", "check_limits"]


Limits = ResourceLimits | Mapping[str, "int | Acquirable"] | None


def check_limits(limits: Limits) -> ResourceLimits | dict[str, Acquirable]:
    """A graph's limits: numbers become a ResourceLimits, so that several can be had together."""
    if limits is None:
        return {}
    if isinstance(limits, ResourceLimits):
        return limits
    if not isinstance(limits, Mapping):
        raise TypeError(f"limits must be ResourceLimits or a mapping of names to limits, not {limits!r}")
    if limits and all(isinstance(limit, int) for limit in limits.values()):
        return ResourceLimits(limits)  # type: ignore[arg-type]  # numbers, as was looked at
    found: dict[str, Acquirable] = {}
    for name, limit in limits.items():
        if isinstance(limit, int):
            found[name] = Limiter(limit, name=name)
        elif isinstance(limit, Acquirable):
            found[name] = limit
        else:
            raise TypeError(f"limits[{name!r}] must be a number or a Limiter, not {limit!r}")
    return found


class _Place:
    """A node's place in its limit, for its policy: acquired by the node's rank in the run."""

    __slots__ = ("_guard",)

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def acquire(self) -> None:
        from tideloop.graphs.run import graph_run  # at the top it would be a circle

        run, node = graph_run(), self._guard.node
        limit = run._limit_of(node)
        if isinstance(limit, Limiter):
            await limit.acquire(1, run._rank(node._number))
        else:
            await limit.acquire()
        run._admitted(node, limit)

    def release(self) -> None:
        from tideloop.graphs.run import graph_run

        graph_run()._release(self._guard.node)


class Guard:
    """A node's function with what guards it, to be called in its place."""

    __slots__ = ("_policy", "fetches", "node")

    def __init__(self, node: Node[Any]) -> None:
        self.node = node
        # Whether it may be given what was left on a cluster, for it was not there to be asked; and of which arguments
        # it is to have the values.
        self.fetches: list[bool] | None = None
        self._policy: Policy | None = None
        if node.retry is not None or node.timeout is not None or node.limit is not None:
            limit = None if node.limit is None else _Place(self)
            self._policy = Policy(retry=node.retry, timeout=node.timeout, limit=limit, name=node.name)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cache = self.node.cache
        if cache is None:
            return await self._guarded(args, kwargs)
        key = (self.node.name, args, tuple(sorted(kwargs.items())))
        try:
            hash(key)
        except TypeError as error:
            raise TypeError(f"{self.node!r} cannot be cached, since an argument cannot be a key: {error}") from error
        return await kept(cache, key, lambda: self._guarded(args, kwargs))

    async def _guarded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._policy is None:
            return await self._call(*args, **kwargs)
        return await self._policy.call(self._call, *args, **kwargs)

    async def _call(self, *args: Any, **kwargs: Any) -> Any:
        fn, where = self.node.fn, self.node.where
        assert fn is not None
        if where == "dask":
            return await self._cluster().call(self.node, args, kwargs)
        if self.fetches is not None:
            wanted = iter(self.fetches)
            args = tuple([await brought(self.node, arg) if next(wanted) else arg for arg in args])
            kwargs = {name: await brought(self.node, arg) if next(wanted) else arg for name, arg in kwargs.items()}
        if where != "loop":
            return await PLACES[where](fn, *args, **kwargs)
        made = fn(*args, **kwargs)
        return await made if inspect.isawaitable(made) else made

    def _cluster(self) -> Cluster:
        from tideloop.graphs.run import graph_run  # at the top it would be a circle

        run = graph_run()
        if run._cluster is None:
            raise ValueError(f"{self.node!r} runs on Dask: run {run.graph!r} with dask=client")
        return run._cluster
