"""Pools with keys: limits of each and of all, fair over all, and books that balance; on a virtual clock."""

from __future__ import annotations

import asyncio
import random
import sys

import pytest
import tideloop
from tideloop import KeyedPool

from tests.toolkit import harness
from tests.toolkit.maker import Maker, hold
from tests.toolkit.work import Boom, now, turns


class TestKeys:
    def test_limits_of_keys_and_of_all(self, kind):
        async def main():
            maker = Maker()
            async with KeyedPool(maker.create, maker.close, max_per_key=2, max=3, create_limit=9) as pool:
                tasks = [asyncio.ensure_future(hold(pool, 10, key)) for key in "aaabbb"]
                await turns(9)
                assert sorted(key for key, _ in maker.open) == ["a", "a", "b"]
                await asyncio.gather(*tasks)
                assert maker.most <= 3
            assert not maker.open

        harness.run(kind, main())

    def test_idle_ones_make_room(self, kind):
        async def main():
            maker = Maker(closing=1)
            async with KeyedPool(maker.create, maker.close, max=2) as pool:
                await hold(pool, 0, "a")
                await asyncio.sleep(1)
                await hold(pool, 0, "b")
                began = now()
                assert (await hold(pool, 0, "c"))[0] == "c"
                assert now() - began == pytest.approx(1)
                assert maker.closed == [("a", 1)]

        harness.run(kind, main())

    def test_resize(self, kind):
        async def main():
            maker = Maker()
            async with KeyedPool(maker.create, maker.close, max=2) as pool:
                late = [asyncio.ensure_future(hold(pool, 10, key)) for key in "abcd"]
                await asyncio.sleep(1)
                assert len(maker.open) == 2
                pool.resize(max=4)
                await asyncio.sleep(1)
                assert len(maker.open) == 4
                pool.resize(max=1)
                await asyncio.gather(*late)
                await asyncio.sleep(1)
                assert len(maker.open) == 1
                with pytest.raises(ValueError, match="max must be"):
                    pool.resize(max=0)
                with pytest.raises(TypeError, match="min"):
                    pool.resize(min=1)

        harness.run(kind, main())

    def test_nobody_starves(self, kind):
        async def main():
            maker = Maker()
            async with KeyedPool(maker.create, maker.close, max=1) as pool:

                async def greedy():
                    while True:
                        await hold(pool, 1, "hot")

                greedies = [asyncio.ensure_future(greedy()) for _ in range(5)]
                await asyncio.sleep(3)
                began = now()
                assert (await hold(pool, 0, "cold"))[0] == "cold"
                assert now() - began <= 7
                for task in greedies:
                    task.cancel()
                await asyncio.wait(greedies)
            assert not maker.open

        harness.run(kind, main())

    def test_served_in_turn_over_all_keys(self, kind):
        async def main():
            order = []

            async def borrow(name):
                async with pool.acquire(name[0]):
                    order.append(name)
                    await asyncio.sleep(5)

            maker = Maker(seconds=1)
            async with KeyedPool(maker.create, maker.close, max=2) as pool:
                leases = [pool.acquire("b"), pool.acquire("b")]
                await asyncio.gather(*(lease._begin() for lease in leases))
                tasks = [asyncio.ensure_future(borrow(name)) for name in ("a1", "a2", "b1")]
                await turns(3)
                # The first one's is being made while the second one's comes back, which is not for the third.
                leases[0].release()
                await asyncio.sleep(0.5)
                leases[1].release()
                await asyncio.gather(*tasks)
            assert order == ["a1", "a2", "b1"]
            assert not maker.open

        harness.run(kind, main())

    def test_a_key_is_forgotten_while_somebody_comes_for_it(self, kind):
        """What was idle too long goes as he looks at it, and with it, if nothing has to be closed, the key."""

        async def main():
            maker = Maker()
            async with KeyedPool(maker.create, check=lambda made: True, max_idle=0.1, acquire_timeout=5) as pool:
                assert await hold(pool, 0, "a") == ("a", 1)
                await asyncio.sleep(0.2)
                assert pool.stats().idle == 1
                assert await hold(pool, 0, "a") == ("a", 2)

        harness.run(kind, main())

    def test_keys_are_forgotten(self, kind):
        async def main():
            maker = Maker()
            async with KeyedPool(maker.create, maker.close, max=5) as pool:
                for number in range(1000):
                    await hold(pool, 0, number)
                assert len(pool._shelves) <= 5
                assert len(pool._with_idle) <= 5
                maker.failures = [Boom()]
                with pytest.raises(Boom):
                    await hold(pool, 0, "bad")
                assert "bad" not in pool._shelves

        harness.run(kind, main())


def test_what_is_kept_for_one_who_was_served_goes_to_the_next(kind):
    """The first in line has got what came back; what was withheld for it is lent at once."""

    async def main():
        async def create(key):
            if key in "cd":
                await asyncio.sleep(30)
            return key

        async with KeyedPool(create, max=4, create_limit=2, acquire_timeout=None) as pool:
            first, second = await pool.acquire("a"), await pool.acquire("b")
            slow = [asyncio.ensure_future(hold(pool, 0, key)) for key in "cd"]
            await turns(3)
            again = asyncio.ensure_future(hold(pool, 20, "a"))
            await turns(3)
            other = asyncio.ensure_future(hold(pool, 0, "b"))
            await turns(3)
            second.release()
            await turns(3)
            first.release()
            await other
            assert now() < 1
            await asyncio.gather(again, *slow)

    harness.run(kind, main())


def test_a_loan_costs_the_same_however_many_keys_are_wanted(kind):
    def cost(keys):
        calls = 0

        def profile(frame, event, argument):
            nonlocal calls
            calls += 1

        async def main():
            maker = Maker()
            async with KeyedPool(maker.create, maker.close, max=10, acquire_timeout=None) as pool:
                await asyncio.gather(*(hold(pool, 1, number % keys) for number in range(800)))

        sys.setprofile(profile)
        try:
            harness.run(kind, main())
        finally:
            sys.setprofile(None)
        return calls

    assert cost(400) < 2 * cost(50)


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_lose_nothing(kind, seed):
    """Borrowers of all kinds, cancelled at any moment, failing creations, checks and resets: the books balance."""

    async def main():
        dice = random.Random(seed)
        maker = Maker(seconds=0.5, closing=0.3)
        lent = set()

        async def check(made):
            await asyncio.sleep(0.1)
            return dice.random() > 0.2

        async def reset(made):
            await asyncio.sleep(0.1)
            if dice.random() < 0.1:
                raise Boom

        async def borrow():
            key = dice.choice("abc")
            try:
                async with pool.acquire(key) as made:
                    assert made in maker.open
                    assert made not in lent, "lent twice"
                    assert made[0] == key
                    lent.add(made)
                    try:
                        await asyncio.sleep(dice.random() * 3)
                    finally:
                        lent.discard(made)
            except (Boom, tideloop.PoolTimeout):
                pass

        pool = KeyedPool(
            maker.create, maker.close, check=check, reset=reset, max=4, max_per_key=3, max_uses=5, max_idle=5,
            max_lifetime=20, acquire_timeout=20,
        )  # fmt: skip
        async with pool:
            tasks = []
            for _ in range(150):
                if dice.random() < 0.1:
                    maker.failures.append(Boom())
                tasks.append(asyncio.ensure_future(borrow()))
                await asyncio.sleep(dice.random() * 0.6)
                if dice.random() < 0.3:
                    dice.choice(tasks).cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.result()
            stats = pool.stats()
            assert (stats.borrowed, stats.waiting) == (0, 0)
            await asyncio.sleep(2)
            assert len(maker.open) == pool._size == pool.stats().idle + pool._leaving
            assert maker.most <= 4
            # All places can be had.
            maker.failures.clear()
            leases = [pool.acquire(key) for key in "aabb"]
            await asyncio.gather(*(lease._begin() for lease in leases))
            for lease in leases:
                lease.release()
        assert not maker.open
        assert pool._size == 0
        assert not pool._shelves

    harness.run(kind, main())
