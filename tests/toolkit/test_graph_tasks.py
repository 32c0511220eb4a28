"""What a node of a graph can tell of the task that it runs in: it is one of its own, as far as it can see."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import sys
import types

import pytest
import tideloop
from tideloop import Graph

from tests.toolkit.work import tasks_left, turns

variable = contextvars.ContextVar("variable", default="unset")


async def test_a_node_that_waits_keeps_its_task(loop):
    seen = {}

    async def work(name):
        first = asyncio.current_task()
        assert isinstance(first, asyncio.Task)
        await turns(1)
        assert asyncio.current_task() is first
        await asyncio.sleep(0)
        seen[name] = first

    g = Graph()
    for name in range(20):
        g.node(lambda name=name: work(name), name=f"node {name}")
    await g.run()
    assert len(set(seen.values())) == 20
    assert seen[7].get_name() == "node 7"
    assert asyncio.current_task() not in seen.values()


async def test_nodes_that_do_not_wait_share_a_task_until_somebody_keeps_it(loop):
    tasks, kept = [], []

    def address():
        tasks.append(id(asyncio.current_task()))

    def keep():
        address()
        kept.append(asyncio.current_task())

    g = Graph()
    for function in (address, address, keep, address, address):
        g.node(function)
    await g.run()
    if type(kept[0]).__module__ not in ("_asyncio", "tideloop._tideloop", "tideloop"):
        pytest.skip("tasks of a kind that says nothing about itself are never shared")
    assert tasks[0] == tasks[1] == tasks[2]
    assert tasks[3] == tasks[4]
    assert tasks[3] != id(kept[0])
    assert kept[0].done()


def cancels(kept):
    asyncio.current_task().cancel()


def calls_back(kept):
    asyncio.current_task().add_done_callback(kept.append)


def renames(kept):
    asyncio.current_task().set_name("mine")


def sets_a_variable(kept):
    variable.set("mine")


@pytest.mark.parametrize("leaves", [cancels, calls_back, renames, sets_a_variable])
async def test_no_node_notices_what_another_one_has_left(loop, leaves):
    kept, seen = [], []

    async def looks():
        task = asyncio.current_task()
        assert task.cancelling() == 0
        assert task.get_name() != "mine"
        assert variable.get() == "outside"
        await turns(1)
        seen.append(True)

    variable.set("outside")
    g = Graph()
    for _ in range(3):
        g.node(lambda: leaves(kept))
        g.node(looks)
    results = await g.run()
    assert seen == [True] * 3
    assert results.ok
    assert len(kept) == (3 if leaves is calls_back else 0)
    assert variable.get() == "outside"


async def pairs(loop, factory, leaves, looks):
    """Runs a hundred nodes that leave something, each before one that looks for it, in tasks of a factory."""
    g = Graph()
    for number in range(100):
        g.node(looks, [g.node(leaves, name=f"leaves {number}")], name=f"looks {number}")
    loop.set_task_factory(factory)
    try:
        await g.run()
    finally:
        loop.set_task_factory(None)


async def test_variables_that_come_to_be_where_those_before_were(loop):
    instrument = contextvars.ContextVar("instrument")
    seen = []

    def factory(loop, coroutine, **options):
        async def instrumented():
            instrument.set(object())
            await coroutine

        return asyncio.Task(instrumented(), loop=loop, **options)

    def sets():
        # The first mapping is given free by the second one, whose place is that of the mapping before.
        variable.set("first")
        variable.set("second")

    await pairs(loop, factory, sets, lambda _: seen.append(variable.get()))
    assert seen == ["unset"] * 100


async def test_a_name_that_comes_to_be_where_the_one_before_was(loop):
    numbers = itertools.count(10_000)
    seen = []

    def factory(loop, coroutine, **options):
        options["name"] = f"named by the factory that makes tasks, as number {next(numbers)}"
        return asyncio.Task(coroutine, loop=loop, **options)

    def renames():
        for _ in range(2):
            asyncio.current_task().set_name(f"renamed by a node that runs in such a task, {next(numbers)}")

    await pairs(loop, factory, renames, lambda _: seen.append(asyncio.current_task().get_name().split()[0]))
    assert len(seen) == 100
    assert "renamed" not in seen


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks tell their contexts since 3.12")
async def test_a_context_that_somebody_keeps_is_no_other_node_s(loop):
    contexts = []

    def keeps():
        contexts.append(asyncio.current_task().get_context())

    def looks(_):
        return any(asyncio.current_task().get_context() is context for context in contexts)

    g = Graph()
    looking = [g.node(looks, [g.node(keeps)]) for _ in range(3)]
    results = await g.run()
    assert [results[node] for node in looking] == [False] * 3


async def test_a_node_sees_the_variables_of_whoever_runs_the_graph(loop):
    variable.set("of the caller")
    g = Graph()
    g.node(variable.get, name="value")
    assert (await g.run())["value"] == "of the caller"
    variable.set("later")
    assert (await g.run())["value"] == "later"


async def test_time_limits_and_groups_inside_of_nodes(loop):
    async def limited():
        async with asyncio.timeout(0.01):
            await asyncio.sleep(10)

    async def scoped():
        with tideloop.move_on_after(0.01) as scope:
            await asyncio.sleep(10)
        return scope.cancelled_caught

    async def grouped():
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(turns(2))
        return task.done()

    async def inner():
        g = Graph()
        g.node(grouped)
        return (await g.run())["grouped"]

    g = Graph()
    for function in (limited, scoped, grouped, inner):
        g.node(function)
    results = await g.run(on_error="continue")
    assert isinstance(results.outcome("limited").exception, TimeoutError)
    assert [results[name] for name in ("scoped", "grouped", "inner")] == [True, True, True]
    assert not tasks_left()


def eagerly(loop, coroutine, **options):
    return asyncio.Task(coroutine, loop=loop, **options | {"eager_start": True})


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of 3.12 and later")
async def test_eager_tasks(loop):
    loop.set_task_factory(eagerly)
    try:
        g = Graph()
        for number in range(200):
            g.node(lambda number=number: turns(number % 3), name=f"a{number}")
        total = g.node(lambda *values: len(values), [f"a{number}" for number in range(200)])
        assert (await g.run())[total] == 200
        assert (await g.run(limit=3))[total] == 200
    finally:
        loop.set_task_factory(None)


async def test_any_awaitable_is_awaited(loop):
    class Awaitable:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return "value"

    @types.coroutine
    def marked():
        yield
        return "generator"

    g = Graph()
    g.node(Awaitable, name="object")
    g.node(marked)
    g.node(lambda: asyncio.ensure_future(asyncio.sleep(0, "task")), name="task")
    plain = g.node(lambda: (number for number in range(2)), name="plain")
    results = await g.run()
    assert list(results[plain]) == [0, 1]
    assert results.values == {"object": "value", "marked": "generator", "task": "task", "plain": results[plain]}


async def test_a_coroutine_that_somebody_else_awaits_is_refused(loop):
    async def shared():
        await turns(5)

    coroutine = shared()
    task = asyncio.ensure_future(coroutine)
    await turns(1)
    g = Graph()
    g.node(lambda: coroutine, name="shared")
    results = await g.run(on_error="continue")
    assert isinstance(results.outcome("shared").exception, RuntimeError)
    await task


@pytest.mark.parametrize("eager", [False, True])
async def test_who_runs_long_lets_the_loop_have_its_turn(loop, eager):
    if eager and sys.version_info < (3, 12):
        pytest.skip("eager tasks are of 3.12 and later")
    turns_taken = 0
    done = False

    async def count():
        nonlocal turns_taken
        while not done:
            turns_taken += 1
            await asyncio.sleep(0)

    counter = asyncio.ensure_future(count())
    g = Graph()
    for _ in range(5000):
        g.node(lambda: None)
    if eager:
        loop.set_task_factory(eagerly)
    try:
        await g.run()
    finally:
        loop.set_task_factory(None)
    done = True
    await counter
    assert turns_taken >= 5
