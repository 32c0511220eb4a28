"""Pools of resources: lent, worn, replaced, never lost; on a virtual clock."""

from __future__ import annotations

import asyncio
import gc

import pytest
import tideloop
from tideloop import KeyedPool, Pool

from tests.toolkit import harness
from tests.toolkit.maker import Maker, hold, pool_of
from tests.toolkit.work import Boom, forever, now, turns


class TestLending:
    def test_idle_ones_last_in_first_out(self, kind):
        async def main():
            maker = Maker()
            async with pool_of(maker, name="db") as pool:
                one, two = await pool.acquire(), await pool.acquire()
                assert (one.value, two.value) == (1, 2)
                assert repr(pool) == "<tideloop.Pool 'db' 2 of 10 lent>"
                one.release()
                two.release()
                async with pool.acquire() as made:
                    assert made == 2
                assert pool.stats()[:6] == (2, 0, 0, 0, 3, 0)
            assert not maker.open
            assert repr(pool) == "<tideloop.Pool 'db' closed>"

        harness.run(kind, main())

    def test_borrowers_first_come_first_served(self, kind):
        async def main():
            order = []

            async def borrow(number):
                async with pool.acquire():
                    order.append(number)
                    await asyncio.sleep(1)

            maker = Maker(seconds=3)
            async with pool_of(maker, max=2) as pool:
                await asyncio.gather(*(borrow(number) for number in range(10)))
                assert order == list(range(10))
                assert maker.most == 2
                assert pool.stats().waited == pytest.approx(2 * (3 + 4 + 5 + 6 + 7))

        harness.run(kind, main())

    def test_a_lease_is_used_once_at_a_time(self, kind):
        async def main():
            async with pool_of(Maker()) as pool:
                lease = pool.acquire()
                for use in (lambda: lease.value, lease.release, lease.discard):
                    with pytest.raises(RuntimeError, match=r"nothing of .* is lent"):
                        use()
                await lease
                with pytest.raises(RuntimeError, match="has begun already"):
                    await lease
                lease.release()
                with pytest.raises(RuntimeError, match="given back"):
                    lease.release()

        harness.run(kind, main())

    def test_timeout_is_absolute_and_says_why(self, kind):
        async def main():
            async with pool_of(Maker(), max=1, acquire_timeout=5) as pool:
                holder = asyncio.ensure_future(hold(pool, 100))
                await asyncio.sleep(1)
                began = now()
                with pytest.raises(tideloop.PoolTimeout, match="1 lent, 0 being made, 0 others waiting"):
                    await hold(pool, 1)
                assert now() - began == pytest.approx(5)

                async def hurried():
                    with tideloop.deadline(2):
                        await hold(pool, 1)

                with pytest.raises((tideloop.PoolTimeout, tideloop.DeadlineExceeded)):
                    await hurried()
                assert now() - began == pytest.approx(7)
                assert pool.stats().timeouts >= 1
                await holder

        harness.run(kind, main())

    def test_belongs_to_one_loop(self, kind):
        pool = pool_of(Maker())
        harness.run(kind, hold(pool, 0))

        async def main():
            with pytest.raises(RuntimeError, match="another event loop"):
                await hold(pool, 0)

        harness.run(kind, main())


class TestMaking:
    def test_a_failure_is_told_to_the_first_and_its_place_is_free(self, kind):
        async def main():
            maker = Maker(seconds=1)
            maker.failures = [Boom("one"), Boom("two")]
            async with pool_of(maker, max=1) as pool:
                done = await asyncio.gather(*(hold(pool, 0) for _ in range(4)), return_exceptions=True)
                assert [str(error) for error in done[:2]] == ["one", "two"]
                assert done[2:] == [1, 1]
                assert pool.stats().failed == 2

        harness.run(kind, main())

    def test_a_cancelled_borrower_leaves_what_is_made_for_him_to_the_next(self, kind):
        async def main():
            maker = Maker(seconds=5)
            async with pool_of(maker, max=1) as pool:
                first = asyncio.ensure_future(hold(pool, 0))
                await asyncio.sleep(1)
                second = asyncio.ensure_future(hold(pool, 0))
                await asyncio.sleep(1)
                first.cancel()
                began = now()
                assert await second == 1
                assert now() - began == pytest.approx(3)

        harness.run(kind, main())

    def test_so_many_at_a_time(self, kind):
        async def main():
            maker = Maker(seconds=1)
            async with pool_of(maker, max=6, create_limit=2) as pool:
                began = now()
                await asyncio.gather(*(hold(pool, 100) for _ in range(6)))
                assert now() - began == pytest.approx(103)

        harness.run(kind, main())

    def test_the_minimum_is_there_and_kept(self, kind):
        async def main():
            maker = Maker()
            async with pool_of(maker, min=3, max=5) as pool:
                await asyncio.sleep(1)
                assert pool.stats().idle == 3
                lease = await pool.acquire()
                lease.discard()
                lease.release()
                await asyncio.sleep(1)
                assert pool.stats().idle == 3
                assert maker.closed == [3]

        harness.run(kind, main())

    def test_a_failure_that_nobody_waits_for_is_logged(self, kind, caplog):
        async def main():
            maker = Maker()
            maker.failures = [Boom("no")]
            async with pool_of(maker, min=1):
                await asyncio.sleep(1)

        harness.run(kind, main())
        assert "could not make a resource" in caplog.text


class TestWear:
    def test_uses(self, kind):
        async def main():
            maker = Maker()
            async with pool_of(maker, max_uses=2) as pool:
                assert [await hold(pool, 0) for _ in range(5)] == [1, 1, 2, 2, 3]

        harness.run(kind, main())

    def test_age_varies(self, kind):
        async def main():
            maker = Maker()
            async with pool_of(maker, max=20, create_limit=20, max_lifetime=100, jitter=0.5, max_idle=None) as pool:
                await asyncio.gather(*(hold(pool, 0) for _ in range(20)))
                await asyncio.sleep(49)
                assert not maker.closed
                await asyncio.sleep(20)
                assert 0 < len(maker.closed) < 20
                await asyncio.sleep(33)
                assert len(maker.closed) == 20

        harness.run(kind, main())

    def test_a_long_loan_is_no_idleness(self, kind):
        async def main():
            async with pool_of(Maker(), max_idle=10) as pool:
                await hold(pool, 100)
                assert pool.stats().idle == 1
                assert await hold(pool, 0) == 1

        harness.run(kind, main())

    def test_idle_ones_go_down_to_the_minimum(self, kind):
        async def main():
            maker = Maker()
            async with pool_of(maker, min=1, max=5, create_limit=5, max_idle=10, max_lifetime=None) as pool:
                await asyncio.gather(*(hold(pool, 1) for _ in range(5)))
                assert pool.stats().idle == 5
                await asyncio.sleep(30)
                assert pool.stats().idle == 1
                assert pool.stats().created == 5  # and none for those of the minimum that need not have gone

        harness.run(kind, main())

    @pytest.mark.parametrize(
        ("least", "seconds", "lifetime", "loan", "pause"),
        [(1, 1, 10, 0.1, 0.1), (1, 3, 4, 0.1, 0.1), (2, 1, 10, 1, 0), (1, 0.5, 100, 30, 0)],
        ids=["idle", "slow", "always lent", "long loans"],
    )
    def test_nobody_waits_for_a_replacement(self, kind, least, seconds, lifetime, loan, pause):
        async def main():
            maker = Maker(seconds=seconds)
            options = {"min": least, "max": least + 1, "max_lifetime": lifetime, "jitter": 0, "max_idle": None}
            async with pool_of(maker, **options) as pool:
                await asyncio.sleep(2 * seconds + 1)
                end = now() + 8 * lifetime
                while now() < end:
                    began = now()
                    async with pool.acquire():
                        assert now() == began
                        await asyncio.sleep(loan)
                    await asyncio.sleep(pause)
                assert len(maker.closed) >= 4
                assert maker.most == least + 1

        harness.run(kind, main())

    def test_a_replacement_that_fails_is_tried_again_with_pauses(self, kind, caplog):
        async def main():
            maker = Maker(seconds=5)
            async with pool_of(maker, min=1, max=2, max_lifetime=100, jitter=0, max_idle=None) as pool:
                await asyncio.sleep(80)
                maker.failures = [Boom() for _ in range(3)]
                await asyncio.sleep(50)
                assert pool.stats()[:3] == (1, 0, 0)
                assert (pool.stats().created, pool.stats().failed) == (2, 3)

        harness.run(kind, main())
        # The last one after the old one had gone.
        assert caplog.text.count("could not make a resource") == 3

    def test_check(self, kind):
        async def main():
            maker = Maker()
            bad = {1}

            async def check(made):
                await asyncio.sleep(0.1)
                if made in bad:
                    raise OSError
                return made != 2

            async with Pool(maker.create, maker.close, check=check) as pool:
                assert await hold(pool, 0) == 1
                # Just used: not checked.
                assert await hold(pool, 0) == 1
                await asyncio.sleep(1)
                assert await hold(pool, 0) == 2
                await asyncio.sleep(1)
                assert await hold(pool, 0) == 3
                assert maker.closed == [1, 2]

        harness.run(kind, main())

    def test_a_check_that_is_cancelled_or_takes_too_long(self, kind):
        async def main():
            maker = Maker()

            async with Pool(maker.create, maker.close, check=lambda made: forever(), acquire_timeout=5) as pool:
                await hold(pool, 0)
                await asyncio.sleep(1)
                with pytest.raises(tideloop.PoolTimeout, match="check"):
                    await hold(pool, 0)
                assert await hold(pool, 0) == 2
                await asyncio.sleep(1)
                task = asyncio.ensure_future(hold(pool, 0))
                await asyncio.sleep(1)
                task.cancel()
                await asyncio.wait([task])
                assert await hold(pool, 0) == 3
            assert not maker.open

        harness.run(kind, main())

    def test_what_is_idle_is_kept_alive(self, kind):
        async def main():
            maker = Maker()
            checked = []

            async def check(made):
                checked.append((now(), made))
                await asyncio.sleep(2)
                return made != 2

            async with Pool(maker.create, maker.close, check=check, keepalive=30, max_idle=100, create_limit=3) as pool:
                first = [await pool.acquire() for _ in range(3)]
                for lease in first:
                    lease.release()
                await asyncio.sleep(35)
                # One after the other, so that there is one to be had; in the order in which they were given back.
                assert checked == [(30, 1), (32, 2), (34, 3)]
                assert (pool.stats().idle, maker.closed) == (1, [2])
                assert await hold(pool, 0) == 1
                await asyncio.sleep(5)
                checked.clear()
                # The last one used is lent first all the same.
                assert [resource.value for resource in pool._only.idle] == [3, 1]
                await asyncio.sleep(59)
                # That is no use: who was not used in so long goes.
                assert checked == [(66, 3), (68, 1), (98, 3), (100, 1)]
                await asyncio.sleep(4)
                assert maker.closed == [2, 3]
                assert pool.stats().lent == 4

        harness.run(kind, main())

    def test_one_that_is_kept_alive_goes_to_who_waits(self, kind):
        async def main():
            maker = Maker()
            pool = Pool(maker.create, maker.close, check=lambda made: asyncio.sleep(2), keepalive=10, max=1)
            async with pool:
                await hold(pool, 0)
                await asyncio.sleep(11)
                assert pool.stats()[:3] == (0, 0, 0)
                assert await hold(pool, 0) == 1
                assert now() == 12
                await asyncio.sleep(11)
                assert await pool.drain(5)
                assert (now(), maker.open) == (24, set())

        harness.run(kind, main())

    def test_a_check_that_hangs_while_it_is_idle(self, kind):
        async def main():
            maker = Maker()
            pool = Pool(maker.create, maker.close, check=lambda made: forever(), keepalive=10, close_timeout=3)
            async with pool:
                await hold(pool, 0)
                await asyncio.sleep(14)
                assert maker.closed == [1]
                assert pool._keeper is None

        harness.run(kind, main())

    def test_reset(self, kind):
        async def main():
            maker = Maker()

            async def reset(made):
                await asyncio.sleep(1)
                if made == 2:
                    raise Boom

            async with Pool(maker.create, maker.close, reset=reset, max=1) as pool:
                began = now()
                assert await hold(pool, 0) == 1
                assert now() == began
                assert await hold(pool, 0) == 1
                assert now() - began == pytest.approx(1)
                lease = await pool.acquire()
                lease.discard()
                lease.release()
                assert await hold(pool, 0) == 2
                assert await hold(pool, 0) == 3

        harness.run(kind, main())


class TestEnding:
    def test_with_borrowers_out(self, kind):
        async def main():
            maker = Maker()
            pool = pool_of(maker, max=2)
            async with pool:
                holder = asyncio.ensure_future(hold(pool, 10))
                await hold(pool, 0)
                await asyncio.sleep(1)
                await pool.aclose()
                assert len(maker.open) == 1
                with pytest.raises(tideloop.PoolClosed, match="lends nothing"):
                    await hold(pool, 0)
                await holder
            assert not maker.open

        harness.run(kind, main())

    def test_those_who_wait_are_told(self, kind):
        async def main():
            async with pool_of(Maker(), max=1) as pool:
                holder = asyncio.ensure_future(hold(pool, 10))
                await turns(5)
                waiting = asyncio.ensure_future(hold(pool, 0))
                await turns(2)
                await pool.aclose()
                with pytest.raises(tideloop.PoolClosed):
                    await waiting
                await holder

        harness.run(kind, main())

    def test_drain(self, kind):
        async def main():
            maker = Maker(closing=1)
            pool = pool_of(maker)
            holders = [asyncio.ensure_future(hold(pool, seconds)) for seconds in (2, 5)]
            await turns(5)
            began = now()
            assert not await pool.drain(3)
            assert now() - began == pytest.approx(3)
            assert await pool.drain()
            assert now() - began == pytest.approx(6)
            assert not maker.open
            assert await pool.drain(0)
            await asyncio.gather(*holders)

        harness.run(kind, main())

    def test_leaks_are_reported_with_their_stack(self, kind, caplog):
        async def main():
            async with pool_of(Maker(), leak_after=10) as pool:

                async def forgetful_borrower():
                    return await pool.acquire()

                lease = await forgetful_borrower()
                await asyncio.sleep(20)
                assert "was not given back in 10 s" in caplog.text
                assert "forgetful_borrower" in caplog.text
                assert pool.stats().leaked == 1
                lease.release()
                caplog.clear()
                await hold(pool, 5)
                await asyncio.sleep(20)
                assert not caplog.records

        harness.run(kind, main())

    def test_leaks_of_those_who_had_to_wait_are_reported_with_their_stack_too(self, kind, caplog):
        async def patient_borrower(pool):
            async with pool.acquire():
                await asyncio.sleep(20)

        async def main():
            async with pool_of(Maker(seconds=1), max=1, leak_after=10) as pool:
                task = asyncio.create_task(patient_borrower(pool), name="sloth")
                await asyncio.sleep(12)
                (record,) = caplog.records
                assert "lent by 'sloth' was not given back in 10 s" in record.getMessage()
                assert "patient_borrower" in record.getMessage()
                await task

        harness.run(kind, main())

    def test_resize(self, kind):
        async def main():
            maker = Maker()
            async with pool_of(maker, max=1, create_limit=9) as pool:
                tasks = [asyncio.ensure_future(hold(pool, 10)) for _ in range(4)]
                await turns(5)
                assert pool.stats().borrowed == 1
                pool.resize(max=4)
                await turns(5)
                assert pool.stats().borrowed == 4
                pool.resize(max=2)
                await asyncio.gather(*tasks)
                await turns(5)
                assert len(maker.open) == 2
                pool.resize(max=1)
                await turns(5)
                assert len(maker.open) == 1
                pool.resize(min=1, max=3)
                await turns(5)
                assert len(maker.open) == 1

        harness.run(kind, main())

    def test_resize_while_one_is_made_ready(self, kind):
        async def reset(made):
            await asyncio.sleep(3)

        async def main():
            maker = Maker()
            async with pool_of(maker, reset=reset, max=2) as pool:
                leases = [pool.acquire(), pool.acquire()]
                await asyncio.gather(*(lease._begin() for lease in leases))
                for lease in leases:
                    lease.release()
                pool.resize(max=1)
                await asyncio.sleep(4)
                assert len(maker.open) == pool.stats().idle == 1
                assert await hold(pool, 0) in maker.open

        harness.run(kind, main())


def test_a_pool_and_its_resources_can_be_collected(kind):
    async def main():
        class Thing:
            alive = 0

            def __init__(self):
                Thing.alive += 1

            def __del__(self):
                Thing.alive -= 1

        async def create():
            return Thing()

        pool = Pool(create, max_idle=None, max_lifetime=None)
        async with pool.acquire() as thing:
            thing.pool = pool
        del thing, pool
        await turns(3)
        gc.collect()
        assert Thing.alive == 0

    harness.run(kind, main())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max": 0}, ValueError),
        ({"min": 3, "max": 2}, ValueError),
        ({"min": -1}, ValueError),
        ({"jitter": 1}, ValueError),
        ({"max_idle": -1}, ValueError),
        ({"max_lifetime": "1"}, ValueError),
        ({"max_uses": 0}, ValueError),
        ({"create_limit": 0}, ValueError),
        ({"acquire_timeout": -1}, ValueError),
        ({"check": 3}, TypeError),
        ({"keepalive": "1", "check": print}, ValueError),
        ({"keepalive": 1}, ValueError),
    ],
)
def test_bad_arguments(options, error):
    with pytest.raises(error, match=r"must be|needs a check"):
        Pool(Maker().create, **options)
    with pytest.raises(TypeError, match="create must be"):
        Pool(None)
    with pytest.raises(TypeError, match="takes no min"):
        KeyedPool(Maker().create, min=1)


class TestReplacing:
    @pytest.mark.parametrize("jitter", [0, 0.1, 0.5])
    def test_what_lives_shortly_is_not_made_again_and_again(self, kind, jitter):
        async def main():
            maker = Maker()
            async with Pool(maker.create, maker.close, min=1, max=4, max_lifetime=1, jitter=jitter) as pool:
                await asyncio.sleep(10)
                # Each lives for half of its time at least, before it is replaced.
                assert 10 <= pool.stats().created <= 45

        harness.run(kind, main())

    def test_without_a_close_no_more_are_made(self, kind):
        async def main():
            made = []

            async def create():
                made.append(now())
                return len(made)

            async with Pool(create, min=1, max=10, max_lifetime=4, jitter=0) as pool:
                lent = [await pool.acquire(), await pool.acquire()]
                await asyncio.sleep(1.5)
                lent.append(await pool.acquire())
                for one in lent:
                    one.release()
                await asyncio.sleep(2.4)
                assert len(made) == 3
                assert pool.stats().idle <= 1

        harness.run(kind, main())

    def test_several_that_are_worn_go_in_one_round(self, kind):
        """The first that goes has another one lent, which is worn as well."""

        async def main():
            async def create(key):
                if key in "cd":
                    await asyncio.sleep(30)
                return key

            async with KeyedPool(
                create, max=5, create_limit=2, max_lifetime=15, jitter=0, acquire_timeout=None
            ) as pool:
                first = await pool.acquire("a")
                others = [await pool.acquire("b") for _ in range(2)]
                slow = [asyncio.ensure_future(hold(pool, 0, key)) for key in "cd"]
                await turns(3)
                waiting = [asyncio.ensure_future(hold(pool, 20, "a"))]
                await turns(3)
                waiting += [asyncio.ensure_future(hold(pool, 0, "b")) for _ in range(3)]
                await turns(3)
                for one in others:
                    one.release()
                await asyncio.sleep(20)
                first.release()
                await asyncio.gather(*waiting, *slow)

        harness.run(kind, main())
