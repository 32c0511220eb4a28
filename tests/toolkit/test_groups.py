"""group(): handles, outcomes, limits, errors and cancellation, on every loop."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import tideloop
from tideloop import Outcome

from tests.backends import deviates
from tests.toolkit import harness
from tests.toolkit.work import Boom, fail, forever, give, turns


def messages(group: BaseExceptionGroup) -> list[str]:
    return [str(error) for error in group.exceptions]


# --- results -------------------------------------------------------------------------------------


async def test_results_are_in_the_order_of_spawning(loop):
    async with tideloop.group() as g:
        handles = [g.spawn(give, number, 5 - number) for number in range(5)]
    assert g.results == [Outcome(number) for number in range(5)]
    assert [handle.result() for handle in handles] == list(range(5))
    assert all(handle.done() and handle.exception() is None and not handle.cancelled() for handle in handles)
    assert g.stats() == (5, 0, 0, 5, 0, 0)


async def test_results_by_key(loop):
    async with tideloop.group(on_error="collect") as g:
        g.spawn(give, 1, key="a")
        g.spawn(fail, key="b")
        g.spawn(give, 3)
    assert g.by_key.keys() == {"a", "b"}
    assert g.by_key["a"].ok
    assert g.by_key["b"].failed


async def test_results_before_the_end_are_refused(loop):
    async with tideloop.group() as g:
        handle = g.spawn(give, 1)
        with pytest.raises(asyncio.InvalidStateError, match="has not ended"):
            g.results  # noqa: B018
        with pytest.raises(asyncio.InvalidStateError, match="has not ended"):
            handle.result()
        with pytest.raises(asyncio.InvalidStateError, match="has not ended"):
            handle.exception()
        assert not handle.done()


async def test_awaiting_a_handle(loop):
    async with tideloop.group(on_error="collect") as g:
        good, bad = g.spawn(give, 1), g.spawn(fail)
        assert await good == 1
        assert await good == 1
        with pytest.raises(Boom):
            await bad
        assert isinstance((await bad.wait()).exception, Boom)


async def test_a_cancelled_waiter_leaves_the_task_alone(loop):
    async with tideloop.group() as g:
        gate = asyncio.Event()
        task = g.spawn(gate.wait)
        waiter = g.spawn(task.wait)
        await give(None, 3)
        waiter.cancel()
        await waiter.wait()
        assert not task.done()
        gate.set()
    assert task.result() is True
    assert waiter.cancelled()


async def test_a_task_cannot_wait_for_itself(loop):
    async def wait_for_me():
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="cannot wait for itself"):
            await handle
        return "told"

    async with tideloop.group() as g:
        handle = g.spawn(wait_for_me)
    assert handle.result() == "told"


async def test_completions_come_in_their_order(loop):
    async with tideloop.group() as g:
        for turns in (3, 1, 2):
            g.spawn(give, turns, turns)
        assert [handle.result() async for handle in g.completed()] == [1, 2, 3]
        g.spawn(give, 4)
        assert [handle.result() async for handle in g.completed()] == [1, 2, 3, 4]


async def test_completions_include_what_is_spawned_meanwhile(loop):
    async with tideloop.group(limit=1) as g:
        g.spawn(give, 3)
        seen = []
        async for handle in g.completed():
            seen.append(handle.result())
            if handle.result():
                g.spawn(give, handle.result() - 1)
    assert seen == [3, 2, 1, 0]


# --- real tasks ----------------------------------------------------------------------------------


async def test_the_tasks_are_tasks(loop):
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("spawned")

    async def look():
        me = asyncio.current_task()
        await asyncio.sleep(0)
        return me, me in asyncio.all_tasks(), variable.get(), me.get_name()

    async with tideloop.group(name="pages", limit=1) as g:
        first = g.spawn(look)
        second = g.spawn(look, key="two")
        assert first.task is not None
        assert second.task is None
        variable.set("later")
    for handle, name in (first, "pages[0]"), (second, "pages[two]"):
        task, listed, value, said = handle.result()
        assert isinstance(task, asyncio.Task)
        assert listed
        assert value == "spawned"
        assert said == name
        assert handle.task is None


@pytest.mark.skipif(sys.version_info < (3, 14), reason="call graphs are new in 3.14")
async def test_the_call_graph_knows_who_waits(loop):
    async with tideloop.group() as g:
        handle = g.spawn(forever)
        graph = asyncio.capture_call_graph(handle.task)
        assert [entry.future for entry in graph.awaited_by] == [asyncio.current_task()]
        handle.cancel()


# --- errors --------------------------------------------------------------------------------------


async def test_the_first_failure_cancels_the_rest(loop):
    g = tideloop.group(name="work")

    async def attempt():
        async with g:
            g.spawn(forever)
            g.spawn(fail, "first")
            await forever()

    with pytest.raises(ExceptionGroup, match="errors in group 'work'") as caught:
        await attempt()
    assert messages(caught.value) == ["first"]
    assert g.handles[0].cancelled()
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)


async def test_all_failures_are_told(loop):
    async def fails_late():
        try:
            await forever()
        finally:
            raise Boom("late")

    g = tideloop.group()

    async def attempt():
        async with g:
            g.spawn(fails_late)
            g.spawn(fail, "first")
            await asyncio.sleep(0)
            raise ValueError("block")

    with pytest.raises(ExceptionGroup) as caught:
        await attempt()
    assert set(messages(caught.value)) == {"late", "block"}


async def test_a_failure_that_was_awaited_in_the_block_is_told_once(loop):
    with pytest.raises(ExceptionGroup) as caught:
        async with tideloop.group() as g:
            await g.spawn(fail)
    assert messages(caught.value) == ["no"]


async def test_collect_raises_nothing(loop):
    async with tideloop.group(on_error="collect") as g:
        g.spawn(fail)
        g.spawn(give, 2, 5)
        g.spawn(forever).cancel("enough")
    failed, good, cancelled = g.results
    assert failed.failed
    assert isinstance(failed.exception, Boom)
    assert good == Outcome(2)
    assert cancelled.cancelled
    assert g.stats() == (3, 0, 0, 1, 1, 1)


async def test_collect_lets_the_blocks_own_exception_go_on(loop):
    g = tideloop.group(on_error="collect")

    async def attempt():
        async with g:
            g.spawn(forever)
            await asyncio.sleep(0)
            raise Boom("block")

    with pytest.raises(Boom, match="block"):
        await attempt()
    assert g.handles[0].cancelled()


async def test_a_cancelled_task_is_no_failure(loop):
    async with tideloop.group() as g:
        handle = g.spawn(forever)
        other = g.spawn(give, 1, 5)
        await asyncio.sleep(0)
        assert handle.cancel("why")
        assert not other.done()
    assert handle.cancelled()
    assert not handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        handle.result()
    with pytest.raises(asyncio.CancelledError):
        handle.exception()


@pytest.mark.parametrize("exit_", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("on_error", ["cancel", "collect"])
async def test_in_the_block_these_are_raised_bare(loop, exit_, on_error):
    g = tideloop.group(on_error=on_error)

    async def attempt():
        async with g:
            g.spawn(forever)
            await asyncio.sleep(0)
            raise exit_

    with pytest.raises(exit_):
        await attempt()
    assert g.handles[0].cancelled()


@pytest.mark.parametrize("exit_", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("on_error", ["cancel", "collect"])
def test_in_a_task_these_are_raised_bare(loop, exit_, on_error):
    seen = []

    async def interrupt():
        await asyncio.sleep(0)
        raise exit_

    async def main():
        try:
            async with tideloop.group(on_error=on_error) as g:
                other = g.spawn(forever)
                g.spawn(interrupt)
                await forever()
        except BaseException as error:
            seen.append((type(error), other.cancelled()))
            raise

    task = loop.create_task(main())
    with pytest.raises(exit_):  # asyncio's tasks raise it out of the loop
        loop.run_until_complete(task)
    with pytest.raises(exit_):
        loop.run_until_complete(task)
    assert seen == [(exit_, True)]


# --- cancellation --------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["block", "exit"])
async def test_a_cancelled_parent_waits_for_its_tasks(loop, where):
    ended = []

    async def slow_to_end():
        try:
            await forever()
        finally:
            await give(None, 3)
            ended.append(True)

    async def parent():
        async with tideloop.group() as g:
            g.spawn(slow_to_end)
            if where == "block":
                await forever()

    task = loop.create_task(parent())
    await give(None, 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


@pytest.mark.parametrize("where", ["block", "exit"])
async def test_failures_go_before_the_parents_cancellation(loop, where):
    seen = []

    async def fails_when_cancelled():
        try:
            await forever()
        except asyncio.CancelledError:
            raise Boom from None

    async def parent():
        try:
            async with tideloop.group() as g:
                g.spawn(fails_when_cancelled)
                if where == "block":
                    await forever()
        except ExceptionGroup as group:
            seen.append(messages(group))
        seen.append(asyncio.current_task().cancelling())
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            seen.append("cancelled after all")
            raise

    task = loop.create_task(parent())
    await give(None, 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [[""], 1, "cancelled after all"]


async def test_a_parent_that_was_cancelled_before_may_open_a_group(loop):
    async def parent():
        try:
            await forever()
        except asyncio.CancelledError:
            g = tideloop.group()

            async def attempt():
                async with g:
                    g.spawn(fail)
                    await forever()

            with pytest.raises(ExceptionGroup):
                await attempt()
            assert asyncio.current_task().cancelling() == 1
            await give(None, 3)
            raise

    task = loop.create_task(parent())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancel_leaves_the_block_quietly(loop):
    async with tideloop.group() as g:
        handles = [g.spawn(forever) for _ in range(3)]
        await asyncio.sleep(0)
        g.cancel("enough")
        await forever()
    assert all(handle.cancelled() for handle in handles)
    assert asyncio.current_task().cancelling() == 0
    g.cancel()
    await asyncio.sleep(0)


async def test_cancel_in_a_block_that_awaits_no_more(loop):
    async with tideloop.group() as g:
        g.cancel()
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_cancel_from_a_task_of_the_group(loop):
    async def end_all():
        await asyncio.sleep(0)
        g.cancel()
        await forever()

    async with tideloop.group(on_error="collect") as g:
        g.spawn(end_all)
        await forever()
    assert g.results[0].cancelled


async def test_the_parents_own_cancellation_is_not_lost_in_cancel(loop):
    async def parent():
        async with tideloop.group() as g:
            g.spawn(slow_to_end)
            await asyncio.sleep(0)
            g.cancel()
            await forever()

    async def slow_to_end():
        try:
            await forever()
        finally:
            await give(None, 5)

    task = loop.create_task(parent())
    await give(None, 4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("stock", [False, True])
def test_a_time_limit_around_a_group(kind, stock):
    ended = []

    async def slow_to_end():
        try:
            await forever()
        finally:
            await asyncio.sleep(1)
            ended.append(True)

    async def limited():
        async with tideloop.group() as g:
            g.spawn(slow_to_end)
            g.spawn(slow_to_end)

    async def within_scope():
        with tideloop.fail_after(3):
            await limited()

    async def main():
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(TimeoutError):
            await (asyncio.wait_for(limited(), 3) if stock else within_scope())
        assert loop.time() - began == pytest.approx(4)
        assert ended == [True, True]
        assert asyncio.current_task().cancelling() == 0

    harness.run(kind, main())


async def test_a_storm_of_cancellations_has_no_survivors(loop):
    g = tideloop.group()

    async def attempt():
        async with g:
            for _ in range(5000):
                g.spawn(forever)
            await asyncio.sleep(0)
            g.spawn(fail)

    with pytest.raises(ExceptionGroup):
        await attempt()
    assert g.stats() == (5001, 0, 0, 0, 1, 5000)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# --- spawning ------------------------------------------------------------------------------------


async def test_spawning_while_the_block_is_left(loop):
    async def spawns(depth):
        await asyncio.sleep(0)
        if depth:
            g.spawn(spawns, depth - 1)

    async with tideloop.group() as g:
        g.spawn(spawns, 5)
    assert g.stats().succeeded == 6


@pytest.mark.parametrize("when", ["before", "after", "cancelled"])
async def test_spawning_is_refused_without_a_call(loop, when):
    calls = []
    g = tideloop.group(name="work")
    expected = {"before": "was not entered", "after": "has ended", "cancelled": "is being cancelled"}[when]
    if when != "before":
        async with g:
            if when == "cancelled":
                g.cancel()
                with pytest.raises(RuntimeError, match=f"'work'.*{expected}"):
                    g.spawn(calls.append, 1)
    if when != "cancelled":
        with pytest.raises(RuntimeError, match=f"'work'.*{expected}"):
            g.spawn(calls.append, 1)
    assert calls == []


async def test_a_coroutine_is_refused_and_closed(loop):
    async with tideloop.group() as g:
        coro = give(1)
        with pytest.raises(TypeError, match="not a coroutine"):
            g.spawn(coro)
        del coro
        with pytest.raises(TypeError, match="coroutine function, not 3"):
            g.spawn(3)
        with pytest.raises(TypeError, match="must return an awaitable"):
            g.spawn(int)
        with pytest.raises(TypeError, match="positional argument"):
            g.spawn(give)
    assert g.handles == []
    gc.collect()


async def test_a_loop_that_makes_no_tasks(loop):
    def refuse(loop, coro, **keywords):
        raise Boom("no tasks")

    async with tideloop.group() as g:
        loop.set_task_factory(refuse)
        with pytest.raises(Boom):
            g.spawn(give, 1)
        loop.set_task_factory(None)
    assert g.handles == []
    gc.collect()


async def test_any_awaitable_will_do(loop):
    future = loop.create_future()
    async with tideloop.group() as g:
        handle = g.spawn(lambda: future)
        future.set_result(7)
    assert handle.result() == 7


@deviates("uvloop", "gives factories eager_start=None: not eager, or unknown", when=sys.version_info >= (3, 12))
@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks are new in 3.12")
async def test_eager_tasks_that_end_before_spawn_returns(loop):
    async def at_once(value):
        return value

    async def fails_at_once():
        raise Boom("eager")

    loop.set_task_factory(asyncio.eager_task_factory)
    async with tideloop.group(limit=2) as g:
        handle = g.spawn(at_once, 1)
        assert handle.done()
        assert handle.result() == 1
        for number in range(5):
            g.spawn(give, number)
    assert g.stats().succeeded == 6
    g = tideloop.group()

    async def attempt():
        async with g:
            g.spawn(fails_at_once)
            with pytest.raises(RuntimeError, match="is being cancelled"):
                g.spawn(at_once, 2)
            await forever()

    with pytest.raises(ExceptionGroup) as caught:
        await attempt()
    assert messages(caught.value) == ["eager"]
    assert asyncio.current_task().cancelling() == 0
    await give(None, 3)
    loop.set_task_factory(None)


async def test_a_time_limit_of_one_task(loop):
    async with tideloop.group(on_error="collect") as g:
        late = g.spawn(forever, timeout=0.001)
        good = g.spawn(give, 1, timeout=60)
    assert isinstance(late.exception(), TimeoutError)
    assert good.result() == 1


async def test_a_group_is_entered_once(loop):
    async with tideloop.group() as g:
        with pytest.raises(RuntimeError, match="entered before"):
            async with g:
                pass


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"on_error": "ignore"}, ValueError, "'cancel' or 'collect', not 'ignore'"),
        ({"limit": 0}, ValueError, "at least 1, not 0"),
        ({"limit": True}, TypeError, "a number of tasks or a Limiter, not True"),
        ({"limit": "3"}, TypeError, "a number of tasks or a Limiter, not '3'"),
    ],
)
def test_wrong_arguments(arguments, error, said):
    with pytest.raises(error, match=said):
        tideloop.group(**arguments)


# --- limits --------------------------------------------------------------------------------------


class Meter:
    def __init__(self):
        self.now = self.peak = 0
        self.order = []

    async def work(self, number, turns=3):
        self.order.append(number)
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            return await give(number, turns)
        finally:
            self.now -= 1


async def test_a_limit_in_numbers(loop):
    meter = Meter()
    async with tideloop.group(limit=3) as g:
        for number in range(20):
            g.spawn(meter.work, number)
        assert g.stats()[1:3] == (17, 3)
    assert meter.peak == 3
    assert meter.order == list(range(20))
    assert [outcome.value for outcome in g.results] == list(range(20))


async def test_a_limit_to_acquire(loop):
    meter = Meter()
    semaphore = asyncio.Semaphore(3)
    async with tideloop.group(limit=semaphore, on_error="collect") as g:
        handles = [g.spawn(meter.work, number) for number in range(20)]
        g.spawn(fail)
        handles[10].cancel()
        await asyncio.sleep(0)
        handles[4].cancel()
    assert meter.peak == 3
    assert g.stats()[3:] == (18, 1, 2)
    for _ in range(3):
        await asyncio.wait_for(semaphore.acquire(), 1)


async def test_what_waits_for_the_limit_can_be_cancelled(loop):
    calls = []

    async def called(number):
        calls.append(number)
        await asyncio.sleep(0)

    async with tideloop.group(limit=1) as g:
        handles = [g.spawn(called, number) for number in range(4)]
        assert handles[2].cancel()
        assert not handles[2].cancel()
        assert handles[2].cancelled()
    assert calls == [0, 1, 3]


async def test_what_waits_when_the_group_is_cancelled_never_starts(loop):
    calls = []

    async def called():
        calls.append(1)

    g = tideloop.group(limit=1)

    async def attempt():
        async with g:
            g.spawn(fail)
            g.spawn(called)

    with pytest.raises(ExceptionGroup) as caught:
        await attempt()
    assert messages(caught.value) == ["no"]
    assert g.handles[1].cancelled()
    assert calls == []


async def test_a_call_that_fails_when_its_turn_comes_fails_the_handle(loop):
    async with tideloop.group(limit=1, on_error="collect") as g:
        g.spawn(give, 1)
        handle = g.spawn(give)
        last = g.spawn(give, 3)
    assert isinstance(handle.exception(), TypeError)
    assert last.result() == 3


# --- what is left --------------------------------------------------------------------------------


async def test_a_task_is_freed_when_it_ends(loop):
    class Value:
        pass

    async def use(value):
        await asyncio.sleep(0)

    async with tideloop.group() as g:
        value = Value()
        alive = weakref.ref(value)
        task = weakref.ref(g.spawn(use, value).task)
        del value
        await give(None, 5)
        gc.collect()
        assert alive() is None
        assert task() is None


async def test_a_cycle_through_a_group_is_collected(loop):
    class Value:
        pass

    async def cycle():
        value = Value()
        async with tideloop.group(on_error="collect") as g:
            value.group = g
            value.handle = g.spawn(give, value)
            value.stream = g.completed()
        return weakref.ref(value)

    alive = await cycle()
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("plain", [False, True])
def test_an_abandoned_group_is_collected(loop, handled, plain):
    """With tasks that run, tasks that wait for the limit and a handle that somebody waits for."""

    class Value:
        pass

    async def use(value):
        await forever()

    async def parent(value):
        async with tideloop.group(limit=None if plain else 1, name=None if plain else "work") as value.group:
            value.handles = [value.group.spawn(use, value, key=None if plain else value) for _ in range(3)]
            await value.handles[2]

    def begin():
        value = Value()
        loop.run_until_complete(asyncio.wait([loop.create_task(parent(value))], timeout=0))
        loop.run_until_complete(give(None, 3))
        return weakref.ref(value)

    alive = begin()
    gc.collect()
    assert alive() is None
    assert {context["message"] for context in handled} == {"Task was destroyed but it is pending!"}
    handled.clear()  # they hold the tasks
    gc.collect()


async def test_the_collector_sees_a_handle_that_may_be_in_a_cycle(loop):
    async def give_none():
        await asyncio.sleep(0)

    async with tideloop.group(on_error="collect") as g:
        g.spawn(give_none)
        g.spawn(give, 3.5)
        g.spawn(give, [])
        g.spawn(fail)
        g.spawn(forever).cancel()
        g.spawn(give_none, key="key")
        awaited = g.spawn(give_none)
        assert [gc.is_tracked(handle) for handle in g.handles] == [False] * 5 + [True, False]
        waiter = asyncio.ensure_future(awaited.wait())
        await asyncio.sleep(0)
        assert gc.is_tracked(awaited)
    await waiter
    seen = [gc.is_tracked(handle) for handle in g.handles]
    assert seen == [False, False, True, True, False, True, True]
    assert g.results[4].cancelled  # makes an exception, which is kept
    assert gc.is_tracked(g.handles[4])


async def test_a_handle_without_its_group(loop):
    """Only a handle is left of a group that was collected while its task ran."""

    async def parent():
        async with tideloop.group() as g:
            handles.append(g.spawn(forever))

    handles: list = []
    task = asyncio.ensure_future(parent())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    handle = handles.pop()
    assert handle.task is not None
    running = handle.task
    running._log_destroy_pending = task._log_destroy_pending = False
    task.get_coro().close()
    del task, running
    await asyncio.sleep(0)
    gc.collect()
    assert handle.task is None
    assert not handle.done()
    assert repr(handle) == "<tideloop.TaskHandle waiting>"
    with pytest.raises(RuntimeError, match="the group of this task was collected"):
        handle.cancel()


def test_a_loop_that_stops_within_a_group(loop):
    async def main():
        async with tideloop.group() as g:
            g.spawn(forever)
            await forever()

    task = loop.create_task(main())
    for _ in range(3):
        loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)


async def test_repr_and_outcome(loop):
    g = tideloop.group(name="pages", on_error="collect")
    assert repr(g) == "<tideloop.Group 'pages' unused>"
    async with g:
        g.spawn(fail, key="bad")
        g.spawn(forever).cancel()
        assert repr(g) == "<tideloop.Group 'pages' open running=2>"
    assert repr(g) == "<tideloop.Group 'pages' closed failed=1 cancelled=1>"
    assert repr(g.handles[0]) == "<tideloop.TaskHandle 'pages[bad]' key='bad' ended exception=Boom('no')>"
    outcome = g.results[0]
    with pytest.raises(Boom):
        outcome.result()
    with pytest.raises(AttributeError):
        outcome.value = 3
    assert (outcome.ok, outcome.failed, outcome.cancelled) == (False, True, False)


# --- cancelled at odd moments --------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 1])
def test_a_group_that_is_cancelled_while_a_function_is_called(kind, limit):
    async def main():
        async with tideloop.group(limit=limit) as group:

            def call():
                group.cancel()
                return forever()

            handle = group.spawn(call)
        assert handle.cancelled()

    harness.run(kind, main())


def test_a_handle_that_is_cancelled_while_its_function_is_called(kind):
    async def main():
        async with tideloop.group() as group:

            def call():
                assert group.handles[-1].cancel("early")
                return forever()

            handle = group.spawn(call)
        assert handle.cancelled()

    harness.run(kind, main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_an_eager_child_that_fails_in_its_parents_first_step(kind):
    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

        async def child():
            raise Boom("no")

        async def parent():
            group.spawn(child)
            await forever()

        with pytest.raises(ExceptionGroup) as caught:
            async with tideloop.group() as group:
                group.spawn(parent)
        assert [str(error) for error in caught.value.exceptions] == ["no"]

    if kind == "uvloop":
        pytest.skip("uvloop gives factories eager_start=None")
    harness.run(kind, main())


@pytest.mark.parametrize("begun", [False, True])
def test_the_message_of_a_cancellation_is_kept(kind, begun):
    async def main():
        async with tideloop.group() as group:
            one, other = group.spawn(forever), group.spawn(forever)
            if begun:
                await turns(2)
            one.cancel("just this one")
            await turns(2)
            group.cancel("all of them")
        assert one.outcome.exception.args == ("just this one",)
        assert other.outcome.exception.args == ("all of them",)

    harness.run(kind, main())


def test_a_handle_and_a_group_belong_to_their_loop(kind):
    async def main():
        async with tideloop.group() as group:
            handle = group.spawn(forever)
            completed = group.completed()

            def elsewhere():
                async def wait():
                    with pytest.raises(RuntimeError, match="belongs to another event loop"):
                        await handle
                    with pytest.raises(RuntimeError, match="belongs to another event loop"):
                        await anext(completed)
                    return True

                return asyncio.run(wait())

            with ThreadPoolExecutor(1) as thread:
                assert thread.submit(elsewhere).result()
            handle.cancel()

    harness.run(kind, main())
