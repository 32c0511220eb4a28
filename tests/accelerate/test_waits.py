"""wait(), wait_for(), shield() and TaskGroup: what their callers see, on every loop, native and stock alike."""

import asyncio
import contextvars
import gc
import sys
import weakref

import pytest
import tideloop
from tideloop import stock

TASK = "on 3.11 wait_for() makes a task of the coroutine"
VAR = contextvars.ContextVar("VAR", default="outside")


@pytest.fixture(params=["stock", "native"])
def kit(request):
    return stock if request.param == "stock" else tideloop


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)
    return count


class TestWait:
    @pytest.mark.parametrize("collection", [list, tuple, set, frozenset, iter, dict.fromkeys])
    async def test_any_iterable(self, loop, kit, collection):
        tasks = [loop.create_task(turns(n)) for n in (3, 1, 2)]
        done, pending = await kit.wait(collection(tasks))
        assert (type(done), type(pending)) == (set, set)
        assert (done, pending) == (set(tasks), set())

    async def test_what_is_there_twice_counts_once(self, loop, kit):
        task = loop.create_task(turns(1))
        assert await kit.wait([task, task]) == ({task}, set())

    async def test_the_given_set_is_not_the_returned_one(self, loop, kit):
        given = {loop.create_task(turns(1))}
        done, _ = await kit.wait(given)
        done.clear()
        assert len(given) == 1

    @pytest.mark.parametrize("mode", ["FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED"])
    async def test_modes(self, loop, kit, mode):
        async def fail():
            await turns(3)
            raise ValueError(mode)

        tasks = [loop.create_task(turns(1)), loop.create_task(fail()), loop.create_task(turns(9))]
        done, pending = await kit.wait(tasks, return_when=mode)
        expected = {"FIRST_COMPLETED": 1, "FIRST_EXCEPTION": 2, "ALL_COMPLETED": 3}[mode]
        assert (len(done), len(pending)) == (expected, 3 - expected)
        assert not any(task._callbacks for task in tasks)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def test_a_cancelled_future_is_no_exception(self, loop, kit):
        cancelled, other = loop.create_future(), loop.create_future()
        loop.call_soon(cancelled.cancel)
        done, pending = await kit.wait([cancelled, other], return_when=asyncio.FIRST_EXCEPTION, timeout=0.001)
        assert (done, pending) == ({cancelled}, {other})

    @pytest.mark.parametrize("delay", [0, 0.001])
    async def test_timeout(self, loop, kit, delay):
        future = loop.create_future()
        assert await kit.wait([future], timeout=delay) == (set(), {future})
        assert not future._callbacks

    async def test_a_timer_that_is_not_needed_is_cancelled(self, loop, kit):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        assert await kit.wait([future], timeout=1000) == ({future}, set())

    async def test_cancelling_it_leaves_nothing_behind(self, loop, kit):
        futures = [loop.create_future() for _ in range(3)]
        waiter = loop.create_task(kit.wait(futures, timeout=1000))
        await asyncio.sleep(0)
        assert all(len(future._callbacks) == 1 for future in futures)
        waiter.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert not any(future._callbacks or future.cancelled() for future in futures)

    async def test_other_callbacks_stay(self, loop, kit):
        called = []
        future = loop.create_future()
        future.add_done_callback(called.append)
        await kit.wait([future], timeout=0)
        future.set_result(None)
        await asyncio.sleep(0)
        assert called == [future]

    async def test_refusals(self, loop, kit):
        async def refused(error, *args, **kwargs):
            with pytest.raises(error) as caught:
                await kit.wait(*args, **kwargs)
            return str(caught.value)

        future = loop.create_future()
        coroutine = turns(0)
        assert await refused(TypeError, future) == "expect a list of futures, not Future"
        assert await refused(TypeError, coroutine) == "expect a list of futures, not coroutine"
        assert "is empty" in await refused(ValueError, [])
        assert "return_when value: 7" in await refused(ValueError, [future], return_when=7)
        assert "Passing coroutines is forbidden" in await refused(TypeError, [future, coroutine])
        assert "add_done_callback" in await refused(AttributeError, [1])
        await refused(TypeError, [future], timeout="soon")
        await refused(TypeError, 1)
        with pytest.raises(TypeError, match=r"takes 1 positional argument but 2 were given"):
            kit.wait([future], 1)
        coroutine.close()

    def test_wants_a_running_loop(self, kit, loop):
        future = loop.create_future()
        with pytest.raises(RuntimeError, match="no running event loop"):
            kit.wait([future]).send(None)

    async def test_futures_of_other_kinds(self, loop, kit):
        class Own(asyncio.Future):
            pass

        futures = [Own(loop=loop), asyncio.futures._PyFuture(loop=loop), loop.create_future(), asyncio.Future()]
        waiter = loop.create_task(kit.wait(futures))
        for n, future in enumerate(futures):
            await asyncio.sleep(0)
            assert not waiter.done()
            future.set_result(n)
        done, _ = await waiter
        assert done == set(futures)


class TestShield:
    async def test_the_inner_task_survives_the_outer_one(self, loop, kit):
        inner = loop.create_task(turns(5))
        outer = kit.shield(inner)
        await asyncio.sleep(0)
        assert len(inner._callbacks) == 1 + (sys.version_info >= (3, 14) and kit is stock)
        assert outer.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await outer
        await turns(1)
        assert not inner._callbacks
        assert await inner == 5

    async def test_what_the_inner_task_ends_with(self, loop, kit):
        async def fail():
            await turns(1)
            raise ValueError("no")

        assert await kit.shield(turns(2)) == 2
        with pytest.raises(ValueError, match="no"):
            await kit.shield(fail())
        inner = loop.create_task(turns(9))
        loop.call_soon(inner.cancel)
        outer = kit.shield(inner)
        with pytest.raises(asyncio.CancelledError):
            await outer
        assert outer.cancelled()

    async def test_a_future_that_is_done_is_returned(self, loop, kit):
        future = loop.create_future()
        future.set_result(1)
        assert kit.shield(future) is future

    async def test_futures_of_other_kinds(self, loop, kit):
        class Own(asyncio.Future):
            pass

        class Awaitable:
            def __await__(self):
                return (yield from turns(2).__await__())

        for future in (Own(loop=loop), asyncio.futures._PyFuture(loop=loop), asyncio.Future()):
            loop.call_soon(future.set_result, 7)
            assert await kit.shield(future) == 7
        assert await kit.shield(Awaitable()) == 2
        with pytest.raises(TypeError, match=r"[aA]n? (asyncio.Future|awaitable)"):
            kit.shield(1)

    async def test_an_exception_after_the_outer_future_was_cancelled(self, loop, kit, handled):
        """Whether it counts as retrieved differs between versions."""
        told = []
        for shield in (stock.shield, kit.shield):
            inner = loop.create_future()
            outer = shield(inner)
            inner.set_exception(ValueError("late"))
            outer.cancel()
            await turns(3)
            told.append(inner._log_traceback)
            inner._log_traceback = False
        assert told[0] == told[1]
        assert not handled

    async def test_its_futures_die_with_their_tasks(self, loop, kit):
        inner = loop.create_task(turns(1))
        refs = [weakref.ref(inner), weakref.ref(kit.shield(inner))]
        await inner
        del inner
        await turns(3)
        gc.collect()
        assert [ref() for ref in refs] == [None, None]

    async def test_a_pending_pair_dies_in_a_cycle(self, loop, kit):
        inner = loop.create_future()
        inner.outer = kit.shield(inner)
        refs = [weakref.ref(inner), weakref.ref(inner.outer)]
        del inner
        gc.collect()
        assert [ref() for ref in refs] == [None, None]


class TestWaitFor:
    @pytest.mark.parametrize("delay", [None, 1000])
    async def test_in_time(self, loop, kit, delay):
        class Awaitable:
            def __await__(self):
                return (yield from turns(2).__await__())

        future = loop.create_future()
        loop.call_soon(future.set_result, "set")
        assert await kit.wait_for(turns(3), delay) == 3
        assert await kit.wait_for(loop.create_task(turns(2)), delay) == 2
        assert await kit.wait_for(future, delay) == "set"
        assert await kit.wait_for(future, delay) == "set"
        assert await kit.wait_for(kit.sleep(0, "slept"), timeout=delay) == "slept"
        assert await kit.wait_for(Awaitable(), delay) == 2
        assert await kit.wait_for(kit.wait_for(turns(1), delay), delay) == 1

    async def test_too_late(self, loop, kit):
        ends = []

        async def linger(result=None):
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                ends.append("cancelled")
                await turns(2)
                if result:
                    return result
                raise

        with pytest.raises(asyncio.TimeoutError) as caught:
            await kit.wait_for(linger(), 0.001)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        assert caught.value.__context__ is caught.value.__cause__
        assert ends == ["cancelled"]
        assert await kit.wait_for(linger("kept"), 0.001) == "kept"
        assert asyncio.current_task().cancelling() == 0

    @pytest.mark.parametrize("delay", [0, -1])
    async def test_no_time_at_all(self, loop, kit, delay):
        future = loop.create_future()
        with pytest.raises(asyncio.TimeoutError):
            await kit.wait_for(future, delay)
        assert future.cancelled()
        future = loop.create_future()
        future.set_result(1)
        assert await kit.wait_for(future, delay) == 1

    async def test_failures_pass_through(self, loop, kit):
        async def fail():
            await turns(1)
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await kit.wait_for(fail(), 1000)
        with pytest.raises(TypeError):
            await kit.wait_for(1, 1000)
        with pytest.raises(TypeError):
            await kit.wait_for(loop.create_future(), "soon")

    async def test_cancelled_from_outside(self, loop, kit):
        inner = loop.create_task(asyncio.sleep(1000))
        waiter = loop.create_task(kit.wait_for(inner, 1000))
        await turns(2)
        waiter.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert inner.cancelled()

    @pytest.mark.skipif(sys.version_info < (3, 12), reason=TASK)
    async def test_closing_it_closes_what_it_waits_for(self, loop, kit):
        ends = []

        async def linger():
            try:
                await loop.create_future()
            except GeneratorExit:
                ends.append("closed")
                raise

        coroutine = kit.wait_for(linger(), 1000)
        coroutine.send(None)
        coroutine.close()
        coroutine = kit.wait_for(linger(), 1000)
        coroutine.send(None)
        del coroutine
        gc.collect()
        assert ends == ["closed", "closed"]

    @pytest.mark.skipif(sys.version_info < (3, 12), reason=TASK)
    async def test_as_a_coroutine(self, loop, kit):
        inner = turns(2)
        coroutine = kit.wait_for(inner, 1000)
        assert coroutine.send(None) is None
        assert coroutine.cr_await is not None
        with pytest.raises(RuntimeError, match="being awaited already"):
            await kit.wait_for(inner, 1000)
        assert coroutine.send(None) is None
        with pytest.raises(StopIteration) as stop:
            coroutine.send(None)
        assert stop.value.value == 2

    @pytest.mark.skipif(sys.version_info < (3, 12), reason=TASK)
    async def test_a_coroutine_that_runs_itself(self, loop, kit):
        async def inner():
            with pytest.raises(ValueError, match="already executing"):
                coroutine.send(None)
            return "ran"

        coroutine = kit.wait_for(inner(), 1000)
        assert await coroutine == "ran"

    @pytest.mark.skipif(sys.version_info < (3, 12), reason=TASK)
    async def test_exceptions_thrown_in_reach_the_inner_coroutine(self, loop, kit):
        async def inner():
            try:
                await asyncio.sleep(0)
            except KeyError as error:
                await asyncio.sleep(0)
                return error

        coroutine = kit.wait_for(inner(), None)
        coroutine.send(None)
        error = KeyError()
        assert coroutine.throw(error) is None
        with pytest.raises(StopIteration) as stop:
            coroutine.send(None)
        assert stop.value.value is error


class TestTaskGroup:
    async def test_tasks(self, loop, kit):
        async with kit.TaskGroup() as group:
            tasks = [group.create_task(turns(n)) for n in range(5)]
            assert group._tasks == set(tasks)
            assert repr(group) == "<TaskGroup tasks=5 entered>"
            assert all("cb=[TaskGroup._on_task_done()]" in repr(task) for task in tasks)
        assert [task.result() for task in tasks] == [*range(5)]
        assert not group._tasks

    async def test_names_and_contexts(self, loop, kit):
        async def show():
            return asyncio.current_task().get_name(), VAR.get()

        context = contextvars.copy_context()
        context.run(VAR.set, "inside")
        async with kit.TaskGroup() as group:
            tasks = [
                group.create_task(show(), name="A"),
                group.create_task(show(), context=context),
                group.create_task(show(), name="B", context=context),
                group.create_task(show(), name=None, context=None),
            ]
        assert [task.result() for task in tasks][::2] == [("A", "outside"), ("B", "inside")]
        assert [task.result()[1] for task in tasks] == ["outside", "inside", "inside", "outside"]
        assert tasks[1].get_name() == tasks[1].result()[0]

    async def test_a_failure_cancels_the_others(self, loop, kit):
        async def fail():
            await turns(2)
            raise ValueError("no")

        others = []

        async def use():
            async with group:
                others.append(group.create_task(asyncio.sleep(1000)))
                group.create_task(fail())

        group = kit.TaskGroup()
        with pytest.raises(ExceptionGroup) as caught:
            await use()
        assert [repr(error) for error in caught.value.exceptions] == ["ValueError('no')"]
        assert others[0].cancelled()
        assert "cancelling" in repr(group)

    async def test_refusals(self, loop, kit):
        async def refused(group, match):
            coroutine = turns(0)
            with pytest.raises(RuntimeError, match=match):
                group.create_task(coroutine)
            coroutine.close()

        group = kit.TaskGroup()
        await refused(group, "has not been entered")
        async with group:
            with pytest.raises(TypeError, match="coroutine was expected"):
                group.create_task(1)
            with pytest.raises(RuntimeError, match="already been entered"):
                await group.__aenter__()
        await refused(group, "is finished")
        async with kit.TaskGroup() as group:
            group.create_task(asyncio.sleep(1000))
            group._abort()
            await refused(group, "is shutting down")

    async def test_subclasses(self, loop, kit):
        class Named(kit.TaskGroup):
            def __init__(self):
                super().__init__()
                self.made = []

            def create_task(self, coro, *, name=None):
                task = super().create_task(coro, name=f"my {name}")
                self.made.append(task.get_name())
                return task

        class Watching(kit.TaskGroup):
            def __init__(self):
                super().__init__()
                self.done = []

            def _on_task_done(self, task):
                self.done.append(task)
                super()._on_task_done(task)

        async with Named() as named:
            named.create_task(turns(1), name="task")
        assert named.made == ["my task"]
        async with Watching() as watching:
            tasks = [watching.create_task(turns(n)) for n in (1, 2)]
        assert watching.done == tasks

    async def test_a_loop_with_its_own_create_task(self, loop, kit, monkeypatch):
        made = []

        def factory(loop, coro, **kwargs):
            made.append(coro)
            return asyncio.Task(coro, loop=loop, **kwargs)

        loop.set_task_factory(factory)
        async with kit.TaskGroup() as group:
            group.create_task(turns(1))
            loop.set_task_factory(None)
            group.create_task(turns(2))
        assert len(made) == 1
        create_task = loop.create_task
        if type(loop).__module__ != "uvloop":
            monkeypatch.setattr(loop, "create_task", lambda coro, **k: made.append(coro) or create_task(coro, **k))
            async with kit.TaskGroup() as group:
                group.create_task(turns(1))
            assert len(made) == 2

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
    async def test_eager_tasks(self, loop, kit):
        def eagerly(loop, coro, name=None, context=None, **_):
            return asyncio.Task(coro, loop=loop, name=name, context=context, eager_start=True)

        loop.set_task_factory(eagerly)
        async with kit.TaskGroup() as group:
            tasks = [group.create_task(turns(n)) for n in (0, 1)]
            assert [task.done() for task in tasks] == [True, False]
        assert [task.result() for task in tasks] == [0, 1]

    async def test_the_failure_of_a_task_is_dealt_with_in_its_creators_context(self, loop, kit):
        seen = []

        class Parent(kit.TaskGroup):
            def _abort(self):
                seen.append(VAR.get())
                super()._abort()

        async def fail():
            await turns(1)
            raise ValueError

        async def use():
            async with Parent() as group:
                group.create_task(turns(1))
                group.create_task(fail())

        VAR.set("creator")
        with pytest.raises(ExceptionGroup):
            await use()
        assert seen == ["creator"]

    @pytest.mark.skipif(sys.version_info < (3, 15), reason="TaskGroup.cancel() came with 3.15")
    async def test_cancel(self, loop, kit):
        async with kit.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(1000)) for _ in range(3)]
            group.cancel()
        assert all(task.cancelled() for task in tasks)

    async def test_a_group_that_is_over_dies_at_once(self, loop, kit):
        gc.disable()
        try:
            async with kit.TaskGroup() as group:
                group.create_task(turns(1))
            ref = weakref.ref(group)
            del group
            assert ref() is None
        finally:
            gc.enable()

    async def test_a_group_with_its_tasks_dies_in_a_cycle(self, loop, kit):
        group = kit.TaskGroup()
        await group.__aenter__()
        future = loop.create_future()

        async def wait(future):
            await future

        task = group.create_task(wait(future))
        await asyncio.sleep(0)
        task._log_destroy_pending = False
        group.future = future
        refs = [weakref.ref(group), weakref.ref(task)]
        del group, task, future
        await asyncio.sleep(0)
        gc.collect()
        assert [ref() for ref in refs] == [None, None]


def test_a_loop_that_stops_before_its_callbacks_ran(backend, kit):
    """Futures that are done, whose callbacks are still to come."""
    loop = backend.new_event_loop()
    futures = [loop.create_future() for _ in range(3)]
    waiter = loop.create_task(kit.wait(futures))

    def settle():
        for future in futures:
            future.set_result(None)
        loop.stop()

    loop.call_later(0, loop.call_soon, settle)
    loop.run_forever()
    assert not waiter.done()
    gc.collect()
    assert loop.run_until_complete(waiter) == (set(futures), set())
    loop.close()


async def test_waiting_for_an_iterator_of_nothing(loop, kit):
    """It is true, so only looking into it tells."""
    with pytest.raises(AssertionError, match="Set of Futures is empty"):
        await kit.wait(iter(()))


def test_what_a_subclass_of_a_future_runs_sees_its_context(backend, kit):
    seen = []

    async def main():
        loop = asyncio.get_running_loop()

        class Watched(type(loop.create_future())):
            def exception(self):
                seen.append(VAR.get())
                return super().exception()

        VAR.set("inside")
        future = Watched(loop=loop)
        gathered = asyncio.ensure_future(kit.gather(future))
        await asyncio.sleep(0)
        future.set_result(1)
        assert await gathered == [1]

    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        runner.run(main())
    assert set(seen) == {"inside"}
