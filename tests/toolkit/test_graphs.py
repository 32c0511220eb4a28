"""Graphs of work: order, values, failures, cancellation, and adding nodes while they run."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import random
import sys
import threading
import time
import weakref

import pytest
import tideloop
from tideloop import (
    Graph,
    GraphCycle,
    GraphFailed,
    Limiter,
    NodeSkipped,
    Outcome,
    ResourceLimits,
    Retry,
    graph_run,
    offload_stats,
)

from tests import backends
from tests.toolkit.harness import run
from tests.toolkit.work import Boom, fail, forever, give, tasks_left, turns


def add(*numbers):
    return sum(numbers)


def chain(graph, *functions):
    """Nodes, each after the one before."""
    nodes = []
    for function in functions:
        nodes.append(graph.node(function, nodes[-1:]))
    return nodes


# --- what nodes get and what comes back ----------------------------------------------------------


async def test_values_of_dependencies_arrive_as_arguments(loop):
    g = Graph()
    a = g.node(lambda: 1, name="a")
    b = g.node(lambda: give(2), name="b")

    @g.node(deps=[a, b, a])
    async def both(*values):
        await turns(2)
        return values

    @g.node(deps={"left": "a", "right": both}, after=[b])
    def named(*, left, right):
        return left, right

    results = await g.run()
    assert results[both] == (1, 2, 1)
    assert results["named"] == (1, (1, 2, 1))
    assert results.values == {"a": 1, "b": 2, "both": (1, 2, 1), "named": (1, (1, 2, 1))}
    assert results.ok
    assert g.stats() == (None, 4, 5, 1, 0)
    assert named(left=1, right=2) == (1, 2)


async def test_inputs_are_given_to_each_run(loop):
    g = Graph()
    url = g.input("url")
    page = g.node(lambda url: f"page of {url}", [url], name="page")
    length = g.node(len, [page])
    assert (await g.run({"url": "x"}))[length] == 9
    assert (await g.run({url: "longer"}))[length] == 14
    assert (await g.run({page: "1"})).values == {"page": "1", "len": 1}
    with pytest.raises(ValueError, match="without values for its inputs 'url'"):
        await g.run()
    with pytest.raises(TypeError, match="an input"):
        url()


async def test_a_diamond_runs_each_node_once(loop):
    calls = []

    def work(name):
        return lambda *_: calls.append(name)

    g = Graph.from_edges(
        [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("a", "b")], {name: work(name) for name in "dcba"}
    )
    await g.run()
    assert calls[0] == "a"
    assert calls[3] == "d"
    assert sorted(calls) == ["a", "b", "c", "d"]
    assert g.stats().edges == 4
    assert g.independent_groups() == [["a"], ["c", "b"], ["d"]]


async def test_as_the_reference_has_it(loop):
    g = Graph()
    for name in ("load", "left", "right", "save"):
        g.add_node(name)
    for before, after in [("load", "left"), ("load", "right"), ("left", "save"), ("right", "save"), ("left", "save")]:
        g.add_edge(before, after)
    assert g.independent_groups() == [["load"], ["left", "right"], ["save"]]
    assert (await g.run()).values == dict.fromkeys(["load", "left", "right", "save"])


async def test_from_a_dict_in_any_order(loop):
    g = Graph.from_dict({"sum": (add, ["one", "two"]), "one": lambda: 1, "two": (lambda one: one + 1, "one")})
    assert (await g.run())["sum"] == 3


def test_cycles_are_refused_with_their_path():
    g = Graph(name="round")
    for name in "abcd":
        g.add_node(name, add)
    for before, after in [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]:
        g.add_edge(before, after)
    with pytest.raises(GraphCycle, match="round") as caught:
        g.independent_groups()
    path = caught.value.path
    assert sorted(path) == ["a", "b", "c"]
    assert all(path[at - 1] + path[at] in ("ab", "bc", "ca") for at in range(3))
    assert " -> ".join([*path, path[0]]) in str(caught.value)


def test_what_cannot_be_meant_is_refused():
    g, other = Graph(name="g"), Graph()
    stranger = other.node(add)
    for wrong, error, words in [
        (lambda: g.node(1), TypeError, "a node takes a function, not 1"),
        (lambda: g.node(give(1)), TypeError, "not the coroutine"),
        (lambda: g.node(add, ["no"]), ValueError, "Graph 'g' of 0 nodes> has no node 'no'"),
        (lambda: g.node(add, [stranger]), ValueError, "Node 'add'> is not of"),
        (lambda: g.node(add, [1]), TypeError, "not 1"),
        (lambda: g.node(add, limit=3), TypeError, "node 'add': limit must be"),
        (lambda: g.node(add, retry="often"), TypeError, "retry must be"),
        (lambda: g.node(add, timeout=-1), ValueError, "node 'add': timeout must be"),
        (lambda: g.node(add, estimate="long"), ValueError, "estimate must be"),
        (lambda: g.node(add, priority=2**40), TypeError, "priority must be"),
        (lambda: g.node(add, cache=7), TypeError, "cache must be"),
        (lambda: g.node(add, where="moon"), ValueError, "where must be one of 'loop', 'thread', 'process', 'dask'"),
        (lambda: g.node(add, gather=True), ValueError, "gather must be True or False for a node with where='dask'"),
        (lambda: g.node(add, where="dask", gather=1), ValueError, "gather must be"),
        (lambda: g.node(add, where="dask", gather=False, cache=True), ValueError, "keeps it here"),
        (lambda: g.node(give, where="thread"), TypeError, "runs on the loop"),
        (lambda: g.node(add, name=""), TypeError, "must be a string"),
        (lambda: Graph(limits={"a": "b"}), TypeError, r"limits\['a'\]"),
        (lambda: Graph(limits=3), TypeError, "limits must be"),
        (graph_run, RuntimeError, "is for nodes"),
    ]:
        with pytest.raises(error, match=words):
            wrong()
    assert len(g) == 0
    g.node(add, name="a")
    with pytest.raises(ValueError, match="has a node 'a' already"):
        g.node(add, name="a")


async def test_runs_refuse_what_cannot_be_meant(loop):
    g = Graph()
    g.node(add)
    for options, error in [({"on_error": "ignore"}, "on_error"), ({"limit": 0}, "limit"), ({"only": ["x"]}, "no node")]:
        with pytest.raises(ValueError, match=error):
            await g.run(**options)
    with pytest.raises(TypeError, match="gather must be"):
        await g.run(gather="all")
    away = g.node(add, where="dask", name="away")
    with pytest.raises(ValueError, match=r"'away'> runs on Dask: run .* with dask=client"):
        await g.run()
    assert (await g.run({away: 1}))[away] == 1
    assert g.stats().running == 0


async def test_a_cluster_needs_its_packages(loop, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask", None)
    monkeypatch.delitem(sys.modules, "tideloop.graphs.cluster", raising=False)
    with pytest.raises(ImportError, match=r"needs the packages of tideloop\[dask\]"):
        await Graph().run(dask=object())


# --- order ---------------------------------------------------------------------------------------


def test_two_alternating_chains_take_what_the_longer_one_takes(kind):
    def graph():
        g = Graph()
        for first, second in ((0.06, 0.0055), (0.0055, 0.06)):
            chain(g, *(lambda *_, delay=delay: asyncio.sleep(delay) for delay in (first, second) * 5))
        return g

    async def main():
        began = asyncio.get_running_loop().time()
        results = await graph().run()
        took = asyncio.get_running_loop().time() - began
        assert took <= 5 * (0.06 + 0.0055) * 1.03
        assert results.took == pytest.approx(took, rel=0.01)
        assert len(results.critical_path) == 10

    run(kind, main())


def test_any_graph_is_run_in_an_order_that_fits(kind):
    async def main(seed):
        before = asyncio.all_tasks()
        source = random.Random(seed)
        g, ended = Graph(), {}

        def make(number, needs):
            async def work(*values):
                assert list(values) == [ended[need] for need in needs]
                if source.random() < 0.5:
                    await asyncio.sleep(source.choice([0, 0.1, 0.5]))
                ended[number] = object()
                return ended[number]

            return work

        nodes = []
        for number in range(source.randrange(1, 30)):
            needs = sorted(source.sample(range(number), min(number, source.randrange(4))))
            nodes.append(g.node(make(number, needs), [nodes[need] for need in needs]))
        results = await g.run(limit=source.choice([None, None, 1, 3]))
        assert [result.outcome for result in results] == [Outcome(ended[number]) for number in range(len(nodes))]
        assert not tasks_left(before)
        for result in results:
            assert result.ready <= result.started <= result.ended
            assert result.waited >= 0
            assert result.took >= 0

    for seed in range(100):
        run(kind, main(seed))


async def order_of(g, **options):
    """Names in the order in which the nodes of a run were started, one at a time."""
    results = await g.run(limit=1, **options)
    return [result.node.name for result in sorted(results, key=lambda result: (result.started, result.ended))]


def test_the_longest_way_goes_first(kind):
    async def main():
        g = Graph()

        def work(*_):
            return asyncio.sleep(1)

        for name in ("short", "begin", "other"):
            g.node(work, name=name)
        g.node(work, ["begin"], name="middle")
        g.node(work, ["middle"], name="end", estimate=1)
        assert await order_of(g) == ["begin", "middle", "short", "other", "end"]
        assert (await order_of(g, estimates={"other": 10}))[0] == "other"
        g.node(work, name="urgent", priority=1)
        assert (await order_of(g))[0] == "urgent"

    run(kind, main())


def test_the_longest_way_by_what_a_previous_run_took(kind):
    async def main():
        g = Graph()
        for name, delay in (("quick", 0.1), ("slow", 5.0), ("slower", 7.0)):
            g.node(lambda delay=delay: asyncio.sleep(delay), name=name)
        assert await order_of(g) == ["quick", "slow", "slower"]
        previous = await g.run()
        assert previous.estimates() == pytest.approx({"quick": 0.1, "slow": 5.0, "slower": 7.0}, rel=0.01)
        assert await order_of(g, estimates=previous) == ["slower", "slow", "quick"]

    run(kind, main())


def test_the_critical_path_where_the_clock_stands_still(kind):
    async def main():
        g = Graph()
        first, second, third = chain(g, lambda: 1, lambda one: asyncio.sleep(1), lambda _: 1)
        results = await g.run()
        assert results.node(second).ended == results.node(third).ended
        assert results.critical_path == [first, second, third]

    run(kind, main())


async def test_only_what_the_targets_need(loop):
    g, calls = Graph(), []
    for name, deps in {"a": [], "b": ["a"], "c": ["a"], "d": ["c"], "e": []}.items():
        g.node(lambda *_, name=name: calls.append(name), deps, name=name)
    results = await g.run(only=["b", g["c"]])
    assert sorted(calls) == ["a", "b", "c"]
    assert results.node("d").state == results.node("e").state == "left out"
    assert set(results.outcomes) == {"a", "b", "c"}
    assert results.ok
    with pytest.raises(NodeSkipped, match="was not asked for"):
        results["d"]


# --- limits and what else stands around a node ---------------------------------------------------


@pytest.mark.parametrize("how", ["run", "limiter", "name", "resources", "mapping"])
def test_no_more_run_at_once_than_may(kind, how):
    async def main():
        inside = most = 0

        async def work():
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(1)
            inside -= 1

        limits = {"name": {"http": 3}, "resources": ResourceLimits(http=3, file=9), "mapping": {"http": Limiter(3)}}
        g = Graph(limits=limits.get(how))
        limit = {"run": None, "limiter": Limiter(3), "resources": {"http": 1, "file": 2}}.get(how, "http")
        for _ in range(10):
            g.node(work, limit=limit)
        results = await g.run(limit=3 if how == "run" else None)
        assert most == 3
        assert results.took == pytest.approx(4, rel=0.01)
        assert sum(result.took for result in results) == pytest.approx(10, rel=0.01)

    run(kind, main())


async def test_unknown_limits_are_told_by_the_node(loop):
    g = Graph(limits={"http": Limiter(1)})
    g.node(add, limit="ftp", name="a")
    g.node(add, limit={"http": 1}, name="b")
    failures = [str(failure) for failure in (await g.run(on_error="continue")).failures]
    assert "<tideloop.Node 'a'>: " in failures[0]
    assert "no limit 'ftp', but 'http'" in failures[0]
    assert "several limits at once" in failures[1]


def test_retries_and_time_limits(kind):
    async def main():
        attempts = []

        async def flaky():
            attempts.append(asyncio.get_running_loop().time())
            if len(attempts) < 3:
                raise Boom("not yet")
            return "at last"

        g = Graph()
        g.node(flaky, retry=Retry(attempts=5, first=2, factor=1, jitter=0), name="flaky")
        g.node(forever, timeout=3, name="late", retry=2)
        results = await g.run(on_error="continue")
        assert results["flaky"] == "at last"
        assert attempts[2] - attempts[0] == pytest.approx(4, rel=0.01)
        assert isinstance(results.outcome("late").exception, tideloop.AttemptTimeout)
        assert results.node("late").took >= 6

    run(kind, main())


async def test_a_cache_keeps_values_for_other_runs(loop):
    calls, kept = [], {}

    async def square(number):
        calls.append(number)
        await turns(1)
        return number**2

    g = Graph()
    g.input("number")
    g.node(square, ["number"], cache=kept)
    g.node(square, ["number"], cache=True, name="own")
    for number in (3, 3, 4, 3):
        assert (await g.run({"number": number}))["square"] == number**2
    assert calls == [3, 3, 4, 4]
    assert list(kept.values()) == [9, 16]
    with pytest.raises(GraphFailed) as caught:
        await g.run({"number": []})
    assert "cannot be cached" in str(caught.value.exceptions[0])


def cached(work, kept, **options):
    """A graph whose one node keeps what it makes of its input."""
    g = Graph()
    g.node(work, [g.input("number")], cache=kept, name="work", **options)
    return g


async def test_of_several_who_want_a_value_one_computes_it(loop):
    """Runs of one graph, and of others with the same cache."""
    calls, kept = [], {}

    async def work(number):
        calls.append(number)
        await turns(3)
        if number < 0:
            raise Boom(number)
        return number**2

    graphs = [cached(work, kept) for _ in range(3)]
    runs = [g.run({"number": number}) for number in (3, 4) for g in graphs for _ in range(2)]
    assert [results["work"] for results in await asyncio.gather(*runs)] == [9] * 6 + [16] * 6
    assert sorted(calls) == [3, 4]
    runs = [g.run({"number": -1}, on_error="continue") for g in graphs]
    errors = [results.outcome("work").exception for results in await asyncio.gather(*runs)]
    assert [repr(error) for error in errors] == ["Boom(-1)"] * 3
    assert len(set(map(id, errors))) == 3
    assert sorted(calls) == [-1, 3, 4]
    with pytest.raises(GraphFailed):
        await graphs[0].run({"number": -1})
    assert calls.count(-1) == 2


def test_who_computes_for_others_may_be_cancelled(kind):
    """At any moment; whoever is left has the value, and nothing stays behind."""
    from tideloop.graphs import keeping

    async def main(moment, victims):
        before = asyncio.all_tasks()
        inside = most = 0

        async def work(number):
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            try:
                await turns(3)
            finally:
                inside -= 1
            return number

        g = cached(work, {})
        runs = [asyncio.ensure_future(g.run({"number": 5})) for _ in range(4)]
        await turns(moment)
        for victim in victims:
            runs[victim].cancel()
        ended = await asyncio.gather(*runs, return_exceptions=True)
        for number, result in enumerate(ended):
            if number in victims:
                assert isinstance(result, asyncio.CancelledError) or result["work"] == 5
            else:
                assert result["work"] == 5
        assert (inside, most) == (0, min(most, 1))
        assert not keeping._under_way
        assert not tasks_left(before)

    for moment in range(16):
        for victims in ([0], [1], [0, 1], [0, 1, 2, 3]):
            run(kind, main(moment, victims))


async def test_a_deadline_is_that_of_its_run(loop):
    """As when a thread was not to be had in time: the next of those who wait computes it."""
    calls = []

    async def work(number):
        calls.append(number)
        await turns(3)
        if len(calls) == 1:
            raise tideloop.DeadlineExceeded("of the first run")
        return number

    g = cached(work, {})
    ended = await asyncio.gather(*(g.run({"number": 5}, on_error="continue") for _ in range(3)))
    assert [results.ok for results in ended] == [False, True, True]
    assert ended[2]["work"] == 5
    assert len(calls) == 2


async def test_values_that_need_each_other_do_not_wait_in_a_circle(loop):
    """Two nodes that are computed, in each of which a run wants the value of the other."""
    kept, depth = {}, []

    async def work(number):
        depth.append(number)
        await turns(4)
        if len(depth) > 8:
            return number
        return (await g.run({"number": 1 - number}))["work"]

    g = cached(work, kept)
    async with asyncio.timeout(10):
        results = await asyncio.gather(*(g.run({"number": number}) for number in (0, 1)))
    assert all(result["work"] in (0, 1) for result in results)


async def test_threads(loop):
    g, here = Graph(), threading.get_ident()
    ident = g.node(threading.get_ident, where="thread")
    both = g.node(lambda there: (there, threading.get_ident()), [ident], name="both")
    there, back = (await g.run())[both]
    assert there != here
    assert back == here


def in_processes(backend, main):
    """Not on the fixture `loop`: a worker stays, and so do its descriptors."""
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(main, 20))


def test_processes(backend):
    g = Graph()
    where = g.node(os.getpid, where="process")
    rounded = g.node(round, {"number": g.input("number")}, where="process")
    results = in_processes(backend, g.run({"number": 2.7}))
    assert results[where] != os.getpid()
    assert results[rounded] == 3


def test_a_process_does_not_outlast_its_run(backend):
    """Its process would sleep for an hour."""

    async def fails():
        while not offload_stats("process").limit.in_use:
            await turns(1)
        raise Boom("no")

    g = Graph()
    g.node(time.sleep, [g.input("seconds")], where="process")
    g.node(fails)
    with pytest.raises(GraphFailed):
        in_processes(backend, g.run({"seconds": 3600}))
    assert offload_stats("process").limit.in_use == 0


async def test_a_run_that_has_ended_has_no_thread_left(loop):
    inside, done = threading.Event(), []

    def work():
        inside.set()
        time.sleep(0.05)
        done.append(True)

    async def fails():
        await asyncio.to_thread(inside.wait)
        raise Boom("no")

    g = Graph()
    g.node(work, where="thread")
    g.node(fails)
    with pytest.raises(GraphFailed):
        await g.run()
    assert done == [True]


# --- failures ------------------------------------------------------------------------------------


async def test_fail_fast_cancels_what_runs_and_waits_for_it(loop):
    left = []

    async def slow():
        try:
            await forever()
        finally:
            await turns(3)
            left.append(True)

    g = Graph(name="g")
    before = g.node(lambda: 1, name="before")
    g.node(slow)
    broken = g.node(fail, name="broken", deps=[g.node(lambda: "why", name="why")])
    behind = g.node(add, [broken], name="behind")
    with pytest.raises(GraphFailed, match=r"1 of 5 nodes of <tideloop\.Graph 'g'") as caught:
        await g.run()
    assert left == [True]
    assert not tasks_left()
    assert [str(error) for error in caught.value.exceptions] == ["why"]
    results = caught.value.results
    assert results[before] == 1
    assert [result.state for result in results] == ["succeeded", "cancelled", "succeeded", "failed", "skipped"]
    assert caught.value.split(Boom)[0].results is results
    with pytest.raises(NodeSkipped, match=r"'behind'> did not run: <tideloop.Node 'broken'> has failed"):
        results[behind]
    with pytest.raises(Boom, match="why"):
        results[broken]
    assert not results.ok
    assert results.failures == list(caught.value.exceptions)


async def test_exactly_what_is_downstream_is_skipped(loop):
    g = Graph.from_dict(
        {
            "a": fail,
            "b": (add, ["a"]),
            "c": (add, ["b"]),
            "d": (lambda *_: "runs", []),
            "e": (add, ["c", "d"]),
            "f": (lambda d: d * 2, ["d"]),
        }
    )
    results = await g.run(on_error="skip_downstream")
    assert [node.name for node in results.skipped] == ["b", "c", "e"]
    assert results.values == {"d": "runs", "f": "runsruns"}
    assert str(results.outcome("e").exception) == "<tideloop.Node 'e'> did not run: <tideloop.Node 'c'> did not run"


async def test_continue_hands_the_exception_on(loop):
    g = Graph()
    broken = g.node(lambda: fail("broken"), name="broken")
    seen = g.node(lambda error: repr(error), [broken], name="seen")
    results = await g.run(on_error="continue")
    assert results[seen] == "Boom('broken')"
    assert not results.ok
    assert results.outcome(broken).failed


async def test_a_cancelled_node_is_no_failure(loop):
    async def cancelled():
        raise asyncio.CancelledError("enough")

    g = Graph()
    a = g.node(cancelled)
    b = g.node(add, [a])
    g.node(lambda: give(1, after=5), name="c")
    results = await g.run()
    assert [result.state for result in results] == ["cancelled", "skipped", "succeeded"]
    assert results.outcome(a).cancelled
    assert results.failures == []
    with pytest.raises(NodeSkipped, match="has failed or was cancelled"):
        results[b]


async def test_a_node_that_raises_generator_exit_has_failed(loop):
    async def raises(after):
        await turns(after)
        raise GeneratorExit

    g = Graph()
    for after in (0, 2):
        g.node(lambda after=after: raises(after), name=f"after {after}")
    g.node(lambda: give("value", after=5), name="other")
    results = await g.run(on_error="continue")
    assert [result.state for result in results] == ["failed", "failed", "succeeded"]
    assert isinstance(results.outcome("after 2").exception, GeneratorExit)


async def test_resuming_runs_what_is_left(loop):
    calls, broken = [], [True]

    def work(name):
        def body(*values):
            calls.append(name)
            if name == "b" and broken:
                raise Boom("b")
            return name

        return body

    g = Graph.from_edges([("a", "b"), ("b", "c"), ("a", "d")], {name: work(name) for name in "abcd"})
    previous = await g.run(on_error="skip_downstream")
    assert previous.failures
    calls.clear()
    broken.clear()
    results = await g.resume(from_=previous)
    assert calls == ["b", "c"]
    assert results.values == {name: name for name in "abcd"}
    assert results.node("a").state == "given"
    with pytest.raises(ValueError, match="is not of"):
        await Graph().resume(from_=previous)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("turn", [0, 2])
def test_what_ends_the_program_is_raised_bare(loop, error, turn):
    left, raised = [], []

    async def waits():
        try:
            await forever()
        finally:
            left.append(True)

    async def ends():
        await turns(turn)
        raise error

    async def main():
        g = Graph()
        g.node(waits)
        g.node(ends)
        g.node(add, ["ends"])
        try:
            await g.run(on_error="continue")
        except error as caught:
            raised.append(type(caught))

    task = loop.create_task(main())
    with pytest.raises(error):
        loop.run_until_complete(task)
    loop.run_until_complete(task)
    # At once, the other node was not begun.
    assert left == ([True] if turn else [])
    assert raised == [error]


# --- cancellation --------------------------------------------------------------------------------


def test_cancelled_at_any_moment_nothing_is_left(kind):
    async def main(moment):
        before = asyncio.all_tasks()
        limiter, ended, begun = Limiter(2), [], []

        async def work(*_):
            begun.append(True)
            try:
                await turns(2)
                await asyncio.sleep(0.5)
            finally:
                ended.append(True)

        g = Graph()
        for _ in range(3):
            chain(g, work, work, lambda *_: None)
        for _ in range(4):
            g.node(work, limit=limiter, retry=3, timeout=5)
        task = asyncio.ensure_future(g.run(limit=5))
        for _ in range(moment):
            await asyncio.sleep(0 if moment % 3 else 0.1)
        finished = task.done()
        task.cancel()
        if finished:
            assert task.result().ok
        else:
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(begun) == len(ended)
        assert limiter.in_use == 0
        assert limiter.stats().waiting == 0
        assert not tasks_left(before)
        assert g.stats().running == 0

    for moment in range(40):
        run(kind, main(moment))


def test_a_scope_around_a_run(kind):
    async def main():
        g = Graph()
        g.node(forever)
        with tideloop.move_on_after(3) as scope:
            await g.run()
        assert scope.cancelled_caught
        assert asyncio.current_task().cancelling() == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await g.run()

    run(kind, main())


async def test_failures_go_before_a_cancellation(loop):
    async def stubborn():
        try:
            await forever()
        finally:
            raise Boom("in the end")

    g = Graph()
    g.node(stubborn)

    async def runs():
        with pytest.raises(GraphFailed):
            await g.run()
        with pytest.raises(asyncio.CancelledError):
            await turns(1)
        return "both"

    task = asyncio.ensure_future(runs())
    await turns(4)
    task.cancel()
    assert await task == "both"


async def test_giving_a_run_up(loop):
    async def gives_up():
        await turns(1)
        graph_run().cancel("enough")
        await forever()

    g = Graph()
    chain(g, gives_up, add)
    g.node(forever)
    results = await g.run()
    assert [result.state for result in results] == ["cancelled", "skipped", "cancelled"]
    assert not tasks_left()


async def test_giving_a_run_up_without_waiting(loop):
    async def gives_up(*_):
        graph_run().cancel()
        await asyncio.sleep(0)
        await forever()

    g = Graph()
    g.node(gives_up)
    g.node(add)
    assert [result.state for result in await g.run()] == ["cancelled", "skipped"]


async def test_a_task_of_the_run_that_somebody_cancels(loop):
    g = Graph()
    waiting = g.node(forever, name="waiting")
    g.node(add, [waiting])
    g.node(lambda: give(1, after=6), name="other")

    async def meddle():
        await turns(3)
        for task in asyncio.all_tasks():
            if task.get_name() == "waiting":
                task.cancel("meddled")

    meddler = asyncio.ensure_future(meddle())
    results = await g.run()
    await meddler
    assert [result.state for result in results] == ["cancelled", "skipped", "succeeded"]


async def test_tasks_that_are_cancelled_before_they_begin_are_made_again(loop):
    g = Graph()
    for _ in range(50):
        g.node(lambda: give(1, after=2))
    before = asyncio.all_tasks()
    task = asyncio.ensure_future(g.run())
    await asyncio.sleep(0)
    for carrier in asyncio.all_tasks() - before - {task}:
        carrier.cancel()
    results = await task
    assert sum(result.state == "succeeded" for result in results) == 50


def test_a_loop_that_is_closed_under_a_run(backend):
    loop = backends.load(str(backend.name)).new_event_loop()
    g = Graph()
    g.node(forever)
    g.node(forever)
    task = loop.create_task(g.run())
    loop.run_until_complete(asyncio.wait({task}, timeout=0))
    tasks = asyncio.all_tasks(loop)
    assert len(tasks) == 3
    for each in tasks:
        each._log_destroy_pending = False
    loop.close()
    del task, tasks, each
    gc.collect()
    other = Graph()
    other.node(lambda: give(1), name="one")
    assert asyncio.run(other.run())["one"] == 1


async def test_a_run_whose_parent_is_closed_begins_nothing_more(loop):
    begun = []

    async def first():
        await turns(2)

    g = Graph()
    chain(g, first, lambda value: begun.append(value))
    running = g.run()

    async def drives():
        # As a task that is collected, or whoever closes the coroutine that it awaits.
        running.send(None)
        running.close()

    await drives()
    await turns(6)
    assert begun == []
    assert not tasks_left()


# --- while it runs -------------------------------------------------------------------------------


async def test_nodes_add_nodes(loop):
    g = Graph()
    pages = []

    async def fetch(number):
        await turns(1)
        pages.append(number)
        if number < 5:
            current = graph_run()
            current.node(lambda: fetch(number + 1), name=f"page {number + 1}", after=["begin"])
        return number

    g.node(lambda: fetch(1), name="first", after=[g.node(lambda: 0, name="begin")])
    results = await g.run()
    assert pages == [1, 2, 3, 4, 5]
    assert results["page 5"] == 5
    assert len(results) == 6
    assert len(g) == 2


async def test_edges_that_are_added_while_it_runs(loop):
    seen = []

    def plans():
        current = graph_run()
        extra = current.node(lambda: give("extra", after=4), name="extra")
        current.add_edge(extra, "last")
        current.add_edge(extra, "last")
        with pytest.raises(GraphCycle, match=r"last -> extra -> last|extra -> last -> extra"):
            current.add_edge("last", extra)
        with pytest.raises(RuntimeError, match="can wait for nothing more: it is running"):
            current.add_edge(extra, "plans")
        with pytest.raises(ValueError, match="has no node 'nothing'"):
            current.node(add, ["nothing"])

    g = Graph()
    g.node(plans)
    g.node(lambda *values: seen.append((values, graph_run().results.node("extra").state)), ["plans"], name="last")
    results = await g.run()
    assert seen == [((None,), "succeeded")]
    assert results.node("last").started >= results.node("extra").ended
    with pytest.raises(RuntimeError, match="takes no more nodes"):
        results._run.node(add)


async def test_a_node_that_depends_on_what_has_failed_never_runs(loop):
    g = Graph()
    broken = g.node(lambda: fail("no", after=0), name="broken")

    async def late():
        await turns(3)
        graph_run().node(add, [broken], name="behind")

    g.node(late)
    results = await g.run(on_error="skip_downstream")
    assert results.node("behind").state == "skipped"


async def test_resuming_keeps_what_was_added(loop):
    broken = [True]

    def sometimes():
        if broken:
            raise Boom("not yet")
        return "done"

    g = Graph()
    g.node(lambda: len(graph_run().node(sometimes, name="added").name), name="adds")
    with pytest.raises(GraphFailed) as caught:
        await g.run()
    broken.clear()
    results = await g.resume(from_=caught.value.results)
    assert results.values == {"adds": 5, "added": "done"}


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("only", [None, ["late"]])
async def test_resuming_keeps_edges_that_were_added(loop, extra, only):
    calls, broken = [], [True]

    async def slow():
        await turns(5)
        calls.append("slow")

    def plans():
        graph_run().add_edge("slow", "late")
        if extra:
            graph_run().node(lambda: None, name="extra")

    def sometimes(_):
        if broken:
            raise Boom("not yet")

    g = Graph()
    g.node(sometimes, [g.node(plans, priority=9)], priority=8)
    g.node(slow)
    g.node(lambda: calls.append("late"), name="late")
    with pytest.raises(GraphFailed) as caught:
        await g.run()
    assert calls == []
    broken.clear()
    await g.resume(caught.value.results, only=only)
    assert calls == ["slow", "late"]


async def test_a_given_value_ends_what_a_target_needs_by_edges_that_were_added(loop):
    calls, broken = [], [True]

    def plans():
        graph_run().add_edge("second", "target")
        if broken:
            raise Boom("not yet")

    g = Graph()
    g.node(plans, priority=9)
    g.node(lambda: calls.append("first"), name="first")
    g.node(lambda _: calls.append("second"), ["first"], name="second")
    g.node(lambda: calls.append("target"), name="target")
    with pytest.raises(GraphFailed) as caught:
        await g.run()
    broken.clear()
    await g.resume(caught.value.results, only="target")
    assert calls == ["first", "second", "target"]
    calls.clear()
    await g.resume(caught.value.results, {"second": 2}, only="target")
    assert calls == ["target"]


async def test_a_node_cannot_be_added_from_another_thread(loop):
    g = Graph()
    g.input("run")

    def meddles(current):
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            current.node(add)
        return "refused"

    g.node(lambda: asyncio.to_thread(meddles, graph_run()), name="meddles")
    assert (await g.run(only=["meddles"]))["meddles"] == "refused"


# --- several at once, and what remains -----------------------------------------------------------


async def test_a_graph_may_be_run_many_times_at_once(loop):
    g = Graph()
    g.input("number")
    chain(g, lambda: None)
    g.node(lambda number: give(number * 2, after=number), ["number"], name="double")
    runs = await asyncio.gather(*(g.run({"number": number}) for number in range(10)))
    assert [results["double"] for results in runs] == [number * 2 for number in range(10)]
    assert g.stats().runs == 10


def test_in_several_loops_at_once(backend):
    make = backends.load(str(backend.name)).new_event_loop
    g = Graph(limits={"few": Limiter(2)})
    for _ in range(20):
        g.node(lambda: give(1, after=3), limit="few")
    sums = []

    def work():
        with asyncio.Runner(loop_factory=make) as runner:
            sums.append(sum(runner.run(g.run()).values.values()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sums == [20] * 4


async def test_results_while_it_runs(loop):
    seen = []

    async def looks():
        results = graph_run().results
        await turns(2)
        with pytest.raises(asyncio.InvalidStateError, match="has not ended"):
            results.outcome("looks")
        seen.append([result.state for result in results])
        seen.append(graph_run().stats())

    g = Graph()
    g.node(add, name="done")
    g.node(looks)
    g.node(repr, ["looks"], name="later")
    results = await g.run()
    assert seen == [["succeeded", "pending", "pending"], (None, 3, 3, 1, 0, 1, 1, 0, 0, 0)]
    assert "later" in results
    assert "never" not in results
    assert results._run.stats() == (None, 3, 3, 3, 0, 0, 3, 0, 0, 0)
    assert "ended nodes=3 succeeded=3" in repr(results)


async def test_runs_under_way_are_seen_by_observe(loop):
    """How far they are, by any thread; without what was given and what no target needs."""
    seen, go = [], asyncio.Event()

    async def look(*_):
        def runs():
            found.append([run.stats() for run in tideloop.observe.graphs() if run.graph in graphs])

        found = []
        runs()
        thread = threading.Thread(target=runs)
        thread.start()
        thread.join()
        assert found[0] == found[1]
        seen.append([(stats.name, stats.nodes, stats.done, stats.total, stats.failed) for stats in found[0]])

    def graph(name):
        g = Graph(name=name)
        g.node(lambda given: go.wait(), [g.input("given")], name="waits")
        g.node(fail, name="fails", after=["given"])
        g.node(look, ["waits"], name="looks") if name == "first" else None
        g.node(add, name="left out")
        return g

    graphs = [graph("first"), graph("second")]
    tasks = []
    for g, only in zip(graphs, ("looks", "waits"), strict=True):
        options = {"only": [only, "fails"], "on_error": "continue"}
        tasks.append(asyncio.ensure_future(g.run({"given": 1}, **options)))
    while [run.stats().failed for run in tideloop.observe.graphs()] != [1, 1]:
        await turns(1)
    await look()
    go.set()
    await asyncio.gather(*tasks)
    assert seen[0] == [("first", 5, 1, 3, 1), ("second", 4, 1, 2, 1)]
    assert seen[1][0] == ("first", 5, 2, 3, 1)
    await look()
    assert seen[2] == []


def test_a_run_whose_loop_was_closed_is_not_kept(backend):
    g = Graph(name="left behind")
    g.node(forever)
    loop = backend.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # of a task that is destroyed
    task = loop.create_task(g.run())
    loop.run_until_complete(turns(4))
    assert [run.graph for run in tideloop.observe.graphs()] == [g]
    loop.close()
    del task, loop
    gc.collect()
    assert tideloop.observe.graphs() == []


async def test_a_context_of_a_node_does_not_keep_the_run(loop):
    """As that of a connection that a node has opened for others."""

    class Value:
        pass

    contexts = []

    async def opens():
        assert graph_run().graph is g
        contexts.append(contextvars.copy_context())
        return Value()

    g = Graph()
    g.node(opens)
    results = await g.run()
    value = weakref.ref(results["opens"])
    assert contexts[0].run(graph_run).results is results
    del results
    gc.collect()
    assert value() is None
    with pytest.raises(RuntimeError, match="of a graph that runs"):
        contexts[0].run(graph_run)


async def test_a_run_in_a_cycle_is_collected(loop):
    class Value:
        pass

    async def main():
        value = Value()
        value.graph = g = Graph()
        g.node(lambda: value, name="value")
        value.results = await g.run()
        return weakref.ref(value)

    gone = await main()
    gc.collect()
    assert gone() is None


async def test_a_failure_does_not_keep_the_run_alive_by_its_frames(loop):
    async def main():
        g = Graph()
        g.node(fail)
        with pytest.raises(GraphFailed) as caught:
            await g.run()
        return weakref.ref(caught.value.results._run)

    gone = await main()
    gc.collect()
    assert gone() is None


async def test_many_nodes(loop):
    g = Graph()
    sources = [g.node(lambda number=number: number, name=f"{number}") for number in range(3000)]
    waits = [g.node(lambda value: give(value), [source]) for source in sources]
    total = g.node(add, waits, name="total")
    results = await g.run()
    assert results[total] == sum(range(3000))
    assert not tasks_left()
