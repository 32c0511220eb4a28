"""Conditions and barriers, one body on asyncio's and on the native ones: hooks, other locks, and how waiting ends."""

import asyncio
import itertools

import pytest
import tideloop
from tideloop import stock


@pytest.fixture(params=["stock", "native"])
def kit(request):
    return stock if request.param == "stock" else tideloop


async def waiting(condition):
    async with condition:
        return await condition.wait()


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_misuse(loop, kit):
    condition = kit.Condition()
    with pytest.raises(RuntimeError, match="cannot wait on un-acquired lock"):
        await condition.wait()
    with pytest.raises(RuntimeError, match="cannot notify on un-acquired lock"):
        condition.notify()
    with pytest.raises(RuntimeError, match="cannot notify on un-acquired lock"):
        condition.notify_all()
    with pytest.raises(RuntimeError, match="Lock is not acquired"):
        condition.release()
    with pytest.raises(ValueError, match="parties must be"):
        kit.Barrier(0)
    with pytest.raises(TypeError):
        kit.Barrier("two")


async def test_the_methods_of_its_lock_are_its_own(loop, kit):
    lock = kit.Lock()
    condition = kit.Condition(lock)
    assert condition._lock is lock
    assert not condition.locked()
    async with lock:
        assert condition.locked()
        assert "locked" in repr(condition)
        assert "unlocked" not in repr(condition)
    await condition.acquire()
    assert lock.locked()
    condition.release()
    assert "unlocked" in repr(condition)


@pytest.mark.parametrize("count", [0, 1, 1.5, 2, True, 7])
async def test_so_many_are_told(loop, kit, count):
    condition = kit.Condition()
    tasks = [loop.create_task(waiting(condition)) for _ in range(3)]
    await turns()
    assert len(condition._waiters) == 3
    async with condition:
        condition.notify(count)
    await turns(6)
    done = sum(task.done() for task in tasks)
    assert done == {0: 0, 1: 1, 1.5: 2, 2: 2, 7: 3}[count]
    async with condition:
        condition.notify_all()
    assert await asyncio.gather(*tasks) == [True] * 3
    assert not condition._waiters


async def test_what_is_compared_is_only_asked_for_waiters(loop, kit):
    condition = kit.Condition()
    async with condition:
        condition.notify("many")
    task = loop.create_task(waiting(condition))
    await turns()
    async with condition:
        with pytest.raises(TypeError):
            condition.notify("many")
        condition.notify()
    assert await task


async def test_cancelled_again_while_the_lock_is_awaited(loop, kit):
    """The lock is taken however waiting ends, and what is raised tells of both cancellations."""
    condition = kit.Condition()
    seen = []

    async def noting():
        async with condition:
            try:
                await condition.wait()
            except asyncio.CancelledError as error:
                seen.append((condition.locked(), error.args, type(error.__context__), error))
                raise

    task = loop.create_task(noting())
    await turns()
    async with condition:
        task.cancel("first")
        await turns()
        task.cancel("second")
        await turns()
        task.cancel("third")
        await turns()
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not condition.locked()
    ((locked, arguments, context, error),) = seen
    assert locked
    # Older Pythons raise a new exception, newer ones the last one that came.
    assert arguments == (("third",) if "err" in stock.Condition.wait.__code__.co_varnames else ())
    assert context is asyncio.CancelledError
    assert error.__context__.args == ("first",)
    assert error.__context__.__context__ is None


async def test_a_notification_is_passed_on_where_asyncio_does(loop, kit):
    condition = kit.Condition()
    first, second = [loop.create_task(waiting(condition)) for _ in range(2)]
    await turns()
    async with condition:
        condition.notify()
        first.cancel()
    await turns(6)
    assert first.cancelled()
    assert second.done() is hasattr(stock.Condition, "_notify")
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)


async def test_closing_one_that_waits_for_the_lock(loop, kit):
    condition = kit.Condition()
    await condition.acquire()
    coroutine = condition.wait()
    coroutine.send(None)
    assert not condition.locked()
    await condition.acquire()
    with pytest.raises(RuntimeError, match="coroutine ignored GeneratorExit"):
        coroutine.close()
    condition.release()
    with pytest.raises(GeneratorExit):
        coroutine.send(None)
    assert condition.locked()
    assert not condition._waiters


async def test_predicates(loop, kit):
    condition = kit.Condition()
    answers = iter([[], 0, "yes"])
    task = loop.create_task(guarded_wait_for(condition, lambda: next(answers)))
    for _ in range(2):
        await turns()
        async with condition:
            condition.notify()
    assert await task == "yes"

    def fails():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await guarded_wait_for(condition, fails)
    assert not condition.locked()


async def guarded_wait_for(condition, predicate):
    async with condition:
        return await condition.wait_for(predicate)


async def test_hooks(loop, kit):
    said = []

    class Noisy(kit.Condition):
        async def wait(self):
            said.append("wait")
            return await super().wait()

        def notify(self, n=1):
            said.append(("notify", n))
            super().notify(n)

    condition = Noisy()
    answers = iter([False, True])
    task = loop.create_task(guarded_wait_for(condition, lambda: next(answers)))
    await turns()
    async with condition:
        condition.notify_all()
    assert await task
    assert said == ["wait", ("notify", 1)]

    class Counted(kit.Barrier):
        async def _release(self):
            said.append("released")
            await super()._release()

    barrier = Counted(2)
    assert sorted(await asyncio.gather(barrier.wait(), barrier.wait())) == [0, 1]
    assert said[2:] == ["released"]


class Turnstile:
    """A lock of somebody else's."""

    def __init__(self):
        self.inner = stock.Lock()

    def locked(self):
        return self.inner.locked()

    async def acquire(self):
        return await self.inner.acquire()

    def release(self):
        self.inner.release()


@pytest.mark.parametrize("lock", [Turnstile, stock.Lock])
async def test_with_another_lock(loop, kit, lock):
    condition = kit.Condition(lock())
    task = loop.create_task(waiting(condition))
    await turns()
    async with condition:
        condition.notify()
    assert await task
    assert not condition.locked()


async def test_a_barrier_seen_from_outside(loop, kit):
    barrier = kit.Barrier(3)
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)
    tasks = [loop.create_task(barrier.wait()) for _ in range(2)]
    await turns()
    assert barrier.n_waiting == barrier._count == 2
    assert "filling, waiters:2/3" in repr(barrier)
    await barrier.abort()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in results] == ["Abort or reset of barrier"] * 2
    assert barrier.broken
    with pytest.raises(asyncio.BrokenBarrierError, match="Barrier aborted"):
        await barrier.wait()
    await barrier.reset()
    async with asyncio.timeout(10):
        assert sorted(await asyncio.gather(*[barrier.wait() for _ in range(3)])) == [0, 1, 2]
    assert not barrier._cond.locked()


async def test_parties_that_are_no_int(loop, kit):
    barrier = kit.Barrier(2.0)
    assert barrier.parties == 2.0
    assert sorted(await asyncio.gather(barrier.wait(), barrier.wait())) == [0, 1]


async def test_a_barrier_in_a_with_block(loop, kit):
    barrier = kit.Barrier(2)
    inside = []

    async def enter():
        async with barrier as index:
            inside.append(index)

    await asyncio.gather(enter(), enter())
    assert sorted(inside) == [0, 1]
    assert barrier.n_waiting == 0


BY_HAND = {
    "close": lambda coroutine, condition: coroutine.close(),
    "send": lambda coroutine, condition: coroutine.send(None),
    "throw a cancellation": lambda coroutine, condition: coroutine.throw(asyncio.CancelledError()),
    "throw GeneratorExit": lambda coroutine, condition: coroutine.throw(GeneratorExit()),
    "throw KeyError": lambda coroutine, condition: coroutine.throw(KeyError("x")),
    "release": lambda coroutine, condition: condition.release(),
    "notify": lambda coroutine, condition: condition.notify(),
}


async def driven(condition, contended, steps):
    """What becomes of a wait() whose coroutine is stepped by hand, for which anything may be thrown anywhere."""
    await condition.acquire()
    coroutine = condition.wait()
    coroutine.send(None)
    if contended:
        await condition.acquire()
    outcomes = []
    for step in (*steps, "close", "throw KeyError"):
        try:
            BY_HAND[step](coroutine, condition)
        except BaseException as error:
            outcomes.append((step, type(error), str(error)))
        else:
            outcomes.append((step, "goes on"))
    return outcomes, condition.locked()


@pytest.mark.parametrize("contended", [False, True])
async def test_every_sequence_of_steps_by_hand(loop, kit, contended):
    for length in range(1, 4):
        for steps in itertools.product(BY_HAND, repeat=length):
            expected = await driven(stock.Condition(), contended, steps)
            assert await driven(kit.Condition(), contended, steps) == expected, steps


async def test_a_predicate_that_raises_stop_iteration(loop, kit):
    """A StopIteration out of a coroutine would pass for its value."""
    with pytest.raises(RuntimeError, match="coroutine raised StopIteration") as caught:
        await guarded_wait_for(kit.Condition(), lambda: next(iter(())))
    assert isinstance(caught.value.__cause__, StopIteration)
