"""A Limiter that processes share, on a Redis server of our own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import signal
import sys
import threading

import pytest
import tideloop

from tests.real import peers, sharing

redis = peers.package("redis.asyncio")
names = (f"limit {number}" for number in itertools.count())

# What is shared is a matter of no loop; the tests that start processes are on ours alone.
either_loop = pytest.mark.parametrize(
    "loop", [tideloop.new_event_loop, asyncio.SelectorEventLoop], ids=["tideloop", "asyncio"], indirect=True
)


@pytest.fixture
def name() -> str:
    return next(names)


@pytest.fixture
def url(redis_server) -> str:
    return f"redis://127.0.0.1:{redis_server.port}/0"


async def until(condition):
    """Until something holds that the server or another task decides."""
    async with asyncio.timeout(peers.PATIENCE):
        while not condition():  # noqa: ASYNC110 - nobody here could set an event
            await asyncio.sleep(0.002)  # real time: another process decides


@contextlib.asynccontextmanager
async def holders(url, name, capacity=10, count=2, **options):
    """As many processes would have: one limiter each, with a store of its own."""
    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(tideloop.RedisStore(url, **options)) for _ in range(count)]
        yield [tideloop.Limiter(capacity, store=store, name=name) for store in stores]


# --- what it is ----------------------------------------------------------------------------------


@either_loop
async def test_it_is_a_limiter(loop, url, name):
    async with holders(url, name, count=1) as (limiter,):
        assert isinstance(limiter, tideloop.SharedLimiter)
        async with limiter:
            assert (limiter.in_use, limiter.capacity) == (1, 10)
        async with limiter(weight=10, timeout=5):
            assert limiter.in_use == 10
            assert not limiter.try_acquire()
            with pytest.raises(TimeoutError):
                await limiter.acquire(timeout=0.001)
        with pytest.raises(ValueError, match=r"1 released, but 0 in use"):
            limiter.release()
        with pytest.raises(tideloop.WeightError):
            await limiter.acquire(11)
        stats = limiter.stats()
        assert (stats.granted, stats.in_use, stats.timed_out, stats.capacity) == (2, 0, 1, 10)
        assert "0 in use" in repr(limiter)


@either_loop
async def test_groups_take_it(loop, url, name):
    async with holders(url, name, 2, count=1) as (limiter,):
        inside = most = 0

        async def work():
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

        async with tideloop.group(limit=limiter) as group:
            for _ in range(10):
                group.spawn(work)
        assert most == 2


@either_loop
async def test_nobody_has_more_than_there_are(loop, url, name):
    async with holders(url, name, 3, batch=1) as (one, two):
        await one.acquire(2)
        await two.acquire(1)
        waits = asyncio.create_task(two.acquire())
        await until(lambda: two.waiting)
        assert not one.try_acquire()
        one.release()
        await waits
        assert (one.in_use, two.in_use) == (1, 2)
        one.release()
        two.release(2)


@either_loop
async def test_what_lies_ready_is_given_to_who_wants_it(loop, url, name):
    async with holders(url, name, 10, batch=16) as (one, two):
        async with one:
            assert one.held == 10
            async with asyncio.timeout(20):
                await two.acquire()
            assert one.held + two.held <= 10
            assert two.held == 5  # half of it is its fair share
        two.release()


@either_loop
async def test_who_wants_many_gets_them_from_all(loop, url, name):
    async with holders(url, name, 9, count=3) as limiters:
        for limiter in limiters:
            await limiter.acquire()
        heavy = asyncio.create_task(limiters[0].acquire(8))
        await until(lambda: limiters[0].waiting)
        # Others who come later wait behind it, also in other processes.
        for limiter in limiters[1:]:
            limiter.release()
        async with asyncio.timeout(20):
            await heavy
        late = asyncio.create_task(limiters[1].acquire())
        await until(lambda: limiters[1].waiting)
        assert not late.done()
        limiters[0].release(9)
        await late
        limiters[1].release()


@either_loop
async def test_more_holders_than_permits_take_turns(loop, url, name):
    """Each of them is busy all the time, and none is passed over for long."""
    async with holders(url, name, 1, count=4) as limiters:
        turns = []

        async def use(number):
            while len(turns) < 60:
                async with limiters[number]:
                    if number != (turns or [None])[-1]:
                        turns.append(number)
                    await asyncio.sleep(0)

        async with asyncio.timeout(20):
            await asyncio.gather(*(use(number) for number in range(4) for _ in range(2)))
        # However often a holder uses it in its turn: before its next one, all others have theirs.
        assert turns[20:40] == turns[20:24] * 5
        assert set(turns[20:24]) == {0, 1, 2, 3}


@either_loop
async def test_cancelled_waiters_leave_nothing(loop, url, name):
    async with holders(url, name, 2) as (one, two):
        await one.acquire(2)
        waiters = [asyncio.create_task(two.acquire()) for _ in range(5)]
        await until(lambda: two.waiting == 5)
        for waiter in waiters[:4]:
            waiter.cancel()
        one.release(2)
        await waiters[4]
        two.release()
        async with asyncio.timeout(20):
            await one.acquire(2)
        one.release(2)


@either_loop
async def test_cancelled_at_any_moment_nothing_is_lost(loop, url, name):
    async with holders(url, name, 3) as limiters:
        for turns in range(40):
            task = asyncio.create_task(limiters[turns % 2].acquire(1 + turns % 3))
            for _ in range(turns % 7):
                await asyncio.sleep(0)
            task.cancel()
            if not (await asyncio.gather(task, return_exceptions=True))[0]:
                limiters[turns % 2].release(1 + turns % 3)
        for limiter in limiters:
            async with asyncio.timeout(20), limiter(3):
                pass


@either_loop
async def test_what_is_not_used_is_kept_from_nobody(loop, url, name):
    """The keeper ends, and its connections with it."""
    async with holders(url, name, count=1, lease=1.5) as (limiter,):
        async with limiter:
            pass
        await until(lambda: limiter._keeper is None)
        assert limiter.held == 0
        async with redis.Redis.from_url(url) as client:
            assert await client.keys(f"*{name}*") == []
        async with limiter:  # begins anew
            assert limiter.held


@either_loop
async def test_resize(loop, url, name):
    async with holders(url, name, 2, count=1) as (limiter,):
        await limiter.acquire(2)
        waiter = asyncio.create_task(limiter.acquire())
        await until(lambda: limiter.waiting)
        limiter.resize(5)
        await waiter
        assert limiter.capacity == 5
        limiter.resize(1)
        late = asyncio.create_task(limiter.acquire())
        await until(lambda: limiter.stats().capacity == 1 and limiter.waiting)
        limiter.release(2)
        await asyncio.sleep(0.01)  # real time: the server may answer
        assert not late.done()
        limiter.release()
        await late
        limiter.release()


@either_loop
async def test_close(loop, url, name):
    async with holders(url, name, 1) as (one, two):
        await one.acquire()
        waiter = asyncio.create_task(one.acquire())
        await until(lambda: one.waiting)
        one.close()
        with pytest.raises(tideloop.LimiterClosed):
            await waiter
        with pytest.raises(tideloop.LimiterClosed):
            await one.acquire()
        one.release()
        async with asyncio.timeout(20):
            await two.acquire()
        two.release()


@either_loop
async def test_a_client_of_the_users_is_used_and_not_closed(loop, url, name):
    async with redis.Redis.from_url(url, decode_responses=True) as client:
        async with tideloop.RedisStore(client, lease=1) as store, tideloop.Limiter(2, store=store, name=name):
            pass
        assert await client.ping()


# --- threads, loops, forks ---------------------------------------------------------------------


@either_loop
async def test_threads_and_loops(loop, url, name):
    """Three loops and two threads without one; the home is this loop."""
    async with holders(url, name, 2, count=1) as (limiter,):
        inside, most, lock = 0, 0, threading.Lock()

        @contextlib.contextmanager
        def counted():
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            yield
            with lock:
                inside -= 1

        async def use():
            for _ in range(30):
                async with limiter:
                    with counted():
                        await asyncio.sleep(0)

        def block():
            for _ in range(30):
                limiter.blocking_acquire()
                with counted():
                    pass
                limiter.release()

        await limiter.acquire()
        limiter.release()
        jobs = [asyncio.to_thread(asyncio.run, use()), asyncio.to_thread(tideloop.run, use())]
        jobs += [asyncio.to_thread(block) for _ in range(2)]
        await asyncio.gather(use(), *jobs)
        assert most <= 2
        assert limiter.in_use == 0


def test_one_loop_after_the_other(url, name):
    store = tideloop.RedisStore(url)
    limiter = tideloop.Limiter(1, store=store, name=name)

    async def use():
        async with asyncio.timeout(20), limiter:
            assert limiter.in_use == 1

    for run in (asyncio.run, tideloop.run, asyncio.run):
        run(use())  # the loop's end ends the keeper, in order
    gc.collect()
    assert limiter.held == 0


def test_a_loop_that_stopped_does_not_keep_it(url, name):
    limiter = tideloop.Limiter(1, store=tideloop.RedisStore(url, lease=2), name=name)
    first = tideloop.new_event_loop()
    first.run_until_complete(limiter.acquire())
    limiter.release()

    async def use():
        async with asyncio.timeout(20), limiter:
            pass

    asyncio.run(use())
    for task in asyncio.all_tasks(first):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            first.run_until_complete(task)
    first.close()


def test_a_thread_alone_cannot(url, name):
    limiter = tideloop.Limiter(1, store=tideloop.RedisStore(url), name=name)
    with pytest.raises(RuntimeError, match="no running event loop keeps it"):
        limiter.blocking_acquire()
    assert not limiter.try_acquire()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_forked_child_has_nothing(loop, url, name):
    async with holders(url, name, 2, count=1) as (limiter,):
        await limiter.acquire()
        child = os.fork()
        if child == 0:
            good = (limiter.in_use, limiter.held, limiter.try_acquire()) == (0, 0, False)
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # noqa: ASYNC222
        limiter.release()


# --- processes that are killed -----------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.limit(90)
async def test_eight_processes_one_of_them_killed(loop, url, name, batch):
    """Never more than n inside, whatever the batch; and all n again when the lease of the killed one has ended."""
    capacity, count, lease = 12, 8, 3.0
    inside, most, entered = sharing.keys(name)
    command = [*peers.PYTHON, "-m", "tests.real.sharing"]
    arguments = [url.split(":")[-1].split("/")[0], name, str(capacity), str(batch), str(lease), "4"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    async with redis.Redis.from_url(url, decode_responses=True) as client:
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(peers.program([*command, *arguments], env=environment)) for _ in range(count)
            ]

            async def reached(least):
                """Until each of these processes has entered so often."""
                while True:
                    found = await client.hgetall(entered)
                    if len(found) >= count and all(int(found[str(pid)]) >= least for pid in pids):
                        return
                    for worker in workers:
                        assert worker.process.poll() is None or worker is victim, worker.output
                    await asyncio.sleep(0.01)  # real time: other processes

            victim = None
            pids = [worker.process.pid for worker in workers]
            await reached(5)
            victim = workers[0]
            # Inside while it dies, with permits: stopped first, to see it there.
            while True:
                os.kill(victim.process.pid, signal.SIGSTOP)
                if int(await client.hget(inside, str(victim.process.pid)) or 0) > 0:
                    break
                os.kill(victim.process.pid, signal.SIGCONT)
                await asyncio.sleep(0.002)  # real time: another process
            os.kill(victim.process.pid, signal.SIGKILL)
            assert await asyncio.to_thread(victim.end) == -signal.SIGKILL
            # Dead, it does nothing any more; its permits are lent until the lease ends all the same.
            await client.hdel(inside, str(victim.process.pid))
            pids.remove(victim.process.pid)
            before = int(await client.get(most))
            assert 0 < before <= capacity
            await client.delete(most)
            found = await client.hgetall(entered)
            await reached(max(int(found[str(pid)]) for pid in pids) + 20)
            async with asyncio.timeout(peers.PATIENCE):
                while int(await client.get(most) or 0) < capacity:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)  # real time: other processes
            await client.set(f"stop:{name}", 1)
            for worker in workers[1:]:
                assert await asyncio.to_thread(worker.end) == 0, worker.output
            assert int(await client.get(most)) == capacity
            assert set((await client.hgetall(inside)).values()) <= {"0"}


@either_loop
async def test_a_lease_that_ended_is_noticed(loop, url, name):
    """As if this process had been suspended: others have its permits, and it begins nothing until it is within."""
    async with holders(url, name, 2, batch=1) as (one, two):
        await one.acquire(2)
        async with redis.Redis.from_url(url) as client:
            ends = one._keys[0]
            await client.zadd(ends, {one._holder: 1})
        async with asyncio.timeout(20):
            await two.acquire()
        one._ring()
        await until(lambda: one.stats().lost == 1)
        one.release()
        assert not one.try_acquire()
        await until(lambda: (one.in_use, one.held) == (1, 1))
        one.release()
        two.release()


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["secret", "http://user:secret@127.0.0.1", "redis://user:secret@127.0.0.1:port/0"])
def test_a_url_that_is_none_is_not_shown(given):
    with pytest.raises(ValueError, match="the URL is none") as caught:
        tideloop.RedisStore(given)
    assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"lease": 0}, r"lease is 0; expected seconds from 0.1"),
        ({"lease": "long"}, r"lease must be a number of seconds"),
        ({"batch": 0}, r"batch is 0; expected an int >= 1"),
        ({"batch": True}, r"batch is True; expected an int >= 1"),
        ({"on_outage": "hope"}, r"on_outage is 'hope'; expected 'fail' or 'local'"),
        ({"prefix": "{a}"}, r"prefix is '{a}'; expected a str without braces"),
    ],
)
def test_arguments_are_checked(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        tideloop.RedisStore("redis://127.0.0.1/0", **options)


def test_a_shared_limit_has_a_name():
    store = tideloop.RedisStore("redis://:secret@127.0.0.1/0")
    for name in (None, "", "{x}"):
        with pytest.raises(ValueError, match="name"):
            tideloop.Limiter(1, store=store, name=name)
        with pytest.raises(ValueError, match="name"):
            tideloop.RateLimiter(tideloop.rate(1), store=store, name=name)
    with pytest.raises(ValueError, match="capacity"):
        tideloop.Limiter(0, store=store, name="x")
    with pytest.raises(TypeError, match=r"a URL or a client of redis\.asyncio, not int"):
        tideloop.RedisStore(5)
    assert repr(store) == "<tideloop.RedisStore 127.0.0.1:6379, lease=10, batch=16, 'fail'>"


# --- the server goes away ----------------------------------------------------------------------


def store_of(own_redis, **options):
    return tideloop.RedisStore(f"redis://127.0.0.1:{own_redis.port}/0", **options)


@either_loop
async def test_nothing_changes_while_the_lease_is_good(loop, own_redis, name):
    async with store_of(own_redis, lease=60) as store:
        limiter = tideloop.Limiter(2, store=store, name=name)
        await limiter.acquire()
        own_redis.stop()
        limiter._ring()
        await until(lambda: limiter._tries > 1)
        async with limiter:
            assert limiter.in_use == 2
        assert not limiter.stats().away
        own_redis.start()
        await until(lambda: limiter._tries == 0)
        assert limiter.held >= 1  # claimed from a server that knew nothing
        assert limiter.stats().lost == 0
        limiter.release()


@either_loop
async def test_an_outage_fails_those_who_wait(loop, own_redis, name, caplog):
    async with store_of(own_redis, lease=2, on_outage="fail") as store:
        limiter = tideloop.Limiter(2, store=store, name=name)
        await limiter.acquire(2)
        waiters = [asyncio.create_task(limiter.acquire()) for _ in range(3)]
        await until(lambda: limiter.waiting == 3)
        own_redis.stop()
        for waiter in waiters:
            with pytest.raises(tideloop.StoreUnavailable, match=r"does not answer") as caught:
                await waiter
            assert name in str(caught.value)
        with pytest.raises(tideloop.StoreUnavailable):
            await limiter.acquire()
        limiter.release()  # does not make room for anybody
        assert not limiter.try_acquire()
        assert limiter.stats().away
        await until(lambda: limiter.in_use == 1)
        own_redis.start()
        await until(lambda: not limiter.stats().away)
        async with asyncio.timeout(20):
            await limiter.acquire()
        assert limiter.in_use == 2
        limiter.release(2)
    assert [record.levelname for record in caplog.records if record.name == "tideloop.redis"] == ["WARNING"]


@either_loop
async def test_an_outage_leaves_a_fair_share(loop, own_redis, name, caplog):
    caplog.set_level(logging.ERROR, "tideloop.redis")
    async with (
        store_of(own_redis, lease=2, on_outage="local") as first,
        store_of(own_redis, lease=2, on_outage="local") as second,
    ):
        one, two = (tideloop.Limiter(4, store=store, name=name) for store in (first, second))
        await one.acquire(3)
        await two.acquire()
        one._ring()
        await until(lambda: one.stats().holders == 2)
        own_redis.stop()
        await until(lambda: one.stats().away and two.stats().away)
        async with asyncio.timeout(20):
            await two.acquire()
        assert (two.in_use, two.try_acquire()) == (2, False)
        one.release()
        assert not one.try_acquire()  # two of four are its share
        one.release()
        assert one.try_acquire()
        own_redis.start()
        await until(lambda: not one.stats().away and not two.stats().away)
        assert (one.in_use, two.in_use) == (2, 2)
        # Who has heard first that it answers may have to wait for what the other one, too, has taken meanwhile.
        await until(lambda: one.held + two.held == 4)
        one.release(2)
        two.release(2)


@either_loop
async def test_a_server_that_never_was_is_told_at_once(loop, own_redis, name, caplog):
    port = own_redis.port
    own_redis.stop()
    async with tideloop.RedisStore(f"redis://somebody:secret@127.0.0.1:{port}/0") as store:
        limiter = tideloop.Limiter(2, store=store, name=name)
        with pytest.raises(tideloop.StoreUnavailable) as caught:
            async with asyncio.timeout(20):
                await limiter.acquire()
        chain, said = caught.value, []
        while chain is not None:
            said.append(f"{chain} {chain!r}")
            chain = chain.__cause__ or chain.__context__
        said += [repr(store), repr(limiter), caplog.text]
        assert not any("secret" in text for text in said)
        assert f"127.0.0.1:{port}" in said[0]


async def test_a_server_that_is_slow_at_first_has_a_lease_to_answer(loop, own_redis, name):
    """It takes the connection, and hears of it late: that is no outage yet."""
    async with store_of(own_redis, lease=6) as store:
        limiter = tideloop.Limiter(2, store=store, name=name)
        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            acquired = asyncio.create_task(limiter.acquire())
            await until(lambda: limiter._tries)
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        await acquired
        assert not limiter.stats().away
        limiter.release()


@either_loop
async def test_it_works_again_after_many_outages(loop, own_redis, name, caplog):
    """Tasks that come and go all the while: nobody is stuck, and nothing is lost or doubled."""
    async with store_of(own_redis, lease=0.5) as store:
        limiter = tideloop.Limiter(3, store=store, name=name)
        ended = False
        inside = most = good = bad = 0

        async def use():
            nonlocal inside, most, good, bad
            while not ended:
                try:
                    async with limiter:
                        inside += 1
                        most = max(most, inside)
                        await asyncio.sleep(0.001)
                        inside -= 1
                        good += 1
                except tideloop.StoreUnavailable:
                    bad += 1
                    await asyncio.sleep(0.01)

        users = [asyncio.create_task(use()) for _ in range(8)]

        async def more(count, least):
            before = count()
            await until(lambda: count() > before + least)

        for _ in range(2):
            await more(lambda: good, 20)
            own_redis.stop()
            await more(lambda: bad, 5)
            own_redis.start()
        await more(lambda: good, 20)
        ended = True
        await asyncio.gather(*users)
        assert most == 3
        assert limiter.in_use == 0
        async with asyncio.timeout(20), limiter(3):
            assert limiter.in_use == 3


def test_the_example(url):
    # Without -X dev, which tells of steps that are slow on a busy machine.
    said = peers.run([sys.executable, "-W", "error", "examples/shared_limit.py", "--redis", url], timeout=60)
    assert said == "60 calls by 3 processes\nat most 4 at a time: True\n"
