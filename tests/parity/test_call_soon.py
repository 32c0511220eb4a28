"""call_soon: order, contexts, cancelling, and what a Handle tells about itself."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import socket
import sys
import weakref

import pytest

from tests.backends import deviates

color = contextvars.ContextVar("color", default="none")


def run_ready(loop):
    """Run what is ready now and return."""
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_callbacks_run_in_the_order_of_the_calls(loop):
    order = []
    for i in range(1000):
        loop.call_soon(order.append, i)
    run_ready(loop)
    assert order == list(range(1000))


def test_a_callback_scheduled_by_a_callback_runs_behind_those_already_waiting(loop):
    order = []

    def first():
        order.append("first")
        loop.call_soon(order.append, "third")

    loop.call_soon(first)
    loop.call_soon(order.append, "second")
    run_ready(loop)
    run_ready(loop)
    assert order == ["first", "second", "third"]


@deviates("uvloop", "stop() is itself queued, so what was queued before it still runs")
def test_a_callback_scheduled_by_a_callback_waits_for_the_next_turn(loop):
    order = []

    def first():
        order.append("first")
        loop.call_soon(order.append, "next turn")
        loop.stop()

    loop.call_soon(first)
    loop.run_forever()
    seen = list(order)
    run_ready(loop)
    assert (seen, order) == (["first"], ["first", "next turn"])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 20])
def test_arguments_arrive(loop, count):
    seen = []
    loop.call_soon(lambda *args: seen.append(args), *range(count))
    run_ready(loop)
    assert seen == [tuple(range(count))]


def test_keyword_arguments_are_refused(loop):
    with pytest.raises(TypeError):
        loop.call_soon(print, sep="")
    loop.call_soon(functools.partial(lambda **kw: None, sep=""))
    run_ready(loop)


def test_callback_may_be_any_callable(loop):
    seen = []

    class Callable:
        def __call__(self, value):
            seen.append(value)

        def method(self, value):
            seen.append(value)

    loop.call_soon(Callable(), 1)
    loop.call_soon(Callable().method, 2)
    loop.call_soon(functools.partial(seen.append, 3))
    loop.call_soon(seen.append, 4)
    run_ready(loop)
    assert seen == [1, 2, 3, 4]


def test_the_loop_is_the_running_loop_inside_a_callback(loop):
    seen = []
    loop.call_soon(lambda: seen.append(asyncio.get_running_loop()))
    run_ready(loop)
    assert seen == [loop]


def test_a_callback_without_a_reference_to_its_handle_still_runs(loop):
    seen = []
    loop.call_soon(lambda: seen.append(1))
    gc.collect()
    run_ready(loop)
    assert seen == [1]


def test_a_long_chain_of_callbacks_does_not_recurse(loop):
    def step(left):
        loop.call_soon(step, left - 1) if left else loop.stop()

    loop.call_soon(step, 20_000)
    loop.run_forever()


def test_callbacks_that_reschedule_themselves_do_not_starve_sockets_and_timers(loop):
    seen = set()
    left, right = socket.socketpair()
    with left, right:
        right.send(b"x")

        def spin():
            loop.stop() if seen == {"socket", "timer"} else loop.call_soon(spin)

        def readable():
            loop.remove_reader(left)
            seen.add("socket")

        left.setblocking(False)
        loop.add_reader(left, readable)
        loop.call_later(0.001, seen.add, "timer")
        loop.call_soon(spin)
        loop.run_forever()


class TestContext:
    def test_default_is_a_copy_of_the_callers(self, loop):
        seen = []

        def callback():
            seen.append(color.get())
            color.set("changed")

        def schedule():
            color.set("red")
            loop.call_soon(callback)
            color.set("blue")
            loop.call_soon(callback)

        contextvars.copy_context().run(schedule)
        run_ready(loop)
        assert seen == ["red", "blue"]
        assert color.get() == "none"

    def test_the_given_one_is_used_itself(self, loop):
        context = contextvars.copy_context()
        loop.call_soon(color.set, "green", context=context)
        run_ready(loop)
        assert context[color] == "green"
        assert color.get() == "none"

    def test_nested_scheduling_inherits_the_context_of_the_callback(self, loop):
        seen = []
        context = contextvars.copy_context()
        context.run(color.set, "red")
        loop.call_soon(lambda: loop.call_soon(lambda: seen.append(color.get())), context=context)
        run_ready(loop)
        run_ready(loop)
        assert seen == ["red"]

    def test_survives_a_callback_that_raises(self, loop, handled):
        def fail():
            color.set("broken")
            raise ValueError("expected")

        seen = []
        loop.call_soon(fail)
        loop.call_soon(lambda: seen.append(color.get()))
        run_ready(loop)
        assert seen == ["none"]
        assert len(handled) == 1

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="Handle.get_context is new in 3.12")
    @deviates("uvloop", "its Handle has no get_context")
    def test_the_handle_tells_it(self, loop):
        context = contextvars.copy_context()
        handle = loop.call_soon(print, context=context)
        assert handle.get_context() is context
        handle.cancel()
        handle = loop.call_soon(print, context=None)
        assert isinstance(handle.get_context(), contextvars.Context)
        handle.cancel()


class TestCancel:
    def test_before_the_turn(self, loop):
        seen = []
        handle = loop.call_soon(seen.append, 1)
        assert not handle.cancelled()
        handle.cancel()
        handle.cancel()
        assert handle.cancelled()
        run_ready(loop)
        assert seen == []

    def test_by_a_callback_of_the_same_turn(self, loop):
        seen = []
        loop.call_soon(lambda: handle.cancel())
        handle = loop.call_soon(seen.append, 1)
        run_ready(loop)
        assert seen == []

    def test_by_itself_while_running(self, loop):
        seen = []

        def callback():
            handle.cancel()
            seen.append(handle.cancelled())

        handle = loop.call_soon(callback)
        run_ready(loop)
        assert seen == [True]

    def test_after_it_ran(self, loop):
        seen = []
        handle = loop.call_soon(seen.append, 1)
        run_ready(loop)
        assert not handle.cancelled()
        handle.cancel()
        assert handle.cancelled()
        assert seen == [1]

    def test_drops_callback_and_arguments_at_once(self, loop):
        class Thing:
            def method(self):
                pass

        callee, argument = Thing(), Thing()
        dead = [weakref.ref(callee), weakref.ref(argument)]
        handle = loop.call_soon(callee.method, argument)
        handle.cancel()
        del callee, argument
        assert [ref() for ref in dead] == [None, None]
        assert handle.cancelled()


class TestHandle:
    @deviates("uvloop", "its Handle is a type of its own")
    def test_is_an_asyncio_handle(self, loop):
        handle = loop.call_soon(print)
        handle.cancel()
        assert isinstance(handle, asyncio.Handle)

    def test_repr_names_callback_and_arguments(self, loop):
        def some_callback(*args):
            pass

        handle = loop.call_soon(some_callback, 1, "two")
        assert repr(handle).startswith("<Handle")
        assert "some_callback" in repr(handle)
        run_ready(loop)

    def test_repr_says_cancelled(self, loop):
        handle = loop.call_soon(print)
        assert "cancelled" not in repr(handle)
        handle.cancel()
        assert "cancelled" in repr(handle)

    def test_hashable_and_weakly_referable(self, loop):
        handle = loop.call_soon(print)
        handle.cancel()
        assert {handle: 1}[handle] == 1
        assert weakref.ref(handle)() is handle
