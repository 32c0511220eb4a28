"""create_task, create_future and task factories as the loop offers them."""

from __future__ import annotations

import asyncio
import contextvars
import sys

import pytest

from tests.backends import deviates

color = contextvars.ContextVar("color", default="none")


async def identity(value):
    await asyncio.sleep(0)
    return value


async def test_create_task_is_an_asyncio_task(loop):
    task = loop.create_task(identity(1))
    assert isinstance(task, asyncio.Task)
    assert isinstance(task, asyncio.Future)
    assert task.get_loop() is loop
    assert await task == 1


async def test_create_future_is_an_asyncio_future(loop):
    future = loop.create_future()
    assert isinstance(future, asyncio.Future)
    assert asyncio.isfuture(future)
    assert future.get_loop() is loop
    future.set_result(1)
    assert await future == 1


async def test_name_and_context(loop):
    context = contextvars.copy_context()
    context.run(color.set, "red")

    async def read():
        return color.get()

    task = loop.create_task(read(), name="reader", context=context)
    assert task.get_name() == "reader"
    assert await task == "red"
    assert await loop.create_task(read()) == "none"


async def test_current_task_and_all_tasks(loop):
    async def child():
        assert asyncio.current_task() is task
        await asyncio.sleep(0)
        assert asyncio.current_task() is task

    main = asyncio.current_task()
    task = loop.create_task(child())
    assert asyncio.all_tasks() == {main, task}
    await task
    assert asyncio.current_task() is main
    assert asyncio.all_tasks(loop) == {main}


async def test_what_is_not_a_coroutine_is_refused(loop):
    with pytest.raises(TypeError, match="a coroutine was expected"):
        loop.create_task(1)


async def test_tasks_run_in_the_order_of_creation(loop):
    order = []

    async def step(i):
        order.append(i)
        await asyncio.sleep(0)
        order.append(i)

    await asyncio.gather(*(step(i) for i in range(100)))
    assert order == list(range(100)) * 2


async def test_cancel_reaches_the_innermost_await(loop):
    async def inner():
        try:
            await loop.create_future()
        except asyncio.CancelledError as exc:
            return f"cancelled: {exc}"

    task = loop.create_task(inner())
    await asyncio.sleep(0)
    task.cancel("stop")
    assert await task == "cancelled: stop"


async def test_future_callbacks_run_in_order_and_in_their_contexts(loop):
    seen = []
    context = contextvars.copy_context()
    context.run(color.set, "red")
    future = loop.create_future()
    future.add_done_callback(lambda f: seen.append((1, color.get())))
    future.add_done_callback(lambda f: seen.append((2, color.get())), context=context)
    future.add_done_callback(lambda f: seen.append((3, f.result())))
    future.set_result("done")
    assert seen == []
    await asyncio.sleep(0)
    assert seen == [(1, "none"), (2, "red"), (3, "done")]


async def test_timeout_and_task_group(loop):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await loop.create_future()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(identity(i)) for i in range(10)]
    assert [task.result() for task in tasks] == list(range(10))


class TestFactory:
    def test_default_is_none(self, loop):
        assert loop.get_task_factory() is None

    @pytest.mark.parametrize("what", [1, "factory"])
    def test_what_is_not_callable_is_refused(self, loop, what):
        with pytest.raises(TypeError, match="task factory must be a callable or None"):
            loop.set_task_factory(what)

    def test_makes_the_tasks(self, loop):
        class Task(asyncio.Task):
            pass

        def factory(loop, coro, **kwargs):
            return Task(coro, loop=loop, **kwargs)

        async def main():
            return type(asyncio.current_task()), type(loop.create_task(identity(1)))

        loop.set_task_factory(factory)
        assert loop.get_task_factory() is factory
        assert loop.run_until_complete(main()) == (Task, Task)
        loop.run_until_complete(asyncio.sleep(0))
        loop.set_task_factory(None)
        assert loop.run_until_complete(type_of_current_task()) is not Task

    @deviates("uvloop", "passes keyword arguments that such a factory does not take", when=sys.version_info >= (3, 13))
    def test_may_take_nothing_but_context(self, loop):
        def factory(loop, coro, context=None):
            return asyncio.Task(coro, loop=loop, context=context)

        loop.set_task_factory(factory)
        coroutine = identity(1)
        try:
            assert loop.run_until_complete(coroutine) == 1
        finally:
            loop.set_task_factory(None)
            coroutine.close()

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in 3.12")
    @deviates(
        "uvloop", "passes keyword arguments that 3.13.0's eager factory does not take", when=sys.version_info >= (3, 13)
    )
    def test_eager_tasks(self, loop):
        async def main():
            task = loop.create_task(at_once())
            assert task.done()
            slow = loop.create_task(identity(2))
            assert not slow.done()
            return task.result(), await slow

        async def at_once():
            assert asyncio.current_task() is not None
            return 1

        loop.set_task_factory(asyncio.eager_task_factory)
        coroutine = main()
        try:
            assert loop.run_until_complete(coroutine) == (1, 2)
        finally:
            loop.set_task_factory(None)
            coroutine.close()


async def type_of_current_task():
    return type(asyncio.current_task())


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_awaiting_what_has_ended_keeps_what_is_being_handled_as_context(loop, end):
    future = loop.create_future()
    if end == "cancelled":
        future.cancel()
    else:
        future.set_exception(KeyError("from the future"))
    handled = LookupError("being handled")

    async def await_while_handling():
        try:
            raise handled
        except LookupError:
            await future

    with pytest.raises((asyncio.CancelledError, KeyError)) as caught:
        await await_while_handling()
    assert caught.value.__context__ is handled
