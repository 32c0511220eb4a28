"""RateLimiter and KeyedRateLimiter."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import weakref

import pytest
import tideloop
from tideloop import KeyedRateLimiter, RateLimiter, rate

from tests.toolkit import harness
from tests.toolkit.harness import Inside, Permits


def on_clock(kind, main):
    return harness.run(kind, main())


async def visit(limiter: RateLimiter, inside: Inside) -> None:
    async with limiter:
        await inside()


async def visit_key(limiter: KeyedRateLimiter, inside: Inside) -> None:
    async with limiter("host"):
        await inside()


def nobody_waits(limiter: RateLimiter | KeyedRateLimiter) -> None:
    harness.demand(limiter.stats().waiting == 0, f"still waiting: {limiter!r}")


def primitive(*rates: tideloop.Rate) -> Permits:
    return Permits("RateLimiter", lambda: RateLimiter(*rates), visit, nobody_waits, several_loops=True)


TIGHT = primitive(rate(10, burst=1))
LOOSE = primitive(rate(10, burst=3), rate(60, per=60, burst=8))
KEYED = Permits(
    "KeyedRateLimiter", lambda: KeyedRateLimiter(rate(10, burst=1)), visit_key, nobody_waits, several_loops=True
)


@pytest.mark.parametrize("subject", [TIGHT, LOOSE, KEYED], ids=["one rate", "two rates", "by key"])
def test_cancelled_at_every_await(kind, subject):
    assert harness.cancel_everywhere(kind, harness.permits_scenario(subject, visitors=12)) > 20


@pytest.mark.parametrize("subject", [TIGHT, LOOSE, KEYED], ids=["one rate", "two rates", "by key"])
def test_random_schedules(kind, subject):
    for seed in range(40):
        harness.interleave(kind, subject, seed)


def test_several_loops_in_threads(backend):
    harness.share(backend.name, primitive(rate(2000, burst=5)), visits=20)


def test_several_loops_in_threads_by_key(backend):
    fast = Permits("keyed", lambda: KeyedRateLimiter(rate(2000, burst=5)), visit_key, nobody_waits, several_loops=True)
    harness.share(backend.name, fast, visits=20)


def test_loop_closed_with_waiters(backend):
    async def fill(limiter):
        await limiter.acquire()
        tasks = [asyncio.ensure_future(limiter.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        return tasks

    limiter = RateLimiter(rate(50, burst=1))
    doomed = harness.new_real_loop(backend.name)
    tasks = doomed.run_until_complete(fill(limiter))
    doomed.close()
    loop = harness.new_real_loop(backend.name)
    began = time.monotonic()
    loop.run_until_complete(asyncio.wait_for(limiter.acquire(), 5))
    assert time.monotonic() - began < 1
    loop.close()
    for task in tasks:
        harness._abandon(task)


@pytest.mark.parametrize("subject", [TIGHT, KEYED], ids=str)
def test_forked_with_waiters(backend, subject):
    harness.fork_with_waiters(backend.name, subject)


# --- rates ---------------------------------------------------------------------------------------


def test_never_more_than_promised(kind):
    """On every interval, for random costs, cancellations and settlements."""

    async def main():
        loop = asyncio.get_running_loop()
        dice = random.Random(4)
        limiter = RateLimiter(rate(7, per=1, burst=4), rate(100, per=30, burst=60, unit="tokens"))
        admitted = []

        async def request():
            tokens = dice.randrange(1, 40)
            async with limiter(cost={"tokens": tokens}) as charge:
                entry = [loop.time(), tokens]
                admitted.append(entry)
                await asyncio.sleep(dice.random() * 3)
                entry[1] = dice.randrange(1, tokens + 1)
                charge.settle(tokens=entry[1])

        tasks = []
        for _ in range(300):
            tasks.append(asyncio.ensure_future(request()))
            if dice.random() < 0.3:
                await asyncio.sleep(dice.random())
            if dice.random() < 0.2:
                dice.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for first in range(len(admitted)):
            tokens = 0
            for count, (at, cost) in enumerate(admitted[first:], 1):
                tokens += cost
                span = at - admitted[first][0] + 1e-6
                assert count <= 4 + 7 * span
                assert tokens <= 60 + 100 / 30 * span
        return len(admitted)

    assert on_clock(kind, main) > 150


def test_a_day_at_the_exact_rate(kind):
    async def main():
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(rate(3, per=7, burst=2))
        began = loop.time()
        count = 0
        while loop.time() < began + 86_400:
            async with limiter:
                count += 1
        return count

    assert on_clock(kind, main) == pytest.approx(86_400 * 3 / 7 + 2, abs=1)


def test_waiters_come_at_their_times_and_in_order(kind):
    async def main():
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(rate(10, burst=1))
        order = []

        async def come(name, priority=0):
            await limiter.acquire(priority=priority)
            order.append((name, round(loop.time(), 6)))

        await asyncio.gather(come("a"), come("b"), come("c"), come("urgent", 1), come("d", -1), come("e"))
        stats = limiter.stats()
        assert stats.timers <= stats.waited == 5
        assert stats.wait_time == pytest.approx(1.5)
        return order

    assert on_clock(kind, main) == [("a", 0.0), ("urgent", 0.1), ("b", 0.2), ("c", 0.3), ("e", 0.4), ("d", 0.5)]


def test_a_heavy_one_is_not_starved(kind):
    """aiolimiter serves it after all 40."""

    async def main():
        limiter = RateLimiter(rate(10, burst=10))
        await limiter.acquire(10)
        order = []

        async def come(name, cost):
            await limiter.acquire(cost)
            order.append(name)

        await asyncio.gather(come("heavy", 10), *(come(n, 1) for n in range(40)))
        return order

    assert on_clock(kind, main) == ["heavy", *range(40)]


def test_who_leaves_pulls_the_others_forward(kind):
    async def main():
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(rate(10, burst=10))
        await limiter.acquire(10)
        heavy = asyncio.ensure_future(limiter.acquire(10))
        light = asyncio.ensure_future(limiter.acquire(1))
        await asyncio.sleep(0.5)
        heavy.cancel()
        await light
        return loop.time()

    assert on_clock(kind, main) == pytest.approx(0.5)


def test_no_herd(kind):
    async def main():
        limiter = RateLimiter(rate(1000, burst=100))
        await asyncio.gather(*(limiter.acquire() for _ in range(2000)))
        stats = limiter.stats()
        assert stats.waited == 1900
        assert stats.timers < 400
        return asyncio.get_running_loop().time()

    assert on_clock(kind, main) == pytest.approx(1.9, rel=0.01)


def test_settling(kind):
    async def main():
        limiter = RateLimiter(rate(10, burst=5), rate(100, per=1, burst=1000, unit="tokens"))
        async with limiter(cost={"tokens": 800}) as charge:
            assert charge.cost == {"requests": 1, "tokens": 800}
            assert limiter.stats().available == (4, 200)
            charge.settle(tokens=300)
            assert limiter.stats().available == (4, 700)
        waiting = asyncio.ensure_future(limiter.acquire({"tokens": 800}))
        await asyncio.sleep(0)
        assert limiter.waiting == 1
        charge.settle(tokens=200)
        assert limiter.waiting == 0
        await waiting
        charge.cancel()
        charge.cancel()
        assert limiter.stats().available == (4, 200)
        with pytest.raises(RuntimeError, match="the charge was cancelled"):
            charge.settle(tokens=1)

    on_clock(kind, main)


def test_what_cost_more_is_owed(kind):
    async def main():
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(rate(100, burst=100, unit="tokens"))
        charge = await limiter.acquire(50)
        charge.settle(350)
        await limiter.acquire(1)
        return loop.time()

    assert on_clock(kind, main) == pytest.approx(2.51)


def test_what_only_seemed_to_cost_more_is_given_back(kind):
    async def main():
        limiter = RateLimiter(rate(10, burst=5), rate(100, per=60, burst=1000, unit="tokens"))
        charge = await limiter.acquire({"tokens": 200})
        await limiter.acquire({"tokens": 100})
        for tokens, available in ((500, 400), (5000, 0), (300, 600), (200, 700), (900, 0)):
            charge.settle(tokens=tokens)
            assert limiter.stats().available == (3, available)
            assert charge.cost == {"requests": 1, "tokens": tokens}
        charge.cancel()
        assert limiter.stats().available == (4, 900)

    on_clock(kind, main)


def test_reserving(kind):
    async def main():
        limiter = RateLimiter(rate(10, burst=1))
        assert limiter.reserve().wait == 0
        second = limiter.reserve()
        assert second.wait == pytest.approx(0.1)
        waiting = asyncio.ensure_future(limiter.acquire())
        await asyncio.sleep(0)
        third = limiter.reserve()
        assert third.wait == pytest.approx(0.3)
        assert "reserved" in repr(third)
        with pytest.raises(RuntimeError, match="can be cancelled but not settled"):
            third.settle(0)
        last = limiter.reserve()
        third.cancel()
        del last
        await waiting
        assert limiter.try_acquire() is None
        await asyncio.sleep(0.1)
        assert limiter.try_acquire() is None, "what was reserved last has its place, though forgotten"
        await asyncio.sleep(0.1)
        assert limiter.try_acquire() is None, "and the time that it was promised"
        await asyncio.sleep(0.1)
        assert limiter.try_acquire() is not None
        assert limiter.stats().rejected == 3

    on_clock(kind, main)


def test_a_penalty(kind):
    async def main():
        loop = asyncio.get_running_loop()
        limiter = RateLimiter(rate(10, burst=5))
        waiting = asyncio.gather(*(limiter.acquire() for _ in range(7)))
        await asyncio.sleep(0)
        limiter.penalise(30)
        await waiting
        assert loop.time() == pytest.approx(30.1)
        await limiter.acquire()
        assert loop.time() == pytest.approx(30.2)
        assert limiter.stats().penalties == 1

    on_clock(kind, main)


def test_two_loops_of_which_one_stands(backend):
    """The first in line belongs to a loop that does not run: it does not hold up those of another one."""
    limiter = RateLimiter(rate(100, burst=1))
    standing = harness.new_real_loop(backend.name)
    running = harness.new_real_loop(backend.name)

    async def leave_one_waiting():
        await limiter.acquire()
        task = asyncio.ensure_future(limiter.acquire())
        await asyncio.sleep(0)
        return task

    first = standing.run_until_complete(leave_one_waiting())
    running.run_until_complete(asyncio.wait_for(limiter.acquire(), 5))
    running.close()
    standing.run_until_complete(asyncio.wait_for(first, 5))
    standing.close()


def test_from_threads_without_a_loop():
    limiter = RateLimiter(rate(1, per=1000, burst=100))
    got = []

    def work():
        got.extend(limiter.try_acquire() is not None for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count(True) == 100


# --- keys ----------------------------------------------------------------------------------------


def test_keys_are_apart_and_forgotten_when_recovered(kind):
    async def main():
        limiter = KeyedRateLimiter(rate(1, burst=2), name="host")
        for _ in range(2):
            async with limiter("a"):
                pass
            await limiter.acquire("b")
        assert limiter.try_acquire("a") is None
        assert limiter["a"].name == "host['a']"
        assert "a" in limiter
        held = limiter["a"]
        for n in range(1000):
            assert limiter.try_acquire(n) is not None
            await asyncio.sleep(0.1)
            assert len(limiter) < 40
        assert limiter.stats().evicted > 900
        assert "a" not in limiter
        assert limiter["a"] is held

    on_clock(kind, main)


def test_a_key_that_is_not_recovered_is_not_forgotten(kind):
    async def main():
        limiter = KeyedRateLimiter(rate(1, per=1000, burst=1))
        for n in range(100):
            assert limiter.try_acquire(n) is not None
        for n in range(100):
            assert limiter.try_acquire(n) is None

    on_clock(kind, main)


# --- errors and looks ----------------------------------------------------------------------------


def test_what_is_no_rate_is_refused():
    for bad in ({"limit": 0}, {"limit": -1}, {"limit": 1, "per": 0}, {"limit": float("nan")}, {"limit": 1, "burst": 0}):
        with pytest.raises(ValueError, match="expected a number > 0"):
            rate(**bad)
    with pytest.raises(TypeError, match=r"burst is 1\.5; expected an int"):
        rate(1, burst=1.5)
    with pytest.raises(ValueError, match="at least one rate"):
        RateLimiter()
    with pytest.raises(TypeError, match="not 5"):
        RateLimiter(5)
    with pytest.raises(ValueError, match="no rate that can be kept"):
        RateLimiter(rate(1, per=1e9, burst=10))


def test_costs_that_cannot_be_are_refused():
    limiter = RateLimiter(rate(10, burst=5), rate(100, unit="tokens"), name="api")
    with pytest.raises(tideloop.WeightError, match="RateLimiter 'api': 6 requests wanted at once, but its burst is 5"):
        limiter(6)
    with pytest.raises(tideloop.WeightError, match="101 tokens wanted"):
        limiter.try_acquire({"tokens": 101})
    with pytest.raises(ValueError, match="no rate counts 'bytes'; it counts requests, tokens"):
        limiter({"bytes": 1})
    with pytest.raises(ValueError, match="tokens must be an int >= 0, not -1"):
        limiter({"tokens": -1})
    with pytest.raises(TypeError, match=r"cost must be an int >= 0, not 1\.5"):
        limiter(1.5)
    with pytest.raises(ValueError, match="retry_after is -1"):
        limiter.penalise(-1)
    strange = RateLimiter(rate(1, unit="a"), rate(1, unit="b"))
    with pytest.raises(ValueError, match="cost must say how many a, b"):
        strange.try_acquire()
    with pytest.raises(ValueError, match=r"expected a mapping, such as \{'a': 1\}"):
        strange.try_acquire(1)


def test_looks():
    limiter = RateLimiter(rate(10, burst=5), rate(100, per=60, unit="tokens"), name="api")
    assert repr(limiter) == "<tideloop.RateLimiter 'api' 10 requests per 1 s, 100 tokens per 60 s>"
    assert repr(limiter({"tokens": 7})) == "<1 requests, 7 tokens of RateLimiter 'api'>"
    assert repr(limiter.try_acquire(2)) == "<Charge of RateLimiter 'api': 2 requests, charged>"
    assert repr(KeyedRateLimiter(rate(1))) == "<tideloop.KeyedRateLimiter 1 requests per 1 s per key, 0 keys>"
    assert limiter.rates[0] == rate(10, per=1, burst=5)


def test_one_that_is_waited_for_is_collected_with_its_waiters(backend):
    """The limiter holds the waiter, its future the task, the task's frame the limiter."""

    async def abandon():
        limiter = RateLimiter(rate(1, per=100, burst=1))
        await limiter.acquire()

        async def wait():
            await limiter.acquire()

        task = asyncio.ensure_future(wait())
        task._log_destroy_pending = False
        await asyncio.sleep(0)
        assert limiter.waiting == 1
        return weakref.ref(limiter)

    loop = backend.new_event_loop()
    limiter = loop.run_until_complete(abandon())
    loop.close()
    del loop
    gc.collect()
    gc.collect()
    assert limiter() is None
