"""Nodes of a graph, and how they are added: to a graph, or to a run of one."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Generic, Protocol, TypeVar, overload

from tideloop.durations import seconds
from tideloop.graphs import guards, places
from tideloop.groups import Acquirable
from tideloop.retries import Retry

__all__ = ["Builder", "GraphCycle", "Node", "names_of"]

_T = TypeVar("_T")
Limit = str | Acquirable | Mapping[str, int] | None
Cache = bool | MutableMapping[Any, Any] | None


class GraphCycle(ValueError):
    """The nodes of a graph wait for each other. ``path`` names them: each needs the one before, the first the last."""

    def __init__(self, graph: str, path: list[str]) -> None:
        super().__init__(f"{graph} has a cycle: {' -> '.join([*path, path[0]])}")
        self.path = path


class Node(Generic[_T]):
    """One piece of work in a graph. Made by ``Graph.node()``; calling it calls its function."""

    __slots__ = (
        "__weakref__",
        "_arguments",
        "_called",
        "_keywords",
        "_known",
        "_needs",
        "_number",
        "_owner",
        "cache",
        "estimate",
        "fn",
        "gather",
        "limit",
        "name",
        "priority",
        "retry",
        "timeout",
        "where",
    )

    def __init__(
        self,
        owner: Builder,
        number: int,
        name: str,
        fn: Callable[..., Any] | None,
        limit: Limit = None,
        retry: Retry | None = None,
        timeout: float | None = None,
        priority: int = 0,
        cache: Cache = None,
        where: str = "loop",
        estimate: float = 1.0,
        gather: bool | None = None,
    ) -> None:
        self._owner = owner
        self._number = number
        self.name = name
        self.fn = fn
        self.limit = limit
        self.retry = retry
        self.timeout = timeout
        self.priority = priority
        self.cache: MutableMapping[Any, Any] | None = None
        if not isinstance(cache, bool):
            self.cache = cache
        elif cache:
            self.cache = {}
        self.where = where
        self.estimate = estimate
        self.gather = gather
        # Numbers of what it depends on, each once, and of those whose values are its arguments, as they are given.
        self._needs: list[int] = []
        self._arguments: list[int] = []
        self._keywords: tuple[str, ...] | None = None
        # The former as a set, for a node to which edges are added one by one.
        self._known: set[int] | None = None
        plain = limit is None and retry is None and timeout is None and self.cache is None and where == "loop"
        self._called: Callable[..., Any] | None = fn if plain or fn is None else guards.Guard(self)

    def _fetch(self, nodes: list[Node[Any]]) -> bool:
        """Lets it have the values of what it may be given as futures of a cluster. Whether it was not so before.

        Not of nodes that say that their values stay there.
        """
        wanted = [nodes[it].where == "dask" and nodes[it].gather is not False for it in self._arguments]
        if self.where == "dask" or not any(wanted):
            return False
        if not isinstance(self._called, guards.Guard):
            self._called = guards.Guard(self)
        before, self._called.fetches = self._called.fetches, wanted
        return before != wanted

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the node's function, outside of any run and without what guards it in one."""
        if self.fn is None:
            raise TypeError(f"{self!r} is an input: it has no function to call")
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tideloop.Node {self.name!r}>"


class Decorator(Protocol):
    """What ``node()`` is without a function: it makes a node of one."""

    @overload
    def __call__(self, fn: Callable[..., Awaitable[_T]], /) -> Node[_T]: ...

    @overload
    def __call__(self, fn: Callable[..., _T], /) -> Node[_T]: ...


class Builder:
    """What nodes are added to: a Graph, or a GraphRun while it runs."""

    __slots__ = ()

    _nodes: list[Node[Any]]
    _named: dict[str, Node[Any]]
    _counts: dict[str, int]

    @overload
    def node(
        self,
        fn: Callable[..., Awaitable[_T]],
        deps: Any = (),
        *,
        after: Iterable[Node[Any] | str] = (),
        name: str | None = None,
        limit: Limit = None,
        retry: Retry | int | None = None,
        timeout: float | None = None,
        priority: int = 0,
        cache: Cache = None,
        where: str = "loop",
        estimate: float = 1.0,
        gather: bool | None = None,
    ) -> Node[_T]: ...

    @overload
    def node(
        self,
        fn: Callable[..., _T],
        deps: Any = (),
        *,
        after: Iterable[Node[Any] | str] = (),
        name: str | None = None,
        limit: Limit = None,
        retry: Retry | int | None = None,
        timeout: float | None = None,
        priority: int = 0,
        cache: Cache = None,
        where: str = "loop",
        estimate: float = 1.0,
        gather: bool | None = None,
    ) -> Node[_T]: ...

    @overload
    def node(
        self,
        fn: None = None,
        deps: Any = (),
        *,
        after: Iterable[Node[Any] | str] = (),
        name: str | None = None,
        limit: Limit = None,
        retry: Retry | int | None = None,
        timeout: float | None = None,
        priority: int = 0,
        cache: Cache = None,
        where: str = "loop",
        estimate: float = 1.0,
        gather: bool | None = None,
    ) -> Decorator: ...

    def node(
        self,
        fn: Callable[..., Any] | None = None,
        deps: Any = (),
        *,
        after: Iterable[Node[Any] | str] = (),
        name: str | None = None,
        limit: Limit = None,
        retry: Retry | int | None = None,
        timeout: float | None = None,
        priority: int = 0,
        cache: Cache = None,
        where: str = "loop",
        estimate: float = 1.0,
        gather: bool | None = None,
    ) -> Any:
        """Add a node that calls `fn`; without `fn`, a decorator that does.

        `fn` is a function or a coroutine function; what it returns is awaited if it can be. `deps` are nodes or their
        names: their values are its arguments, in that order, or by keyword for a mapping of keywords to nodes.
        `after` are nodes that it has to wait for and gets nothing of. `name`, by default that of the function with a
        number if need be, is what it is called in errors and results.

        `limit`: the name of a limit of the graph, a mapping of such names to how many permits, a Limiter, or whatever
        has acquire() and release(). `retry`: a Retry, or how many attempts. `timeout`: seconds for one attempt, from
        when it is let in. `cache`: True, or a mapping, keeps values by arguments, so that other runs need not compute
        them. `where`: "loop", or "thread" or "process" for a function that blocks, or "dask" for the cluster of the
        run, where `gather` says whether the value comes here; by default it does if a node elsewhere takes it, or no
        other node. Of those that may run a higher
        `priority` goes first, then who has the longest way to the end behind it, by `estimate`, the seconds that a node
        may take.

        Raises ValueError for a name that is taken or unknown, TypeError for what is none of these.
        """
        if fn is None:
            options: dict[str, Any] = {
                "after": after,
                "name": name,
                "limit": limit,
                "retry": retry,
                "timeout": timeout,
                "priority": priority,
                "cache": cache,
                "where": where,
                "estimate": estimate,
                "gather": gather,
            }

            def decorate(fn: Callable[..., Any]) -> Node[Any]:
                return self.node(_function(fn), deps, **options)

            return decorate
        _function(fn)
        if name is None:
            name = self._free_name(getattr(fn, "__name__", None) or type(fn).__name__)
        self._check_name(name)
        again = Retry(attempts=retry) if isinstance(retry, int) and not isinstance(retry, bool) else retry
        _check(name, fn, limit, again, timeout, priority, cache, where, estimate, gather)
        assert again is None or isinstance(again, Retry)
        node: Node[Any] = Node(
            self, len(self._nodes), name, fn, limit, again, timeout, priority, cache, where, float(estimate), gather
        )
        self._link(node, deps, after)
        self._admit(node)
        return node

    def _link(self, node: Node[Any], deps: Any, after: Iterable[Node[Any] | str]) -> None:
        """Says what a new node depends on."""
        if isinstance(deps, list | tuple):
            node._arguments = [self._number_of(dependency) for dependency in deps]
        elif isinstance(deps, Mapping):
            node._arguments = [self._number_of(dependency) for dependency in deps.values()]
            node._keywords = tuple(deps) or None
            for keyword in deps:
                if not isinstance(keyword, str):
                    raise TypeError(f"deps of {node.name!r} must be nodes by keyword, but {keyword!r} is no name")
        elif isinstance(deps, Node | str):
            node._arguments = [self._number_of(deps)]
        else:
            node._arguments = [self._number_of(dependency) for dependency in deps]
        later = [after] if isinstance(after, Node | str) else after
        needs = [*node._arguments, *map(self._number_of, later)]
        node._needs = needs if len(needs) < 2 else list(dict.fromkeys(needs))
        node._known = None

    def _free_name(self, base: str) -> str:
        if base not in self._named:
            return base
        while True:
            count = self._counts[base] = self._counts.get(base, 1) + 1
            if (name := f"{base}-{count}") not in self._named:
                return name

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"the name of a node must be a string, not {name!r}")
        if name in self._named:
            raise ValueError(f"{self!r} has a node {name!r} already")

    def _find(self, what: Node[Any] | str) -> Node[Any]:
        """A node by itself or by its name."""
        if isinstance(what, Node) and what._number < len(self._nodes) and self._nodes[what._number] is what:
            return what
        if isinstance(what, str):
            if what not in self._named:
                raise ValueError(f"{self!r} has no node {what!r}")
            return self._named[what]
        if not isinstance(what, Node):
            raise TypeError(f"a node of {self!r} or its name is wanted, not {what!r}")
        raise ValueError(f"{what!r} is not of {self!r}")

    def _number_of(self, what: Node[Any] | str) -> int:
        return self._find(what)._number

    def _admit(self, node: Node[Any]) -> None:
        self._nodes.append(node)
        self._named[node.name] = node


def names_of(nodes: list[Node[Any]], numbers: Iterable[int]) -> list[str]:
    """The names of nodes by their numbers."""
    return [nodes[number].name for number in numbers]


def _function(fn: Any) -> Callable[..., Any]:
    if inspect.iscoroutine(fn):
        fn.close()
        raise TypeError("a node takes a function, not the coroutine that it returns")
    if not callable(fn):
        raise TypeError(f"a node takes a function, not {fn!r}")
    return fn  # type: ignore[no-any-return]


def _check(
    name: str,
    fn: Callable[..., Any],
    limit: Any,
    retry: Any,
    timeout: Any,
    priority: Any,
    cache: Any,
    where: Any,
    estimate: Any,
    gather: Any,
) -> None:
    """Complains about an option that cannot be meant."""
    if (
        limit is retry is timeout is cache is None
        and priority == 0
        and where == "loop"
        and estimate == 1.0
        and gather is None
    ):
        return  # as it mostly is
    title = f"node {name!r}: "
    if not (limit is None or isinstance(limit, str | Mapping | Acquirable)):
        raise TypeError(f"{title}limit must be a name, a mapping of names or a Limiter, not {limit!r}")
    if retry is not None and not isinstance(retry, Retry):
        raise TypeError(f"{title}retry must be a Retry or a number of attempts, not {retry!r}")
    if timeout is not None:
        seconds(f"{title}timeout", timeout)
    seconds(f"{title}estimate", estimate)
    if not isinstance(priority, int) or not -(2**31) <= priority < 2**31:
        raise TypeError(f"{title}priority must be an int of 32 bits, not {priority!r}")
    if not (cache is None or isinstance(cache, bool | MutableMapping)):
        raise TypeError(f"{title}cache must be True or a mapping that can be changed, not {cache!r}")
    places.check(title, fn, where)
    if gather is not None and not (isinstance(gather, bool) and where == "dask"):
        raise ValueError(f"{title}gather must be True or False for a node with where='dask', else None, not {gather!r}")
    if gather is False and cache not in (None, False):
        raise ValueError(f"{title}gather=False keeps the value on the cluster, cache={cache!r} keeps it here")
