"""Deadlines: blocks, contexts, tasks, and what heeds them; on a virtual clock."""

from __future__ import annotations

import asyncio
import math

import pytest
import tideloop
from tideloop import Retry, policy

from tests.toolkit import harness
from tests.toolkit.work import Boom, Flaky, forever, now, turns


class TestDeadline:
    def test_a_block(self, kind):
        async def main():
            began = now()

            async def block():
                with tideloop.deadline(3):
                    assert tideloop.remaining() == pytest.approx(3)
                    await asyncio.sleep(1)
                    assert tideloop.remaining() == pytest.approx(2)
                    await forever()

            with pytest.raises(tideloop.DeadlineExceeded, match="not done within the deadline of 3 s"):
                await block()
            assert now() - began == pytest.approx(3)
            assert tideloop.remaining() == math.inf
            assert asyncio.current_task().cancelling() == 0
            with tideloop.deadline(3):
                await asyncio.sleep(1)
            await asyncio.sleep(10)

        harness.run(kind, main())

    def test_the_earliest_holds(self, kind):
        async def main():
            began = now()

            async def block():
                with tideloop.deadline(2), tideloop.deadline(5):
                    assert tideloop.remaining() == pytest.approx(2)
                    await forever()

            with pytest.raises(tideloop.DeadlineExceeded, match="of 2 s"):
                await block()
            assert now() - began == pytest.approx(2)
            with tideloop.deadline(5):
                with pytest.raises(tideloop.DeadlineExceeded, match="of 1 s"), tideloop.deadline(1):
                    await forever()
                assert tideloop.remaining() == pytest.approx(4)

        harness.run(kind, main())

    def test_tasks_inherit_it(self, kind):
        async def main():
            async def left():
                return tideloop.remaining()

            with tideloop.deadline(2):
                task = asyncio.ensure_future(left())
                await asyncio.sleep(1)
            assert await task == pytest.approx(2)

        harness.run(kind, main())

    def test_a_cancellation_from_outside_is_none_of_its_business(self, kind):
        async def main():
            async def block():
                with tideloop.deadline(5):
                    await forever()

            task = asyncio.ensure_future(block())
            await turns(2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        harness.run(kind, main())

    def test_no_pause_goes_beyond_it(self, kind):
        async def main():
            flaky = Flaky(9)
            began = now()
            with pytest.raises(Boom):
                await policy(deadline=5, retry=Retry(first=2, factor=2, longest=100, jitter=0, attempts=None)).call(
                    flaky
                )
            # After 2 s once more; the next pause is 4 s, and there are 3.
            assert flaky.pauses() == pytest.approx([2])
            assert now() - began == pytest.approx(2)

        harness.run(kind, main())

    def test_it_is_final(self, kind):
        async def main():
            began = now()
            with pytest.raises(tideloop.DeadlineExceeded):
                await policy(deadline=3, timeout=2, retry=Retry(first=0)).call(forever)
            assert now() - began == pytest.approx(3)

            # A deadline of the function's own is its error like any other.
            async def outer():
                with tideloop.deadline(1):
                    await policy(retry=Retry(first=0, attempts=None)).call(policy(deadline=0.4).call, forever)

            with pytest.raises(tideloop.DeadlineExceeded):
                await outer()
            assert now() - began == pytest.approx(4)

        harness.run(kind, main())

    def test_entered_once_by_a_task(self, kind):
        async def main():
            block = tideloop.deadline(3)
            with block, pytest.raises(RuntimeError, match="entered before"):
                block.__enter__()

        harness.run(kind, main())
        with pytest.raises(ValueError, match="limit must be"):
            tideloop.deadline(-1)

    def test_a_task_that_was_made_under_one_has_its_own(self, kind):
        async def main():
            async def child():
                with tideloop.deadline(5):
                    await forever()

            began = now()
            with tideloop.deadline(2):
                task = asyncio.ensure_future(child())
                await turns(2)
            with pytest.raises(tideloop.DeadlineExceeded):
                await task
            # The inherited one is the earlier.
            assert now() - began == pytest.approx(2)

        harness.run(kind, main())

    def test_inside_of_a_shield_that_holds_an_outer_one_back(self, kind):
        async def main():
            began = now()

            async def clean_up():
                with tideloop.deadline(5), tideloop.deadline(9):
                    assert tideloop.remaining() == pytest.approx(5)
                    await forever()

            async def block():
                with tideloop.deadline(2):
                    with tideloop.shield(), pytest.raises(tideloop.DeadlineExceeded, match="of 5 s"):
                        await clean_up()
                    await forever()

            with pytest.raises(tideloop.DeadlineExceeded, match="of 2 s"):
                await block()
            assert now() - began == pytest.approx(5)
            assert asyncio.current_task().cancelling() == 0

        harness.run(kind, main())

    def test_left_in_another_context(self, kind):
        async def main():
            async def numbers():
                with tideloop.deadline(2):
                    yield 1

            stream = numbers()
            assert await anext(stream) == 1
            await asyncio.create_task(stream.aclose())
            await asyncio.sleep(5)
            assert asyncio.current_task().cancelling() == 0

        harness.run(kind, main())


class TestWhoWaits:
    """A deadline ends what waits in its task, and nothing is lost by that."""

    def test_for_an_item(self, kind):
        async def main():
            queue = tideloop.Queue()
            sender, receiver = tideloop.Channel(1)
            for wait in (queue.get, receiver.recv):
                with pytest.raises(tideloop.DeadlineExceeded), tideloop.deadline(2):
                    await wait()
            queue.put_nowait("item")
            sender.try_send("item")
            assert await queue.get() == await receiver.recv() == "item"
            for end in (sender, receiver):
                end.close()

        harness.run(kind, main())

    def test_for_a_permit(self, kind):
        async def main():
            limiter, rate = tideloop.Limiter(1), tideloop.RateLimiter(tideloop.rate(1, per=10))
            await limiter.acquire()
            await rate.acquire()
            began = now()
            for wait in (limiter.acquire, rate.acquire):
                with pytest.raises(tideloop.DeadlineExceeded), tideloop.deadline(2):
                    await wait()
            assert now() - began == pytest.approx(4)
            limiter.release()
            await limiter.acquire()
            await rate.acquire()
            assert now() - began == pytest.approx(10)
            limiter.release()

        harness.run(kind, main())

    def test_for_a_resource_in_a_task_that_was_made_under_it(self, kind):
        async def main():
            async with tideloop.Pool(forever, acquire_timeout=None, close_timeout=0) as pool:

                async def borrow():
                    async with pool.acquire():
                        raise AssertionError

                began = now()
                with tideloop.deadline(3):
                    task = asyncio.ensure_future(borrow())
                    await turns(2)
                with pytest.raises(tideloop.PoolTimeout):
                    await task
                assert now() - began == pytest.approx(3)

        harness.run(kind, main())


class TestWhoHasInherited:
    """Tasks that are made under a deadline have no timer of their own, and wait no longer than it allows."""

    WAITS = ("item", "any item", "room", "permit", "rate", "channel item", "channel room", "channel items")

    @staticmethod
    def things():
        """What to wait for, and whether all is as before the wait."""
        empty, full = tideloop.Queue(name="empty"), tideloop.Queue(1, name="full")
        full.put_nowait("first")
        limiter, rate = tideloop.Limiter(1, name="one"), tideloop.RateLimiter(tideloop.rate(1, per=100), name="slow")
        assert limiter.try_acquire()
        (none, void), (much, plenty) = tideloop.Channel(1, name="void"), tideloop.Channel(1, name="plenty")
        much.try_send("first")

        async def next_item():
            return await anext(aiter(void))

        return (
            {
                "item": (empty.get, lambda: empty.stats().getters == 0),
                "any item": (lambda: tideloop.select(empty, void), lambda: empty.stats().getters == 0),
                "room": (lambda: full.put("x"), lambda: full.stats().putters == 0),
                "permit": (limiter.acquire, lambda: limiter.stats().waiting == 0),
                "rate": (rate.acquire, lambda: True),
                "channel item": (void.recv, lambda: True),
                "channel room": (lambda: much.send("x"), lambda: True),
                "channel items": (next_item, lambda: True),
            },
            (none, void, much, plenty),
            rate,
        )

    @pytest.mark.parametrize("what", WAITS)
    def test_a_wait_ends_with_it(self, kind, what):
        async def main():
            things, ends, rate = self.things()
            wait, is_left = things[what]
            await rate.acquire()
            began = now()

            async def child():
                assert tideloop.remaining() == pytest.approx(3)
                with pytest.raises(tideloop.DeadlineExceeded, match=r"waiting for .*<.* was not done"):
                    await wait()
                assert now() - began == pytest.approx(3)
                assert is_left()
                # It is over: whoever has to wait has no time at all, and is told in the next turn.
                with pytest.raises(tideloop.DeadlineExceeded):
                    await wait()
                assert now() - began == pytest.approx(3)
                assert is_left()

            with tideloop.deadline(3):
                task = asyncio.ensure_future(child())
            await task
            assert asyncio.current_task().cancelling() == 0
            for end in ends:
                end.close()

        harness.run(kind, main())

    def test_what_comes_in_time_leaves_no_timer(self, kind):
        async def main():
            queue, limiter = tideloop.Queue(), tideloop.Limiter(1)
            loop = asyncio.get_running_loop()
            timers = []
            call_at = loop.call_at

            def note(*args, **options):
                timers.append(call_at(*args, **options))
                return timers[-1]

            async def child():
                assert await queue.get() == "item"
                async with limiter:
                    return now()

            await limiter.acquire()
            began = now()
            with tideloop.deadline(5):
                loop.call_at = note
                task = asyncio.ensure_future(child())
            await turns(2)
            queue.put_nowait("item")
            await turns(3)
            limiter.release()
            assert await task == began
            await turns(2)
            del loop.call_at
            assert len(timers) == 2
            assert all(timer.cancelled() for timer in timers)

        harness.run(kind, main())

    def test_who_set_it_is_cancelled_and_told_once(self, kind):
        async def main():
            queue = tideloop.Queue()
            with pytest.raises(tideloop.DeadlineExceeded, match="within the deadline of 2 s"), tideloop.deadline(2):
                await queue.get()
            assert asyncio.current_task().cancelling() == 0

        harness.run(kind, main())

    def test_granted_in_the_same_turn(self, kind):
        """Nothing is lost if the permit or the item comes just as the time is over."""

        async def main():
            loop = asyncio.get_running_loop()
            for order in (-1, 0, 1):
                queue, limiter = tideloop.Queue(), tideloop.Limiter(1)
                await limiter.acquire()

                async def get(queue=queue):
                    try:
                        return await queue.get()
                    except tideloop.DeadlineExceeded:
                        return None

                async def hold(limiter=limiter):
                    try:
                        async with limiter:
                            return True
                    except tideloop.DeadlineExceeded:
                        return False

                when = loop.time() + 1
                if order < 0:
                    loop.call_at(when, queue.put_nowait, "item")
                    loop.call_at(when, limiter.release)
                with tideloop.deadline(1):
                    tasks = [asyncio.ensure_future(get()), asyncio.ensure_future(hold())]
                await turns(2)
                if order == 0:
                    loop.call_at(when, queue.put_nowait, "item")
                    loop.call_at(when, limiter.release)
                await asyncio.sleep(1)
                await turns(3)
                if order > 0:
                    queue.put_nowait("item")
                    limiter.release()
                got, _ = await asyncio.gather(*tasks)
                assert queue.qsize() == (got is None)
                assert limiter.stats().in_use == 0
                assert limiter.try_acquire()

        harness.run(kind, main())

    def test_inside_of_a_shield_it_does_not_count(self, kind):
        async def main():
            queue = tideloop.Queue()

            async def child():
                with tideloop.shield():
                    return await queue.get()

            with tideloop.deadline(1):
                task = asyncio.ensure_future(child())
                with tideloop.shield():
                    other = asyncio.ensure_future(queue.get())
            await asyncio.sleep(2)
            queue.put_nowait(1)
            queue.put_nowait(2)
            assert sorted(await asyncio.gather(task, other)) == [1, 2]

        harness.run(kind, main())

    def test_who_waits_behind_keeps_the_place(self, kind):
        """A wait that a deadline ends in the turn of a put wakes nobody else, who would have to stand in line again."""

        async def main():
            queue, got = tideloop.Queue(), []

            async def get(name):
                try:
                    got.append((name, await queue.get()))
                except tideloop.DeadlineExceeded:
                    got.append((name, "late"))

            with tideloop.deadline(1) as limit:
                hurried = asyncio.ensure_future(get("hurried"))
                await turns(1)
            others = [asyncio.ensure_future(get(name)) for name in ("first", "second", "third")]
            await turns(1)
            asyncio.get_running_loop().call_at(limit.when, queue.put_nowait, 1)
            await asyncio.sleep(2)
            queue.put_nowait(2)
            queue.put_nowait(3)
            await asyncio.wait([hurried, *others])
            assert got == [("hurried", "late"), ("first", 1), ("second", 2), ("third", 3)]

        harness.run(kind, main())

    def test_who_waits_behind_a_selection_keeps_the_place(self, kind):
        async def main():
            queue, got = tideloop.Queue(), []

            async def get(name, wait):
                try:
                    got.append((name, await wait))
                except tideloop.DeadlineExceeded:
                    got.append((name, "late"))

            with tideloop.deadline(1) as limit:
                hurried = asyncio.ensure_future(get("hurried", tideloop.select(queue)))
                await turns(1)
            others = [asyncio.ensure_future(get(name, queue.get())) for name in ("first", "second")]
            await turns(1)
            asyncio.get_running_loop().call_at(limit.when, queue.put_nowait, 1)
            await asyncio.sleep(2)
            queue.put_nowait(2)
            await asyncio.wait([hurried, *others])
            assert got == [("hurried", "late"), ("first", 1), ("second", 2)]

        harness.run(kind, main())

    def test_the_error_shows_no_items(self, kind):
        class Hidden:
            def __repr__(self):
                raise Boom("an item was shown")

        async def main():
            queue = tideloop.Queue(1, name="orders")
            queue.put_nowait(Hidden())
            with tideloop.deadline(1):
                puts = (
                    asyncio.ensure_future(queue.put("more")),
                    asyncio.ensure_future(tideloop.select(tideloop.Queue())),
                )
            for put in puts:
                with pytest.raises(tideloop.DeadlineExceeded, match="Queue at 0x"):
                    await put
            assert now() == pytest.approx(1)

        harness.run(kind, main())
