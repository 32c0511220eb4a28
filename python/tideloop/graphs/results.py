"""What came of a run: GraphResult, node by node."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tideloop.graphs import pictures
from tideloop.outcome import Outcome

if TYPE_CHECKING:
    from tideloop.graphs.nodes import Node
    from tideloop.graphs.run import GraphRun

__all__ = ["GraphFailed", "GraphResult", "NodeLost", "NodeResult", "NodeSkipped", "State"]

State = Literal["succeeded", "failed", "cancelled", "skipped", "given", "left out", "pending"]


class NodeSkipped(RuntimeError):
    """A node did not run: what it depends on has failed or was skipped, or the run was given up before its turn."""


class NodeLost(RuntimeError):
    """What had a node on a cluster is lost: its worker, or the scheduler. With ``retry=`` the node runs again."""


class NodeResult(NamedTuple):
    """How one node has fared; times in seconds since the run began."""

    node: Node[Any]
    state: State
    """"given" for what was an input or had succeeded before, "left out" for what no target needed."""
    outcome: Outcome[Any]
    ready: float | None
    """When all that it depends on had ended."""
    started: float | None
    """When it was called; for one with a limit, when it was let in last."""
    ended: float | None

    @property
    def took(self) -> float | None:
        """Seconds from start to end; None if it did not run."""
        if self.started is None or self.ended is None:
            return None
        return self.ended - self.started

    @property
    def waited(self) -> float | None:
        """Seconds from when it could run until it did."""
        if self.started is None or self.ready is None:
            return None
        return self.started - self.ready


class GraphResult:
    """What came of a run of a graph. ``results[node]`` is a node's value, or raises what it has raised.

    Nodes are named by themselves or by their names. Made by ``Graph.run()``; while that runs it tells how far it is.
    """

    __slots__ = ("_run",)

    def __init__(self, run: GraphRun) -> None:
        self._run = run

    def __getitem__(self, node: Node[Any] | str) -> Any:
        return self.node(node).outcome.result()

    def __contains__(self, node: object) -> bool:
        try:
            return self._run._find(node) is not None  # type: ignore[arg-type]  # anything else is found not to be there
        except (TypeError, ValueError):
            return False

    def __iter__(self) -> Iterator[NodeResult]:
        """All nodes, those that were added while it ran included, in the order in which they were added."""
        return (self._result(number) for number in range(len(self._run._nodes)))

    def __len__(self) -> int:
        return len(self._run._nodes)

    def node(self, node: Node[Any] | str) -> NodeResult:
        """How a node has fared. Raises ValueError for one that the run does not know."""
        return self._result(self._run._number_of(node))

    def outcome(self, node: Node[Any] | str) -> Outcome[Any]:
        """How a node has ended: a NodeSkipped as exception if it did not run.

        Raises asyncio.InvalidStateError while it has not.
        """
        result = self.node(node)
        if result.state == "pending":
            raise asyncio.InvalidStateError(f"{result.node!r} has not ended")
        return result.outcome

    @property
    def values(self) -> dict[str, Any]:
        """The values of all nodes that have one, by name."""
        return {result.node.name: result.outcome.value for result in self if result.state in ("succeeded", "given")}

    @property
    def outcomes(self) -> dict[str, Outcome[Any]]:
        """How each node has ended, by name; without those that were left out."""
        return {result.node.name: result.outcome for result in self if result.state != "left out"}

    @property
    def ok(self) -> bool:
        """Whether all that was asked for has a value."""
        return all(result.state in ("succeeded", "given", "left out") for result in self)

    @property
    def failures(self) -> list[BaseException]:
        """What has failed, in the order in which it did."""
        return list(self._run._failures)

    @property
    def skipped(self) -> list[Node[Any]]:
        """The nodes that did not run because of others."""
        return [result.node for result in self if result.state == "skipped"]

    @property
    def took(self) -> float:
        """Seconds from the begin of the run to the end of its last node; 0 if none ran."""
        return max((result.ended for result in self if result.ended is not None), default=0.0)

    @property
    def critical_path(self) -> list[Node[Any]]:
        """What the run was waiting for: the node that ended last, before it the last one of those that it depends on, …

        In the order in which they ran. Making any other node faster makes the run no faster.
        """
        return [self._run._nodes[number] for number in self._run._chain()]

    def estimates(self) -> dict[str, float]:
        """How long each node took that has succeeded, by name: for the ``estimates`` of another run."""
        return {
            result.node.name: took
            for result in self
            if result.state == "succeeded" and (took := result.took) is not None
        }

    def to_mermaid(self) -> str:
        """The graph as Mermaid's text, each node in the colour of its state."""
        run = self._run
        return pictures.mermaid(
            [result.node.name for result in self],
            [run._dependencies(number) for number in range(len(run._nodes))],
            [result.state for result in self],
        )

    def to_svg(self, *, width: int = 960) -> str:
        """A timeline of the run as a picture (SVG): a bar for each node that ran, and how long it had to wait before.

        Readable on light and dark backgrounds. `width` in pixels.
        """
        critical = set(self._run._chain())
        bars = [
            pictures.Bar(
                result.node.name,
                result.state,
                result.started if result.ready is None else min(result.ready, result.started),
                result.started,
                result.ended,
                result.node._number in critical,
            )
            for result in self
            if result.started is not None and result.ended is not None
        ]
        return pictures.timeline(self._run._title, bars, self.took, width)

    def _result(self, number: int) -> NodeResult:
        run = self._run
        node = run._nodes[number]
        word, value, error, *times = run._node(number)
        ready, started, ended = (None if time is None else (time - run._began) / 1e9 for time in times)
        state: State
        if error is not None:
            state = "cancelled" if isinstance(error, asyncio.CancelledError) else "failed"
        elif word == "done":
            state = "succeeded" if ended is not None else "given"
        elif word in ("skipped", "left out"):
            state = "skipped" if word == "skipped" else "left out"
            why = "was not asked for" if word == "left out" else run._why_skipped(number)
            error = NodeSkipped(f"{node!r} did not run: {why}")
        else:
            state = "pending"
        return NodeResult(node, state, Outcome(value, error), ready, started, ended)

    def __repr__(self) -> str:
        return f"<tideloop.GraphResult of {self._run!r}>"


class GraphFailed(ExceptionGroup[Exception]):
    """A run with ``on_error="fail_fast"`` in which nodes have failed. ``results`` is what came of it so far."""

    results: GraphResult

    def __new__(cls, message: str, failures: Sequence[Exception], results: GraphResult) -> GraphFailed:
        self = super().__new__(cls, message, failures)
        self.results = results
        return self

    def __init__(self, message: str, failures: Sequence[Exception], results: GraphResult) -> None:
        super().__init__(message, failures)

    def derive(self, failures: Sequence[Exception], /) -> GraphFailed:  # type: ignore[override]  # of its own kind
        return GraphFailed(self.message, failures, self.results)
