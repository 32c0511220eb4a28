"""Reference counts of what passes through tasks and futures are the same after any number of rounds.

One body per path that a value, an exception, a context or a coroutine can take. A count that is too high is a leak, one
that is too low a crash to come; both show here with a single object, where a soak shows only the first.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import weakref

import pytest

from tests import task_variants

ROUNDS = 50


@pytest.fixture(params=task_variants.params())
def variant(request):
    with request.param.in_force():
        yield request.param


@pytest.fixture
def loop(variant):
    loop = variant.new_event_loop()
    yield loop
    loop.close()


class Thing:
    """A value that may be counted, and watched."""


class Marked(Exception):
    pass


variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")


async def returns(loop, value):
    async def body():
        await asyncio.sleep(0)
        return value

    assert await loop.create_task(body()) is value


async def returns_at_once(loop, value):
    async def body():
        return value

    assert await loop.create_task(body()) is value


async def is_asked_for_its_result(loop, value):
    task = loop.create_task(returns_it(value))
    await asyncio.wait([task])
    assert task.result() is value
    assert task.result() is value


async def returns_it(value):
    return value


async def is_the_result_of_a_future(loop, value):
    future = loop.create_future()
    loop.call_soon(future.set_result, value)
    assert await future is value
    assert await future is value


async def is_never_awaited(loop, value):
    loop.create_future().set_result(value)
    loop.create_task(returns_it(value))
    await asyncio.sleep(0)


async def is_read_in_callbacks(loop, value):
    future = loop.create_future()
    seen = []
    for _ in range(3):
        future.add_done_callback(lambda done: seen.append(done.result()))
    future.set_result(value)
    await asyncio.sleep(0)
    assert seen == [value] * 3


async def is_sent_through_a_foreign_future(loop, value):
    for make in (asyncio.futures._CFuture, asyncio.futures._PyFuture):
        future = make(loop=loop)
        loop.call_soon(future.set_result, value)
        assert await future is value


async def is_gathered(loop, value):
    assert await asyncio.gather(returns_it(value), returns(loop, value)) == [value, None]


async def is_waited_for(loop, value):
    assert await asyncio.wait_for(returns_it(value), 60) is value
    assert await asyncio.shield(loop.create_task(returns_it(value))) is value


async def is_slept_for(loop, value):
    assert await asyncio.sleep(0, value) is value
    assert await asyncio.sleep(1e-6, value) is value


async def is_queued(loop, value):
    queue = asyncio.Queue(1)
    getter = loop.create_task(queue.get())
    await asyncio.sleep(0)
    await queue.put(value)
    assert await getter is value


async def is_in_the_context(loop, value):
    async def body():
        assert variable.get() is value
        await asyncio.sleep(0)
        assert variable.get() is value

    context = contextvars.copy_context()
    context.run(variable.set, value)
    await loop.create_task(body(), context=context)


async def is_set_in_a_task(loop, value):
    async def body():
        token = variable.set(value)
        await asyncio.sleep(0)
        variable.reset(token)
        variable.set(value)

    await loop.create_task(body())


async def is_held_by_a_cancelled_task(loop, value):
    async def body():
        held = value
        await asyncio.sleep(3600)
        return held

    task = loop.create_task(body())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def is_the_message_of_a_cancellation(loop, value):
    task = loop.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    task.cancel(value)
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.args == (value,)
    future = loop.create_future()
    future.cancel(value)
    with pytest.raises(asyncio.CancelledError):
        await future


async def is_cancelled_before_it_starts(loop, value):
    task = loop.create_task(returns_it(value))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def is_in_an_exception(loop, value):
    async def body():
        await asyncio.sleep(0)
        raise Marked(value)

    with pytest.raises(Marked) as caught:
        await loop.create_task(body())
    assert caught.value.args == (value,)


async def is_in_an_exception_that_is_asked_for(loop, value):
    async def body():
        raise Marked(value)

    task = loop.create_task(body())
    await asyncio.wait([task])
    assert task.exception().args == (value,)
    assert task.exception() is task.exception()


async def is_in_an_exception_of_a_future(loop, value):
    future = loop.create_future()
    loop.call_soon(future.set_exception, Marked(value))
    for _ in range(2):
        with pytest.raises(Marked):
            await future


async def is_in_a_failed_group(loop, value):
    async def body():
        raise Marked(value)

    failed = False
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(3600))
            group.create_task(body())
    except* Marked:
        failed = True
    assert failed


async def is_in_a_block_that_times_out(loop, value):
    async def body():
        async with asyncio.timeout(0):
            held = value
            await loop.create_future()
            return held

    with pytest.raises(TimeoutError):
        await body()


async def is_part_of_the_name(loop, value):
    class Name(str):
        owner = value

    task = loop.create_task(returns_it(None), name=Name("name"))
    task.set_name(Name("another"))
    await task


async def is_in_a_refused_yield(loop, value):
    class Wrong:
        owner = value

        def __await__(self):
            yield self

    async def body():
        await Wrong()

    with pytest.raises(RuntimeError, match="yield"):
        await loop.create_task(body())


async def is_known_to_an_awaitable(loop, value):
    class Awaitable:
        def __await__(self):
            yield
            return value

    async def body():
        return await Awaitable()

    assert await loop.create_task(body()) is value


async def is_in_a_removed_callback(loop, value):
    def callback(future, held=value):
        pass

    future = loop.create_future()
    for _ in range(4):
        future.add_done_callback(callback)
    assert future.remove_done_callback(callback) == 4
    future.add_done_callback(callback)


async def is_in_an_eager_task(loop, value):
    if sys.version_info < (3, 12):
        return
    task_class = type(loop.create_task(returns_it(None)))
    await asyncio.sleep(0)
    assert await task_class(returns_it(value), loop=loop, eager_start=True) is value
    assert await task_class(asyncio.sleep(0, value), loop=loop, eager_start=True) is value


PATHS = [
    returns,
    returns_at_once,
    is_asked_for_its_result,
    is_the_result_of_a_future,
    is_never_awaited,
    is_read_in_callbacks,
    is_sent_through_a_foreign_future,
    is_gathered,
    is_waited_for,
    is_slept_for,
    is_queued,
    is_in_the_context,
    is_set_in_a_task,
    is_held_by_a_cancelled_task,
    is_the_message_of_a_cancellation,
    is_cancelled_before_it_starts,
    is_in_an_exception,
    is_in_an_exception_that_is_asked_for,
    is_in_an_exception_of_a_future,
    is_in_a_failed_group,
    is_in_a_block_that_times_out,
    is_part_of_the_name,
    is_in_a_refused_yield,
    is_known_to_an_awaitable,
    is_in_a_removed_callback,
    is_in_an_eager_task,
]


def tracked() -> int:
    """Objects known to the garbage collector. Without cancelled timers: loops sweep them out by the hundred."""
    gc.collect()
    return sum(type(found).__name__ != "TimerHandle" for found in gc.get_objects())


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # a task that is cancelled before it starts
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_counts_return(loop, path):
    value = Thing()
    shared = None, True, 1, "", ()
    loop.run_until_complete(path(loop, value))
    before = tracked(), sys.getrefcount(value)
    immortal = [sys.getrefcount(constant) for constant in shared]
    for _ in range(ROUNDS):
        loop.run_until_complete(path(loop, value))
    after = tracked(), sys.getrefcount(value)
    assert after[1] == before[1]
    assert abs(after[0] - before[0]) < ROUNDS // 2, "objects are left behind, or gone, in each round"
    # Where they are counted at all, None and its like are the first to show a missing or a doubled reference.
    assert all(abs(sys.getrefcount(c) - n) < ROUNDS for c, n in zip(shared, immortal, strict=True))


@pytest.mark.parametrize("end", ["returns", "raises", "cancelled", "never started"])
def test_coroutine_context_and_task_die_with_the_task(loop, end):
    async def body(held):
        if end != "returns":
            await asyncio.sleep(0)
        if end == "raises":
            raise Marked

    value, context = Thing(), contextvars.copy_context()
    context.run(variable.set, value)
    argument = Thing()
    coroutine = body(argument)
    task = loop.create_task(coroutine, context=context)
    watched = [weakref.ref(found) for found in (value, argument, coroutine, task)]
    if end == "never started":
        task.cancel()
    elif end == "cancelled":
        loop.call_soon(task.cancel)
    outcome = loop.run_until_complete(asyncio.wait([task]))
    assert task.done()
    if end == "raises":
        assert isinstance(task.exception(), Marked)
    del value, context, argument, coroutine, task, outcome
    # By its count alone: a finished task must not need the garbage collector, except for a traceback's cycles.
    if end in ("raises", "cancelled", "never started"):
        gc.collect()
    # The loop may keep the last finished callback's arguments for one turn more.
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert [ref() for ref in watched] == [None] * len(watched)
