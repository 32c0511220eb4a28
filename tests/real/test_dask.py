"""Graphs with nodes on a Dask cluster of real processes, some of which are killed in the middle of their work."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import gc
import os
import random
import signal
import sys
import threading
import traceback
from pathlib import Path

import pytest
import tideloop
from tideloop import Graph, GraphFailed, NodeLost, Retry

from tests.real import dask_work as work
from tests.real import peers

distributed = peers.package("distributed")

pytestmark = pytest.mark.limit(120)
AGAIN = Retry(on=NodeLost, attempts=2, first=0, jitter=0)


@contextlib.contextmanager
def part(loop, what):
    """A scheduler, or a worker of the one at an address; yields the program and its own address."""
    command = [sys.executable, "-m", "tests.real.dask_cluster", loop, what]
    path = os.pathsep.join([str(Path(tideloop.__file__).parents[1]), str(peers.ROOT)])
    with peers.program(command, env={**os.environ, "PYTHONPATH": path}) as running:
        _, address, module = running.wait_for("ready tcp").split()
        assert module.startswith("tideloop") is (loop == "tideloop")
        yield running, address


@pytest.fixture(scope="module")
def cluster():
    """The address of a scheduler that has two workers, none of which a test may kill."""
    with part("asyncio", "scheduler") as (_, address), part("asyncio", address), part("asyncio", address):
        yield address


@pytest.fixture
def folder(tmp_path):
    yield str(tmp_path)
    go(tmp_path)  # so that a test that fails keeps no worker busy


def client_of(address):
    return distributed.Client(address, asynchronous=True, set_as_default=False)


async def until(condition):
    """Until something holds that a process decides."""
    async with asyncio.timeout(work.PATIENCE):
        while not condition():  # noqa: ASYNC110 - nobody here could set an event
            await asyncio.sleep(0.002)


def go(folder):
    Path(folder, "go").touch()


@pytest.fixture
def submissions(monkeypatch):
    """What was sent to a cluster: the names of each message's nodes."""
    sent = []
    get = distributed.Client.get

    def counted(self, graph, keys, **options):
        sent.append(sorted(key.split("-")[0] for key in keys))
        return get(self, graph, keys, **options)

    monkeypatch.setattr(distributed.Client, "get", counted)
    return sent


def chain():
    g = Graph(name="chain")
    g.node(work.number, where="dask", name="a")
    g.node(work.double, ["a"], where="dask", name="b")
    g.node(work.slowly, {"value": "b"}, where="dask", name="c")
    return g


# --- what is sent, and what comes back -----------------------------------------------------------


async def test_a_chain_is_one_submission_whose_values_stay_between(loop, cluster, submissions):
    async with client_of(cluster) as client:
        results = await chain().run(dask=client)
        assert results["c"] == 7
        assert submissions == [["a", "b", "c"]]
        assert isinstance(results["a"], distributed.Future)
        assert await results["b"] == 6
        assert [node.name for node in results.critical_path] == ["a", "b", "c"]
        assert all(result.state == "succeeded" and result.took >= 0 for result in results)
        # It lives as long as the results do.
        keys = [results[name].key for name in "ab"]
        del results
        gc.collect()  # a run and its results know each other
        await until(lambda: not any(key in client.futures for key in keys))


async def test_a_region_with_branches_is_one_submission(loop, cluster, submissions):
    async with client_of(cluster) as client:
        g = Graph()
        g.node(work.number, where="dask", name="a")
        middle = [g.node(work.double, ["a"], where="dask", name=f"m{n}") for n in range(5)]
        g.node(work.add, middle, where="dask", name="z")
        # Two roots: what needs both goes with the second.
        g.node(work.number, where="dask", name="r")
        g.node(work.add, ["r", "a"], where="dask", name="y")
        results = await g.run(dask=client)
        assert (results["z"], results["y"]) == (30, 6)
        assert submissions == [["a", "m0", "m1", "m2", "m3", "m4", "z"], ["r", "y"]]


async def test_values_cross_between_here_and_there(loop, cluster):
    async with client_of(cluster) as client:
        g = Graph()
        a = g.node(work.number, name="a")
        b = g.node(work.double, [a], where="dask", name="b")
        here = g.node(work.double, [b], name="here")
        thread = g.node(work.double, [b], name="thread", where="thread")
        last = g.node(work.add, [a, b, here, thread], where="dask", name="last")
        results = await g.run(dask=client)
        assert results.values == {"a": 3, "b": 6, "here": 12, "thread": 12, "last": 33}
        assert results[last] == 33


@pytest.mark.parametrize(
    ("of_node", "of_run", "home"),
    [
        (None, None, "c"),
        (None, True, "abc"),
        (None, False, ""),
        (True, None, "bc"),
        (True, False, "b"),
        (False, True, "ac"),
    ],
)
async def test_values_are_gathered_or_left(loop, cluster, of_node, of_run, home):
    async with client_of(cluster) as client:
        g = chain()
        g["b"].gather = of_node
        results = await g.run(dask=client, gather=of_run)
        left = {name for name in "abc" if isinstance(results[name], distributed.Future)}
        assert left == set("abc") - set(home)
        assert [await results[name] if name in left else results[name] for name in "abc"] == [3, 6, 7]


async def test_what_was_asked_for_comes_here(loop, cluster, submissions):
    async with client_of(cluster) as client:
        g = chain()
        first = await g.run(only="b", dask=client)
        assert first["b"] == 6
        assert submissions == [["a", "b"]]
        second = await g.resume(first, dask=client)
        assert second["c"] == 7
        assert submissions[1:] == [["c"]]


async def test_a_value_left_there_is_fetched_for_a_node_that_comes_later(loop, cluster):
    async with client_of(cluster) as client:
        g = chain()

        def later(_):
            tideloop.graph_run().node(work.told, ["a"], name="told")

        g.node(later, ["b"])
        results = await g.run(dask=client)
        assert isinstance(results["a"], distributed.Future)
        assert results["told"] == "3"


async def test_a_value_left_there_is_fetched_for_a_node_of_a_later_run(loop, cluster):
    """Which need not have a client; but the one that holds it has to be open."""
    g = Graph()
    g.node(work.number, where="dask", name="a")
    g.node(work.double, ["a"], where="dask", name="b")
    async with client_of(cluster) as client:
        first = await g.run(dask=client)
        g.node(work.told, ["a"], name="told")
        g.node(work.told, {"value": "a"}, name="in a thread", where="thread")
        assert isinstance(first["a"], distributed.Future)
        results = await g.resume(first)
        assert (results["told"], results["in a thread"]) == ("3", "3")
    results = await g.resume(first, on_error="continue")
    assert [type(failure) for failure in results.failures] == [NodeLost, NodeLost]
    assert "which is not there any more" in str(results.failures[0])


async def test_arguments_are_not_taken_for_tasks(loop, cluster):
    for value in [(len, "x"), "a", ["a"], {"a": (len, "x")}, None]:
        async with client_of(cluster) as client:
            g = Graph()
            g.input("a")
            g.node(work.told, ["a"], where="dask", name="told")
            assert (await g.run({"a": value}, dask=client))["told"] == repr(value)


async def test_values_are_kept_by_a_cache(loop, cluster, submissions):
    async with client_of(cluster) as client:
        g = chain()
        g.node(work.double, ["c"], where="dask", name="d", cache=True)
        for _ in range(2):
            results = await g.run(dask=client)
            assert (results["c"], results["d"]) == (7, 14)
        assert submissions == [["a", "b", "c"], ["d"], ["a", "b", "c"]]


def summed(number, *values):
    return number + sum(values)


@pytest.mark.parametrize("seed", range(12))
async def test_any_graph_has_the_values_that_it_has_here(loop, cluster, seed):
    """Whatever runs where, with which options, as a whole or a part first."""
    source = random.Random(seed)
    g, count = Graph(limits={"few": 2}), source.randrange(2, 25)
    for number in range(count):
        before = [f"n{it}" for it in source.sample(range(number), min(number, source.randrange(4)))]
        g.node(
            functools.partial(summed, number),
            before,
            after=[f"n{it}" for it in source.sample(range(number), min(number, source.randrange(2)))],
            name=f"n{number}",
            where=source.choice(["dask", "dask", "loop", "thread"]),
            limit=source.choice([None, None, None, "few"]),
            retry=source.choice([None, 2]),
            cache=source.choice([None, None, None, True]),
        )
    expected = {}
    for node in g:
        expected[node.name] = node(*(expected[f"n{it}"] for it in node._arguments))
    async with client_of(cluster) as client:
        results = None
        for target in ([f"n{source.randrange(count)}"], None):
            options = {"only": target, "limit": source.choice([None, None, 3]), "dask": client}
            results = await (g.run(**options) if results is None else g.resume(results, **options))
        for name, value in results.values.items():
            assert (await value if isinstance(value, distributed.Future) else value) == expected[name]
        assert len(results.values) == count


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of_node", "of_run", "sent"), [("few", None, 4), (None, 2, 2)])
async def test_limits_hold_there_too(loop, cluster, folder, of_node, of_run, sent):
    async with client_of(cluster) as client:
        g = Graph(limits={"few": 2})
        for one in "abcde":
            g.node(functools.partial(work.held, folder, one), where="dask", name=one, limit=of_node)
            g.node(work.double, [one], where="dask", name=f"{one} doubled")
        task = loop.create_task(g.run(dask=client, limit=of_run))
        await until(lambda: len(work.begun(folder)) == 2)
        # Nothing more was sent than what comes behind these two, and that only where the run has no limit itself.
        assert len(client.futures) == sent
        go(folder)
        assert (await task).ok


async def test_a_time_limit_gives_a_node_up(loop, cluster, folder):
    async with client_of(cluster) as client:
        g = Graph()
        g.node(functools.partial(work.held, folder, "slow"), where="dask", timeout=0.2)
        with pytest.raises(GraphFailed) as caught:
            await g.run(dask=client)
        assert isinstance(caught.value.exceptions[0], TimeoutError)
        go(folder)


# --- failures and cancellation -------------------------------------------------------------------


async def test_a_failure_is_that_of_its_node(loop, cluster):
    async with client_of(cluster) as client:
        g = chain()
        g.node(work.broken, ["a"], where="dask", name="broken")
        g.node(work.told, ["broken"], where="dask", name="after")
        results = await g.run(dask=client, on_error="skip_downstream")
        assert results["c"] == 7
        assert [node.name for node in results.skipped] == ["after"]
        with pytest.raises(ValueError, match="broken on a worker") as caught:
            results["broken"]
        assert "dask_work.py" in "".join(traceback.format_exception(caught.value))
        results = await g.run(dask=client, on_error="continue")
        assert results["after"] == "ValueError('broken on a worker')"
        with pytest.raises(GraphFailed, match="1 of 5 nodes"):
            await g.run(dask=client)


async def test_a_retry_sends_anew_what_comes_behind(loop, cluster, folder, submissions):
    async with client_of(cluster) as client:
        g = Graph()
        g.node(work.number, where="dask", name="a")
        g.node(functools.partial(work.flaky, folder, "flaky"), ["a"], where="dask", retry=Retry(first=0), name="f")
        g.node(work.double, ["f"], where="dask", name="d")
        g.node(work.add, ["d", "a"], where="dask", name="sum")
        results = await g.run(dask=client)
        assert results["sum"] == 7
        assert work.begun(folder) == ["flaky", "flaky"]
        assert submissions == [["a", "d", "f", "sum"], ["d", "f", "sum"]]


async def test_who_cannot_be_sent_is_to_blame_itself(loop, cluster):
    async with client_of(cluster) as client:
        g = Graph()
        g.node(work.number, where="dask", name="a")
        lock = threading.Lock()
        g.node(lambda value: (value, lock), ["a"], where="dask", name="bad")
        results = await g.run(dask=client, on_error="skip_downstream")
        assert await results["a"] == 3
        assert results.node("bad").state == "failed"
        assert "Could not serialize" in str(results.outcome("bad").exception)


class Unlike(Exception):
    """Pickled in good order, it cannot be made again."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def unlike():
    raise Unlike("one", "other")


class Unreadable:
    """As what is of a module that is here and not there."""

    def __reduce__(self):
        return eval, ("no_module_there",)


async def test_who_cannot_be_read_there_is_to_blame_itself(loop, cluster):
    """The scheduler refuses all that came with it."""
    async with client_of(cluster) as client:
        g = chain()
        g.node(lambda value, unreadable: value, ["a", g.input("unreadable")], where="dask", name="bad")
        g.node(work.double, ["a"], where="dask", name="good")
        results = await g.run({"unreadable": Unreadable()}, dask=client, on_error="skip_downstream")
        assert (results["c"], results["good"]) == (7, 6)
        assert "Error during deserialization" in str(results.outcome("bad").exception)
        g = chain()
        g.node(unlike, where="dask", name="unlike")
        g.node(work.told, ["unlike"], where="dask", name="told")
        results = await g.run(dask=client, on_error="continue")
        assert str(results.outcome("unlike").exception) == "one and other"
        assert results["c"] == 7


async def test_failures_leave_nothing_on_the_cluster(loop, cluster):
    """Neither the client, which knows what failed, nor connections that were made in its context keep it."""
    async with client_of(cluster) as client:
        g = chain()
        g.node(work.broken, ["a"], where="dask", name="broken")
        g.node(work.told, ["broken"], where="dask", name="after")
        for on_error in ("skip_downstream", "continue", "fail_fast"):
            with contextlib.suppress(GraphFailed):
                await g.run(dask=client, on_error=on_error)
            gc.collect()
            await until(lambda: not client.futures)
        while await client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
            pass


async def test_what_has_come_here_is_let_go_there(loop, cluster):
    """Unless a node there takes it: a long run does not fill the workers."""
    async with client_of(cluster) as client:
        g = Graph()
        g.node(work.number, where="dask", name="taken")
        g.node(work.number, where="dask", name="not taken")

        async def here(*_):
            await until(lambda: sorted(key.split("-")[0] for key in client.futures) == ["taken"])

        g.node(here, ["taken", "not taken"])
        g.node(work.double, ["taken"], where="dask", after=["here"])
        assert (await g.run(dask=client)).values == {"taken": 3, "not taken": 3, "here": None, "double": 6}


async def test_a_client_that_is_closed_in_the_middle(loop, cluster, folder):
    """What runs is lost, and what comes after it, or again, cannot be sent."""
    async with client_of(cluster) as client:
        g = Graph()
        g.node(functools.partial(work.held, folder, "held"), where="dask", name="held", retry=Retry(first=0))
        g.node(work.told, ["held"], where="dask", name="told")
        task = loop.create_task(g.run(dask=client, on_error="continue"))
        await until(lambda: work.begun(folder))
        await client.close()
        async with asyncio.timeout(work.PATIENCE):
            results = await task
        assert [type(result.outcome.exception) for result in results] == [NodeLost, NodeLost]
        assert "'told'> cannot be sent: <Client" in str(results.outcome("told").exception)


async def test_the_scheduler_is_prepared_once(loop, cluster, monkeypatch):
    calls = []
    register = distributed.Client.register_plugin

    def counted(self, plugin, **options):
        calls.append(plugin)
        return register(self, plugin, **options)

    monkeypatch.setattr(distributed.Client, "register_plugin", counted)
    async with client_of(cluster) as client:
        g = Graph()
        for _ in range(20):
            g.node(work.number, where="dask")
        for _ in range(2):
            assert (await g.run(dask=client)).ok
    assert len(calls) == 1


async def test_a_cancelled_run_leaves_nothing_to_begin(loop, cluster, folder):
    async with client_of(cluster) as client:
        g = Graph()
        for number in range(12):
            g.node(functools.partial(work.held, folder, f"h{number}"), where="dask", name=f"h{number}")
            g.node(work.double, [f"h{number}"], where="dask")
        task = loop.create_task(g.run(dask=client))
        await until(lambda: len(work.begun(folder)) == 4)  # two workers of two threads
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not client.futures
        # Nobody waits for the cluster to hear of it, except for us: the scheduler, and by it the workers.
        while await client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
            pass
        while sum((await client.run(lambda dask_worker: len(dask_worker.state.tasks))).values()) > 4:
            pass
        go(folder)
        assert await client.submit(work.number, pure=False) == 3
        assert len(work.begun(folder)) == 4


async def test_what_was_sent_ahead_can_wait_for_nothing_more(loop, cluster, folder):
    async with client_of(cluster) as client:
        g = Graph()
        g.node(functools.partial(work.held, folder, "a"), where="dask", name="a")
        g.node(work.double, ["a"], where="dask", name="b")

        async def here():
            await until(lambda: work.begun(folder))
            with pytest.raises(RuntimeError, match="'b'> can wait for nothing more: it is on the cluster"):
                tideloop.graph_run().add_edge("here", "b")
            go(folder)

        g.node(here, name="here")
        assert (await g.run(dask=client))["b"] == 2


# --- what is lost --------------------------------------------------------------------------------


@pytest.mark.parametrize("retry", [None, AGAIN], ids=["once", "again"])
async def test_a_worker_is_killed_in_the_middle(loop, cluster, folder, retry):
    """Its nodes fail, or run again elsewhere; the others do not notice."""
    async with client_of(cluster) as client:
        with part("asyncio", cluster) as (doomed, _):
            await client.wait_for_workers(3)
            g = Graph()
            names = [f"h{number}" for number in range(9)]
            for name in names:
                g.node(functools.partial(work.held, folder, name), where="dask", name=name, retry=retry, gather=True)
            g.node(work.add, names, where="dask", name="sum")
            task = loop.create_task(g.run(dask=client, on_error="skip_downstream"))
            # All six threads are in the middle of a node.
            await until(lambda: sum(work.pid(folder, name) > 0 for name in names) == 6)
            begun = [name for name in names if work.pid(folder, name) == doomed.process.pid]
            assert len(begun) == 2
            doomed.end(signal.SIGKILL)
            # The scheduler has seen it before the others are let go.
            while await client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.workers)) > 2:
                pass
            go(folder)
            results = await task
        times = collections.Counter(work.begun(folder))
        lost = {name for name in names if results.node(name).state == "failed"}
        if retry is None:
            # Those as well that had been given to the worker and were not begun.
            assert lost >= set(begun)
            assert all(times[name] == 1 for name in begun)
            assert [node.name for node in results.skipped] == ["sum"]
            for name in lost:
                with pytest.raises(NodeLost, match=f"'{name}'> was on worker .* when that was lost"):
                    results[name]
        else:
            assert results.ok
            assert {name: (results[name], times[name]) for name in begun} == dict.fromkeys(begun, (2, 2))
            assert results["sum"] == 9 + 2
        assert all(times[name] == 1 for name in names if name not in lost and name not in begun)


async def test_a_value_that_is_lost_with_its_worker_is_computed_again(loop, cluster, folder):
    async with client_of(cluster) as client:
        with part("asyncio", cluster) as (doomed, address):
            await client.wait_for_workers(3)
            g = Graph()
            g.node(functools.partial(work.note, folder, "a"), where="dask", name="a", gather=False)
            g.node(work.double, ["a"], where="dask", name="b")
            while True:
                first = await g.run(only="a", dask=client)
                if (await client.who_has([first["a"]]))[first["a"].key] == (address,):
                    break
            times = len(work.begun(folder))
            doomed.end(signal.SIGKILL)
            results = await g.resume(first, dask=client)
            assert results["b"] == 2 * (times + 1)


async def test_the_whole_cluster_runs_on_tideloop_and_is_lost(loop, folder):
    with part("tideloop", "scheduler") as (scheduler, address), part("tideloop", address), part("tideloop", address):
        async with client_of(address) as client:
            await client.wait_for_workers(2)
            g = chain()
            many = [g.node(work.double, ["c"], where="dask") for _ in range(50)]
            g.node(work.add, many, where="dask", name="sum")
            assert (await g.run(dask=client))["sum"] == 700
            g = Graph()
            g.node(functools.partial(work.held, folder, "held"), where="dask", name="held")
            task = loop.create_task(g.run(dask=client))
            await until(lambda: work.begun(folder))
            scheduler.end(signal.SIGKILL)
            with pytest.raises(GraphFailed) as caught:
                await task
            assert isinstance(caught.value.exceptions[0], NodeLost)
            assert "'held'> is not on the cluster any more" in str(caught.value.exceptions[0])
            go(folder)


# --- what is refused -----------------------------------------------------------------------------


async def test_what_cannot_be_meant_is_refused(loop, cluster):
    g = chain()
    with pytest.raises(TypeError, match=r"dask must be a distributed\.Client"):
        await g.run(dask=cluster)
    client = client_of(cluster)
    async with client:
        other = asyncio.new_event_loop()
        try:
            with pytest.raises(RuntimeError, match="belongs to another event loop"):
                await asyncio.to_thread(other.run_until_complete, g.run(dask=client))
        finally:
            other.close()
    with pytest.raises(RuntimeError, match="is closed; it must be open"):
        await g.run(dask=client)
    assert g.stats().running == 0


# --- the example ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("loop_name", "given"), [("asyncio", True), ("tideloop", True), ("tideloop", False)])
def test_the_crawl_on_dask(cluster, loop_name, given):
    program = [sys.executable, "-W", "error", "examples/crawl_pipeline.py", "--loop", loop_name, "--dask"]
    words = 3 * sum(4 * (number + 1) for number in range(12))
    # Dask warns on stderr of what a busy machine does to it.
    environment = {**os.environ, "DASK_LOGGING__DISTRIBUTED": "error"}
    # Its own cluster is two processes more, which have to import Dask first.
    assert peers.run([*program, cluster] if given else program, timeout=80, env=environment) == (
        f"36 documents of 3 sites, {words} words\n"
        "at most 2 of a site at once; 147 nodes\n"
        "fewer batches than documents: True\n"
    )
