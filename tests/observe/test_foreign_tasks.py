"""What programs do to the loops and tasks that are observed: factories, callbacks, proxies, and two who attach."""

import asyncio
import functools
import json
import sys
import types

import pytest
import tideloop
from tideloop import observe
from tideloop.observe import unretrieved
from tideloop.testing import new_virtual_loop


@pytest.fixture
def told():
    """The names of the tasks that on_unretrieved() tells of."""
    names = []

    def tell(failure):
        names.append(failure.task.get_name())

    observe.on_unretrieved(tell)
    yield names
    observe.off_unretrieved(tell)


@pytest.fixture
def virtual(monkeypatch):
    monkeypatch.setenv("TIDELOOP_OBSERVE", "tasks")
    with asyncio.Runner(loop_factory=new_virtual_loop) as runner:
        yield runner


def counting(**options):
    return asyncio.Runner(loop_factory=lambda: tideloop.EventLoop(observe="tasks", **options))


def function(loop, name):
    (found,) = [function for function in loop.tasks().coroutines if function.coroutine.endswith(name)]
    return found


async def one():
    return 1


async def fails(error=ValueError):
    raise error


async def waits():
    await asyncio.Event().wait()


class TestFactories:
    def test_a_future_is_no_task(self):
        class Promise(asyncio.Future):
            def set_name(self, name):
                pass

        def factory(loop, coro, **options):
            promise = Promise(loop=loop)
            task = asyncio.Task(coro, loop=loop)
            task.add_done_callback(lambda task: promise.set_result(task.result()))
            return promise

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_task_factory(factory)
            return await loop.create_task(one())

        with counting() as runner:
            assert runner.run(main()) == 1

    def test_tasks_in_python_are_not_counted_as_cancelled(self):
        async def main():
            loop = asyncio.get_running_loop()
            loop.set_task_factory(lambda loop, coro, **options: asyncio.tasks._PyTask(coro, loop=loop, **options))
            for _ in range(3):
                await loop.create_task(one())
            return sum(function.cancelled for function in loop.tasks().coroutines)

        with counting() as runner:
            assert runner.run(main()) == 0


@pytest.mark.parametrize("kind", ["native", "stock"])
def test_a_method_of_a_task_as_a_callback_is_no_step_of_it(kind):
    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(waits(), name="waiter")
        await asyncio.sleep(0)
        for _ in range(5):
            loop.call_soon(task.done)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        (found,) = [found for found in loop.tasks().tasks if found.name == "waiter"]
        task.cancel()
        return found.steps

    with counting(tasks=kind) as runner:
        assert runner.run(main()) == 1


@pytest.mark.skipif(sys.version_info < (3, 14), reason="eager_start is new in 3.14")
def test_eager_tasks_that_end_at_once_are_counted_and_told_of(virtual, told):
    kept = []

    async def main():
        loop = asyncio.get_running_loop()
        kept.append(loop.create_task(one(), eager_start=True))
        kept.append(loop.create_task(fails(), eager_start=True, name="eager"))
        await asyncio.sleep(3)
        return function(loop, "one"), function(loop, "fails")

    good, bad = virtual.run(main())
    for task in kept:
        task.exception()
    assert (good.created, good.ok) == (1, 1)
    assert (bad.created, bad.failed) == (1, 1)
    assert told == ["eager"]


def test_a_task_that_ends_the_run_has_failed():
    async def main():
        asyncio.create_task(fails(SystemExit), name="exits")  # noqa: RUF006  it ends at once
        await asyncio.Event().wait()

    with counting() as runner:
        loop = runner.get_loop()
        with pytest.raises(SystemExit):
            loop.run_until_complete(main())
        found = function(loop, "fails")
        assert (found.live, found.failed, found.cancelled) == (0, 1, 0)


class TestUnretrieved:
    """Of failures that nobody has asked for."""

    def test_one_that_cannot_be_shown_does_not_end_the_telling(self, virtual, told):
        class Shy(Exception):
            def __repr__(self):
                raise RuntimeError("not me")

        kept = []

        async def main():
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
            for error in (Shy, ValueError):
                kept.append(asyncio.create_task(fails(error), name=error.__name__))
                await asyncio.sleep(5)
            return len(unretrieved._expected[asyncio.get_running_loop()])

        assert virtual.run(main()) == 0
        for task in kept:
            task.exception()
        assert told[-1] == "ValueError"

    def test_what_a_gather_will_ask_for_is_waited_for(self, virtual, told):
        async def main():
            early = asyncio.create_task(fails(), name="early")
            return await asyncio.gather(early, asyncio.sleep(30, "late"), return_exceptions=True)

        failure, late = virtual.run(main())
        assert isinstance(failure, ValueError)
        assert late == "late"
        assert told == []


class TestWhoAwaitsWhom:
    def test_a_tree_of_shared_stages_is_bounded(self):
        def size(node):
            return 1 + sum(map(size, node.awaits))

        async def main():
            loop = asyncio.get_running_loop()
            done = asyncio.Event()
            stage = [asyncio.create_task(done.wait()) for _ in range(2)]

            async def after(before):
                await asyncio.wait(before)

            # Drawn whole this were 2 ** 41 nodes.
            for _ in range(40):
                stage = [asyncio.create_task(after(stage)) for _ in range(2)]
            await asyncio.sleep(0)
            nodes = sum(map(size, observe.tree(loop).roots))
            done.set()
            await asyncio.wait(stage)
            return nodes

        with asyncio.Runner(loop_factory=tideloop.new_event_loop) as runner:
            assert 82 <= runner.run(main()) <= 20_100

    def test_objects_that_answer_nothing(self):
        class Proxy:
            def __getattr__(self, name):
                raise RuntimeError("working outside of a request")

        async def main():
            loop = asyncio.get_running_loop()
            task = asyncio.create_task(waits(), name="waiter")
            task.add_done_callback(functools.partial(lambda proxy, task: None, Proxy()))
            await asyncio.sleep(0)
            seen = {task.name for task in loop.tasks().tasks}, len(observe.tree(loop).roots)
            task.cancel()
            return seen

        with asyncio.Runner(loop_factory=tideloop.new_event_loop) as runner:
            names, roots = runner.run(main())
        assert "waiter" in names
        assert roots == 2


def test_traces_tell_functions_and_generators_apart():
    @types.coroutine
    def first_generator():
        yield

    @types.coroutine
    def second_generator():
        yield

    def first():
        pass

    def second():
        pass

    async def main():
        loop = asyncio.get_running_loop()
        loop.call_soon(functools.partial(first))
        loop.call_soon(functools.partial(second))
        loop.call_soon([].append, 1)
        loop.call_soon([].clear)
        if sys.version_info < (3, 12):
            # Later ones take no generators for coroutines.
            await asyncio.gather(loop.create_task(first_generator()), loop.create_task(second_generator()))
        await asyncio.sleep(0)
        return loop.trace()

    with asyncio.Runner(loop_factory=lambda: tideloop.EventLoop(observe="trace")) as runner:
        names = {event["name"].rpartition(".")[2] for event in json.loads(runner.run(main()))["traceEvents"]}
    assert {"first", "second", "append", "clear"} <= names
    if sys.version_info < (3, 12):
        assert {"first_generator", "second_generator"} <= names


class TestAttached:
    """Of a loop that is not tideloop's."""

    def test_one_at_a_time(self):
        loop = asyncio.SelectorEventLoop()
        try:
            with observe.attach(loop), pytest.raises(RuntimeError, match="attached to already"):
                observe.attach(loop)
            with observe.attach(loop):
                pass
        finally:
            loop.close()

    def test_what_the_program_has_put_on_the_loop_is_called_and_comes_back(self):
        loop = asyncio.SelectorEventLoop()
        calls = []

        def run_forever():
            calls.append("run")
            type(loop).run_forever(loop)

        loop.run_forever = run_forever
        try:
            attached = observe.attach(loop)
            assert loop.run_until_complete(one()) == 1
            attached.detach()
            assert loop.run_forever is run_forever
            assert "stop" not in vars(loop)
            assert "close" not in vars(loop)
        finally:
            loop.close()
        assert calls == ["run"]

    def test_a_loop_that_cannot_be_closed_stays_attached(self):
        async def main():
            loop = asyncio.get_running_loop()
            attached = observe.attach(loop)
            with pytest.raises(RuntimeError, match="running"):
                loop.close()
            return attached.metrics().running

        loop = asyncio.SelectorEventLoop()
        try:
            assert loop.run_until_complete(main())
        finally:
            loop.close()

    def test_the_end_of_the_run_in_which_it_was_attached(self):
        async def main():
            return observe.attach(asyncio.get_running_loop())

        loop = asyncio.SelectorEventLoop()
        try:
            attached = loop.run_until_complete(main())
            # Nothing beats while nothing runs, so that nobody is taken for blocked.
            assert attached._timer is None
            assert loop.run_until_complete(one()) == 1
            attached.detach()
        finally:
            loop.close()
