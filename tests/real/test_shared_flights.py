"""A SingleFlight that processes share, on a Redis server of our own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import pickle
import signal
import sys
from random import Random

import pytest
import tideloop

from tests.real import peers
from tests.real.test_shared_limits import either_loop, until

redis = peers.package("redis.asyncio")
names = (f"flight {number}" for number in itertools.count())


@pytest.fixture
def name() -> str:
    return next(names)


@pytest.fixture
def url(redis_server) -> str:
    return f"redis://127.0.0.1:{redis_server.port}/0"


@contextlib.asynccontextmanager
async def processes(url, name, count=2, codec=None, cancel_abandoned=False, **options):
    """As many processes would have: flights each, with a store of its own."""
    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(tideloop.RedisStore(url, **options)) for _ in range(count)]
        yield [
            tideloop.SingleFlight(store=store, name=name, codec=codec, cancel_abandoned=cancel_abandoned)
            for store in stores
        ]


class Work:
    """Work that lasts until it is let go; it counts how often it was begun."""

    def __init__(self, result="done"):
        self.begun = 0
        self.cancelled = 0
        self.result = result
        self.go = asyncio.Event()

    async def __call__(self):
        self.begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def asks(flights, work, key="key"):
    return asyncio.create_task(flights.do(key, work))


def told(flights):
    """Its flights that the server has answered."""
    turns = [turn for line in flights._lines.all() for turn in list(line.turns)]
    return [turn for turn in turns if turn._asking is not None and turn._asking.done()]


async def waits(flights):
    """Until its flight waits for another's, or works."""
    await until(lambda: told(flights))


async def one_works_one_waits(work, one, two):
    """What they ask for, each in a task."""
    first = asks(one, work)
    await until(lambda: work.begun)
    second = asks(two, work)
    await waits(two)
    return first, second


# --- what it is ----------------------------------------------------------------------------------


@either_loop
async def test_one_works_and_all_get_it(loop, url, name):
    async with processes(url, name, 3) as flights:
        assert isinstance(flights[0], tideloop.SharedSingleFlight)
        work = Work({"answer": [1, 2.5, None, "ä"]})
        asking = [asks(one, work) for one in flights for _ in range(3)]
        for one in flights:
            await waits(one)
        work.go.set()
        assert await asyncio.gather(*asking) == [work.result] * 9
        assert work.begun == 1
        stats = [one.stats() for one in flights]
        assert sorted(one.elsewhere for one in stats) == [0, 1, 1]
        assert [(one.flights, one.joined, one.flying, one.away, one.lost) for one in stats] == [(1, 2, 0, False, 0)] * 3
        # Who asks afterwards gets another.
        assert await flights[1].do("key", work) == work.result
        assert work.begun == 2


@either_loop
async def test_keys_are_apart(loop, url, name):
    keys = ["a", b"a", 1, "1", None, ("a", 1), ("a", (1,)), ("a", "1"), (), "(", 1.5, True]
    async with processes(url, name) as (one, two):
        for key in keys:
            work = Work(repr(key))
            asking = [asks(one, work, key), asks(two, work, key)]
            await waits(two)
            work.go.set()
            assert await asyncio.gather(*asking) == [repr(key)] * 2
            assert work.begun == 1
        for key in (object(), frozenset(), ("a", object())):
            with pytest.raises(TypeError, match=r"other processes know it if it is a str"):
                await one.do(key, work)


@either_loop
async def test_failures_are_told_to_those_who_wait(loop, url, name):
    async with processes(url, name) as (one, two):
        work = Work(KeyError("no such user"))
        first, second = await one_works_one_waits(work, one, two)
        work.go.set()
        with pytest.raises(KeyError):
            await first
        with pytest.raises(
            tideloop.WorkFailed, match=r"^failed in another process: KeyError: 'no such user'$"
        ) as caught:
            await second
        assert (caught.value.kind, caught.value.text) == ("builtins.KeyError", "'no such user'")
        assert (work.begun, one.stats().failed, two.stats().failed) == (1, 1, 1)
        # It is not kept for who comes later.
        work.result = "better"
        assert await two.do("key", work) == "better"


@either_loop
async def test_a_codec_brings_more(loop, url, name):
    async with processes(url, name, codec=pickle) as (one, two):
        for result in ((1, {2: "b"}), LookupError("gone")):
            work = Work(result)
            first, second = await one_works_one_waits(work, one, two)
            work.go.set()
            outcomes = await asyncio.gather(first, second, return_exceptions=True)
            assert [repr(outcome) for outcome in outcomes] == [repr(result)] * 2
        assert work.begun == 1
        assert any("another process" in note for note in outcomes[1].__notes__)


@either_loop
async def test_json_does_not_change_what_it_brings(loop, url, name):
    async with processes(url, name) as (one, two):
        for result in ((1, 2), {1: 2}, float("nan"), {3}, [{"a": (1,)}]):
            work = Work(result)
            first, second = await one_works_one_waits(work, one, two)
            work.go.set()
            with pytest.raises((TypeError, ValueError)) as caught:
                await first
            assert any("the codec" in note for note in caught.value.__notes__)
            with pytest.raises(tideloop.WorkFailed, match="JSON"):
                await second
            assert work.begun == 1


class Odd:
    """A codec that makes nothing that can be sent, or cannot read what was sent."""

    def __init__(self, made):
        self.made = made

    def dumps(self, value):
        return self.made

    def loads(self, data):
        raise LookupError("cannot be read")


@either_loop
async def test_a_codec_that_fails_is_named(loop, url, name):
    async with processes(url, name, codec=Odd(5)) as (one, two):
        work = Work()
        first, second = await one_works_one_waits(work, one, two)
        work.go.set()
        with pytest.raises(TypeError, match=r"dumps\(\) returned int; expected bytes or a str"):
            await first
        with pytest.raises(tideloop.WorkFailed, match="returned int"):
            await second
        assert work.begun == 1
    async with processes(url, name, codec=Odd(bytearray(b"\xff"))) as (one, two):
        work = Work()
        first, second = await one_works_one_waits(work, one, two)
        work.go.set()
        assert await first == "done"
        with pytest.raises(LookupError, match="cannot be read") as caught:
            await second
        assert any("the codec says of what another process" in note for note in caught.value.__notes__)


@either_loop
async def test_results_may_be_large(loop, url, name):
    """Larger than what a connection takes at once, and than a page of the server's."""
    async with processes(url, name, codec=pickle, lease=20) as (one, two):
        work = Work(os.urandom(3 << 20))
        first, second = await one_works_one_waits(work, one, two)
        work.go.set()
        assert await asyncio.gather(first, second) == [work.result] * 2


# --- cancellation ------------------------------------------------------------------------------


@either_loop
async def test_callers_who_go_harm_nobody(loop, url, name):
    async with processes(url, name) as (one, two):
        work = Work()
        gone = asks(one, work)
        await until(lambda: work.begun)
        others = [asks(two, work) for _ in range(3)]
        await waits(two)
        gone.cancel()
        others[0].cancel()
        await asyncio.wait([gone, others[0]])
        assert not work.cancelled
        work.go.set()
        assert await asyncio.gather(*others[1:]) == ["done"] * 2
        assert work.begun == 1


@either_loop
async def test_a_worker_who_is_cancelled_is_succeeded_at_once(loop, url, name):
    async with processes(url, name, lease=600, cancel_abandoned=True) as (one, two):
        work = Work()
        gone, other = await one_works_one_waits(work, one, two)
        gone.cancel()
        await until(lambda: work.begun == 2)
        assert work.cancelled == 1
        work.go.set()
        assert await other == "done"
        assert two.stats().elsewhere == 0


@either_loop
async def test_who_gives_up_waiting_does_not_supersede(loop, url, name):
    async with processes(url, name, cancel_abandoned=True) as (one, two):
        work = Work()
        first = asks(one, work)
        await until(lambda: work.begun)
        gone = asks(two, work)
        await waits(two)
        gone.cancel()
        second = asks(two, work)
        await until(lambda: two.stats().flights == 2)
        await until(lambda: len(two._lines.here().turns) == 1)  # the last words of the one that is given up are said
        await waits(two)
        work.go.set()
        assert await asyncio.gather(first, second) == ["done"] * 2
        assert work.begun == 1


@either_loop
async def test_who_is_slow_to_ask_again_does_not_work_again(loop, url, name):
    """One is given up; the next works and lands before the third, who was told as well, has asked. It is his, too."""
    async with processes(url, name, 3, lease=600, cancel_abandoned=True) as (one, two, three):
        work = Work()
        gone = asks(one, work)
        await until(lambda: work.begun)
        second, third = asks(two, work), asks(three, work)
        await waits(two)
        await waits(three)
        line = three._lines.here()
        (turn,) = line.turns
        line._link.mute(turn.word)
        gone.cancel()
        work.go.set()
        assert await second == "done"
        turn._told.set()
        assert await third == "done"
        assert work.begun == 2


@either_loop
async def test_closing_the_store_hands_on(loop, url, name):
    async with processes(url, name, lease=600) as (one, two):
        work = Work()
        first, second = await one_works_one_waits(work, one, two)
        await one._store.aclose()
        with pytest.raises(tideloop.LoadCancelled):
            await first
        await until(lambda: work.begun == 2)
        work.go.set()
        assert await second == "done"
        assert await one.do("key", work) == "done"  # it may be used again


@either_loop
async def test_cancelled_at_any_moment_nothing_stays_locked(loop, url, name):
    async with processes(url, name, lease=600, cancel_abandoned=True) as flights:
        work = Work()
        for turns in range(40):
            task = asks(flights[turns % 2], work)
            for _ in range(turns % 9):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        work.go.set()
        async with asyncio.timeout(20):
            for one in flights:
                assert await one.do("key", work) == "done"


@pytest.mark.parametrize("seed", range(3))
@either_loop
async def test_whoever_comes_and_goes_one_works_at_a_time(loop, url, name, seed):
    """Callers of three processes who are cancelled at any time, and works that fail, take turns and last."""
    random = Random(seed)
    working: dict[str, int] = {}
    begun = 0

    async def work(key, turns, fails):
        nonlocal begun
        begun += 1
        assert not working.get(key)
        working[key] = 1
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            working[key] = 0
        if fails:
            raise LookupError(key)
        return key

    async with processes(url, name, 3, lease=600, cancel_abandoned=True) as flights:
        callers = []
        for _ in range(150):
            key = random.choice("abc")
            asked = random.choice(flights).do(key, work, key, random.randrange(30), random.random() < 0.2)
            callers.append((key, asyncio.create_task(asked)))
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)
            if random.random() < 0.4:
                random.choice(callers)[1].cancel()
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*(task for _, task in callers), return_exceptions=True)
            for (key, task), outcome in zip(callers, outcomes, strict=True):
                kinds = (LookupError, tideloop.WorkFailed, asyncio.CancelledError)
                assert outcome == key or isinstance(outcome, kinds), outcome
                assert task.cancelled() == isinstance(outcome, asyncio.CancelledError)
            for one in flights:
                assert [await one.do(key, work, key, 0, False) for key in "abc"] == ["a", "b", "c"]
        assert 10 < begun < 150
        assert sum(one.stats().elsewhere for one in flights) > 0
        assert [one.stats().lost for one in flights] == [0, 0, 0]


def test_a_loop_that_ends_hands_on(url, name):
    """asyncio.run cancels what is under way; its last words free the lock, though its lease is long."""

    async def leaves():
        flights = tideloop.SingleFlight(store=tideloop.RedisStore(url, lease=600), name=name)
        work = Work()
        flights.flight("key", work)
        await until(lambda: work.begun)

    async def comes():
        async with asyncio.timeout(20), tideloop.RedisStore(url, lease=600) as store:
            work = Work()
            work.go.set()
            return await tideloop.SingleFlight(store=store, name=name).do("key", work)

    for run in (asyncio.run, tideloop.run):
        run(leaves())
        assert run(comes()) == "done"


# --- leases ------------------------------------------------------------------------------------


@either_loop
async def test_a_lease_is_refreshed_and_waiting_is_quiet(loop, url, name):
    async with processes(url, name, lease=3) as (one, two):
        work = Work()
        first, second = await one_works_one_waits(work, one, two)
        before = two.stats().calls
        began = loop.time()
        await until(lambda: one.stats().calls >= 5)  # each a third of a lease after the other
        # One call per lease at most, which may have been refreshed since: two thirds of it were left at least.
        assert two.stats().calls - before <= (loop.time() - began) / 2 + 1
        work.go.set()
        assert await asyncio.gather(first, second) == ["done"] * 2
        assert (work.begun, one.stats().lost) == (1, 0)


@either_loop
async def test_who_has_lost_his_lease_brings_nothing_to_those_after_him(loop, url, name):
    """As if the first had been suspended: another works, with a larger number, and who asks then waits for that."""
    async with processes(url, name, 3, lease=600) as (one, two, three):
        slow, quick, fences = Work("old"), Work("new"), []

        async def numbered(flights, work):
            fences.append(flights.fence())
            return await work()

        first = asyncio.create_task(one.do("key", numbered, one, slow))
        await until(lambda: slow.begun)
        async with redis.Redis.from_url(url) as client:
            (lock,) = [key async for key in client.scan_iter(f"tideloop:{{{name}:*lock")]
            await client.delete(lock)
        second = asyncio.create_task(two.do("key", numbered, two, quick))
        await until(lambda: quick.begun)
        third = asks(three, quick)
        await waits(three)
        slow.go.set()
        assert await first == "old"  # its own callers asked before
        assert one.stats().lost == 1
        quick.go.set()
        assert await asyncio.gather(second, third) == ["new"] * 2
        assert fences[0] < fences[1]
        assert (one.fence(), quick.begun) == (None, 1)


@either_loop
async def test_what_was_forgotten_is_not_joined(loop, url, name):
    async with processes(url, name) as (one, two):
        old, new = Work("old"), Work("new")
        before = [asks(one, old), asks(two, old)]
        await waits(one)
        await waits(two)
        two.forget("key")
        after = asks(two, new)
        await until(lambda: new.begun)
        old.go.set()
        assert set(await asyncio.gather(*before)) == {"old"}
        new.go.set()
        assert await after == "new"
        assert old.begun == new.begun == 1
        assert not one._forgotten
        assert not two._forgotten


@pytest.mark.limit(90)
async def test_eight_processes_the_worker_is_killed(loop, url, name):
    """One works; it is killed, and when its lease has ended another one does, whose result all others get."""
    count = 8
    command = [*peers.PYTHON, "-m", "tests.real.flying", url.split(":")[-1].split("/")[0], name, "6.0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    async with redis.Redis.from_url(url, decode_responses=True) as client:
        with contextlib.ExitStack() as stack:
            programs = [stack.enter_context(peers.program(command, env=environment)) for _ in range(count)]
            by_pid = {program.process.pid: program for program in programs}

            async def workers(least):
                async with asyncio.timeout(60):
                    while len(found := await client.lrange(f"seen:{name}:workers", 0, -1)) < least:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)  # real time: other processes
                return [tuple(map(int, line.split())) for line in found]

            async with asyncio.timeout(60):
                while int(await client.get(f"seen:{name}:asking") or 0) < count:
                    for program in programs:
                        assert program.process.poll() is None, program.output
                    await asyncio.sleep(0.01)  # real time: other processes
            ((victim, first),) = await workers(1)
            os.kill(victim, signal.SIGKILL)
            assert await asyncio.to_thread(by_pid.pop(victim).end) == -signal.SIGKILL
            _, (successor, second) = await workers(2)
            assert second > first
            await client.set(f"go:{name}", 1)
            for pid, program in by_pid.items():
                assert await asyncio.to_thread(program.end) == 0, program.output
                where = "here" if pid == successor else "elsewhere"
                assert f"done by {successor}, {where}" in program.output
            assert len(await workers(2)) == 2


# --- the server goes away ----------------------------------------------------------------------


def store_of(own_redis, **options):
    return tideloop.RedisStore(f"redis://127.0.0.1:{own_redis.port}/0", **options)


@either_loop
async def test_an_outage_fails_those_who_wait(loop, own_redis, name, caplog):
    async with store_of(own_redis, lease=2.5) as a, store_of(own_redis, lease=2.5) as b:
        one, two = (tideloop.SingleFlight(store=store, name=name) for store in (a, b))
        work = Work()
        first, second = await one_works_one_waits(work, one, two)
        own_redis.stop()
        with pytest.raises(tideloop.StoreUnavailable, match=rf"{name}.*127\.0\.0\.1:\d+ does not answer"):
            await second
        assert two.stats().away
        with pytest.raises(tideloop.StoreUnavailable):
            await two.do("other", work)
        work.go.set()
        assert await first == "done"  # who works needs nobody
        own_redis.start()

        async def good():
            with contextlib.suppress(tideloop.StoreUnavailable):
                return await two.do("other", work)

        async with asyncio.timeout(20):
            while await good() != "done":  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # real time: another process
        assert not two.stats().away
    warnings = [
        record for record in caplog.records if record.name == "tideloop.redis" and record.levelno > logging.INFO
    ]
    assert 1 <= len(warnings) <= 2


@either_loop
async def test_an_outage_leaves_each_to_itself(loop, own_redis, name, caplog):
    async with store_of(own_redis, lease=2.5, on_outage="local") as a, store_of(own_redis, lease=2.5) as b:
        two, one = (tideloop.SingleFlight(store=store, name=name) for store in (a, b))
        work = Work()
        first = asks(one, work)
        await until(lambda: work.begun)
        second = [asks(two, work) for _ in range(3)]
        await waits(two)
        own_redis.stop()
        await until(lambda: work.begun == 2)
        work.go.set()
        assert await asyncio.gather(first, *second) == ["done"] * 4
        fences = []

        async def numbered():
            fences.append(two.fence())

        await two.do("other", numbered)
        assert fences == [None]
        own_redis.start()


@either_loop
async def test_a_server_that_forgets_is_reminded(loop, own_redis, name, caplog):
    """Who works has his lock again when he next refreshes it."""
    async with store_of(own_redis, lease=6) as a, store_of(own_redis, lease=6) as b:
        one, two = (tideloop.SingleFlight(store=store, name=name) for store in (a, b))
        work = Work()
        first = asks(one, work)
        await until(lambda: work.begun)
        own_redis.stop()
        own_redis.start()
        (turn,) = one._lines.here().turns
        before = turn._answered
        await until(lambda: turn._answered > before)
        second = asks(two, work)
        await waits(two)
        work.go.set()
        assert await asyncio.gather(first, second) == ["done"] * 2
        assert (work.begun, one.stats().lost) == (1, 0)


# --- loops, threads, forks ---------------------------------------------------------------------


@either_loop
async def test_loops_share_through_the_store(loop, url, name):
    async with processes(url, name, 1) as (flights,):
        work = Work()
        first = asks(flights, work)
        await until(lambda: work.begun)

        async def elsewhere():
            return await flights.do("key", work)

        others = [asyncio.create_task(asyncio.to_thread(run, elsewhere())) for run in (asyncio.run, tideloop.run)]
        await until(lambda: len(told(flights)) == 3)
        work.go.set()
        assert await asyncio.gather(first, *others) == ["done"] * 3
        assert (work.begun, flights.stats().elsewhere) == (1, 2)


@either_loop
async def test_what_is_not_used_keeps_no_connection(loop, url, name):
    async with processes(url, name, 1, lease=2.5) as (flights,):
        work = Work()
        work.go.set()
        assert await flights.do("key", work) == "done"
        await until(lambda: not flights._store._links)
        assert await flights.do("key", work) == "done"
        async with redis.Redis.from_url(url) as client:
            async with asyncio.timeout(20):
                while await client.keys(f"*{name}*"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)  # real time: the server's


@either_loop
async def test_a_client_belongs_to_one_loop(loop, url, name):
    async with redis.Redis.from_url(url, decode_responses=True) as client:
        async with tideloop.RedisStore(client) as store, tideloop.RedisStore(client) as other:
            one, two = (tideloop.SingleFlight(store=given, name=name, codec=pickle) for given in (store, other))
            work = Work()
            asking = [asks(one, work), asks(two, work)]
            await waits(one)
            await waits(two)

            async def elsewhere():
                await one.do("key", work)

            with pytest.raises(RuntimeError, match="used in another loop; give the store a URL"):
                await asyncio.to_thread(asyncio.run, elsewhere())
            work.go.set()
            assert await asyncio.gather(*asking) == ["done"] * 2
            assert work.begun == 1
        assert await client.ping()


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def in_child(check):
    """Whether it holds in a forked child, within ten seconds."""
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outside(make):
    """What a loop of its own says of a coroutine; in a child the parent's still seems to run."""
    asyncio._set_running_loop(None)
    loop = asyncio.SelectorEventLoop()
    try:
        return loop.run_until_complete(make())
    except Exception as error:
        return error


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_forked_child_begins_anew(loop, url, name):
    async with processes(url, name) as (flights, _):
        work = Work()
        asking = asks(flights, work)
        await until(lambda: work.begun)

        async def other():
            done = Work("of the child")
            done.go.set()
            result = await flights.do("other key", done)
            await flights._store.aclose()
            return result

        assert in_child(lambda: flights.stats().flights == 0 and outside(other) == "of the child") == 0
        work.go.set()
        assert await asking == "done"


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_given_client_is_the_parents(loop, url, name):
    """Its loop seems to run in the child, and never does: what waits for it there would hang."""
    async with redis.Redis.from_url(url) as client, tideloop.RedisStore(client) as store:
        limiter = tideloop.Limiter(2, store=store, name=name)
        rates = tideloop.RateLimiter(tideloop.rate(10), store=store, name=name)
        flights = tideloop.SingleFlight(store=store, name=name)
        unused = tideloop.RedisStore(redis.Redis.from_url(url))
        fresh = tideloop.Limiter(2, store=unused, name=f"{name} fresh")
        await limiter.acquire()

        def refused(make):
            return "used before this process was forked" in str(outside(make))

        async def goes():
            async with asyncio.timeout(20), unused, fresh:
                return True

        def check():
            said = [refused(limiter.acquire), refused(rates.acquire), refused(lambda: flights.do("key", goes))]
            return all(said) and not limiter.try_acquire() and outside(goes) is True

        assert in_child(check) == 0
        limiter.release()


# --- what is refused ---------------------------------------------------------------------------


def test_what_is_given_is_checked():
    store = tideloop.RedisStore("redis://:secret@127.0.0.1/0")
    for name in (None, "", "{x}", 5):
        with pytest.raises(ValueError, match="needs a name"):
            tideloop.SingleFlight(store=store, name=name)
    with pytest.raises(TypeError, match="expected something with dumps"):
        tideloop.SingleFlight(store=store, name="x", codec="pickle")
    with pytest.raises(TypeError, match="a codec is for a store"):
        tideloop.SingleFlight(codec=json)
    flights = tideloop.SingleFlight(store=store, name="x", codec=json)
    assert repr(flights) == "<tideloop.SharedSingleFlight 'x' 0 flying>"
