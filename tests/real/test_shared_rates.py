"""A RateLimiter that processes share, on a Redis server of our own.

Time is the server's and real here: what is measured is never too much, which must hold however slow this machine is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
import tideloop
from tideloop import rate

from tests.real import peers
from tests.real.test_shared_limits import either_loop, until

redis = peers.package("redis.asyncio")
names = (f"rate {number}" for number in itertools.count())


@pytest.fixture
def name() -> str:
    return next(names)


@pytest.fixture
def url(redis_server) -> str:
    return f"redis://127.0.0.1:{redis_server.port}/0"


@contextlib.asynccontextmanager
async def holders(url, name, *rates, count=2, **options):
    """As many processes would have: one limiter each, with a store of its own."""
    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(tideloop.RedisStore(url, **options)) for _ in range(count)]
        yield [tideloop.RateLimiter(*rates, store=store, name=name) for store in stores]


@either_loop
async def test_it_is_a_rate_limiter(loop, url, name):
    async with holders(url, name, rate(1, per=3600, burst=3), count=1) as (limiter,):
        assert isinstance(limiter, tideloop.SharedRateLimiter)
        async with limiter as charge:
            assert charge.cost == {"requests": 1}
        async with limiter(cost=2):
            pass
        waiter = asyncio.create_task(limiter.acquire())
        await until(lambda: limiter.waiting)
        assert limiter.try_acquire() is None
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        with pytest.raises(tideloop.WeightError, match="burst is 3"):
            await limiter.acquire(4)
        with pytest.raises(ValueError, match="no rate of 'tokens'"):
            await limiter.acquire({"tokens": 1})
        stats = limiter.stats()
        assert (stats.admitted, stats.waiting, stats.away) == (2, 0, False)


@pytest.mark.parametrize("batch", [1, 8])
@either_loop
async def test_all_together_keep_the_rate(loop, url, name, batch):
    """In every span: the burst, what the rate lets come back meanwhile, and a batch of each that lay ready."""
    limit, burst, count = 200, 10, 3
    async with holders(url, name, rate(limit, per=1, burst=burst), count=count, batch=batch) as limiters:
        times = []

        async def use(limiter):
            for _ in range(12):
                async with limiter:
                    times.append(loop.time())

        await asyncio.gather(*(use(limiter) for limiter in limiters for _ in range(2)))
        assert len(times) == 72
        ready = 0 if batch == 1 else batch * count
        # Each was charged at the server before this clock was read: not earlier than the rate allows from the first on.
        for last, until_then in enumerate(times):
            assert last + 1 <= burst + ready + limit * (until_then - times[0]) + limit * 0.02


@either_loop
async def test_one_waits_for_what_another_has_used(loop, url, name):
    async with holders(url, name, rate(10, per=1, burst=2), batch=1) as (one, two):
        await one.acquire(2)
        began = loop.time()
        await two.acquire()
        assert loop.time() - began > 0.05  # a tenth of a second after the charge


@either_loop
async def test_units_and_settling(loop, url, name):
    rates = (rate(100, per=1), rate(1, per=3600, burst=1000, unit="tokens"))
    async with holders(url, name, *rates, batch=1) as (one, two):
        async with one({"tokens": 900}) as charge:
            charge.settle(tokens=100)
        await until(lambda: not one._owed["tokens"])
        async with asyncio.timeout(20):
            await two.acquire({"tokens": 900})
        with pytest.raises(ValueError, match="settled"):
            charge.settle(pages=1)


@either_loop
async def test_a_cancelled_charge_is_given_back(loop, url, name):
    async with holders(url, name, rate(1, per=3600, burst=2), batch=1) as (one, two):
        (await one.acquire(2)).cancel()
        async with asyncio.timeout(20):
            await two.acquire(2)


@either_loop
async def test_what_lies_ready_is_given_back(loop, url, name):
    async with holders(url, name, rate(1, per=3600, burst=16), lease=1.5) as (one, two):
        await one.acquire()
        assert one.stats().pocket == {"requests": 15}
        async with asyncio.timeout(20):
            await two.acquire(15)


@either_loop
async def test_a_penalty_is_everybodys(loop, url, name):
    async with holders(url, name, rate(1000, per=1), count=2) as (one, two):
        await one.acquire()
        one.penalise(0.2)
        await until(lambda: one._penalty is None and not any(one._owed.values()))
        began = loop.time()
        await two.acquire()
        assert loop.time() - began > 0.15


@either_loop
async def test_first_come_first_served_here_and_priorities(loop, url, name):
    async with holders(url, name, rate(50, per=1, burst=1), count=1, batch=1) as (limiter,):
        await limiter.acquire()
        order = []

        async def use(number, priority=0):
            await limiter.acquire(priority=priority)
            order.append(number)

        users = [asyncio.create_task(use(number)) for number in range(4)]
        await until(lambda: limiter._pocket.waiting == 4)
        users.append(asyncio.create_task(use("first", 5)))
        await asyncio.gather(*users)
        assert [number for number in order if number != "first"] == [0, 1, 2, 3]
        assert order.index("first") <= 1


@either_loop
async def test_cancelled_waiters_cost_nothing(loop, url, name):
    async with holders(url, name, rate(4, per=1, burst=1), count=1, batch=1) as (limiter,):
        await limiter.acquire()
        waiters = [asyncio.create_task(limiter.acquire()) for _ in range(100)]
        await until(lambda: limiter.waiting == 100)
        for waiter in waiters[:-1]:
            waiter.cancel()
        async with asyncio.timeout(20):  # of 25 s, if each of them had cost something
            await waiters[-1]


@either_loop
async def test_an_outage_fails(loop, own_redis, name, caplog):
    async with tideloop.RedisStore(f"redis://127.0.0.1:{own_redis.port}/0", lease=2, batch=1) as store:
        limiter = tideloop.RateLimiter(rate(1, per=3600, burst=1), store=store, name=name)
        await limiter.acquire()
        own_redis.stop()
        await asyncio.sleep(0.3)  # real time: what the server has said is good for so long
        for _ in range(2):
            with pytest.raises(tideloop.StoreUnavailable, match="does not answer"):
                await limiter.acquire()
            assert limiter.stats().away
            tries = limiter._tries
            await until(
                lambda tries=tries: limiter._tries > tries
            )  # nobody wants anything, and it is asked all the same
        own_redis.start()
        await until(lambda: not limiter.stats().away)
        async with asyncio.timeout(20):
            await limiter.acquire()  # the server has lost its memory
    assert [record.levelname for record in caplog.records if record.name == "tideloop.redis"] == ["WARNING"]


@either_loop
async def test_an_outage_leaves_a_share(loop, own_redis, name, caplog):
    url = f"redis://127.0.0.1:{own_redis.port}/0"
    async with holders(url, name, rate(100, per=1, burst=10), lease=3, batch=1, on_outage="local") as limiters:
        for limiter in limiters * 2:
            await limiter.acquire()
        own_redis.stop()
        one = limiters[0]
        waiting = [asyncio.create_task(one.acquire()) for _ in range(8)]
        await asyncio.gather(*waiting)
        async with asyncio.timeout(20):
            while not one.stats().away:
                await one.acquire()
            began, count = loop.time(), 0
            while loop.time() < began + 0.3:
                await one.acquire()
                count += 1
        assert count <= 5 + 0.5 * 100 * (loop.time() - began) + 1
        own_redis.start()
        await until(lambda: not one.stats().away)
        async with asyncio.timeout(20):
            await one.acquire()
