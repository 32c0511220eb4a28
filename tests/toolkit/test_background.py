"""Background work: kept, told of, begun again, drained within a stated time; on a virtual clock."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import logging
import math

import pytest
import tideloop
from tideloop import Background, Restart

from tests.toolkit import harness
from tests.toolkit.work import Boom, fail, forever, give, now, tasks_left, turns


def test_tasks_are_kept_and_waited_for(kind):
    ended = []

    async def work(number):
        await asyncio.sleep(number)
        gc.collect()
        ended.append(number)
        return number

    async def main():
        async with Background(name="mail") as background:
            tasks = [background.spawn(work, number) for number in (3, 1, 2)]
            assert repr(background) == "<tideloop.Background 'mail' open tasks=3>"
        assert ended == [1, 2, 3]
        assert [task.result() for task in tasks] == [3, 1, 2]
        assert background.stats() == (0, 0, 3, 0, 0, 0)
        with pytest.raises(tideloop.BackgroundClosed, match="takes nothing new"):
            background.spawn(work, 1)

    harness.run(kind, main())


def test_failures_are_logged_at_once(kind, caplog):
    async def main():
        async with Background() as background:
            background.spawn(fail, "lost", name="sender")
            task = background.spawn(forever)
            await turns(3)
            (record,) = caplog.records
            assert record.getMessage() == "'sender' has failed"
            assert isinstance(record.exc_info[1], Boom)
            task.cancel()
        assert background.stats() == (0, 0, 0, 1, 1, 0)

    harness.run(kind, main())


def test_failures_can_be_handed_over(kind):
    async def main():
        told = []
        async with Background(on_error=lambda task, error: told.append((task.get_name(), str(error)))) as background:
            background.spawn(fail, "one", 1, name="a")
            background.spawn(fail, "two", 2, name="b")
        assert told == [("a", "one"), ("b", "two")]

    harness.run(kind, main())


def test_a_failure_is_not_lost_with_the_one_it_is_handed_to(kind, caplog):
    def bad(task, error):
        raise LookupError("mine")

    async def main():
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
        async with Background(on_error=bad) as background:
            background.spawn(fail, "lost", name="sender")
        assert [str(error) for error in told] == ["mine"]
        (record,) = caplog.records
        assert record.getMessage() == "'sender' has failed"
        assert str(record.exc_info[1]) == "lost"

    harness.run(kind, main())


def test_failures_can_end_the_block(kind):
    async def main():
        before = asyncio.all_tasks()
        others = []

        async def block():
            async with Background(on_error="raise") as background:
                others.append(background.spawn(forever))
                background.spawn(fail, "no", 3)
                await forever()

        with pytest.raises(ExceptionGroup) as caught:
            await block()
        assert [str(error) for error in caught.value.exceptions] == ["no"]
        assert others[0].cancelled()
        assert asyncio.current_task().cancelling() == 0
        with pytest.raises(ExceptionGroup):
            async with Background(on_error="raise") as background:
                background.spawn(fail, "while draining", 3)
        assert asyncio.current_task().cancelling() == 0
        assert tasks_left(before) == set()

    harness.run(kind, main())


def test_a_cancelled_block_is_cancelled(kind):
    async def main():
        spawned = []

        async def block():
            async with Background() as background:
                spawned.append(background.spawn(forever))
                await forever()

        task = asyncio.ensure_future(block())
        await turns(3)
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert spawned[0].cancelled()

    harness.run(kind, main())


def test_cancelled_while_it_drains(kind):
    async def main():
        spawned = []

        async def block():
            async with Background(grace=None) as background:
                spawned.append(background.spawn(forever))

        task = asyncio.ensure_future(block())
        await turns(3)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert spawned[0].cancelled()

    harness.run(kind, main())


def test_an_exception_in_the_block_cancels(kind):
    async def main():
        spawned = []

        async def block():
            async with Background() as background:
                spawned.append(background.spawn(forever))
                await turns(1)
                raise Boom

        with pytest.raises(Boom):
            await block()
        assert spawned[0].cancelled()

    harness.run(kind, main())


def test_grace_is_an_absolute_deadline(kind):
    async def main():
        began = now()
        async with Background(grace=10) as background:
            for seconds in (4, 8, 12, 100):
                background.spawn(asyncio.sleep, seconds)
        assert now() - began == pytest.approx(10)
        assert background.stats()[2:5] == (2, 0, 2)

    harness.run(kind, main())


def test_drain_tells_who_ended_how(kind, caplog):
    async def stubborn():
        while True:
            try:
                await forever()
            except asyncio.CancelledError:
                if now() > 50:
                    raise

    async def main():
        background = Background(patience=3, grace=0)
        async with background:
            background.spawn(give, 1)
            background.spawn(forever)
            task = background.spawn(stubborn, name="rock")
            left = await background.drain(2, then="leave")
            assert left[:2] == (1, 0)
            assert {survivor.name for survivor in left.survivors} == {"forever", "rock"}
            assert not caplog.records
            began = now()
            left = await background.drain(2)
            assert now() - began == pytest.approx(5)
            assert left[:2] == (0, 1)
            (rock,) = left.survivors
            assert rock.name == "rock"
            assert [line.rpartition(" ")[2] for line in rock.stack] == ["_work", "stubborn", "forever"]
            assert "test_background.py" in rock.stack[1]
            assert "'rock' still runs although it was cancelled" in caplog.text
            await asyncio.sleep(100)
            task.cancel()

    harness.run(kind, main())


def test_drain_asked_for_by_one_of_its_tasks(kind):
    async def main():
        async with Background() as background:

            async def ask():
                return await background.drain(1)

            background.spawn(forever)
            task = background.spawn(ask)
            assert (await task)[:2] == (0, 1)

    harness.run(kind, main())


def test_drain_asked_for_by_several_of_its_tasks(kind):
    async def main():
        began = now()
        async with Background() as background:

            async def ask(limit):
                await asyncio.sleep(1)
                return await background.drain(limit)

            background.spawn(asyncio.sleep, 5)
            tasks = [background.spawn(ask, limit) for limit in (None, None, 3)]
            for task in tasks:
                # The third has what still runs cancelled, but not those that drain as it does.
                assert (await task)[2] == ()
            assert now() - began == pytest.approx(4)
        assert background.stats()[2:5] == (3, 0, 1)

    harness.run(kind, main())


def test_cancel_asked_for_by_one_of_its_tasks(kind):
    async def main():
        async with Background() as background:

            async def ask():
                await turns(3)
                background.cancel()
                return "done"

            draining = background.spawn(background.drain)
            task = background.spawn(ask)
            assert await task == "done"
            await asyncio.wait([draining])
            assert draining.cancelled()

    harness.run(kind, main())


def test_several_drain_at_once(kind):
    async def main():
        async with Background() as background:
            background.spawn(asyncio.sleep, 5)
            one, two = await asyncio.gather(background.drain(), background.drain(3, then="leave"))
            assert one == (1, 0, ())
            assert two[:2] == (0, 0)
            assert len(two.survivors) == 1

    harness.run(kind, main())


def test_tasks_inherit_the_context_without_its_deadline(kind):
    word = contextvars.ContextVar("word", default="none")

    async def work():
        await asyncio.sleep(10)
        return word.get(), tideloop.remaining()

    async def main():
        async with Background() as background:
            word.set("request")
            with tideloop.deadline(5):
                task = background.spawn(work)
            assert await task == ("request", math.inf)
            assert tideloop.remaining() == math.inf

    harness.run(kind, main())


def test_limit(kind):
    running, most = set(), []

    async def work(number):
        running.add(number)
        most.append(len(running))
        await asyncio.sleep(1)
        running.discard(number)

    async def main():
        began = now()
        async with Background(limit=2) as background:
            for number in range(6):
                background.spawn(work, number)
            await asyncio.sleep(0.5)
            assert background.stats()[:2] == (2, 4)
        assert now() - began == pytest.approx(3)
        assert max(most) == 2

    harness.run(kind, main())


def test_cancelled_everywhere(kind):
    def scenario(attack):
        async def main():
            backgrounds = []

            async def suffer(seconds):
                await attack._suffer(asyncio.sleep(seconds))

            async def serve():
                async with Background(limit=2, grace=5, restart=Restart(first=1, most=1)) as background:
                    backgrounds.append(background)
                    for seconds in (1, 2, 3):
                        background.spawn(suffer, seconds)
                    background.spawn(fail)
                    await asyncio.sleep(0.5)
                    await background.drain(4)

            for _ in range(2):
                attack.task(serve())
            await attack.settle()
            for background in backgrounds:
                stats = background.stats()
                assert stats.running == stats.waiting == background._limiter.stats().in_use == 0
                assert stats.succeeded + stats.failed + stats.cancelled == 4
            assert len(tasks_left()) == 1  # the harness's own

        return main()

    assert harness.cancel_everywhere(kind, scenario) > 10


class TestRestart:
    def test_after_growing_pauses(self, kind, caplog):
        times = []

        async def work():
            times.append(now())
            if len(times) < 5:
                raise Boom
            return "done"

        async def main():
            async with Background(restart=Restart(first=1, factor=2, longest=3, jitter=0)) as background:
                assert await background.spawn(work) == "done"
            assert background.stats() == (0, 0, 1, 0, 0, 4)

        caplog.set_level(logging.WARNING)
        harness.run(kind, main())
        assert [later - earlier for earlier, later in itertools.pairwise(times)] == pytest.approx([1, 2, 3, 3])
        assert [record.levelname for record in caplog.records] == ["WARNING"] * 4
        assert "begins again in 1 s" in caplog.text

    def test_not_for_ever(self, kind):
        async def main():
            told = []
            restart = Restart(first=1, jitter=0, most=2)
            async with Background(on_error=lambda task, error: told.append(error)) as background:
                background.spawn(fail, "no", 1, restart=restart)
                await asyncio.sleep(10)
                assert len(told) == 1
            assert background.stats() == (0, 0, 0, 1, 0, 2)

        harness.run(kind, main())

    def test_forgives(self, kind):
        times = []

        async def work():
            times.append(now())
            await asyncio.sleep(100)
            raise Boom

        async def main():
            async with Background(restart=Restart(first=1, jitter=0, most=1, forgive=60), grace=0) as background:
                background.spawn(work)
                await asyncio.sleep(450)

        harness.run(kind, main())
        assert len(times) == 5

    def test_not_while_draining(self, kind):
        async def main():
            told = []
            async with Background(on_error=lambda *it: told.append(it), restart=Restart()) as background:
                background.spawn(fail, "no", 3)
            assert len(told) == 1

        harness.run(kind, main())

    def test_nobody_waits_for_a_pause_to_end(self, kind):
        async def main():
            told = []
            began = now()
            restart = Restart(first=500, longest=500, jitter=0)
            async with Background(on_error=lambda *it: told.append(it), restart=restart, grace=1000) as background:
                background.spawn(fail, "no", 1)
                await asyncio.sleep(2)
                assert background.stats().restarts == 1
                assert not told
            assert len(told) == 1
            assert now() - began == pytest.approx(2)

        harness.run(kind, main())

    def test_pauses(self):
        restart = Restart(first=1, factor=10, longest=100, jitter=0.5)
        for failures, middle in ((1, 1), (2, 10), (3, 100), (4, 100), (10**9, 100)):
            for _ in range(20):
                assert 0.5 * middle <= restart.pause(failures) <= 1.5 * middle


def test_belongs_to_one_loop(kind):
    async def main():
        async with Background(name="mail") as background:
            pass
        return background

    async def elsewhere():
        with pytest.raises(RuntimeError, match=r"'mail' .* belongs to another event loop"):
            background.spawn(forever)
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await background.drain()

    background = harness.run(kind, main())
    harness.run(kind, elsewhere())


def test_bad_arguments(kind):
    with pytest.raises(ValueError, match="on_error must be"):
        Background(on_error="ignore")
    with pytest.raises(TypeError, match="on_error must be a plain function"):
        Background(on_error=fail)  # or nobody would be told
    with pytest.raises(TypeError, match="restart must be"):
        Background(restart=3)
    with pytest.raises(ValueError, match="grace must be"):
        Background(grace=-1)
    for field, value in (
        ("first", -1),
        ("factor", 0.5),
        ("longest", "x"),
        ("jitter", 2),
        ("most", -1),
        ("forgive", None),
    ):
        with pytest.raises(ValueError, match=f"{field} of a Restart must be"):
            Background(restart=Restart(**{field: value}))

    async def main():
        background = Background()
        with pytest.raises(RuntimeError, match="was not entered"):
            background.spawn(forever)
        async with background:
            with pytest.raises(TypeError, match="fn must be"):
                background.spawn(3)
            with pytest.raises(TypeError, match="restart must be"):
                background.spawn(forever, restart=3)
            with pytest.raises(ValueError, match="then must be"):
                await background.drain(then="kill")
        with pytest.raises(RuntimeError, match="entered before"):
            await background.__aenter__()

    harness.run(kind, main())


async def fail_when_cancelled():
    try:
        await forever()
    finally:
        raise Boom("task")


class TestTheWayOut:
    """Who is told of what, when a block, its tasks and somebody outside end it at once."""

    def test_a_survivor_that_fails_after_all_harms_nobody(self, kind, caplog):
        async def stubborn():
            try:
                await forever()
            except asyncio.CancelledError:
                await asyncio.sleep(10)
                raise Boom("late") from None

        async def main():
            async with Background(on_error="raise", grace=0, patience=1) as background:
                background.spawn(stubborn, name="rock")
                await turns(2)
            await asyncio.sleep(20)
            assert asyncio.current_task().cancelling() == 0
            assert "'rock' has failed after its block was left" in caplog.text

        harness.run(kind, main())

    def test_errors_of_the_block_and_of_tasks_are_all_raised(self, kind):
        async def block():
            async with Background(on_error="raise") as background:
                background.spawn(fail_when_cancelled)
                await turns(2)
                raise KeyError("block")

        async def main():
            with pytest.raises(ExceptionGroup) as caught:
                await block()
            assert [type(error) for error in caught.value.exceptions] == [KeyError, Boom]
            assert asyncio.current_task().cancelling() == 0

        harness.run(kind, main())

    def test_a_cancellation_from_outside_comes_first(self, kind, caplog):
        async def block():
            async with Background(on_error="raise") as background:
                background.spawn(fail_when_cancelled)
                await forever()

        async def main():
            task = asyncio.ensure_future(block())
            await turns(3)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            (record,) = caplog.records
            assert isinstance(record.exc_info[1], Boom)

        harness.run(kind, main())

    def test_a_cancellation_while_an_exception_leaves_the_block_is_not_lost(self, kind):
        async def slow():
            try:
                await forever()
            finally:
                await asyncio.sleep(1)

        async def block():
            async with Background() as background:
                background.spawn(slow)
                await turns(2)
                raise Boom

        async def main():
            task = asyncio.ensure_future(block())
            await asyncio.sleep(0.5)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

        harness.run(kind, main())

    def test_clean_up_is_cancelled_once(self, kind):
        cleaned = []

        async def careful():
            try:
                await forever()
            finally:
                await asyncio.sleep(1)
                cleaned.append(now())

        async def beside_one_that_fails():
            async with Background(on_error="raise") as background:
                background.spawn(careful)
                background.spawn(fail, "no", 2)
                await forever()

        async def by_hand():
            async with Background() as background:
                background.spawn(careful)
                await turns(2)
                background.cancel()
                await turns(2)
                raise KeyError

        async def main():
            with pytest.raises(ExceptionGroup):
                await beside_one_that_fails()
            with pytest.raises(KeyError):
                await by_hand()
            assert len(cleaned) == 2

        harness.run(kind, main())

    def test_what_waits_to_begin_again_is_told_when_it_drains(self, kind):
        calls = []

        async def work():
            calls.append(now())
            raise Boom

        async def main():
            told = []
            restart = Restart(first=5, jitter=0)
            async with Background(restart=restart, on_error=lambda task, error: told.append(error)) as background:
                background.spawn(work)
                await asyncio.sleep(1)
                assert await background.drain(10) == (1, 0, ())
            assert len(calls) == 1
            assert [type(error) for error in told] == [Boom]

        harness.run(kind, main())
