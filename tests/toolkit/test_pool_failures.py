"""What pools make of hooks that fail, hang or are cancelled, and of borrowers who give up; on a virtual clock."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import sys
from collections import OrderedDict

import pytest
import tideloop
from tideloop import KeyedPool, Pool

from tests.toolkit import harness
from tests.toolkit.maker import Maker, hold, pool_of
from tests.toolkit.work import Boom, forever, now, turns


def iter_of(*made):
    """A `create` that makes these."""
    return iter(made).__next__


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
            pool = Pool(forever, acquire_timeout=1, close_timeout=5)
            with pytest.raises(tideloop.PoolTimeout, match="1 being made"):
                await hold(pool, 0)
            began = now()
            await pool.aclose()
            assert now() - began == pytest.approx(5)
            assert await pool.drain(0)

        harness.run(kind, main())

    def test_one_that_is_under_way_at_the_end_is_not_torn(self, kind):
        """Nor lost, as something half-made would be of which nobody knows."""

        async def main():
            maker = Maker(seconds=3)
            async with pool_of(maker, min=1):
                await asyncio.sleep(1)
            assert maker.closed == [1]

        harness.run(kind, main())

    def test_one_that_takes_too_long(self, kind):
        hung = []

        async def create():
            hung.append(now())
            if len(hung) <= 2:
                await forever()
            return len(hung)

        async def main():
            async with Pool(create, max=2, create_timeout=5) as pool:
                done = await asyncio.gather(hold(pool, 0), hold(pool, 0), hold(pool, 0), return_exceptions=True)
                assert [str(error).partition(" was ")[2] for error in done[:2]] == ["not done in 5 s"] * 2
                assert all(isinstance(error, tideloop.PoolTimeout) for error in done[:2])
                assert done[2] == 3
                assert now() - hung[0] == pytest.approx(5)

        harness.run(kind, main())

    def test_the_functions_own_timeout_is_its_failure(self, kind):
        async def create():
            raise TimeoutError("mine")

        async def main():
            async with Pool(create, create_timeout=5) as pool:
                with pytest.raises(TimeoutError, match="mine"):
                    await hold(pool, 0)

        harness.run(kind, main())

    def test_it_is_not_done_in_the_context_of_a_borrower(self, kind):
        """Nor at his deadline: what is made is for whoever comes next."""
        word = contextvars.ContextVar("word", default="the pool's")

        async def create():
            assert tideloop.remaining() == math.inf
            await asyncio.sleep(5)
            return word.get()

        async def main():
            async with Pool(create, max=1) as pool:
                word.set("a borrower's")
                with pytest.raises((tideloop.PoolTimeout, tideloop.DeadlineExceeded)), tideloop.deadline(1):
                    await hold(pool, 0)
                began = now()
                assert await hold(pool, 0) == "the pool's"
                assert now() - began == pytest.approx(4)

        harness.run(kind, main())

    def test_the_minimum_is_tried_again_with_growing_pauses(self, kind):
        times = []

        async def create():
            times.append(now())
            if len(times) < 5:
                raise Boom
            return len(times)

        async def main():
            async with Pool(create, min=2, max=2, create_limit=1) as pool:
                await asyncio.sleep(100)
                assert pool.stats().idle == 2
                assert times == pytest.approx([times[0] + later for later in (0, 1, 3, 7, 15, 15)])

        harness.run(kind, main())

    def test_no_minimum_is_made_for_a_closed_pool(self, kind):
        calls = []

        async def create():
            calls.append(now())
            raise Boom

        async def main():
            async with Pool(create, min=2):
                await asyncio.sleep(0.5)
            await asyncio.sleep(100)
            assert len(calls) == 2

        harness.run(kind, main())


class TestClosing:
    def test_one_that_hangs_gives_its_place_back(self, kind, caplog):
        async def main():
            async with Pool(iter_of(1, 2), lambda made: forever(), max=1, max_uses=1, close_timeout=5) as pool:
                assert await hold(pool, 0) == 1
                began = now()
                assert await hold(pool, 0) == 2
                assert now() - began == pytest.approx(5)
                began = now()
            assert now() - began == pytest.approx(5)
            assert caplog.text.count("not done in 5 s; it is left alone") == 2

        harness.run(kind, main())

    def test_one_that_does_not_heed_being_cancelled_either(self, kind):
        async def close(made):
            while now() < 50:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(50)

        async def main():
            async with Pool(iter_of(1, 2), close, max=1, max_uses=1, close_timeout=5) as pool:
                assert await hold(pool, 0) == 1
                assert await hold(pool, 0) == 2
            assert now() < 20
            await asyncio.sleep(100)

        harness.run(kind, main())

    def test_one_that_is_slow_does_not_hold_other_keys_up(self, kind):
        async def create(key):
            return key

        async def close(made):
            if made == "a":
                await asyncio.sleep(30)

        async def main():
            async with KeyedPool(create, close, max=3, close_timeout=None) as pool:
                for key in "abc":
                    await hold(pool, 0, key)
                began = now()
                assert await hold(pool, 0, "d") == "d"
                assert now() - began == pytest.approx(1)
                assert pool.stats().idle == 2

        harness.run(kind, main())

    def test_several_make_room_at_once(self, kind):
        async def main():
            maker = Maker(closing=0.5)
            async with KeyedPool(maker.create, maker.close, max=4, create_limit=4) as pool:
                for key in "abcd":
                    await hold(pool, 0, key)
                began = now()
                await asyncio.gather(*(hold(pool, 1, key) for key in "efgh"))
                assert now() - began == pytest.approx(1.5)
                assert maker.most == 4

        harness.run(kind, main())

    def test_a_reset_that_hangs(self, kind):
        async def main():
            maker = Maker()
            async with Pool(maker.create, maker.close, reset=lambda made: forever(), max=1, close_timeout=5) as pool:
                await hold(pool, 0)
                began = now()
                assert await hold(pool, 0) == 2
                assert now() - began == pytest.approx(5)

        harness.run(kind, main())

    def test_by_one_of_its_own_functions(self, kind):
        async def create():
            await pool.aclose()

        pool = None

        async def main():
            nonlocal pool
            pool = Pool(create)
            with pytest.raises(tideloop.PoolClosed):
                await hold(pool, 0)

        harness.run(kind, main())

    @pytest.mark.parametrize("patience", [5, None])
    def test_by_one_that_makes_ready(self, kind, patience):
        """It does not wait for itself."""
        pool = None
        took = []

        async def reset(made):
            began = now()
            await pool.aclose()
            took.append(now() - began)

        async def main():
            nonlocal pool
            maker = Maker()
            pool = pool_of(maker, reset=reset, close_timeout=patience)
            await hold(pool, 0)
            assert await pool.drain(100)
            assert took == pytest.approx([0])
            assert maker.closed == [1]

        harness.run(kind, main())

    def test_in_another_loop(self, kind):
        pool = Pool(iter_of(1))
        harness.run(kind, hold(pool, 0))
        for end in (pool.aclose, pool.drain):
            with pytest.raises(RuntimeError, match="belongs to another event loop"):
                harness.run(kind, end())


class TestReplacing:
    def test_begins_with_the_last_loan(self, kind):
        async def main():
            maker = Maker(seconds=1)
            async with pool_of(maker, min=1, max=2, max_uses=2) as pool:
                await asyncio.sleep(2)
                for _ in range(6):
                    async with pool.acquire():
                        await asyncio.sleep(2)
                        assert len(maker.open) <= 2
                    assert pool.stats().idle >= 1
                await asyncio.sleep(2)
                assert pool._last_loans == 0

        harness.run(kind, main())

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

    def test_one_loan_for_two_tasks(self, kind):
        async def main():
            async with pool_of(Maker(seconds=1), max=2) as pool:
                lease = pool.acquire()
                first, second = await asyncio.gather(lease._begin(), lease._begin(), return_exceptions=True)
                assert first is lease
                assert isinstance(second, RuntimeError)
                assert pool.stats().borrowed == 1
                lease.release()

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

    @pytest.mark.parametrize("key", [None, "one of two"])
    @pytest.mark.parametrize("how", ["cancelled", "late"])
    def test_a_crowd_that_gives_up_costs_each_of_it_the_same(self, kind, key, how):
        def cost(count):
            seen = 0

            class Waiters(OrderedDict):
                """Counts whom somebody looks at."""

                def items(self):
                    nonlocal seen
                    for item in super().items():
                        seen += 1
                        yield item

            async def main():
                maker = Maker()
                timeout = 5 if how == "late" else None
                if key is None:
                    pool = pool_of(maker, max=1, acquire_timeout=timeout)
                else:
                    pool = KeyedPool(maker.create, maker.close, max=1, acquire_timeout=timeout)
                keys = () if key is None else (key,)
                async with pool:
                    holder = asyncio.ensure_future(hold(pool, 100, *keys))
                    await asyncio.sleep(1)
                    pool._shelves[key].waiters = Waiters()
                    tasks = [asyncio.ensure_future(hold(pool, 0, *keys)) for _ in range(count)]
                    await turns(1)
                    if key is not None:
                        other = asyncio.ensure_future(hold(pool, 0, "the other"))
                    await asyncio.sleep(1)
                    last = asyncio.ensure_future(hold(pool, 0, *keys))
                    await turns(1)
                    if how == "cancelled":
                        for task in reversed(tasks):
                            task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                    assert pool.stats().waiting == 1 + (key is not None and how == "cancelled")
                    if key is not None:
                        await asyncio.gather(other, return_exceptions=True)
                    await asyncio.gather(last, return_exceptions=True)
                    await holder

            harness.run(kind, main())
            return seen

        assert cost(400) < 6 * cost(100) + 10
