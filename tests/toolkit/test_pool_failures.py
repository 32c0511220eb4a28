"""What pools make of hooks that fail, hang or are cancelled, and of borrowers who give up; on a virtual clock."""

from __future__ import annotations

import asyncio
import sys

import pytest
import tideloop
from tideloop import KeyedPool, Pool

from tests.toolkit import harness
from tests.toolkit.maker import Maker, hold, pool_of
from tests.toolkit.work import forever, now, turns


class TestCreating:
    def test_one_that_is_cancelled_from_inside(self, kind):
        made = []

        async def create():
            made.append(len(made))
            if len(made) == 1:
                raise asyncio.CancelledError
            return len(made)

        async def main():
            async with Pool(create, max=1) as pool:
                with pytest.raises(RuntimeError, match=r"creating a resource of .* was cancelled") as caught:
                    await hold(pool, 0)
                assert isinstance(caught.value.__cause__, asyncio.CancelledError)
                assert await hold(pool, 0) == 2
                assert pool.stats().failed == 1

        harness.run(kind, main())

    def test_by_a_plain_function(self, kind):
        async def main():
            closed = []
            async with Pool(lambda: "made", closed.append) as pool:
                assert await hold(pool, 0) == "made"
            assert closed == ["made"]

        harness.run(kind, main())

    def test_one_that_hangs_does_not_hold_the_end_up(self, kind):
        async def main():
            pool = Pool(forever, acquire_timeout=1)
            with pytest.raises(tideloop.PoolTimeout, match="1 being made"):
                await hold(pool, 0)
            began = now()
            await pool.aclose()
            assert now() == began
            assert await pool.drain(0)

        harness.run(kind, main())


class TestReplacing:
    def test_begins_while_the_worn_one_is_being_closed(self, kind):
        async def main():
            maker = Maker(seconds=1, closing=50)
            async with pool_of(maker, min=1, max=2, max_uses=1) as pool:
                await asyncio.sleep(2)
                await hold(pool, 0)
                await asyncio.sleep(2)
                assert pool.stats().idle == 1
                assert len(maker.open) == 2

        harness.run(kind, main())

    def test_that_takes_long_is_waited_for(self, kind):
        async def main():
            async with pool_of(Maker(seconds=3), min=1, max=2, max_lifetime=4, jitter=0, max_idle=None) as pool:
                await asyncio.sleep(3.5)
                for _ in range(200):
                    await asyncio.sleep(0.1)
                    assert pool.stats().idle >= 1
                assert pool.stats().retired >= 2

        harness.run(kind, main())


class TestWaiting:
    def test_a_pool_that_is_closed_during_a_check_that_fails(self, kind):
        async def check(made):
            await asyncio.sleep(3)
            return False

        async def main():
            maker = Maker()
            pool = Pool(maker.create, maker.close, check=check, acquire_timeout=None)
            await hold(pool, 0)
            await asyncio.sleep(1)
            task = asyncio.ensure_future(hold(pool, 0))
            await asyncio.sleep(1)
            await pool.aclose()
            with pytest.raises(tideloop.PoolClosed):
                await task
            assert await pool.drain(1)
            assert not maker.open

        harness.run(kind, main())

    def test_a_check_that_fails_costs_nobody_his_turn(self, kind):
        async def check(made):
            await asyncio.sleep(1)
            return False

        async def main():
            order = []

            async def borrow(name):
                async with pool.acquire():
                    order.append(name)

            maker = Maker()
            async with Pool(maker.create, maker.close, check=check, max=1) as pool:
                await hold(pool, 0)
                await asyncio.sleep(1)
                tasks = [asyncio.ensure_future(borrow(name)) for name in "abc" if await turns(2) is None]
                await asyncio.wait(tasks)
                assert order == ["a", "b", "c"]

        harness.run(kind, main())

    def test_what_was_kept_for_one_who_gives_up_goes_to_the_next(self, kind):
        async def main():
            gate = asyncio.Event()

            async def create(key):
                return key

            async def close(made):
                if made == "slow":
                    await gate.wait()

            async with KeyedPool(create, close, max=2, max_per_key=1) as pool:
                lease, slow = await pool.acquire("a"), await pool.acquire("slow")
                slow.discard()
                slow.release()
                first = asyncio.ensure_future(hold(pool, 0, "b"))
                await turns(2)
                second = asyncio.ensure_future(hold(pool, 0, "a"))
                await turns(2)
                # The place is owed to b, who came first; so a's resource waits.
                lease.release()
                await turns(2)
                first.cancel()
                began = now()
                assert await second == "a"
                assert now() == began
                gate.set()

        harness.run(kind, main())

    def test_a_crowd_costs_each_of_it_the_same(self, kind):
        def cost(count):
            calls = 0

            def profile(frame, event, argument):
                nonlocal calls
                calls += 1

            async def main():
                async with pool_of(Maker(), max=10, acquire_timeout=None) as pool:
                    await asyncio.gather(*(hold(pool, 1) for _ in range(count)))

            sys.setprofile(profile)
            try:
                harness.run(kind, main())
            finally:
                sys.setprofile(None)
            return calls

        assert cost(1600) < 6 * cost(400)
