"""The frames that a waiting operation shows: those of asyncio's functions that it stands for, helpers among them."""

import asyncio
import ctypes
import gc
import re
import subprocess
import sys
import warnings
import weakref

import pytest
import tideloop
from tideloop import stock


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


def chain(coroutine):
    """The functions from a coroutine to what it waits for, as debuggers and asyncio's call graphs find them."""
    names = []
    while hasattr(coroutine, "cr_await"):
        if coroutine.cr_frame is not None:
            assert coroutine.cr_frame.f_code is coroutine.cr_code
            names.append(coroutine.cr_code.co_qualname)
        coroutine = coroutine.cr_await
    return names


# Each makes a coroutine that is going to wait, and says after how many turns to look. Other tasks go to `also`.


def sleep(kit, also):
    return kit.sleep(1000), 2


def event(kit, also):
    return kit.Event().wait(), 2


def queue_get(kit, also):
    return kit.Queue().get(), 2


def queue_put(kit, also):
    queue = kit.Queue(1)
    queue.put_nowait(1)
    return queue.put(2), 2


def queue_join(kit, also):
    queue = kit.Queue()
    queue.put_nowait(1)
    return queue.join(), 2


def held(lock, also):
    async def hold():
        async with lock:
            await asyncio.get_running_loop().create_future()

    also(hold())
    return lock


def lock_acquire(kit, also):
    return held(kit.Lock(), also).acquire(), 2


def lock_enter(kit, also):
    return held(kit.Lock(), also).__aenter__(), 2


def semaphore_acquire(kit, also):
    return held(kit.Semaphore(), also).acquire(), 2


def semaphore_enter(kit, also):
    return held(kit.BoundedSemaphore(), also).__aenter__(), 2


def condition_enter(kit, also):
    return held(kit.Condition(), also).__aenter__(), 2


async def in_condition(condition, body):
    async with condition:
        await body()


async def told(condition):
    """Tells those who wait, and keeps the lock."""
    async with condition:
        condition.notify_all()
        await asyncio.get_running_loop().create_future()


def condition_wait(kit, also):
    condition = kit.Condition()
    return in_condition(condition, condition.wait), 3


def condition_wait_for(kit, also):
    condition = kit.Condition()
    return in_condition(condition, lambda: condition.wait_for(lambda: False)), 3


def condition_wait_told(kit, also):
    coroutine, _ = condition_wait(kit, also)
    also(told(coroutine.cr_frame.f_locals["condition"]), after=True)
    return coroutine, 6


def condition_wait_for_told(kit, also):
    coroutine, _ = condition_wait_for(kit, also)
    also(told(coroutine.cr_frame.f_locals["condition"]), after=True)
    return coroutine, 6


def barrier_wait(kit, also):
    return kit.Barrier(2).wait(), 3


def barrier_enter(kit, also):
    return kit.Barrier(2).__aenter__(), 3


def barrier_lock(kit, also):
    barrier = kit.Barrier(2)
    held(barrier._cond, also)
    return barrier.wait(), 3


def barrier_blocked(kit, also):
    barrier = kit.Barrier(2)
    also(barrier.wait())
    also(barrier.wait())
    return barrier.wait(), 1


def wait(kit, also):
    return kit.wait([asyncio.get_running_loop().create_future()]), 2


def wait_with_timeout(kit, also):
    future = asyncio.get_running_loop().create_future()
    return kit.wait({future}, timeout=1000, return_when=asyncio.FIRST_COMPLETED), 2


async def stubborn():
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await asyncio.get_running_loop().create_future()


def wait_for_coroutine(kit, also):
    return kit.wait_for(kit.Event().wait(), 1000), 2


def wait_for_future(kit, also):
    return kit.wait_for(asyncio.get_running_loop().create_future(), 1000), 2


def wait_for_no_time(kit, also):
    return kit.wait_for(also(stubborn()), 0), 4


async def group_of(kit, body, wrong=False):
    async with kit.TaskGroup() as group:
        group.create_task(body())
        await asyncio.sleep(0)
        if wrong:
            raise ValueError


async def fail():
    await turns(2)
    raise ValueError


def group_leaving(kit, also):
    return group_of(kit, forever), 4


async def forever():
    await asyncio.get_running_loop().create_future()


def group_with_an_error(kit, also):
    return group_of(kit, stubborn, wrong=True), 4


async def group_of_two(kit):
    async with kit.TaskGroup() as group:
        group.create_task(stubborn())
        group.create_task(fail())


def group_aborted(kit, also):
    return group_of_two(kit), 8


SITUATIONS = [
    sleep,
    event,
    queue_get,
    queue_put,
    queue_join,
    lock_acquire,
    lock_enter,
    semaphore_acquire,
    semaphore_enter,
    condition_enter,
    condition_wait,
    condition_wait_for,
    condition_wait_told,
    condition_wait_for_told,
    barrier_wait,
    barrier_enter,
    barrier_lock,
    barrier_blocked,
    wait,
    wait_with_timeout,
    wait_for_coroutine,
    wait_for_future,
    wait_for_no_time,
    group_leaving,
    group_with_an_error,
    group_aborted,
]


class Waiting:
    """A task that waits in a situation, while the block lasts."""

    def __init__(self, kit, situation):
        self.kit, self.situation, self.tasks = kit, situation, []

    async def __aenter__(self):
        later = []

        def also(coroutine, after=False):
            if after:
                return later.append(coroutine)
            self.tasks.append(asyncio.create_task(coroutine, name="another"))
            return self.tasks[-1]

        coroutine, count = self.situation(self.kit, also)
        await turns(not self.situation.__name__.endswith("blocked"))
        task = asyncio.create_task(coroutine, name="looked at")
        for other in later:
            also(other)
        self.tasks.append(task)
        await turns(count)
        assert not task.done()
        return task

    async def __aexit__(self, *_):
        gatherings = 0
        while any(not task.done() for task in self.tasks) and gatherings < 5:
            for task in [*self.tasks, *(asyncio.all_tasks() - {asyncio.current_task()})]:
                task.cancel()
            await turns(9)
            gatherings += 1
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_the_frames_are_those_of_asyncio(loop, situation):
    async with Waiting(stock, situation) as task:
        expected = chain(task.get_coro())
    async with Waiting(tideloop, situation) as task:
        assert chain(task.get_coro()) == expected


@pytest.mark.skipif(sys.version_info < (3, 14), reason="call graphs came with Python 3.14")
@pytest.mark.parametrize("situation", SITUATIONS)
async def test_the_call_graph_is_that_of_asyncio(loop, situation):
    def graph(task):
        words = re.sub(r"id=0x[0-9a-f]+", "id", asyncio.format_call_graph(task))
        return re.sub(r"line \d+", "line", words)

    async with Waiting(stock, situation) as task:
        expected = graph(task)
    async with Waiting(tideloop, situation) as task:
        assert graph(task) == expected


@pytest.mark.skipif(sys.version_info < (3, 14), reason="call graphs came with Python 3.14")
async def test_the_call_graph_of_what_others_wait_for(loop):
    def graph(task):
        return re.sub(r"id=0x[0-9a-f]+|line \d+", "", asyncio.format_call_graph(task))

    async def awaited(kit):
        inner = asyncio.create_task(forever(), name="inner")
        outer = [
            asyncio.create_task(kit.wait([inner]), name="in wait"),
        ]
        await turns(3)
        try:
            return graph(inner)
        finally:
            for task in [inner, *outer]:
                task.cancel()
            await asyncio.gather(inner, *outer, return_exceptions=True)

    assert await awaited(tideloop) == await awaited(stock)


@pytest.mark.parametrize("situation", [wait, barrier_wait, condition_wait_for])
async def test_who_looks_twice_sees_the_same(loop, situation):
    async with Waiting(tideloop, situation) as task:
        coroutine = task.get_coro()
        while hasattr(coroutine, "cr_await"):
            assert coroutine.cr_frame is coroutine.cr_frame
            assert coroutine.cr_await is coroutine.cr_await
            coroutine = coroutine.cr_await


async def test_an_operation_that_has_moved_on_shows_where_it_is_now(loop):
    condition = tideloop.Condition()

    async def waiter():
        async with condition:
            await condition.wait()

    task = loop.create_task(waiter())
    await turns(2)
    assert chain(task.get_coro())[1:] == ["Condition.wait"]
    async with condition:
        condition.notify()
        await turns(2)
        assert chain(task.get_coro())[1:] == ["Condition.wait", "Lock.acquire"]
    await task
    assert chain(task.get_coro()) == []


async def test_an_inner_frame_says_what_it_is(loop):
    async with Waiting(tideloop, wait) as task:
        inner = task.get_coro().cr_await
        assert (inner.__name__, inner.__qualname__) == ("_wait", "_wait")
        assert inner.cr_code is asyncio.tasks._wait.__code__
        assert (inner.cr_running, inner.cr_suspended) == (False, True)
        assert asyncio.isfuture(inner.cr_await)
        assert repr(inner) == "<frame of _wait>"


async def test_what_was_looked_at_leaves_nothing_behind(loop):
    lock = tideloop.Lock()
    await lock.acquire()
    task = loop.create_task(lock.__aenter__())
    await turns(2)
    assert chain(task.get_coro()) == ["_ContextManagerMixin.__aenter__", "Lock.acquire"]
    watched = weakref.ref(lock)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    del task, lock
    gc.collect()
    assert watched() is None


async def test_what_was_looked_at_is_collected_in_a_cycle(loop):
    class Lock(tideloop.Lock):
        pass

    lock = Lock()
    await lock.acquire()
    operation = lock.__aenter__()
    future = operation.send(None)
    inner = operation.cr_await
    lock.all = [operation, inner, future]
    watched = weakref.ref(lock)
    with warnings.catch_warnings():
        # A coroutine among what is collected together may be told first that it ends.
        warnings.simplefilter("ignore", RuntimeWarning)
        del lock, operation, future, inner
        gc.collect()
    assert watched() is None


NESTED = """
import asyncio, sys, tideloop, warnings
from tideloop import stock

warnings.simplefilter("ignore")

async def main(kit):
    coroutine = kit.sleep(0)
    for _ in range(100_000):
        coroutine = kit.wait_for(coroutine, 1000)
    try:
        await coroutine
    except RecursionError:
        print("RecursionError")
    coroutine = kit.sleep(0)
    for _ in range(100_000):
        coroutine = kit.wait_for(coroutine, 1000)
    coroutine.close()
    del coroutine
    # Of a depth that both of them can do.
    gate = asyncio.get_running_loop().create_future()
    async def body():
        return await gate
    coroutine = body()
    for _ in range(100):
        coroutine = kit.wait_for(coroutine, 1000)
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    gate.set_result("through")
    print(await task)

asyncio.run(main(tideloop))
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="wait_for() is native since Python 3.12")
def test_nesting_without_end_is_a_recursion_error():
    done = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, text=True, timeout=25, check=False)
    assert (done.stdout, done.returncode) == ("RecursionError\nthrough\n", 0), done.stderr[-2000:]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="the state of a frame is read from outside since 3.14")
def test_an_operation_that_is_used_again_says_that_it_has_no_frame():
    async def main():
        semaphore = tideloop.Semaphore(1)
        states = set()
        for _ in range(6):
            operation = semaphore.acquire()
            # Where a coroutine has the state of its frame: behind its header, six pointers and three bytes.
            states.add(ctypes.string_at(id(operation) + 67, 1))
            await operation
            semaphore.release()
            del operation
        return states

    # One state, which is not that of a frame that is being executed.
    (state,) = tideloop.run(main())
    assert state != b"\0"
