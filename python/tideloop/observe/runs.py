"""Runs of graphs that are under way: graphs(), for whoever wants to see how far they are.

A run is entered when it begins and leaves when it ends; what is known of it is asked of it, so a node costs nothing
more for being watched. It is known weakly: one whose loop was closed in the middle is not kept by being listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from tideloop.graphs.run import GraphRun

__all__ = ["begun", "ended", "graphs"]

_runs: WeakValueDictionary[int, GraphRun] = WeakValueDictionary()


def begun(run: GraphRun) -> None:
    """A run is under way from now on."""
    _runs[id(run)] = run


def ended(run: GraphRun) -> None:
    """It is no more."""
    _runs.pop(id(run), None)


def graphs() -> list[GraphRun]:
    """The runs of graphs that are under way in this process, in every loop and thread, in the order of their begin.

    ``run.stats()`` tells how far one is: ``done`` of ``total`` nodes, how many of them run, wait for their turn or have
    failed, and the name of the graph; ``run.results`` tells of each node. Both may be asked from any thread.
    """
    known = (reference() for reference in _runs.valuerefs())  # a copy: others begin and end in other threads
    return [run for run in known if run is not None]
