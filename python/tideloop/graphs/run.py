"""GraphRun: one run of a graph.

The driver (`GraphRunCore`) starts nodes, takes their values and failures, and cancels them; here is what happens once
per run: what it is begun with, waiting for its end, what is raised then, and adding nodes meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar
from weakref import ReferenceType, ref

from tideloop._tideloop import GraphPlan, GraphRunCore, enlist, function
from tideloop.cancellation import Request
from tideloop.graphs.nodes import Builder, GraphCycle, Node, names_of
from tideloop.graphs.progress import Bar
from tideloop.graphs.results import GraphFailed, GraphResult
from tideloop.groups import Acquirable
from tideloop.limits import ResourceLimits
from tideloop.observe import runs

if TYPE_CHECKING:
    from tideloop.graphs.cluster import Cluster
    from tideloop.graphs.graph import Graph

__all__ = ["GraphRun", "GraphRunStats", "OnError", "graph_run"]

OnError = Literal["fail_fast", "skip_downstream", "continue"]

# Weakly: a connection that a node opens for others has the node's context for as long as it is open.
_running: ContextVar[ReferenceType[GraphRun]] = ContextVar("tideloop.graph_run")


_F = TypeVar("_F", bound=Callable[..., Any])


def _native(name: str) -> Callable[[_F], _F]:
    """The native function of this name, with the looks of what it decorates."""
    return lambda template: function(name, template)


class GraphRunStats(NamedTuple):
    """A run in numbers: its nodes, by their state."""

    name: str | None
    """That of the graph."""
    nodes: int
    """All of them, also those that do not run: they were given values, or no target needs them."""
    total: int
    """Those that run, or are to; ``done / total`` is how far it is."""
    done: int
    """Those of them that have ended: the last four."""
    ready: int
    """Those that may begin and have not."""
    running: int
    succeeded: int
    failed: int
    cancelled: int
    skipped: int


class GraphRun(GraphRunCore, Builder):
    """One run of a graph, for its nodes: ``tideloop.graph_run()``. Belongs to the loop that it runs on.

    ``node()`` adds a node to this run alone; it may depend on any node of the run, also on one that has ended.
    """

    __slots__ = (
        "_began",
        "_beside",
        "_cluster",
        "_counts",
        "_held",
        "_joins",
        "_limit",
        "_loop",
        "_named",
        "_nodes",
        "_open_for_nodes",
        "_static",
        "graph",
        "on_error",
        "results",
    )

    def __init__(self, graph: Graph, on_error: OnError, limit: int | None, dask: Any, gather: bool | None) -> None:
        if on_error not in ("fail_fast", "skip_downstream", "continue"):
            raise ValueError(f"on_error must be 'fail_fast', 'skip_downstream' or 'continue', not {on_error!r}")
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise ValueError(f"limit must be a number of nodes, at least 1, or None, not {limit!r}")
        if gather is not None and not isinstance(gather, bool):
            raise TypeError(f"gather must be True, False or None, not {gather!r}")
        self.graph = graph
        self._cluster = None if dask is None else _cluster(self, dask, gather)
        self.on_error: OnError = on_error
        self.results = GraphResult(self)
        self._limit = limit
        self._nodes = graph._nodes.copy()
        self._named = graph._named.copy()
        self._counts = graph._counts.copy()
        self._static = len(self._nodes)
        self._joins: list[tuple[int, int]] = []
        self._held: dict[int, Acquirable] = {}
        self._began = 0
        self._beside: int | None = None
        self._open_for_nodes = False
        self._loop: asyncio.AbstractEventLoop | None = None
        enlist(self)

    @property
    def name(self) -> str | None:
        """The name of its graph."""
        return self.graph.name

    # --- for its nodes -------------------------------------------------------------------------

    def add_edge(self, before: Node[Any] | str, after: Node[Any] | str) -> None:
        """Let a node that has not been started wait for another one; its arguments stay as they are.

        Raises RuntimeError for one that has been started, or does not run; GraphCycle if they would wait for each
        other.
        """
        self._check_open()
        first, second = self._number_of(before), self._number_of(after)
        if self._cluster is not None and self._cluster.sent_ahead(second):
            raise RuntimeError(f"{self._nodes[second]!r} can wait for nothing more: it is on the cluster")
        state, cycle = self._join(first, second)
        if cycle is not None:
            raise GraphCycle(repr(self), names_of(self._nodes, cycle))
        if state is not None:
            raise RuntimeError(f"{self._nodes[second]!r} can wait for nothing more: it is {state}")
        self._joins.append((first, second))

    def cancel(self, msg: Any = None) -> None:
        """Give the run up: what was not started is skipped, what runs is cancelled. run() then returns its results."""
        if self._open_for_nodes:
            self._check_loop()
            self._abort(msg)

    def stats(self) -> GraphRunStats:
        """Counts of the nodes by state; from any thread."""
        nodes, ready, running, *ends = self._counts_by_state()
        beside = self._beside
        if beside is None:
            # Looked for only if somebody asks. It does not change: what is added to a run is to be run.
            states = (self._node(number) for number in range(nodes))
            beside = sum(word == "left out" or (word == "done" and ended is None) for word, *_, ended in states)
            self._beside = beside if nodes else None
        total = nodes - beside
        return GraphRunStats(self.graph.name, nodes, total, sum(ends), ready, running, *ends)

    def __repr__(self) -> str:
        names = ("nodes", "ready", "running", "succeeded", "failed", "cancelled", "skipped")
        counts = [f"{name}={count}" for name, count in zip(names, self._counts_by_state(), strict=True) if count]
        state = "running" if self._open_for_nodes else "ended" if self._loop is not None else "unused"
        return f"<tideloop.GraphRun of {self.graph!r} {state} {' '.join(counts)}>"

    # --- the run -------------------------------------------------------------------------------

    async def _go(
        self,
        plan: GraphPlan,
        inputs: Mapping[Node[Any] | str, Any],
        only: Iterable[Node[Any] | str] | None,
        estimates: Mapping[str, float] | GraphResult | None,
        progress: bool,
    ) -> GraphResult:
        parent = asyncio.current_task()
        if parent is None:
            raise RuntimeError(f"{self.graph!r} must be run by a task")
        loop = self._loop = asyncio.get_running_loop()
        given = {self._number_of(node): value for node, value in inputs.items()}
        targets = [only] if isinstance(only, Node | str) else only
        wanted = None if targets is None else [self._number_of(node) for node in targets]
        if wanted is not None and self._joins:
            wanted = self._with_joined(wanted, given)
        if self._cluster is not None:
            self._cluster.begin(wanted)
        request = Request(parent)
        token = _running.set(ref(self))
        try:
            self._began = self._begin_with(
                loop, parent, plan, self.on_error, self._limit, wanted, given, self._weights(estimates)
            )
        finally:
            _running.reset(token)
        bar = Bar(self) if progress else None
        runs.begun(self)
        self.graph._runs += 1
        self.graph._running += 1
        interrupted: asyncio.CancelledError | None = None
        try:
            if missing := self._without_value():
                named = ", ".join(map(repr, names_of(self._nodes, missing)))
                raise ValueError(f"{self.graph!r} cannot run without values for its inputs {named}")
            if self._cluster is None:
                self._check_places()
            for first, second in self._joins:
                self._join(first, second)
            self._open_for_nodes = True
            if bar is not None:
                bar.begin(loop)
            try:
                self._begin()
            except BaseException:
                self._abort()
                raise
            finally:
                interrupted = await self._ended(loop)
            self._open_for_nodes = False
            self._conclude(request, parent, interrupted)
            return self.results
        finally:
            self._open_for_nodes = False
            runs.ended(self)
            self.graph._running -= 1
            if bar is not None:
                bar.end()
            if self._cluster is not None:
                await self._cluster.end()
            self._close()
            interrupted = None

    def _check_places(self) -> None:
        """Complains about nodes that would need a cluster."""
        for number, node in enumerate(self._nodes):
            if node.where == "dask" and self._node(number)[0] not in ("done", "left out"):
                raise ValueError(f"{node!r} runs on Dask: run {self.graph!r} with dask=client")

    async def _ended(self, loop: asyncio.AbstractEventLoop) -> asyncio.CancelledError | None:
        """Wait until nothing of the run is left. The cancellation that came meanwhile, if one did."""
        interrupted: asyncio.CancelledError | None = None
        try:
            while self._alive:
                idle = loop.create_future()
                self._idle = idle
                try:
                    await idle
                except asyncio.CancelledError as error:
                    interrupted = error
                    self._abort()
                finally:
                    self._idle = None
            return interrupted
        finally:
            interrupted = None

    def _conclude(
        self, request: Request, parent: asyncio.Task[Any], interrupted: asyncio.CancelledError | None
    ) -> None:
        """Raises what is to be raised."""
        try:
            if (fatal := self._fatal) is not None:
                raise fatal
            failures = self._failures
            if failures and self.on_error == "fail_fast":
                if interrupted is not None and request.others:
                    # The errors go first; the cancellation comes at the parent's next await, its count unchanged.
                    parent.uncancel()
                    parent.cancel()
                title = f"{len(failures)} of {len(self._nodes)} nodes of {self.graph!r} failed"
                errors = [failure for failure in failures if isinstance(failure, Exception)]
                if len(errors) < len(failures):
                    raise BaseExceptionGroup(title, failures) from None
                raise GraphFailed(title, errors, self.results) from None
            if interrupted is not None:
                raise interrupted
        finally:
            interrupted = fatal = None

    def _with_joined(self, wanted: list[int], given: Mapping[int, Any]) -> list[int]:
        """All that targets need, also by the edges that were added in a previous run, which the plan does not have."""
        before: dict[int, list[int]] = {}
        for first, second in self._joins:
            before.setdefault(second, []).append(first)
        found: set[int] = set()
        left = list(wanted)
        while left:
            number = left.pop()
            if number in found:
                continue
            found.add(number)
            if number not in given:
                left += [*self._nodes[number]._needs, *before.get(number, ())]
        return list(found)

    def _weights(self, estimates: Mapping[str, float] | GraphResult | None) -> list[tuple[int, float]]:
        if estimates is None:
            return []
        known = estimates.estimates() if isinstance(estimates, GraphResult) else estimates
        return [(node._number, float(known[node.name])) for node in self._nodes if node.name in known]

    def _inherit(self, previous: GraphRun) -> GraphPlan | None:
        """Takes over what was added in a previous run: its edges, and its nodes, with a plan if there are any."""
        from tideloop.graphs.graph import plan_of  # at the top it would be a circle

        self._joins = previous._joins.copy()
        added = previous._nodes[previous._static :]
        if not added:
            return None
        if previous._static != self._static:
            raise ValueError(f"{self.graph!r} has other nodes than in {previous!r}, which has added some itself")
        self._nodes += added
        self._named = previous._named.copy()
        self._counts = previous._counts.copy()
        return plan_of(repr(self.graph), self._nodes)

    # --- for the nodes' guards and the results -------------------------------------------------

    @property
    def _title(self) -> str:
        return self.graph.name or "graph"

    def _limit_of(self, node: Node[Any]) -> Acquirable:
        """What a node has to acquire."""
        limits, wanted = self.graph._limits, node.limit
        if isinstance(wanted, Acquirable):
            return wanted
        rank = self._rank(node._number)
        if isinstance(limits, ResourceLimits):
            return limits({wanted: 1} if isinstance(wanted, str) else wanted, priority=rank)
        if not isinstance(wanted, str):
            raise ValueError(f"{node!r}: several limits at once, {wanted!r}, need a graph whose limits are numbers")
        if wanted not in limits:
            known = ", ".join(map(repr, limits)) or "none"
            raise ValueError(f"{node!r}: {self.graph!r} has no limit {wanted!r}, but {known}")
        return limits[wanted]

    def _admitted(self, node: Node[Any], limit: Acquirable) -> None:
        self._held[node._number] = limit
        self._started(node._number)

    def _release(self, node: Node[Any]) -> None:
        self._held.pop(node._number).release()

    def _why_skipped(self, number: int) -> str:
        for before in self._dependencies(number):
            word = self._node(before)[0]
            if word == "failed":
                return f"{self._nodes[before]!r} has failed or was cancelled"
            if word in ("skipped", "left out"):
                return f"{self._nodes[before]!r} did not run"
        return "the run was given up"

    def _check_open(self) -> None:
        if not self._open_for_nodes or self._aborted:
            raise RuntimeError(f"{self!r} takes no more nodes")
        self._check_loop()

    def _check_loop(self) -> None:
        try:
            running: object = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self._loop:
            raise RuntimeError(f"{self!r} belongs to another event loop than the one that runs here, if any")

    def _admit(self, node: Node[Any]) -> None:
        self._check_open()
        super()._admit(node)
        node._fetch(self._nodes)
        try:
            self._add(node)
        except BaseException:
            self._nodes.pop()
            del self._named[node.name]
            raise

    @_native("GraphRun._carry")
    async def _carry(self) -> None:
        """Take ready nodes one after another, until one of them waits."""
        raise TypeError(f"{self!r} is not a run of a graph")


def _cluster(run: GraphRun, client: Any, gather: bool | None) -> Cluster:
    try:
        from tideloop.graphs.cluster import Cluster  # imports Dask
    except ImportError as error:
        raise ImportError(f"a run with dask= needs the packages of tideloop[dask]: {error}") from error
    return Cluster(run, client, gather)


def graph_run() -> GraphRun:
    """The run of a graph that the caller is a node of. Raises RuntimeError outside of one."""
    known = _running.get(None)
    run = None if known is None else known()
    if run is None:
        raise RuntimeError("graph_run() is for nodes of a graph that runs")
    return run
