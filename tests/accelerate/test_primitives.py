"""What programs do with asyncio's primitives besides waiting: subclass, inspect, misuse and bind them."""

import asyncio
import collections
import copy
import gc
import inspect
import weakref

import pytest
import tideloop
from tideloop import stock

NAMES = [
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "LifoQueue",
    "Lock",
    "PriorityQueue",
    "Queue",
    "Semaphore",
]


def make(kit, name):
    return getattr(kit, name)(*((2,) if name == "Barrier" else ()))


@pytest.fixture(params=["stock", "native"])
def kit(request):
    return stock if request.param == "stock" else tideloop


@pytest.mark.parametrize("name", [*NAMES, "TaskGroup", "Timeout"])
def test_is_asyncios_and_looks_like_it(name):
    native, original = getattr(tideloop, name), getattr(stock, name)
    assert issubclass(native, original)
    assert native.__doc__ == original.__doc__
    assert native.__name__ == original.__name__
    given, expected = ([*inspect.signature(kind).parameters.values()] for kind in (native, original))
    assert [parameter.name for parameter in given[: len(expected)]] == [parameter.name for parameter in expected]
    # What the toolkit adds does not get in the way of asyncio's arguments.
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in given[len(expected) :])
    public = {attribute for attribute in dir(original) if not attribute.startswith("_")}
    assert public <= set(dir(native))
    for attribute in public:
        mine, theirs = getattr(native, attribute), getattr(original, attribute)
        if callable(theirs):
            assert inspect.signature(mine) == inspect.signature(theirs)
            assert inspect.iscoroutinefunction(mine) == inspect.iscoroutinefunction(theirs)


@pytest.mark.parametrize("name", [*NAMES, "TaskGroup"])
def test_is_weakly_referable_has_a_dict_and_dies_in_a_cycle(name):
    primitive = make(tideloop, name)
    primitive.self = primitive
    ref = weakref.ref(primitive)
    del primitive
    gc.collect()
    assert ref() is None


def test_bad_values(kit):
    for call, complaint in (
        (lambda: kit.Semaphore(-1), "initial value must be >= 0"),
        (lambda: kit.BoundedSemaphore(-1), "initial value must be >= 0"),
        (lambda: kit.BoundedSemaphore().release(), "BoundedSemaphore released too many times"),
        (lambda: kit.Queue().task_done(), "called too many times"),
    ):
        with pytest.raises(ValueError, match=complaint):
            call()
    with pytest.raises(RuntimeError, match="Lock is not acquired"):
        kit.Lock().release()
    with pytest.raises(asyncio.QueueEmpty):
        kit.Queue().get_nowait()
    queue = kit.Queue(1)
    queue.put_nowait(1)
    with pytest.raises(asyncio.QueueFull):
        queue.put_nowait(2)


@pytest.mark.parametrize("maxsize", [0, -1, 1, 2.5, True])
def test_maxsize(kit, maxsize):
    queue = kit.Queue(maxsize)
    for n in range(3):
        if not queue.full():
            queue.put_nowait(n)
    assert queue.maxsize is maxsize
    assert queue.qsize() == {0: 3, -1: 3, 1: 1, 2.5: 3}[maxsize]


async def test_maxsize_can_change(loop, kit):
    queue = kit.Queue(1)
    await queue.put(1)
    assert queue.full()
    queue._maxsize = 2
    assert not queue.full()


@pytest.mark.parametrize("name", ["Lock", "Semaphore", "Event", "Queue"])
def test_bound_to_the_loop_of_its_first_waiter(backend, kit, name):
    primitive = getattr(kit, name)(*((0,) if name == "Semaphore" else ()))
    method = {"Lock": "acquire", "Semaphore": "acquire", "Event": "wait", "Queue": "get"}[name]

    async def wait_in_vain():
        if name == "Lock":
            primitive._locked = True
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(getattr(primitive, method)(), 0.001)

    async def wait_elsewhere():
        with pytest.raises(RuntimeError, match="is bound to a different event loop"):
            await getattr(primitive, method)()

    for main in (wait_in_vain, wait_elsewhere):
        with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
            runner.run(main())


async def test_queue_hooks(loop, kit):
    class Doubling(kit.Queue):
        def _init(self, maxsize):
            self._queue = []

        def _put(self, item):
            self._queue.append(item * 2)

        def _get(self):
            return self._queue.pop()

    queue = Doubling(2)
    getter = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    await queue.put(1)
    assert await getter == 2
    for item in (1, 2):
        queue.put_nowait(item)
    putter = asyncio.ensure_future(queue.put(3))
    await asyncio.sleep(0)
    assert "_putters[1]" in repr(queue)
    assert [await queue.get() for _ in range(3)] == [4, 2, 6]
    await putter
    for _ in range(4):
        queue.task_done()
    await asyncio.wait_for(queue.join(), 10)


async def test_queue_with_a_bounded_put_nowait(loop, kit):
    """Only a public method that the queue calls on itself is overridden."""

    class Latest(kit.Queue):
        def put_nowait(self, item):
            if self.full():
                self.get_nowait()
            super().put_nowait(item)

        def full(self):
            return super().full()

    queue = Latest(1)
    queue.put_nowait(1)
    queue.put_nowait(2)
    assert await queue.get() == 2


async def test_queue_with_extended_methods_stays_native(loop):
    class Counting(tideloop.Queue):
        gets = 0

        async def get(self):
            self.gets += 1
            return await super().get()

    queue = Counting()
    await queue.put("x")
    assert await queue.get() == "x"
    assert queue.gets == 1


async def test_semaphore_hooks(loop, kit):
    class Noisy(kit.Semaphore):
        def __init__(self, value=1):
            super().__init__(value)
            self.said = []

        async def acquire(self):
            self.said.append("acquire")
            return await super().acquire()

        def release(self):
            self.said.append("release")
            super().release()

    semaphore = Noisy()
    async with semaphore:
        assert semaphore.locked()
    assert semaphore.said == ["acquire", "release"]


async def test_lock_hooks(loop, kit):
    class Counting(kit.Lock):
        count = 0

        async def acquire(self):
            self.count += 1
            return await super().acquire()

    lock = Counting()
    async with lock:
        waiter = asyncio.ensure_future(lock.acquire())
        await asyncio.sleep(0)
    assert await waiter is True
    assert lock.count == 2


def test_a_bounded_subclass_keeps_its_bound(kit):
    class Loud(kit.BoundedSemaphore):
        def locked(self):
            return super().locked()

    semaphore = Loud(1)
    with pytest.raises(ValueError, match="released too many times"):
        semaphore.release()


async def test_emptying_a_queue_from_outside(loop, kit):
    """A recipe that is found in many programs."""
    queue = kit.Queue()
    for n in range(3):
        queue.put_nowait(n)
    joiner = asyncio.ensure_future(queue.join())
    await asyncio.sleep(0)
    queue._queue.clear()
    queue._finished.set()
    queue._unfinished_tasks = 0
    await asyncio.wait_for(joiner, 10)
    assert queue.empty()
    queue.put_nowait(4)
    assert await queue.get() == 4


def test_items_can_be_seen_and_changed(kit):
    queue = kit.Queue()
    queue.put_nowait(1)
    assert isinstance(queue._queue, collections.deque)
    queue._queue.appendleft(0)
    assert [queue.get_nowait(), queue.get_nowait()] == [0, 1]
    heap = kit.PriorityQueue()
    for item in (3, 1, 2):
        heap.put_nowait(item)
    assert heap._queue[0] == 1
    pile = kit.LifoQueue()
    pile.put_nowait(1)
    pile.put_nowait(2)
    assert pile._queue == [1, 2]


async def test_a_comparison_that_fails_loses_nothing(loop, kit):
    queue = kit.PriorityQueue()
    await queue.put((1, "a"))
    with pytest.raises(TypeError):
        await queue.put((1, None))
    assert queue.qsize() == 2  # heappush appends before it compares
    assert queue._unfinished_tasks == 1


def test_primitives_cannot_be_copied_or_can_as_asyncios(kit):
    for name in ("Lock", "Event"):
        try:
            copied = copy.copy(make(kit, name))
        except TypeError:
            assert kit is tideloop
        else:
            assert type(copied) is getattr(kit, name)


@pytest.mark.parametrize("delay", [0, -1, 0.001])
async def test_sleep(loop, kit, delay):
    assert await kit.sleep(delay, "x") == "x"
    assert await kit.sleep(delay) is None
    with pytest.raises(TypeError):
        await kit.sleep("soon")


async def test_a_cancelled_sleep_cancels_its_timer(loop):
    task = asyncio.ensure_future(tideloop.sleep(1000))
    await asyncio.sleep(0)
    task.cancel("why")
    with pytest.raises(asyncio.CancelledError):
        await task


def test_sleep_wants_a_running_loop(kit):
    with pytest.raises(RuntimeError, match="no running event loop"):
        kit.sleep(1).send(None)


async def test_gather(loop, kit):
    async def give(value, turns=0):
        for _ in range(turns):
            await asyncio.sleep(0)
        if isinstance(value, Exception):
            raise value
        return value

    future = loop.create_future()
    future.set_result("done")
    shared = asyncio.ensure_future(give("shared", 3))
    assert await kit.gather(give(1, 2), give(2), future, shared, shared) == [1, 2, "done", "shared", "shared"]
    assert await kit.gather() == []
    error = ValueError("no")
    assert await kit.gather(give(error), give(1), return_exceptions=True) == [error, 1]
    sibling = asyncio.ensure_future(give(1, 5))
    with pytest.raises(ValueError, match="no"):
        await kit.gather(sibling, give(error))
    assert await sibling == 1
    with pytest.raises(TypeError, match=r"an awaitable is required|A coroutine"):
        await kit.gather(1)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        kit.gather(future, depth=1)


@pytest.mark.parametrize("return_exceptions", [False, True])
async def test_a_cancelled_gather_cancels_its_children(loop, kit, return_exceptions):
    children = [asyncio.ensure_future(asyncio.sleep(1000)) for _ in range(3)]
    outer = kit.gather(*children, return_exceptions=return_exceptions)
    await asyncio.sleep(0)
    outer.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert all(child.cancelled() for child in children)


async def test_a_cancelled_child_is_an_exception_of_gather(loop, kit):
    child = asyncio.ensure_future(asyncio.sleep(1000))
    outer = kit.gather(child, return_exceptions=True)
    await asyncio.sleep(0)
    child.cancel()
    (result,) = await outer
    assert isinstance(result, asyncio.CancelledError)
    assert result.args == ("",)


async def test_timeout(loop, kit):
    async with kit.timeout(1000) as timeout:
        assert isinstance(timeout, kit.Timeout)
        assert "active" in repr(timeout)
        timeout.reschedule(loop.time() + 2000)
    assert "finished" in repr(timeout)
    assert not timeout.expired()
    with pytest.raises(RuntimeError, match="already been entered"):
        async with timeout:
            pass
    with pytest.raises(TimeoutError):
        async with kit.timeout(0.001) as timeout:
            await asyncio.sleep(1000)
    assert timeout.expired()
    with pytest.raises(TimeoutError) as caught:
        async with kit.timeout_at(loop.time() - 1):
            await asyncio.sleep(1000)
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    async with kit.timeout(None) as timeout:
        assert timeout.when() is None
    with pytest.raises(ValueError, match="mine"):
        async with kit.timeout(1000):
            raise ValueError("mine")


async def test_a_cancellation_from_outside_is_no_timeout(loop, kit):
    async def work():
        async with kit.timeout(1000):
            await asyncio.sleep(1000)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_timeout_wants_a_task(backend, kit):
    loop = backend.new_event_loop()
    complaints = []

    def enter():
        with pytest.raises(RuntimeError, match="inside a task") as caught:
            kit.timeout(1).__aenter__().send(None)
        complaints.append(caught.value)
        loop.stop()

    loop.call_soon(enter)
    loop.run_forever()
    loop.close()
    assert complaints


async def test_wait_for(loop, kit):
    assert await kit.wait_for(kit.sleep(0, "in time"), 1000) == "in time"
    with pytest.raises(asyncio.TimeoutError):
        await kit.wait_for(kit.sleep(1000), 0.001)
    with pytest.raises(asyncio.TimeoutError):
        await kit.wait_for(kit.sleep(1000), 0)


async def test_create_task(loop, kit):
    task = kit.create_task(kit.sleep(0, 1))
    named = kit.create_task(kit.sleep(0, 2), name="Fred")
    assert (await task, await named) == (1, 2)
    assert named.get_name() == "Fred"
    coroutine = kit.sleep(0)
    with pytest.raises(TypeError):
        kit.create_task(coroutine, nickname="Fred")
    coroutine.close()
    with pytest.raises(TypeError, match="coroutine was expected"):
        kit.create_task(1)


class OldFashioned(tideloop.EventLoop):
    """A loop whose timers are somebody else's, who knows of no context."""

    def call_later(self, delay, callback, *args):
        return super().call_later(delay, callback, *args)

    def call_at(self, when, callback, *args):
        return super().call_at(when, callback, *args)


def test_timers_that_take_no_context(kit):
    async def main():
        assert await kit.sleep(0.001, 5) == 5
        pending = asyncio.get_running_loop().create_future()
        assert await kit.wait([pending], timeout=0.001) == (set(), {pending})
        with pytest.raises(TimeoutError):
            async with kit.timeout(0.001):
                await pending

    with asyncio.Runner(loop_factory=OldFashioned) as runner:
        runner.run(main())
