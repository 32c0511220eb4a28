"""The coroutines of native functions: to send, throw, close, inspect and forget, as those of asyncio are."""

import asyncio
import collections.abc
import gc
import inspect
import pickle
import sys
import types
import warnings
import weakref

import pytest
import tideloop
from tideloop import accelerated, stock

COROUTINE_FUNCTIONS = [
    (tideloop.sleep, stock.sleep),
    (tideloop.Queue.get, stock.Queue.get),
    (tideloop.Queue.put, stock.Queue.put),
    (tideloop.Queue.join, stock.Queue.join),
    (tideloop.Lock.acquire, stock.Lock.acquire),
    (tideloop.Semaphore.acquire, stock.Semaphore.acquire),
    (tideloop.Semaphore.__aexit__, stock.Semaphore.__aexit__),
    (tideloop.Event.wait, stock.Event.wait),
    (tideloop.Timeout.__aenter__, stock.Timeout.__aenter__),
    (tideloop.wait, stock.wait),
    (tideloop.wait_for, stock.wait_for),
]
FUNCTIONS = [
    (tideloop.Queue.put_nowait, stock.Queue.put_nowait),
    (tideloop.Semaphore.release, stock.Semaphore.release),
    (accelerated.gather, stock.gather),
    (accelerated.shield, stock.shield),
    (tideloop.create_task, stock.create_task),
    (tideloop.TaskGroup.create_task, stock.TaskGroup.create_task),
    (tideloop.timeout, stock.timeout),
]


@pytest.mark.parametrize(("native", "original"), COROUTINE_FUNCTIONS)
def test_is_a_coroutine_function(native, original):
    assert inspect.iscoroutinefunction(native)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert asyncio.iscoroutinefunction(native)


@pytest.mark.parametrize(("native", "original"), COROUTINE_FUNCTIONS + FUNCTIONS)
def test_looks_like_its_original(native, original):
    assert inspect.isfunction(native)
    assert inspect.signature(native) == inspect.signature(original)
    for name in ("__name__", "__qualname__", "__doc__", "__defaults__", "__kwdefaults__"):
        assert getattr(native, name) == getattr(original, name)
    assert native.__code__ is original.__code__
    assert repr(native).startswith(f"<function {original.__qualname__} at 0x")


def test_bound_methods():
    queue = tideloop.Queue()
    assert inspect.ismethod(queue.get)
    assert inspect.iscoroutinefunction(queue.get)
    assert str(inspect.signature(queue.put)) == "(item)"
    assert queue.get == queue.get
    assert queue.get.__self__ is queue


def test_functions_are_pickled_by_name():
    for native in (tideloop.sleep, tideloop.Queue.get, tideloop.gather):
        assert pickle.loads(pickle.dumps(native)) is native


def test_wrong_arguments_are_refused_in_the_words_of_the_original():
    def complaint(function, *args, **kwargs):
        with pytest.raises(TypeError) as caught:
            function(*args, **kwargs)
        return str(caught.value)

    for call in [(), (1, 2), (1, 2, 3)]:
        assert complaint(tideloop.Queue().put, *call[1:], **({"x": 1} if call else {})) == complaint(
            stock.Queue().put, *call[1:], **({"x": 1} if call else {})
        )
    assert complaint(tideloop.sleep) == complaint(stock.sleep)
    assert complaint(tideloop.sleep, 1, 2, 3) == complaint(stock.sleep, 1, 2, 3)
    assert complaint(tideloop.sleep, 1, delay=2) == complaint(stock.sleep, 1, delay=2)


async def test_keywords(loop):
    queue = tideloop.Queue(maxsize=3)
    await queue.put(item=5)
    assert queue.get_nowait() == 5
    assert await tideloop.sleep(delay=0, result=7) == 7
    assert await tideloop.sleep(0, result=8) == 8


def test_is_a_coroutine():
    operation = tideloop.Queue().get()
    assert inspect.iscoroutine(operation)
    assert inspect.isawaitable(operation)
    assert asyncio.iscoroutine(operation)
    assert isinstance(operation, collections.abc.Coroutine)
    assert isinstance(operation, types.CoroutineType)
    assert repr(operation).startswith("<coroutine object Queue.get at 0x")
    assert operation.cr_code is stock.Queue.get.__code__
    assert (operation.__name__, operation.__qualname__) == ("get", "Queue.get")
    operation.close()


async def test_state_in_the_course_of_its_life(loop):
    queue = tideloop.Queue()
    operation = queue.get()
    assert inspect.getcoroutinestate(operation) == inspect.CORO_CREATED
    assert operation.cr_await is None
    future = operation.send(None)
    assert inspect.getcoroutinestate(operation) == inspect.CORO_SUSPENDED
    assert operation.cr_await is future
    assert operation.cr_frame.f_code is stock.Queue.get.__code__
    with pytest.raises(RuntimeError, match="being awaited already"):
        await operation
    queue.put_nowait("item")
    with pytest.raises(StopIteration) as stop:
        operation.send(None)
    assert stop.value.value == "item"
    assert inspect.getcoroutinestate(operation) == inspect.CORO_CLOSED
    assert operation.cr_frame is None
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        await operation


def test_the_first_value_sent_must_be_none():
    operation = tideloop.Event().wait()
    with pytest.raises(TypeError, match="can't send non-None value to a just-started coroutine"):
        operation.send(1)
    operation.close()


async def test_awaiting_what_is_not_done_twice_is_an_error(loop):
    """A task that does not look at the future which it was handed."""
    event = tideloop.Event()
    operation = event.wait()
    operation.send(None)
    with pytest.raises(RuntimeError, match="await wasn't used with future"):
        operation.send(None)
    assert not event._waiters


@pytest.mark.parametrize("form", ["instance", "class", "class and value", "class and tuple"])
async def test_throw(loop, form):
    event = tideloop.Event()
    operation = event.wait()
    operation.send(None)
    given = {
        "instance": (ValueError("no"),),
        "class": (ValueError,),
        "class and value": (ValueError, "no"),
        "class and tuple": (ValueError, ("no", 1)),
    }[form]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(ValueError, match="^$" if form == "class" else "no"):
            operation.throw(*given)
    assert not event._waiters


def test_throw_before_the_beginning_ends_it():
    operation = tideloop.Event().wait()
    with pytest.raises(KeyError):
        operation.throw(KeyError())
    with pytest.raises(RuntimeError):
        operation.send(None)


@pytest.mark.parametrize("bad", [(), (1,), (ValueError(), 1), (ValueError, 1, 2, 3)])
def test_throw_of_something_else(bad):
    operation = tideloop.Event().wait()
    with pytest.raises(TypeError):
        operation.throw(*bad)
    operation.close()


async def test_dropping_a_waiter_takes_it_out_of_the_queue(loop):
    for primitive, begin in [
        (tideloop.Event(), "wait"),
        (tideloop.Queue(), "get"),
        (tideloop.Semaphore(0), "acquire"),
    ]:
        operation = getattr(primitive, begin)()
        operation.send(None)
        assert "1" in repr(primitive).rpartition("0x")[2].partition(" ")[2]
        del operation
        gc.collect()
        waiters = primitive._getters if begin == "get" else primitive._waiters
        assert not waiters


def test_never_awaited():
    def warning(make):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make()
            gc.collect()
        return [(str(one.message), one.category) for one in caught]

    native, original = tideloop.Queue(), stock.Queue()
    assert warning(native.get) == warning(original.get) != []
    assert warning(lambda: native.put(1)) == warning(lambda: original.put(1))


async def test_closing_before_the_beginning_does_not_warn(loop):
    tideloop.Queue().get().close()
    gc.collect()


async def test_in_other_coroutine_forms(loop):
    class Awaitable:
        def __init__(self, coroutine):
            self.coroutine = coroutine

        def __await__(self):
            return (yield from self.coroutine.__await__())

    @types.coroutine
    def generator(coroutine):
        return (yield from coroutine)

    queue = tideloop.Queue()
    for form in (Awaitable, generator, asyncio.ensure_future, asyncio.shield, lambda c: asyncio.wait_for(c, 10)):
        loop.call_soon(queue.put_nowait, form)
        assert await form(queue.get()) is form


async def test_a_returned_value_is_not_kept(loop):
    class Item:
        pass

    queue = tideloop.Queue()
    await queue.put(Item())
    item = await queue.get()
    ref = weakref.ref(item)
    del item
    assert ref() is None


async def test_a_cycle_through_an_operation_dies(loop):
    class Holder:
        pass

    for started in (False, True):
        holder = Holder()
        holder.event = tideloop.Event()
        holder.operation = holder.event.wait()
        holder.event.holder = holder
        if started:
            holder.operation.send(None)
        ref = weakref.ref(holder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            del holder
            gc.collect()
        assert ref() is None


async def test_many_operations_leak_nothing(loop):
    queue, semaphore = tideloop.Queue(1), tideloop.Semaphore()

    async def work(n):
        for _ in range(n):
            async with semaphore:
                await queue.put([])
                await queue.get()
                task = asyncio.ensure_future(queue.get())
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])

    await work(300)
    gc.collect()
    before = len(gc.get_objects())
    await work(1000)
    gc.collect()
    assert len(gc.get_objects()) - before < 500


def test_a_cycle_through_an_operation_that_was_frozen_before_is_found(runner):
    """Operations are used again; the collector must take each use for a new object."""

    class Marked(tideloop.Event):
        pass

    async def main():
        done = Marked()
        done.set()
        await done.wait()
        gc.freeze()
        try:
            event = Marked()
            event.waiting = event.wait()
            event.waiting.send(None)
            ref = weakref.ref(event)
            del event
            gc.collect()
            assert ref() is None
        finally:
            gc.unfreeze()

    runner.run(main())


class TestTheCollectorIsToldLate:
    """An operation that is used again is not in the collector's lists from the start."""

    @staticmethod
    async def a_cycle(start):
        """A weak reference to an event that holds an operation of its own, which an earlier one left its memory."""
        ready = tideloop.Event()
        ready.set()
        await ready.wait()

        class Marked(tideloop.Event):
            pass

        event = Marked()
        event.waiting = event.wait()
        if start:
            event.waiting.send(None)
        return weakref.ref(event)

    @pytest.mark.parametrize("start", [False, True])
    @pytest.mark.parametrize("generation", [0, 2])
    def test_a_cycle_is_found_by_the_next_collection(self, runner, start, generation):
        async def main():
            gc.collect()
            gc.disable()
            try:
                ref = await self.a_cycle(start)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)
                    gc.collect(generation)
                    if sys.version_info >= (3, 14) and generation == 0:
                        gc.collect()  # what the young collection of 3.14 looks at, it may leave to the next one
                return ref()
            finally:
                gc.enable()

        assert runner.run(main()) is None

    def test_without_callbacks_it_is_found_once_the_function_is_called_again(self, runner):
        async def main():
            callbacks = gc.callbacks[:]
            gc.callbacks.clear()
            try:
                ref = await self.a_cycle(False)
                tideloop.Event().wait().close()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)
                    gc.collect()
                return ref()
            finally:
                gc.callbacks.extend(callbacks)

        assert runner.run(main()) is None

    def test_a_task_owns_it_first(self, runner):
        """The loop hides what its tasks own; that must not lose what was not in the lists before."""

        class Marked(tideloop.Event):
            pass

        async def main():
            await self.a_cycle(True)
            event = Marked()
            event.task = asyncio.ensure_future(event.wait())
            await asyncio.sleep(0)
            event.task.cancel()
            await asyncio.wait([event.task])
            event.again = asyncio.get_running_loop().create_task(event.wait())
            event.again.cancel()
            await asyncio.wait([event.again])
            event.last = event.wait()
            ref = weakref.ref(event)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                del event
                gc.collect()
            return ref()

        assert runner.run(main()) is None
