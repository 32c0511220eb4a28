"""Graph: pieces of work, each after those that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from tideloop._tideloop import Enlisted, GraphPlan, enlist
from tideloop.graphs import pictures
from tideloop.graphs.guards import Limits, check_limits
from tideloop.graphs.nodes import Builder, GraphCycle, Node, names_of
from tideloop.graphs.results import GraphResult
from tideloop.graphs.run import GraphRun, OnError

__all__ = ["Graph", "GraphStats"]


class GraphStats(NamedTuple):
    """A Graph in numbers."""

    name: str | None
    nodes: int
    edges: int
    runs: int
    """Runs that were begun."""
    running: int
    """Runs that have not ended."""


def _nothing(*args: object, **kwargs: object) -> None:
    """What a node without a function calls."""


class Graph(Enlisted, Builder):
    """Pieces of work and what each of them needs: ``g.node(parse, [page])``, then ``await g.run()``.

    A run is driven by what is ready: a node is started as soon as all that it depends on has ended, however far others
    are. It may be run any number of times, also at once, in any loop and thread; a run uses the nodes that there
    are when it begins.

    `limits` are names for ``limit=`` of its nodes: a ResourceLimits, or a mapping of names to numbers or Limiters. They
    are shared by all runs. `name` is what errors call it.
    """

    __slots__ = ("__weakref__", "_counts", "_limits", "_named", "_nodes", "_plan", "_running", "_runs", "name")

    def __init__(self, *, limits: Limits = None, name: str | None = None) -> None:
        self.name = name
        self._limits = check_limits(limits)
        self._nodes: list[Node[Any]] = []
        self._named: dict[str, Node[Any]] = {}
        self._counts: dict[str, int] = {}
        self._plan: GraphPlan | None = None
        self._runs = self._running = 0
        enlist(self)

    @classmethod
    def from_dict(
        cls,
        nodes: Mapping[str, Callable[..., Any] | tuple[Callable[..., Any], Any]],
        *,
        limits: Limits = None,
        name: str | None = None,
    ) -> Graph:
        """A graph of names: each with its function, or with a function and what it depends on, in any order.

        ``Graph.from_dict({"page": fetch, "words": (count, ["page"])})``
        """
        graph = cls(limits=limits, name=name)
        described = {key: what if isinstance(what, tuple) else (what, ()) for key, what in nodes.items()}
        for key, what in described.items():
            if len(what) != 2:
                raise TypeError(
                    f"{graph!r}: {key!r} must be a function, or a function and its dependencies, not {what!r}"
                )
            graph.node(what[0], name=key)
        for key, (_, deps) in described.items():
            graph._link(graph._named[key], deps, ())
        graph._plan = None
        return graph

    @classmethod
    def from_edges(
        cls,
        edges: Iterable[tuple[str, str]],
        functions: Mapping[str, Callable[..., Any]],
        *,
        limits: Limits = None,
        name: str | None = None,
    ) -> Graph:
        """A graph of pairs of names, each from what goes before to what comes after, which gets its value.

        An edge that is there twice is one. Raises ValueError for a name without a function.
        """
        graph = cls(limits=limits, name=name)
        for key, function in functions.items():
            graph.node(function, name=key)
        for before, after in edges:
            graph.add_edge(before, after)
        return graph

    def input(self, name: str) -> Node[Any]:
        """Add a node without a function, whose value every run that needs it is given: ``g.run({"url": …})``."""
        self._check_name(name)
        node: Node[Any] = Node(self, len(self._nodes), name, None, estimate=0.0)
        self._admit(node)
        return node

    def add_node(self, name: str, fn: Callable[..., Any] | None = None, **options: Any) -> Node[Any]:
        """Add a node by name, its edges to follow; without `fn` it does nothing. `options` are those of node()."""
        return self.node(_nothing if fn is None else fn, name=name, **options)

    def add_edge(self, before: Node[Any] | str, after: Node[Any] | str, *, result: bool = True) -> None:
        """Let a node wait for another one, whose value becomes its next positional argument if `result` is true.

        An edge that there is already stays as it is.
        """
        first, second = self._find(before), self._find(after)
        known = second._known
        if known is None:
            known = second._known = set(second._needs)
        if first._number in known:
            return
        known.add(first._number)
        self._plan = None
        second._needs.append(first._number)
        if result and second.fn is not _nothing:
            positional = len(second._arguments) - len(second._keywords or ())
            second._arguments.insert(positional, first._number)

    def independent_groups(self) -> list[list[str]]:
        """Names of the nodes in groups: no node depends on another one of its group, only on some of those before.

        To look at; run() does not go by groups, in which the slowest node would hold up all others. Raises GraphCycle.
        """
        return [names_of(self._nodes, group) for group in self._compiled().groups()]

    async def run(
        self,
        inputs: Mapping[Node[Any] | str, Any] | None = None,
        *,
        only: Iterable[Node[Any] | str] | None = None,
        on_error: OnError = "fail_fast",
        limit: int | None = None,
        estimates: Mapping[str, float] | GraphResult | None = None,
        progress: bool = False,
        dask: Any = None,
        gather: bool | None = None,
    ) -> GraphResult:
        """Run the graph: each node once, after those that it depends on, which may go on at the same time.

        `inputs` are values of nodes, which then do not run. `only` runs what these targets need and nothing else.
        `limit` is how many nodes run at once; those that wait for a limit of their own are among them. `estimates`,
        in seconds by name, or a previous result, say what the longest way is, along which nodes are preferred.
        `progress` shows a bar, if stderr is a terminal. `dask`, a distributed.Client(asynchronous=True) of this loop,
        is where nodes with ``where="dask"`` run; `gather` is what holds for those that do not say whether their values
        come here.

        By `on_error`, when a node has failed: "fail_fast" cancels what runs, waits for it, and raises GraphFailed, an
        ExceptionGroup that has the results so far; "skip_downstream" skips what depends on it, and "continue" runs
        that, too, with the exception in the place of the value. With these two, failures are in the results. What
        depends on a node that was cancelled is treated like that as well, but it is no failure.

        Cancelled, it cancels what runs and waits for it. KeyboardInterrupt and SystemExit of a node do the same and
        are raised bare. Raises GraphCycle, and ValueError if an input or a cluster is missing, before anything has run.
        """
        run = GraphRun(self, on_error, limit, dask, gather)
        return await run._go(self._compiled(), inputs or {}, only, estimates, progress)

    async def resume(
        self,
        from_: GraphResult,
        inputs: Mapping[Node[Any] | str, Any] | None = None,
        *,
        only: Iterable[Node[Any] | str] | None = None,
        on_error: OnError = "fail_fast",
        limit: int | None = None,
        estimates: Mapping[str, float] | GraphResult | None = None,
        progress: bool = False,
        dask: Any = None,
        gather: bool | None = None,
    ) -> GraphResult:
        """Run what a previous run has left: as run(), but nodes that have a value there keep it.

        Nodes that were added while that ran are run as well, unless they have a value.
        """
        previous = from_._run
        if previous.graph is not self:
            raise ValueError(f"{from_!r} is not of {self!r}")
        run = GraphRun(self, on_error, limit, dask, gather)
        # What was left on a cluster was left there for those who took it then.
        for node in self._nodes:
            if node._fetch(self._nodes):
                self._plan = None
        plan = run._inherit(previous) or self._compiled()
        given: dict[Node[Any] | str, Any] = {
            result.node: result.outcome.value for result in from_ if result.state in ("succeeded", "given")
        }
        given.update(inputs or {})
        return await run._go(plan, given, only, from_ if estimates is None else estimates, progress)

    def to_mermaid(self) -> str:
        """The graph as Mermaid's text, which many viewers of Markdown show as a picture."""
        return pictures.mermaid([node.name for node in self._nodes], [node._needs for node in self._nodes])

    def stats(self) -> GraphStats:
        """The graph in numbers."""
        edges = sum(len(node._needs) for node in self._nodes)
        return GraphStats(self.name, len(self._nodes), edges, self._runs, self._running)

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node[Any]]:
        return iter(self._nodes)

    def __getitem__(self, name: str) -> Node[Any]:
        if name not in self._named:
            raise KeyError(name)
        return self._named[name]

    def __contains__(self, node: object) -> bool:
        return node in self._named or (isinstance(node, Node) and node._owner is self)

    def __repr__(self) -> str:
        return f"<tideloop.Graph {'' if self.name is None else f'{self.name!r} '}of {len(self._nodes)} nodes>"

    def _admit(self, node: Node[Any]) -> None:
        super()._admit(node)
        self._plan = None

    def _compiled(self) -> GraphPlan:
        if self._plan is None:
            self._plan = plan_of(repr(self), self._nodes)
        return self._plan


def plan_of(title: str, nodes: list[Node[Any]]) -> GraphPlan:
    """What a run goes by. Raises GraphCycle."""
    try:
        return GraphPlan(nodes)
    except ValueError as error:
        if not (error.args and isinstance(error.args[0], list)):
            raise
        raise GraphCycle(title, names_of(nodes, error.args[0])) from None
