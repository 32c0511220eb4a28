"""What is hidden from the collector with a task is found by it once the task is part of a cycle that nobody reaches.

Each program makes a cycle through a task that its running loop has hidden, with its coroutine, its context or the
future that it sleeps on, and lets go of it in another state.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref

import pytest
import tideloop

from tests import task_variants

FAR = 1000.0


@pytest.fixture(params=task_variants.params())
def variant(request):
    with request.param.in_force():
        yield request.param


class Thing:
    """A member of a cycle that may be watched."""


variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")


def is_collected(ref: weakref.ref) -> bool:
    for _ in range(3):
        gc.collect()
    return ref() is None


def run(variant, main, *args):
    """Runs a program to its end and lets go of the loop; what was pending is reported to nobody."""
    loop = variant.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    try:
        return loop.run_until_complete(main(loop, *args))
    finally:
        loop.close()


async def holds(thing):
    await asyncio.sleep(0)
    return thing


async def kept_with_its_result(loop, thing):
    thing.task = loop.create_task(holds(thing))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert thing.task.result() is thing


async def kept_by_its_callback(loop, thing):
    thing.tasks = []
    loop.create_task(holds(thing)).add_done_callback(thing.tasks.append)
    for _ in range(3):
        await asyncio.sleep(0)
    assert thing.tasks[0].result() is thing


async def kept_with_its_exception(loop, thing):
    async def fails():
        raise ValueError(thing)

    thing.task = loop.create_task(fails())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert thing.task.exception().args == (thing,)


async def kept_with_what_is_in_its_context(loop, thing):
    async def sets():
        variable.set(thing)

    thing.task = loop.create_task(sets())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert thing.task.done()


async def kept_with_what_was_put_into_its_context_later(loop, thing):
    async def nothing():
        pass

    thing.task = loop.create_task(nothing())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if hasattr(thing.task, "get_context"):
        thing.task.get_context().run(variable.set, thing)


async def ready_when_the_loop_ends(loop, thing):
    async def main():
        return thing

    thing.task = loop.create_task(main())


async def yielding_when_the_loop_ends(loop, thing):
    async def yields():
        for _ in range(1_000):
            await asyncio.sleep(0)
        return thing

    thing.task = loop.create_task(yields())
    await asyncio.sleep(0)


async def asleep_when_the_loop_ends(loop, thing):
    async def sleeps():
        await asyncio.sleep(FAR)
        return thing

    thing.task = loop.create_task(sleeps())
    await asyncio.sleep(0)


async def asleep_as_the_outermost_coroutine(loop, thing):
    thing.task = loop.create_task(asyncio.sleep(FAR, thing))
    await asyncio.sleep(0)


async def cancelled_in_its_sleep(loop, thing):
    async def sleeps():
        await asyncio.sleep(FAR)
        return thing

    thing.task = loop.create_task(sleeps())
    await asyncio.sleep(0)
    thing.task.cancel()
    await asyncio.wait([thing.task])
    assert thing.task.cancelled()


async def awake_and_asleep_again(loop, thing):
    async def sleeps():
        await asyncio.sleep(0.001)
        await asyncio.sleep(FAR)
        return thing

    thing.task = loop.create_task(sleeps())
    await asyncio.sleep(0.002)


async def with_a_timer_that_was_cancelled(loop, thing):
    set_result = asyncio.futures._set_result_unless_cancelled

    async def waits():
        future = loop.create_future()
        thing.timer = loop.call_later(FAR, set_result, future, None)
        await future
        return thing

    thing.task = loop.create_task(waits())
    await asyncio.sleep(0)
    thing.timer.cancel()


async def with_a_coroutine_that_outlives_it(loop, thing):
    thing.coro = holds(thing)
    loop.create_task(thing.coro)


async def with_a_coroutine_that_has_ended(loop, thing):
    thing.coro = holds(thing)
    thing.task = loop.create_task(thing.coro)
    await thing.task


async def with_a_future_that_was_kept(loop, thing):
    thing.future = loop.create_future()
    thing.timer = loop.call_later(0.001, asyncio.futures._set_result_unless_cancelled, thing.future, thing)
    assert await thing.future is thing


PROGRAMS = [
    kept_with_its_result,
    kept_by_its_callback,
    kept_with_its_exception,
    kept_with_what_is_in_its_context,
    kept_with_what_was_put_into_its_context_later,
    ready_when_the_loop_ends,
    yielding_when_the_loop_ends,
    asleep_when_the_loop_ends,
    asleep_as_the_outermost_coroutine,
    cancelled_in_its_sleep,
    awake_and_asleep_again,
    with_a_timer_that_was_cancelled,
    with_a_coroutine_that_outlives_it,
    with_a_coroutine_that_has_ended,
    with_a_future_that_was_kept,
]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_cycle_dies(variant, program):
    thing = Thing()
    ref = weakref.ref(thing)
    run(variant, program, thing)
    del thing
    assert is_collected(ref)


def test_a_cycle_dies_while_its_loop_runs(variant):
    async def main(loop):
        thing = Thing()
        ref = weakref.ref(thing)
        await with_a_timer_that_was_cancelled(loop, thing)
        del thing
        return is_collected(ref)

    assert run(variant, main)


def test_garbage_is_ended_from_the_outermost_coroutine_on(variant):
    async def inner(loop):
        try:
            await loop.create_future()
        except GeneratorExit:
            raise LookupError from None

    async def outer(loop, ended):
        await asyncio.sleep(0)
        try:
            await inner(loop)
        except LookupError:
            ended.append("by what the inner one raised")

    async def main(loop):
        ended = []
        loop.create_task(outer(loop, ended))
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()
        return ended

    assert run(variant, main) == ["by what the inner one raised"]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_cycle_dies_that_was_to_wake_up(variant):
    async def sleeps(thing):
        await asyncio.sleep(FAR)
        return thing

    def begin(thing):
        thing.task = loop.create_task(sleeps(thing))

    def end(thing):
        thing.task.cancel()
        loop.stop()

    thing = Thing()
    ref = weakref.ref(thing)
    loop = variant.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    loop.call_soon(begin, thing)
    loop.call_soon(loop.call_soon, end, thing)
    loop.run_forever()
    assert not thing.task.done()
    loop.close()
    del thing
    assert is_collected(ref)


def test_what_sleeps_survives_collections(variant):
    async def sleeps(thing, delay):
        variable.set(thing)
        await asyncio.sleep(delay)
        assert variable.get() is thing
        gc.collect()
        await asyncio.sleep(0)
        return thing

    async def main(loop):
        things = [Thing() for _ in range(20)]
        tasks = [loop.create_task(sleeps(thing, 0.001 * (1 + n % 3))) for n, thing in enumerate(things)]
        gc.collect()
        await asyncio.sleep(0)
        gc.collect()
        assert await asyncio.gather(*tasks) == things

    run(variant, main)


def test_the_collector_does_not_look_at_what_sleeps(variant):
    def seen(tasks):
        looked_at = {id(found) for found in gc.get_objects()}
        return [{id(task), id(task.get_coro())} <= looked_at for task in tasks]

    async def main(loop):
        tasks = [loop.create_task(asyncio.sleep(FAR)) for _ in range(3)]
        await asyncio.sleep(0)
        hides = getattr(loop, "task_kind", None) == "native"
        assert seen(tasks) == [not hides] * 3
        return tasks

    loop = variant.new_event_loop()
    tasks = loop.run_until_complete(main(loop))
    assert seen(tasks) == [True] * 3, "a loop that does not run hides nothing"
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.wait(tasks))
    loop.close()


def test_what_sleeps_survives_its_loop_being_stopped_and_run_again(variant):
    async def sleeps(thing):
        await asyncio.sleep(0.001)
        return thing

    loop = variant.new_event_loop()
    thing = Thing()
    tasks = []
    loop.call_soon(lambda: tasks.append(loop.create_task(sleeps(thing))))
    for _ in range(3):
        loop.call_soon(loop.stop)
        loop.run_forever()
        gc.collect()
    assert loop.run_until_complete(tasks[0]) is thing
    loop.close()


def test_a_sleeper_that_is_cancelled_in_debug_mode_is_seen():
    class Keeper:
        pass

    loop = tideloop.EventLoop()
    keeper = Keeper()

    async def sleeper():
        await asyncio.sleep(1, keeper)

    async def start():
        keeper.task = loop.create_task(sleeper())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        loop.set_debug(True)
        keeper.task.cancel()
        loop.stop()

    loop.create_task(start())
    loop.run_forever()
    assert gc.is_tracked(keeper.task)
    loop.set_debug(False)
    loop.run_until_complete(asyncio.wait([keeper.task]))
    loop.close()
