"""gather() with its two new keywords, race() and first_ok(), on every loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect

import pytest
import tideloop
from tideloop import accelerated

from tests.toolkit import harness
from tests.toolkit.work import Boom, fail, forever, give, tasks_left

# --- gather --------------------------------------------------------------------------------------


async def test_without_the_keywords_it_is_asyncios(loop):
    assert type(tideloop.gather) is type(accelerated.gather)
    outer = tideloop.gather(give(1), give(2))
    assert type(outer).__name__ == "_GatheringFuture"
    assert await outer == [1, 2]
    assert await tideloop.gather() == []
    assert list(inspect.signature(tideloop.gather).parameters) == [
        "coros_or_futures",
        "return_exceptions",
        "limit",
        "on_error",
    ]


@pytest.mark.parametrize("limiter", [False, True])
@pytest.mark.parametrize("on_error", [None, "cancel", "collect"])
async def test_no_more_than_the_limit_run(loop, limiter, on_error):
    running = peak = 0

    async def work(number):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await give(None, 3)
        running -= 1
        return number

    limit = tideloop.Semaphore(3) if limiter else 3
    results = await tideloop.gather(*(work(number) for number in range(10)), limit=limit, on_error=on_error)
    assert peak == 3
    expected = list(range(10))
    assert [outcome.value for outcome in results] == expected if on_error == "collect" else results == expected
    assert not tasks_left()


async def test_a_limit_alone_leaves_errors_as_they_were(loop):
    with pytest.raises(Boom, match="no"):
        await tideloop.gather(fail(), give(1, 5), limit=1)
    results = await tideloop.gather(fail(), give(1), limit=1, return_exceptions=True)
    assert isinstance(results[0], Boom)
    assert results[1] == 1
    assert not tasks_left()


async def test_the_same_awaitable_twice(loop):
    work, future = give(1), loop.create_future()
    future.set_result(2)
    assert await tideloop.gather(work, future, work, limit=1, on_error="cancel") == [1, 2, 1]


async def test_cancel_awaits_all_and_tells_all(loop):
    ended = []

    async def fails_late():
        try:
            await forever()
        finally:
            await give(None, 3)
            ended.append(True)
            raise Boom("late")

    with pytest.raises(ExceptionGroup) as caught:
        await tideloop.gather(fails_late(), fail("first"), on_error="cancel")
    assert sorted(str(error) for error in caught.value.exceptions) == ["first", "late"]
    assert ended == [True]
    assert not tasks_left()


async def test_collect_gives_outcomes(loop):
    good, bad = await tideloop.gather(give(1), fail(), on_error="collect")
    assert good == tideloop.Outcome(1)
    assert bad.failed


@pytest.mark.parametrize("on_error", [None, "cancel", "collect"])
@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_cancelling_it_starts_nothing_more(loop, on_error, turns):
    """And leaves no coroutine that nobody awaited: the warning would be an error."""
    begun = []

    async def work(number):
        begun.append(number)
        await forever()

    outer = tideloop.gather(*(work(number) for number in range(5)), limit=2, on_error=on_error)
    await give(None, turns)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    await give(None, 3)
    assert not tasks_left()
    assert len(begun) <= 2
    gc.collect()


async def test_wrong_arguments_leave_no_coroutine(loop):
    for arguments, error, said in (
        ({"on_error": "ignore"}, ValueError, "not 'ignore'"),
        ({"on_error": "cancel", "return_exceptions": True}, ValueError, "either that or on_error"),
        ({"limit": 0}, ValueError, "at least 1"),
        ({"limit": "x"}, TypeError, "'x'"),
    ):
        with pytest.raises(error, match=said):
            tideloop.gather(give(1), give(2), **arguments)
    with pytest.raises(TypeError, match="takes awaitables, not 3"):
        tideloop.gather(give(1), 3, limit=1)
    gc.collect()


def test_without_a_loop(loop):
    with pytest.raises(RuntimeError, match="no running event loop"):
        tideloop.gather(give(1), limit=1)
    gc.collect()


# --- race and first_ok ---------------------------------------------------------------------------


async def test_the_first_to_end_wins_the_race(loop):
    ended = []

    async def loser():
        try:
            await forever()
        finally:
            await give(None, 2)
            ended.append(True)

    assert await tideloop.race(loser(), give(1, 3), loser()) == 1
    assert ended == [True, True]
    with pytest.raises(Boom):
        await tideloop.race(forever(), fail())
    assert not tasks_left()


async def test_futures_may_race(loop):
    slow, fast = loop.create_future(), loop.create_future()
    fast.set_result(1)
    assert await tideloop.race(slow, fast) == 1
    assert slow.cancelled()
    tasks = [loop.create_task(forever()), loop.create_task(give(2))]
    assert await tideloop.race(*tasks) == 2
    await give(None, 2)
    assert not tasks_left()


async def test_a_loser_that_fails_is_reported(loop, handled):
    async def fails_when_cancelled():
        try:
            await forever()
        finally:
            raise Boom("late")

    assert await tideloop.race(fails_when_cancelled(), give(1, 3)) == 1
    assert [context["message"] for context in handled] == ["race(): a loser failed"]
    assert str(handled[0]["exception"]) == "late"


async def test_the_first_success(loop, handled):
    assert await tideloop.first_ok(fail(), forever(), give(1, 5)) == 1
    assert handled == []
    with pytest.raises(ExceptionGroup, match="no attempt succeeded") as caught:
        await tideloop.first_ok(fail("a", 3), fail("b", 1))
    assert [str(error) for error in caught.value.exceptions] == ["a", "b"]
    assert not tasks_left()


@pytest.mark.parametrize("function", [tideloop.race, tideloop.first_ok])
async def test_cancelling_a_race_cancels_all(loop, function):
    task = loop.create_task(function(forever(), forever()))
    await give(None, 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not tasks_left()


@pytest.mark.parametrize("function", [tideloop.race, tideloop.first_ok])
async def test_wrong_arguments_of_a_race(loop, function):
    with pytest.raises(ValueError, match="at least one awaitable"):
        await function()
    with pytest.raises(TypeError, match="takes awaitables, not 3"):
        await function(give(1), 3)
    gc.collect()


# --- cancelled anywhere, random schedules --------------------------------------------------------


@pytest.mark.parametrize("what", ["group", "limit", "limiter", "race", "first_ok", "gather"])
def test_cancelled_at_every_await(kind, what):
    async def scenario(attack):
        before = asyncio.all_tasks()
        limiter = tideloop.Semaphore(2)
        running = 0

        async def work(number):
            nonlocal running
            running += 1
            try:
                await asyncio.sleep(number % 2)
                await asyncio.sleep(0)
                return number
            finally:
                running -= 1

        async def play():
            if what == "race":
                await tideloop.race(*(work(number) for number in range(1, 4)))
            elif what == "first_ok":
                await tideloop.first_ok(*(work(number) for number in range(1, 4)))
            elif what == "gather":
                await tideloop.gather(*(work(number) for number in range(5)), limit=limiter, on_error="cancel")
            else:
                limit = {"group": None, "limit": 2, "limiter": limiter}[what]
                async with tideloop.group(limit=limit) as g:
                    handles = [g.spawn(work, number) for number in range(5)]
                    await handles[3]
                    async for _ in g.completed():
                        await asyncio.sleep(0)

        attack.task(play())
        await attack.settle()
        assert running == 0
        assert asyncio.all_tasks() == {*before, asyncio.current_task()}
        for _ in range(2):
            await limiter.acquire()

    assert harness.cancel_everywhere(kind, scenario) > 0


@pytest.mark.parametrize("seed", range(60))
def test_random_groups(kind, seed):
    """Spawning, failing, cancelling from everywhere: every handle ends, nobody is left, counts are as before."""
    import random

    dice = random.Random(seed)

    async def idle():
        for _ in range(dice.randrange(3)):
            await asyncio.sleep(0)
        if dice.random() < 0.3:
            await asyncio.sleep(dice.random())

    async def main():
        before = asyncio.all_tasks()
        limit = dice.choice([None, 1, 3, tideloop.Semaphore(2)])
        on_error = dice.choice(["cancel", "collect"])
        running = 0
        groups = []

        async def work(depth):
            nonlocal running
            running += 1
            try:
                assert not isinstance(limit, int) or running <= limit
                await idle()
                if depth and dice.random() < 0.3 and not groups[0].stats().cancelled:
                    with contextlib.suppress(RuntimeError):  # it is being cancelled
                        groups[0].spawn(work, depth - 1)
                if dice.random() < 0.1:
                    with tideloop.shield():
                        await idle()
                if dice.random() < 0.1:
                    raise Boom
                if dice.random() < 0.1:
                    with tideloop.move_on_after(dice.random() / 2):
                        await asyncio.sleep(dice.random())
                return depth
            finally:
                running -= 1

        async def parent():
            me = asyncio.current_task()
            try:
                async with tideloop.group(on_error=on_error, limit=limit) as g:
                    groups.append(g)
                    for _ in range(dice.randrange(12)):
                        handle = g.spawn(work, 2, timeout=dice.choice([None, None, 0.5]))
                        if dice.random() < 0.2:
                            handle.cancel()
                        if dice.random() < 0.2:
                            await idle()
                    if dice.random() < 0.15:
                        g.cancel()
                    if dice.random() < 0.15:
                        await idle()
                        raise Boom("block")
            except* (Boom, TimeoutError):
                pass
            assert me.cancelling() == was_cancelled
            return "done"

        was_cancelled = 0
        task = asyncio.ensure_future(parent())
        if dice.random() < 0.4:
            await idle()
            was_cancelled = int(task.cancel())
        await asyncio.wait([task])
        if not task.cancelled():
            assert task.result() == "done"
        assert running == 0
        assert all(handle.done() for g in groups for handle in g.handles)
        for g in groups:
            spawned, waiting, active, *ended = g.stats()
            assert (waiting, active, sum(ended)) == (0, 0, spawned)
        assert asyncio.all_tasks() == before
        if not isinstance(limit, int | None):
            for _ in range(2):
                await limit.acquire()

    harness.run(kind, main())
