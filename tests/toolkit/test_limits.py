"""Limiter, ResourceLimits and KeyedLimiter: the harness, and what is theirs alone."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import weakref

import pytest
import tideloop
from tideloop import KeyedLimiter, Limiter, LimiterClosed, LimiterFull, ResourceLimits, WeightError

from tests.toolkit import harness
from tests.toolkit.harness import Inside, Permits


async def visit(limiter, inside: Inside) -> None:
    async with limiter:
        await inside()


async def visit_heavily(limiter: Limiter, inside: Inside) -> None:
    async with limiter(3, timeout=1000):
        await inside()


async def visit_by_acquire(limiter: Limiter, inside: Inside) -> None:
    await limiter.acquire(2, 0, 1000.0)
    try:
        await inside()
    finally:
        limiter.release(2)


async def visit_several(limits: ResourceLimits, inside: Inside) -> None:
    async with limits(file=1, http=2):
        await inside()


async def visit_key(keyed: KeyedLimiter, inside: Inside) -> None:
    async with keyed("host"):
        await inside()


def at_rest(limiter: Limiter | ResourceLimits) -> None:
    used = [in_use for _, in_use, _ in limiter._usage()]
    harness.demand(not any(used), f"still in use: {limiter!r}")
    harness.demand(limiter.waiting == 0, f"still waiting: {limiter!r}")


def forgotten(keyed: KeyedLimiter) -> None:
    harness.demand(len(keyed) == 0, f"keys are left: {keyed!r}")


PERMITS = [
    Permits("Limiter", lambda: Limiter(2, name="few"), visit, at_rest, limit=2, several_loops=True),
    Permits("heavy", lambda: Limiter(7), visit_heavily, at_rest, limit=2, several_loops=True),
    Permits("acquire", lambda: Limiter(2), visit_by_acquire, at_rest, limit=1, several_loops=True),
    Permits("ResourceLimits", lambda: ResourceLimits(http=4, file=3), visit_several, at_rest, 2, several_loops=True),
    Permits("KeyedLimiter", lambda: KeyedLimiter(2), visit_key, forgotten, limit=2, several_loops=True),
]
each = pytest.mark.parametrize("primitive", PERMITS, ids=str)


class TestHarness:
    @each
    def test_cancelled_at_every_await(self, kind, primitive):
        assert harness.cancel_everywhere(kind, harness.permits_scenario(primitive)) > 5

    @each
    def test_random_schedules(self, kind, primitive):
        for seed in range(60):
            harness.interleave(kind, primitive, seed)

    @each
    def test_loop_closed_with_waiters(self, backend, primitive):
        harness.close_loop(backend.name, primitive)

    @each
    def test_loop_closed_in_the_turn_of_a_grant(self, backend, primitive):
        harness.close_in_the_turn_of_a_grant(backend.name, primitive)

    @each
    def test_shared_by_threads(self, backend, primitive):
        harness.share(backend.name, primitive)

    @each
    def test_forked_with_waiters(self, backend, primitive):
        harness.fork_with_waiters(backend.name, primitive)


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def start(coroutine) -> asyncio.Task:
    return asyncio.ensure_future(coroutine)


class TestOrder:
    async def test_heavy_waiter_before_later_light_ones(self, loop):
        limiter = Limiter(10)
        order = []

        async def take(weight):
            async with limiter(weight):
                order.append(weight)
                await asyncio.sleep(0)

        await limiter.acquire(1)
        heavy = start(take(10))
        await turns()
        light = [start(take(1)) for _ in range(5)]
        await turns()
        assert not limiter.try_acquire()
        assert order == []
        limiter.release(1)
        await asyncio.gather(heavy, *light)
        assert order == [10, 1, 1, 1, 1, 1]

    async def test_cancelling_a_heavy_waiter_lets_those_behind_it_go(self, loop):
        limiter = Limiter(3)
        await limiter.acquire(2)
        heavy = start(limiter.acquire(3))
        await turns()
        light = start(limiter.acquire())
        await turns()
        assert limiter.waiting == 2
        heavy.cancel()
        await light
        assert limiter.in_use == 3

    async def test_a_heavy_waiter_whose_time_is_up_lets_those_behind_it_go(self, loop):
        limiter = Limiter(3, name="three")
        await limiter.acquire(2)
        heavy = start(limiter.acquire(3, timeout=0.001))
        await turns()
        light = start(limiter.acquire())
        await light
        with pytest.raises(TimeoutError, match=r"^Limiter 'three': no permit within 0.001 s$"):
            await heavy

    async def test_priorities(self, loop):
        limiter = Limiter(1)
        order = []

        async def take(name, priority):
            async with limiter(priority=priority):
                order.append(name)

        async with limiter:
            tasks = [start(take(*entry)) for entry in [("a", 0), ("b", 0), ("c", 5), ("d", -1), ("e", 5), ("f", 0)]]
            await turns()
        await asyncio.gather(*tasks)
        assert order == ["c", "e", "a", "b", "f", "d"]

    async def test_a_higher_priority_passes_a_heavy_waiter(self, loop):
        limiter = Limiter(3)
        await limiter.acquire(2)
        heavy = start(limiter.acquire(3))
        await turns()
        await limiter.acquire(1, priority=1)
        assert limiter.in_use == 3
        assert not heavy.done()
        limiter.release(3)
        await heavy

    async def test_resources_do_not_wait_for_each_other(self, loop):
        limits = ResourceLimits(browser=1, http=1)
        async with limits(browser=1):
            second = start(limits(browser=1).acquire())
            await turns()
            async with limits(http=1):
                assert limits.stats()["browser"].waiting == 1
        await second

    async def test_those_who_wait_hold_nothing(self, loop):
        limits = ResourceLimits(a=1, b=1)
        async with limits(a=1):
            both = start(limits({"b": 1, "a": 1}).acquire())
            await turns()
            assert limits.stats()["b"].in_use == 0
            # But b is theirs next: nobody takes it meanwhile.
            assert not limits(b=1).try_acquire()
        await both
        assert limits.stats()["b"] == (1, 1, 0)

    async def test_no_deadlock_in_whatever_order(self, loop):
        limits = ResourceLimits(a=1, b=1, c=1)
        dice = random.Random(1)

        async def work():
            names = dice.sample("abc", dice.randint(1, 3))
            async with limits(dict.fromkeys(names, 1)):
                await asyncio.sleep(0)

        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(300))), 20)
        at_rest(limits)


class TestRefusals:
    async def test_weight_above_the_capacity(self, loop):
        limiter = Limiter(3, name="db")
        complaint = r"^Limiter 'db': 4 permits wanted, but there are 3 in all$"
        with pytest.raises(WeightError, match=complaint):
            await limiter.acquire(4)
        with pytest.raises(WeightError, match=complaint):
            limiter.try_acquire(4)
        with pytest.raises(WeightError, match=complaint):
            async with limiter(4):
                pass
        limits = ResourceLimits(http=2, file=1, name="mine")
        with pytest.raises(WeightError, match=r"^ResourceLimits 'mine': 3 permits of 'http' wanted, but there are 2"):
            await limits(http=3, file=1).acquire()
        at_rest(limits)

    async def test_a_waiter_that_became_too_heavy(self, loop):
        limiter = Limiter(5)
        await limiter.acquire(5)
        heavy = start(limiter.acquire(4))
        await turns()
        light = start(limiter.acquire(2))
        await turns()
        limiter.resize(3)
        with pytest.raises(WeightError, match="4 permits wanted, but there are 3"):
            await heavy
        assert limiter.in_use == 5
        assert limiter.available == 0
        limiter.release(2)
        await turns()
        assert not light.done()
        limiter.release(2)
        await light
        assert limiter.stats().rejected == 1

    async def test_growing_serves_who_waits(self, loop):
        limiter = Limiter(1)
        await limiter.acquire()
        tasks = [start(limiter.acquire()) for _ in range(4)]
        await turns()
        limiter.resize(4)
        await turns()
        assert [task.done() for task in tasks] == [True, True, True, False]
        limiter.release(4)
        await asyncio.gather(*tasks)

    async def test_closed(self, loop):
        limiter = Limiter(1, name="db")
        await limiter.acquire()
        waiter = start(limiter.acquire())
        await turns()
        limiter.close()
        limiter.close()
        for attempt in (waiter, limiter.acquire()):
            with pytest.raises(LimiterClosed, match=r"^Limiter 'db' is closed$"):
                await attempt
        with pytest.raises(LimiterClosed):
            limiter.try_acquire()
        limiter.release()
        assert limiter.closed
        assert repr(limiter) == "<tideloop.Limiter 'db' 0/1 in use, closed>"

    async def test_queue_limit(self, loop):
        limiter = Limiter(1, queue_limit=1)
        await limiter.acquire()
        waiter = start(limiter.acquire())
        await turns()
        with pytest.raises(LimiterFull, match=r"^Limiter: 1 wait already"):
            await limiter.acquire()
        assert limiter.try_acquire() is False
        limiter.release()
        await waiter

    async def test_release_without_acquire(self, loop):
        limiter = Limiter(2, name="db")
        with pytest.raises(ValueError, match=r"^Limiter 'db': 1 permit released, but 0 are in use$"):
            limiter.release()
        await limiter.acquire()
        with pytest.raises(ValueError, match="2 permits released, but 1 is in use"):
            limiter.release(2)
        assert limiter.in_use == 1
        with pytest.raises(ValueError, match="1 permit of 'a' released, but 0 are in use"):
            ResourceLimits(a=1)(a=1).release()
        keyed = KeyedLimiter(1)
        with pytest.raises(ValueError, match="released for 'x', but none is in use"):
            keyed.release("x")

    async def test_no_time_at_all(self, loop):
        limiter = Limiter(1)
        await limiter.acquire(timeout=0)
        with pytest.raises(TimeoutError):
            await limiter.acquire(timeout=0)
        with pytest.raises(TimeoutError):
            await limiter.acquire(timeout=-1)
        assert limiter.stats().timed_out == 2

    @pytest.mark.parametrize("wrong", [0, -1, 2**70, True, 1.5, "2", None])
    def test_numbers_that_are_none(self, wrong):
        limiter = Limiter(3, name="db")
        kind = ValueError if isinstance(wrong, int) and not isinstance(wrong, bool) else TypeError
        for attempt in (
            lambda: Limiter(wrong, name="db"),
            lambda: limiter(wrong),
            lambda: limiter.acquire(wrong).send(None),
            lambda: limiter.try_acquire(wrong),
            lambda: limiter.release(wrong),
            lambda: limiter.resize(wrong),
        ):
            with pytest.raises(kind, match=r"^Limiter 'db': \w+ must be an int >= 1, not "):
                attempt()
        assert limiter.capacity == 3

    def test_other_arguments(self):
        limiter = Limiter(1)
        with pytest.raises(TypeError, match="timeout must be a number of seconds or None, not 'soon'"):
            limiter(timeout="soon")
        with pytest.raises(ValueError, match="not nan"):
            limiter(timeout=float("nan"))
        with pytest.raises(TypeError, match="priority must be an int of 64 bits, not 'high'"):
            limiter(priority="high")
        with pytest.raises(ValueError, match="queue_limit must be an int >= 0 or None, not -1"):
            Limiter(1, queue_limit=-1)
        with pytest.raises(TypeError, match="unexpected keyword argument 'wieght'"):
            limiter.acquire(wieght=1)
        with pytest.raises(TypeError, match="3 is not a Limiter"):
            Limiter.acquire(3).send(None)
        with pytest.raises(ValueError, match="no resource 'htpp'; there are 'http', 'file'"):
            ResourceLimits(http=1, file=1)(htpp=1)
        with pytest.raises(ValueError, match="at least one resource"):
            ResourceLimits(http=1)()
        with pytest.raises(ValueError, match="at least one resource"):
            ResourceLimits()
        with pytest.raises(ValueError, match="capacity of 'http' must be an int >= 1, not 0"):
            ResourceLimits(http=0)


class TestComingHome:
    async def test_body_raises(self, loop):
        limiter = Limiter(2)
        for enter in (limiter, limiter(2)):
            with pytest.raises(ZeroDivisionError):
                async with enter:
                    raise ZeroDivisionError
        at_rest(limiter)

    async def test_body_is_cancelled(self, loop):
        limiter = Limiter(2)

        async def hold():
            async with limiter(2):
                await asyncio.Event().wait()

        task = start(hold())
        await turns()
        assert limiter.in_use == 2
        task.cancel()
        await asyncio.wait([task])
        at_rest(limiter)

    async def test_generator_is_closed(self, loop):
        limiter = Limiter(1)

        async def items():
            async with limiter:
                yield 1
                yield 2

        generator = items()
        assert await anext(generator) == 1
        assert limiter.in_use == 1
        await generator.aclose()
        at_rest(limiter)

    async def test_granted_and_cancelled_in_one_turn(self, loop):
        limiter = Limiter(1)
        await limiter.acquire()
        first, second = start(limiter.acquire()), start(limiter.acquire())
        await turns()
        limiter.release()
        first.cancel()
        await second
        assert first.cancelled()
        limiter.release()
        at_rest(limiter)

    def test_abandoned_waiters(self):
        limiter = Limiter(1)
        assert limiter.try_acquire()
        loop = asyncio.new_event_loop()

        async def wait():
            operation = limiter.acquire()
            operation.send(None)
            assert limiter.waiting == 1
            operation.close()
            assert limiter.waiting == 0
            operation = limiter.acquire()
            operation.send(None)
            del operation
            assert limiter.waiting == 0

        loop.run_until_complete(wait())
        loop.close()
        limiter.release()
        at_rest(limiter)

    def test_granted_through_a_loop_that_then_closes(self, backend):
        """The wake-up was on its way when the loop closed: the permit goes to the next."""
        limiter = Limiter(1)
        assert limiter.try_acquire()
        doomed = backend.new_event_loop()
        lost = []

        async def wait():
            lost.append(start(limiter.acquire()))
            await turns()

        doomed.run_until_complete(wait())
        limiter.release()  # From outside of any loop: by call_soon_threadsafe.
        assert limiter.in_use == 1
        doomed.close()
        gc.collect()
        assert limiter.in_use == 0
        assert limiter.stats().cancelled == 1
        with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
            runner.run(asyncio.wait_for(visit(limiter, turns), 10))
        harness._abandon(lost.pop())
        at_rest(limiter)

    def test_cycle_dies(self, backend):
        class Thing:
            pass

        loop = backend.new_event_loop()
        limiter = Limiter(1)
        thing = Thing()
        thing.limiter = limiter
        ref = weakref.ref(limiter), weakref.ref(thing)

        async def wait(thing):
            await thing.limiter.acquire()
            await thing.limiter(1, timeout=1000).acquire()

        task = loop.create_task(wait(thing))
        loop.run_until_complete(turns())
        task._log_destroy_pending = False
        loop.close()
        del task, thing, limiter, loop, wait
        for _ in range(3):
            gc.collect()
        assert [one() for one in ref] == [None, None]


class TestThreads:
    def test_blocking(self, backend):
        limiter = Limiter(2, name="db")
        limiter.blocking_acquire(2)
        with pytest.raises(TimeoutError, match=r"no permit within 0\.01 s"):
            limiter.blocking_acquire(timeout=0.01)
        with pytest.raises(WeightError):
            limiter.blocking_acquire(3)
        done = []

        def block():
            limiter.blocking_acquire(2)
            done.append(limiter.in_use)
            limiter.release(2)

        thread = threading.Thread(target=block)
        thread.start()
        while not limiter.waiting:
            pass

        async def take_after():
            waiter = start(limiter.acquire())
            await turns()
            limiter.release(2)
            await waiter
            limiter.release()

        with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
            runner.run(take_after())
        thread.join()
        assert done == [2]
        at_rest(limiter)

    async def test_a_loop_is_not_blocked(self, loop):
        limiter = Limiter(1)
        limiter.blocking_acquire()
        with pytest.raises(RuntimeError, match="a thread that runs an event loop must not block"):
            limiter.blocking_acquire()

    def test_close_ends_a_blocked_thread(self):
        limiter = Limiter(1)
        limiter.blocking_acquire()
        caught = []

        def block():
            try:
                limiter.blocking_acquire()
            except LimiterClosed as error:
                caught.append(error)

        thread = threading.Thread(target=block)
        thread.start()
        while not limiter.waiting:
            pass
        limiter.close()
        thread.join()
        assert len(caught) == 1

    def test_one_wake_up_per_burst(self, backend):
        """Fifty permits released elsewhere cost the loop one call_soon_threadsafe."""
        limiter = Limiter(50)
        assert limiter.try_acquire(50)
        loop = backend.new_event_loop()
        tasks = [loop.create_task(limiter.acquire()) for _ in range(50)]
        loop.run_until_complete(turns())
        calls = []
        original = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args, **kwargs: calls.append(args) or original(*args, **kwargs)
        thread = threading.Thread(target=limiter.release, args=(50,))
        thread.start()
        thread.join()
        assert len(calls) == 1
        loop.run_until_complete(asyncio.gather(*tasks))
        loop.close()
        assert limiter.in_use == 50

    @pytest.mark.parametrize("seed", range(5))
    def test_bound_is_exact_while_it_changes(self, backend, seed):
        """Loops in threads, cancelling at random, while the limiter is resized up and down."""
        limiter = Limiter(8)
        lock = threading.Lock()
        inside = peak = entered = 0
        faults = []

        async def visitor(dice):
            nonlocal inside, peak, entered
            weight = dice.randint(1, 3)
            async with limiter(weight, priority=dice.choice([0, 0, 0, 1])):
                with lock:
                    inside += weight
                    peak = max(peak, inside)
                    entered += 1
                try:
                    await asyncio.sleep(0)
                finally:
                    with lock:
                        inside -= weight

        async def crowd(dice):
            tasks = []
            for _ in range(150):
                tasks.append(start(visitor(dice)))
                if dice.random() < 0.3:
                    dice.choice(tasks).cancel()
                if dice.random() < 0.2:
                    limiter.resize(dice.randint(3, 8))
                if dice.random() < 0.5:
                    await asyncio.sleep(0)
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                    raise result

        def work(number):
            try:
                with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
                    runner.run(asyncio.wait_for(crowd(random.Random(seed * 10 + number)), 20))
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        assert 3 <= peak <= 8
        at_rest(limiter)
        assert limiter.stats().granted >= entered


class TestKeys:
    def test_numbers_of_keys_that_are_none(self):
        with pytest.raises(ValueError, match=r"hosts\['a'\]': capacity must be an int >= 1, not 0"):
            KeyedLimiter(2, capacities={"b": 3, "a": 0}, name="hosts")

    async def test_each_key_has_its_own(self, loop):
        keyed = KeyedLimiter(1, capacities={"big": 2}, name="hosts")
        async with keyed("a"), keyed("b"), keyed("big", 2):
            assert (len(keyed), "a" in keyed, "c" in keyed) == (3, True, False)
            assert not keyed.try_acquire("a")
            assert keyed["big"].capacity == 2
            assert repr(keyed) == "<tideloop.KeyedLimiter 'hosts' 1 per key, 3 keys>"
            with pytest.raises(WeightError, match=r"hosts\['a'\]"):
                await keyed.acquire("a", 2)
        assert len(keyed) == 0
        assert keyed.stats() == ("hosts", 1, 0, 0, 0, 3)

    async def test_no_key_is_left(self, loop):
        keyed = KeyedLimiter(2)
        for key in range(20_000):
            async with keyed(key):
                pass
        assert len(keyed) == 0
        assert keyed.stats().evicted == 20_000

    async def test_a_key_stays_while_somebody_waits_for_it(self, loop):
        keyed = KeyedLimiter(1)
        await keyed.acquire("a")
        waiter = start(keyed.acquire("a"))
        await turns()
        keyed.release("a")
        assert len(keyed) == 1
        await waiter
        assert keyed["a"].in_use == 1
        waiter = start(keyed.acquire("a"))
        await turns()
        waiter.cancel()
        await asyncio.wait([waiter])
        assert len(keyed) == 1
        keyed.release("a")
        assert len(keyed) == 0

    async def test_permits_taken_together_may_come_home_one_by_one(self, loop):
        keyed = KeyedLimiter(3)
        await keyed.acquire("a", 3)
        keyed.release("a")
        keyed.release("a", 2)
        assert len(keyed) == 0

    async def test_resize(self, loop):
        keyed = KeyedLimiter(1)
        await keyed.acquire("a")
        waiter = start(keyed.acquire("a"))
        await turns()
        keyed.resize(2, key="a")
        await waiter
        keyed.resize(5)
        assert keyed["a"].capacity == 2
        await keyed.acquire("b")
        assert keyed["b"].capacity == 5


class TestStats:
    async def test_what_happened(self, loop):
        limiter = Limiter(1, name="db")
        async with limiter:
            waiter = start(limiter.acquire())
            await turns()
            cancelled = start(limiter.acquire())
            await turns()
            cancelled.cancel()
            with pytest.raises(TimeoutError):
                await limiter.acquire(timeout=0)
            with pytest.raises(WeightError):
                await limiter.acquire(2)
            assert repr(limiter) == "<tideloop.Limiter 'db' 1/1 in use, 1 waiting>"
        await waiter
        stats = limiter.stats()
        assert stats[:9] == ("db", 1, 1, 0, 2, 1, 1, 1, 1)
        assert stats.wait_times.total == stats.wait_times.longest >= 0
        assert not stats.closed

    def test_waits_by_the_clock_of_the_loop(self, kind):
        limiter = Limiter(1)

        async def main():
            async with limiter:
                waiters = [start(limiter.acquire()) for _ in range(2)]
                await asyncio.sleep(30)
            await waiters[0]
            await asyncio.sleep(10)
            limiter.release()
            await waiters[1]

        harness.run(kind, main())
        times = limiter.stats().wait_times
        assert times.total == pytest.approx(70)
        assert times.longest == pytest.approx(40)
        assert times.p50 == pytest.approx(30, rel=0.05)

    def test_resources(self):
        limits = ResourceLimits({"http": 2}, file=1, name="mine")
        claim = limits(http=1, file=1)
        assert repr(claim) == "<1 permit of 'http', 1 permit of 'file' of ResourceLimits 'mine'>"
        assert claim.try_acquire()
        assert limits.stats() == {"http": (2, 1, 0), "file": (1, 1, 0)}
        assert limits.total()[:5] == ("mine", 3, 2, 0, 1)
        assert repr(limits) == "<tideloop.ResourceLimits 'mine' http 1/2, file 1/1>"
        limits.resize("file", 3)
        assert limits.stats()["file"].capacity == 3
        claim.release()
        at_rest(limits)


def test_names_are_public():
    for name in ("Limiter", "KeyedLimiter", "ResourceLimits", "LimiterClosed", "LimiterFull", "WeightError"):
        assert getattr(tideloop, name).__name__ == name
        assert name in tideloop.__all__
