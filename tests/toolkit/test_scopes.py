"""Cancel scopes: nesting, counting, deadlines and the shield, on every loop; deadlines on a virtual clock."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref

import pytest
import tideloop

from tests.toolkit import harness
from tests.toolkit.work import forever, turns


def cancelling():
    return asyncio.current_task().cancelling()


# --- deadlines, on a virtual clock ---------------------------------------------------------------


def test_move_on_after(kind):
    async def main():
        loop = asyncio.get_running_loop()
        before = loop.time()
        with tideloop.move_on_after(3, name="visit") as scope:
            assert repr(scope).startswith("<tideloop.CancelScope 'visit' open deadline=")
            await forever()
        assert loop.time() - before == pytest.approx(3)
        assert scope.cancelled_caught
        assert scope.cancel_called
        assert cancelling() == 0
        with tideloop.move_on_after(3) as scope:
            await asyncio.sleep(2.9)
        assert not scope.cancelled_caught
        assert not scope.cancel_called
        await asyncio.sleep(10)

    harness.run(kind, main())


def test_fail_after(kind):
    async def main():
        with (
            pytest.raises(TimeoutError, match="visit was not done in time") as caught,
            tideloop.fail_after(3, name="visit"),
        ):
            await forever()
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        with tideloop.fail_after(None) as scope:
            assert scope.deadline == math.inf
            await asyncio.sleep(1e5)
        with pytest.raises(TimeoutError, match="the block was not done in time"), tideloop.fail_after(0):
            await forever()

    harness.run(kind, main())


def test_the_deadline_can_be_moved(kind):
    async def main():
        loop = asyncio.get_running_loop()
        began = loop.time()
        with tideloop.move_on_after(3) as scope:
            await asyncio.sleep(2)
            scope.deadline = loop.time() + 5
            await asyncio.sleep(4)
            scope.deadline = loop.time() - 1
            await forever()
        assert scope.cancelled_caught
        assert loop.time() - began == pytest.approx(6)
        with tideloop.move_on_after(3) as scope:
            scope.deadline = math.inf
            await asyncio.sleep(100)
        assert not scope.cancelled_caught

    harness.run(kind, main())


@pytest.mark.parametrize(("outer", "inner"), [(1, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("stock", ["none", "outer", "inner"])
def test_the_earlier_deadline_of_two_is_the_one_that_counts(kind, outer, inner, stock):
    """Whichever of them is asyncio's."""

    async def main():
        began = asyncio.get_running_loop().time()
        reached = []

        async def block():
            if stock == "inner":
                try:
                    async with asyncio.timeout(inner):
                        await forever()
                except TimeoutError:
                    reached.append("inner")
            else:
                with tideloop.move_on_after(inner) as scope:
                    await forever()
                if scope.cancelled_caught:
                    reached.append("inner")
            await asyncio.sleep(5)

        if stock == "outer":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(outer):
                    await block()
        else:
            with tideloop.move_on_after(outer) as scope:
                await block()
            assert scope.cancelled_caught
        assert asyncio.get_running_loop().time() - began == pytest.approx(outer)
        assert reached == (["inner"] if inner < outer else [])
        assert cancelling() == 0
        await asyncio.sleep(10)

    harness.run(kind, main())


# --- cancel() ------------------------------------------------------------------------------------


async def test_cancel_from_inside_comes_at_the_next_await(loop):
    reached = []
    with tideloop.CancelScope() as scope:
        scope.cancel()
        reached.append("goes on")
        await asyncio.sleep(0)
        reached.append("not this")
    assert scope.cancelled_caught
    assert reached == ["goes on"]
    assert cancelling() == 0


async def test_cancel_without_an_await_leaves_nothing(loop):
    with tideloop.CancelScope() as scope:
        scope.cancel()
    assert scope.cancel_called
    assert not scope.cancelled_caught
    assert cancelling() == 0
    await turns(3)


async def test_cancel_from_another_task(loop):
    async def visit():
        with tideloop.CancelScope() as scope:
            scopes.append(scope)
            await forever()
        await turns(2)
        return "went on"

    scopes = []
    task = loop.create_task(visit())
    await asyncio.sleep(0)
    scopes[0].cancel("why")
    scopes[0].cancel()
    assert await task == "went on"
    scopes[0].cancel()


async def test_a_cancelled_task_is_not_kept_by_its_scope(loop):
    async def visit():
        with tideloop.CancelScope() as scope:
            scopes.append(scope)
            await forever()

    scopes = []
    task = loop.create_task(visit())
    await asyncio.sleep(0)
    task.cancel()
    scopes[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not scopes[0].cancelled_caught


async def test_both_scopes_cancelled_the_outer_one_is_left(loop):
    with tideloop.CancelScope() as outer:
        with tideloop.CancelScope() as inner:
            inner.cancel()
            outer.cancel()
            await forever()
        pytest.fail("the inner scope caught it")
    assert outer.cancelled_caught
    assert not inner.cancelled_caught
    assert cancelling() == 0
    await turns(3)


async def test_an_exception_goes_on(loop):
    async def attempt():
        scope.cancel()
        try:
            await forever()
        finally:
            raise ValueError("own")

    with pytest.raises(ValueError, match="own"), tideloop.CancelScope() as scope:
        await attempt()
    assert cancelling() == 0
    assert not scope.cancelled_caught


async def test_a_swallowed_cancellation(loop):
    with tideloop.CancelScope() as scope:
        scope.cancel()
        try:
            await forever()
        except asyncio.CancelledError:
            await turns(3)
    assert not scope.cancelled_caught
    assert cancelling() == 0


async def test_a_scope_in_the_clean_up_of_a_cancelled_task(loop):
    async def visit():
        try:
            await forever()
        finally:
            with tideloop.move_on_after(0) as scope:
                await forever()
            assert scope.cancelled_caught
            assert cancelling() == 1

    task = loop.create_task(visit())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_scope_around_a_group(loop):
    ended = []

    async def slow_to_end():
        try:
            await forever()
        finally:
            await turns(2)
            ended.append(True)

    with tideloop.CancelScope() as scope:
        async with tideloop.group() as g:
            g.spawn(slow_to_end)
            await turns(2)
            scope.cancel()
            await forever()
    assert scope.cancelled_caught
    assert ended == [True]
    assert cancelling() == 0


@pytest.mark.parametrize("wrong", ["1", True, math.nan])
def test_wrong_numbers(wrong):
    with pytest.raises((TypeError, ValueError), match="delay must be a number of seconds"):
        tideloop.move_on_after(wrong)
    with pytest.raises((TypeError, ValueError), match="deadline must be a number of seconds"):
        tideloop.CancelScope(deadline=wrong)


async def test_wrong_use(loop):
    scope = tideloop.CancelScope(name="visit")
    with pytest.raises(RuntimeError, match="'visit' unused> was not entered"):
        scope.cancel()
    with scope, pytest.raises(RuntimeError, match="entered before"):
        scope.__enter__()
    with pytest.raises(RuntimeError, match="entered before"):
        scope.__enter__()


def test_outside_of_a_task(loop):
    def callback():
        for scope in tideloop.CancelScope(), tideloop.shield():
            with pytest.raises(RuntimeError, match="none is running"):
                scope.__enter__()
        loop.stop()

    loop.call_soon(callback)
    loop.run_forever()


# --- the shield ----------------------------------------------------------------------------------


async def test_asyncios_shield_is_still_there(loop):
    future = loop.create_future()
    outer = tideloop.shield(future)
    outer.cancel()
    await asyncio.sleep(0)
    assert outer.cancelled()
    assert not future.cancelled()


async def test_a_shield_holds_back_cancel(loop):
    reached = []

    async def visit():
        with tideloop.shield() as shield:
            await turns(4)
            assert repr(shield) == "<tideloop.Shield holding 2>"
            reached.append("done")
        reached.append("left")
        await forever()

    task = loop.create_task(visit())
    await asyncio.sleep(0)
    assert task.cancel("first")
    assert task.cancel("second")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reached == ["done", "left"]
    assert "cancel" not in getattr(task, "__dict__", {})


def test_a_shield_holds_back_outer_limits_and_lets_inner_ones_through(kind):
    async def main():
        loop = asyncio.get_running_loop()
        began = loop.time()
        reached = []
        with tideloop.move_on_after(1) as outer:
            with tideloop.shield():
                await asyncio.sleep(2)
                with tideloop.move_on_after(3) as inner:
                    await forever()
                assert inner.cancelled_caught
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(4):
                        await forever()
                with pytest.raises(TimeoutError):
                    async with tideloop.timeout(5):
                        await forever()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(forever(), 6)
                reached.append(loop.time() - began)
            await forever()
        assert outer.cancelled_caught
        assert reached == [pytest.approx(20)]
        assert loop.time() - began == pytest.approx(20)
        assert cancelling() == 0

    harness.run(kind, main())


@pytest.mark.parametrize("timeout", ["timeout", "wait_for", "native"])
def test_a_shield_holds_back_the_time_limits_of_asyncio(kind, timeout):
    async def main():
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def clean_up():
            with tideloop.shield():
                await asyncio.sleep(2)
            await forever()

        async def attempt():
            if timeout == "wait_for":
                await asyncio.wait_for(clean_up(), 1)
            else:
                async with (tideloop if timeout == "native" else asyncio).timeout(1):
                    await clean_up()

        with pytest.raises(TimeoutError):
            await attempt()
        assert loop.time() - began == pytest.approx(2)
        assert cancelling() == 0

    harness.run(kind, main())


@pytest.mark.parametrize("timeout", ["timeout", "native"])
def test_a_time_limit_that_is_left_right_behind_the_shield_leaves_nothing(kind, timeout):
    async def main():
        async with (tideloop if timeout == "native" else asyncio).timeout(1) as limit:
            with tideloop.shield():
                await asyncio.sleep(2)
        assert limit.expired()
        assert cancelling() == 0
        assert asyncio.current_task().uncancel.__self__ is asyncio.current_task()
        # Neither the next await is cancelled, nor the one after it.
        await asyncio.sleep(0)
        await asyncio.sleep(1)

    harness.run(kind, main())


@pytest.mark.parametrize("timeout", ["timeout", "native"])
def test_what_else_was_held_back_comes_all_the_same(kind, timeout):
    async def attempt():
        async with (tideloop if timeout == "native" else asyncio).timeout(1):
            with tideloop.shield():
                await asyncio.sleep(2)
                asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
                await asyncio.sleep(1)
        assert cancelling() == 1
        await asyncio.sleep(0)

    async def main():
        task = asyncio.ensure_future(attempt())
        await asyncio.wait({task})
        assert task.cancelled()

    harness.run(kind, main())


async def test_groups_inside_of_a_shield_work(loop):
    async def fail():
        raise ValueError("no")

    async def ours():
        async with tideloop.group() as g:
            g.spawn(fail)
            await forever()

    async def asyncios():
        async with asyncio.TaskGroup() as g:
            g.create_task(fail())
            await forever()

    async def visit():
        with tideloop.shield():
            for attempt in ours, asyncios:
                with pytest.raises(ExceptionGroup):
                    await attempt()
            with tideloop.CancelScope() as scope:
                loop.call_soon(scope.cancel)
                await forever()
            assert scope.cancelled_caught
            await turns(3)
            reached.append("done")

    reached = []
    task = loop.create_task(visit())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):  # as asyncio does with who is cancelled in its last step
        await task
    assert reached == ["done"]


async def test_nested_shields(loop):
    reached = []

    async def visit():
        with tideloop.CancelScope() as outside, tideloop.shield():
            with tideloop.CancelScope() as between:
                with tideloop.shield():
                    between.cancel()
                    outside.cancel()
                    await turns(3)
                    reached.append("inner")
                await forever()
            assert between.cancelled_caught
            await turns(3)
            reached.append("outer")
        # Nothing was awaited between the shield and the end of the scope.
        assert not outside.cancelled_caught
        assert cancelling() == 0
        await turns(3)
        return reached

    assert await visit() == ["inner", "outer"]


async def test_a_group_does_not_get_at_a_shielded_task(loop):
    reached = []

    async def clean_up():
        with tideloop.shield():
            await turns(5)
            reached.append("clean")
        await forever()

    async with tideloop.group() as g:
        handle = g.spawn(clean_up)
        await asyncio.sleep(0)
        g.cancel()
    assert handle.cancelled()
    assert reached == ["clean"]


async def test_nothing_is_kept_alive(loop):
    class Value:
        pass

    async def visit():
        value = Value()
        with tideloop.CancelScope() as value.scope, tideloop.shield() as value.shield:
            await asyncio.sleep(0)
        value.again = value
        return weakref.ref(value), weakref.ref(value.shield)

    references = await loop.create_task(visit())
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_a_cancellation_that_two_shields_have_held_leaves_no_mark(kind):
    async def main():
        with tideloop.shield():
            try:
                async with asyncio.timeout(1):
                    with tideloop.shield():
                        await asyncio.sleep(5)
            except TimeoutError:
                pass
            await asyncio.sleep(1)
        assert cancelling() == 0

    harness.run(kind, main())
