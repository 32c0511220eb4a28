"""Graphs of work: Graph, and what its runs are made of.

`nodes` is what is to be done and after what, `graph` a graph of them, `run` one run of it over the native driver
(`crates/py/src/toolkit/graph`, whose head explains in which task a node runs), `guards` what stands around a node's
function (limits, retries, time limits, cache), `keeping` who computes what a cache keeps, `places` where it runs,
`cluster` the place that is a Dask cluster, `results` what came of it, `pictures` how it looks, `progress` a bar for
people.

**Invariant:** a node without options costs no Python beyond its function: all that is hot is in the driver.
"""

from tideloop.graphs.graph import Graph, GraphStats
from tideloop.graphs.nodes import GraphCycle, Node
from tideloop.graphs.results import GraphFailed, GraphResult, NodeLost, NodeResult, NodeSkipped
from tideloop.graphs.run import GraphRun, GraphRunStats, graph_run

__all__ = [
    "Graph",
    "GraphCycle",
    "GraphFailed",
    "GraphResult",
    "GraphRun",
    "GraphRunStats",
    "GraphStats",
    "Node",
    "NodeLost",
    "NodeResult",
    "NodeSkipped",
    "graph_run",
]
