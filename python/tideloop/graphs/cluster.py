"""Nodes on a Dask cluster: Cluster, what one run of a graph has there.

The driver goes on as ever: a node that is ready is begun, and its guard asks for its value here. What is different is
when the work leaves, and where values stay.

**Regions.** A node that is begun takes along all nodes for Dask behind it that have everything they need in flight or
done: they go to the scheduler as one graph, by one message, and none of the values between them comes here. When the
driver comes to such a node, its future is there already, and it waits for that. A node is taken along only if nothing
here has to happen first: none with a limit, a time limit or a cache, none that waits for a node whose value it does
not take, and nothing at all in a run with a limit.

**A future that was sent ahead counts only if what it was computed from is what the run goes by.** Each remembers the
keys of those that it was sent with; a node that was tried again has another one, one that has failed where the run
continues has none, and then what needs it is sent anew with the right arguments. So the scheduler need know nothing of
retries.

**What was sent together can be refused together**: the scheduler reads a submission as a whole, and if it cannot read
one of its functions (of a module that is not there) all of it has failed. Then each is sent alone, in its turn.

**A node is begun again only if its retry says so.** Dask would run it again after the loss of its worker, three times
by default. `_losses` makes it fail at the first one, which reaches the guard as NodeLost and its policy decides. One
that had been given to the worker and was not begun fares alike: the scheduler cannot tell. A node that *has ended*,
and whose value was lost with a worker before anybody took it, is computed again by Dask whatever its retry says: the
run has seen it end.

**Nobody here waits for what is given up.** Futures are cancelled, which keeps what was not begun from beginning; a
function in the middle of its work on a worker goes on to its end, since a thread cannot be stopped. What is left at the
end of the run is cancelled as well. A value that stays on the cluster does so as long as the run's results live here.

The cluster needs nothing of ours: what is sent are the nodes' functions themselves, and the plugin by its value.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import dask
import distributed
from dask._expr import LLGExpr
from dask._task_spec import Task, TaskRef
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from tideloop.graphs.results import NodeLost

if TYPE_CHECKING:
    from tideloop.graphs.nodes import Node
    from tideloop.graphs.run import GraphRun

__all__ = ["Cluster"]

_OPEN = ("running", "connecting", "newly-created")
"""How a client is that takes work."""

_UNREADABLE = "Error during deserialization of the task graph"
"""What the scheduler says of everything that was sent together, if it cannot read some of it."""

_prepared: WeakSet[distributed.Client] = WeakSet()


def _losses() -> distributed.SchedulerPlugin:
    """What lets the scheduler give up a marked task with its first worker.

    A class in a function, so that it is sent by its value and the scheduler need not be able to import it.
    """

    class TideloopLosses(distributed.SchedulerPlugin):  # type: ignore[misc]  # Dask is not typed here
        name = "tideloop-losses"
        idempotent = True  # whichever client is the first

        def update_graph(self, scheduler: Any, *, annotations: Any, **_: Any) -> None:
            for key in annotations.get("tideloop_once", ()):
                task = scheduler.tasks.get(key)
                if task is not None and not task.suspicious:
                    task.suspicious = scheduler.allowed_failures

    return TideloopLosses()


class _Sent:
    """A node on its way: its key, its future, and the keys of other nodes that it takes its arguments from."""

    __slots__ = ("alone", "future", "key", "sources")

    def __init__(self, key: str, sources: dict[int, str]) -> None:
        self.key = key
        self.sources = sources
        self.alone = False
        self.future: Any = None


class Cluster:
    """What a run has on the cluster of a client, which belongs to the user and to the run's loop."""

    def __init__(self, run: GraphRun, client: Any, gather: bool | None) -> None:
        if not isinstance(client, distributed.Client):
            raise TypeError(f"dask must be a distributed.Client(asynchronous=True), not {client!r}")
        self._run = run
        self._client = client
        self._gather = gather
        # Futures of nodes that have ended; nodes that are awaited; nodes that went along with others.
        self._ended: dict[int, Any] = {}
        self._awaited: dict[int, _Sent] = {}
        self._ahead: dict[int, _Sent] = {}
        # The nodes that need a node, those of them that take its value, and how many nodes were looked at for that.
        self._behind: dict[int, list[int]] = {}
        self._takers: dict[int, list[int]] = {}
        self._known = 0
        # How many of a node's dependencies were found to be there, so that none is looked at for each of the others.
        self._found: dict[int, int] = {}
        self._targets: frozenset[int] = frozenset()
        self._preparing = asyncio.Lock()
        self._id = uuid.uuid4().hex[:12]
        self._count = itertools.count()

    def begin(self, targets: list[int] | None) -> None:
        """Says which nodes were asked for. Raises RuntimeError for a client of another loop, or one that is closed."""
        self._targets = frozenset(targets or ())
        if getattr(self._client.loop, "asyncio_loop", None) is not asyncio.get_running_loop():
            raise RuntimeError(
                f"{self._client!r} belongs to another event loop than the one that runs here, where it is to be made "
                "with asynchronous=True"
            )
        if self._client.status not in _OPEN:
            raise RuntimeError(f"{self._client!r} is {self._client.status}; it must be open while a graph runs")

    async def call(self, node: Node[Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """What a node's function returns on the cluster, or the future of that if it stays there."""
        number = node._number
        async with self._preparing:
            if self._client not in _prepared:
                await self._client.register_plugin(_losses())
                _prepared.add(self._client)
        sent = self._ahead.pop(number, None)
        if sent is None or not self._valid(sent):
            sent = self._send(node, [*args, *keywords.values()])
        try:
            while True:
                self._awaited[number] = sent
                try:
                    value = await self._value(node, sent.future)
                except RuntimeError as error:
                    if sent.alone or type(error) is not RuntimeError or not str(error).startswith(_UNREADABLE):
                        raise
                    # Not its own, perhaps, but that of another one that was sent with it.
                    sent = self._send(node, [*args, *keywords.values()], alone=True)
                else:
                    if value is sent.future or self._is_taken_there(number):
                        self._ended[number] = sent.future
                    return value
        except asyncio.CancelledError:
            await self._cancel([sent])
            raise
        finally:
            self._awaited.pop(number, None)

    def sent_ahead(self, number: int) -> bool:
        """Whether a node is on the cluster though the driver has not come to it."""
        return number in self._ahead

    async def end(self) -> None:
        """Give up what is left of the run."""
        left = [*self._ahead.values()]
        self._ahead.clear()
        self._ended.clear()
        await self._cancel(left)

    async def _value(self, node: Node[Any], future: Any) -> Any:
        try:
            failed = await future.exception() is not None
            if failed or future.status != "finished" or self._comes_home(node):
                return await future.result()
            return future
        except KilledWorker as error:
            lost = error.last_worker
            raise NodeLost(f"{node!r} was on worker {lost.name!r} at {lost.address} when that was lost") from error
        except FutureCancelledError as error:
            why = error.msg or error.reason or "for no known reason"
            raise NodeLost(f"{node!r} is not on the cluster any more: {why}") from error
        finally:
            if future.status == "error":
                # The client knows its failure, whose traceback would know the future: neither would ever go.
                future.release()

    async def _cancel(self, sent: list[_Sent]) -> None:
        """Takes back what was not begun. It waits for nothing, and so may be called while being cancelled."""
        if sent and self._client.status == "running":
            await self._client.cancel([it.future for it in sent], reason="given up", msg="the run has given it up")

    # --- what comes home -----------------------------------------------------------------------

    def _comes_home(self, node: Node[Any]) -> bool:
        """Whether a node's value is fetched: as it says, or the run; else if it is needed here, or by nobody."""
        number = node._number
        if node.cache is not None:
            return True
        wish = self._gather if node.gather is None else node.gather
        if wish is not None:
            return wish
        self._learn()
        takers = [self._run._nodes[taker] for taker in self._takers.get(number, ())]
        if not takers or number in self._targets:
            return True
        return any(taker.where != "dask" or taker.cache is not None for taker in takers)

    def _is_taken_there(self, number: int) -> bool:
        """Whether a node on the cluster takes a node's value."""
        self._learn()
        return any(self._run._nodes[taker].where == "dask" for taker in self._takers.get(number, ()))

    def _learn(self) -> None:
        """Looks at the nodes that have come since it last did."""
        for number in range(self._known, len(self._run._nodes)):
            node = self._run._nodes[number]
            for before in node._needs:
                self._behind.setdefault(before, []).append(number)
            for before in set(node._arguments):
                self._takers.setdefault(before, []).append(number)
        self._known = len(self._run._nodes)

    # --- what goes there -----------------------------------------------------------------------

    def _send(self, node: Node[Any], values: list[Any], alone: bool = False) -> _Sent:
        """Sends a node, and what can go along."""
        if self._client.status not in _OPEN:
            # What is sent now would never be answered.
            raise NodeLost(f"{node!r} cannot be sent: {self._client!r} is {self._client.status}")
        # What is there already need not be sent again, even if its value has come here as well.
        sources = {number: self._ended[number].key for number in node._arguments if number in self._ended}
        values = [
            TaskRef(sources[number]) if number in sources else value
            for number, value in zip(node._arguments, values, strict=True)
        ]
        first = _Sent(self._key(node), sources)
        tasks = {first.key: _task(first.key, node, values)}
        going = {node._number: first}
        if not alone:
            self._take_along(node._number, tasks, going)
        try:
            self._submit(node, tasks, going)
        except Exception:
            if len(going) == 1:
                raise
            # It may be another one that cannot be sent; that will say so itself when its turn has come.
            going = {node._number: first}
            self._submit(node, {first.key: tasks[first.key]}, going)
        for sent in going.values():
            sent.alone = len(going) == 1
        del going[node._number]
        self._ahead.update(going)
        return first

    def _submit(self, node: Node[Any], tasks: dict[str, Task], going: dict[int, _Sent]) -> None:
        with dask.annotate(tideloop_once=True):
            # Made as submit() makes it: no argument is taken for a task because it looks like one. And with a token:
            # else all arguments would be hashed, and refused if they cannot be.
            graph = LLGExpr(tasks, _determ_token=uuid.uuid4().hex)
            futures = self._client.get(graph, list(tasks), sync=False, priority=node.priority)
        by_key = {future.key: future for future in futures}
        for sent in going.values():
            sent.future = by_key[sent.key]

    def _take_along(self, first: int, tasks: dict[str, Task], going: dict[int, _Sent]) -> None:
        """Adds all nodes behind one that can be sent with it."""
        run = self._run
        if run._limit is not None:
            return
        self._learn()
        left = [first]
        while left:
            for number in self._behind.get(left.pop(), ()):
                node = run._nodes[number]
                if number in going or not self._may_go_ahead(node, going):
                    continue
                if (found := self._arguments(node, going)) is None:
                    continue  # it is looked at again from the last one of those that it needs
                values, sources = found
                sent = going[number] = _Sent(self._key(node), sources)
                tasks[sent.key] = _task(sent.key, node, values)
                left.append(number)

    def _may_go_ahead(self, node: Node[Any], going: dict[int, _Sent]) -> bool:
        if node.where != "dask" or any(it is not None for it in (node.limit, node.timeout, node.cache)):
            return False
        if self._run._node(node._number)[0] != "waiting":
            return False
        known = self._ahead.get(node._number)
        return known is None or any(self._current(it, going) != key for it, key in known.sources.items())

    def _arguments(self, node: Node[Any], going: dict[int, _Sent]) -> tuple[list[Any], dict[int, str]] | None:
        """A node's arguments, and the keys among them; None if something is not to be had yet."""
        needs, found = node._needs, self._found.get(node._number, 0)
        while found < len(needs) and self._is_there(needs[found], going):
            found += 1
        self._found[node._number] = found % len(needs)  # from the first one again, should it be asked for again
        if found < len(needs):
            return None
        values: dict[int, Any] = {}
        sources: dict[int, str] = {}
        taken = set(node._arguments)
        for number in self._run._dependencies(node._number):
            word, value = self._run._node(number)[:2]
            key = self._current(number, going)
            if number not in taken:
                if word != "done":
                    return None  # nothing on the cluster would wait for it
            elif key is not None:
                sources[number] = key
                values[number] = TaskRef(key)
            elif word == "done":
                values[number] = value
            else:
                return None
        return [values[number] for number in node._arguments], sources

    def _is_there(self, number: int, going: dict[int, _Sent]) -> bool:
        return self._current(number, going) is not None or self._run._node(number)[0] == "done"

    def _current(self, number: int, going: dict[int, _Sent]) -> str | None:
        """The key of what a node's value is going to be, or is."""
        for place in (going, self._awaited, self._ahead):
            if (sent := place.get(number)) is not None:
                return sent.key
        ended = self._ended.get(number)
        return None if ended is None else ended.key

    def _valid(self, sent: _Sent) -> bool:
        return all(it in self._ended and self._ended[it].key == key for it, key in sent.sources.items())

    def _key(self, node: Node[Any]) -> str:
        return f"{node.name}-{self._id}-{next(self._count)}"


def _task(key: str, node: Node[Any], values: list[Any]) -> Task:
    """A node's call for Dask."""
    names = node._keywords or ()
    at = len(values) - len(names)
    return Task(key, node.fn, *values[:at], **dict(zip(names, values[at:], strict=True)))
