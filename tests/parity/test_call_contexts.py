"""In which context a call runs that was given none: a copy of its caller's, of its own as far as anybody can tell."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import weakref

import pytest

from tests.backends import deviates

color = contextvars.ContextVar("color", default="none")
number = contextvars.ContextVar("number", default=0)


def soon(loop, callback, *args):
    return loop.call_soon(callback, *args)


def soon_among_many(loop, callback, *args):
    # A context is made otherwise while much is pending.
    for _ in range(130):
        loop.call_soon(int)
    return loop.call_soon(callback, *args)


def later(loop, callback, *args):
    return loop.call_later(0, callback, *args)


@pytest.fixture(params=[soon, soon_among_many, later, "later among many"])
def schedule(request, loop):
    many = [loop.call_later(1000, int) for _ in range(300)] if isinstance(request.param, str) else []
    way = later if many else request.param

    def call(callback, *args):
        return way(loop, callback, *args)

    yield call
    for timer in many:
        timer.cancel()


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_a_callback_sets_is_seen_by_no_other(schedule):
    seen = []

    def callback(value):
        seen.append(color.get())
        color.set(value)
        schedule(lambda: seen.append(color.get()))

    color.set("red")
    for value in "abc":
        schedule(callback, value)
    await turns()
    assert seen == ["red"] * 3 + ["a", "b", "c"]
    assert color.get() == "red"


async def test_a_call_sees_its_caller_as_it_was(schedule):
    seen = []
    for value in ["red", "red", "green", "red", "green", "green"]:
        color.set(value)
        schedule(lambda: seen.append(color.get()))
        schedule(lambda: seen.append(color.get()))
    color.set("blue")
    await turns()
    assert seen == [value for value in ["red", "red", "green", "red", "green", "green"] for _ in "12"]


async def test_a_token_is_of_one_call_only(schedule):
    tokens, refused = [], []

    def reset():
        try:
            color.reset(tokens.pop())
        except ValueError:
            refused.append(color.get())

    schedule(lambda: tokens.append(color.set("red")))
    schedule(reset)
    await turns()
    assert refused == ["none"]


async def test_a_token_that_is_used_within_its_call_leaves_no_trace(schedule):
    seen = []

    def callback():
        token = color.set("red")
        color.reset(token)
        seen.append(color.get())

    for _ in range(3):
        schedule(callback)
    await turns()
    assert seen == ["none"] * 3


async def test_a_copy_made_in_a_call_stays_as_it_was(schedule):
    copies = []

    def callback(value):
        copies.append(contextvars.copy_context())
        number.set(value)
        copies.append(contextvars.copy_context())

    for value in range(1, 4):
        schedule(callback, value)
    await turns()
    assert [copy.get(number, 0) for copy in copies] == [0, 1, 0, 2, 0, 3]


async def test_calls_of_tasks_with_contexts_of_their_own(schedule):
    seen = []

    async def work(value):
        if value % 3:
            number.set(value)
        for _ in range(3):
            schedule(lambda: seen.append((value, number.get())))
            await asyncio.sleep(0)

    await asyncio.gather(*[work(value) for value in range(10)])
    await turns()
    assert len(seen) == 30
    assert all(found == (value if value % 3 else 0) for value, found in seen)


async def test_an_error_is_reported_with_the_context_the_call_has_left(backend, schedule, handled):
    if backend.name == "uvloop":
        pytest.skip("shows no contexts")

    def fail(value):
        color.set(value)
        raise ZeroDivisionError

    for value in ["red", "green"]:
        schedule(fail, value)
        schedule(int)
    await turns()
    assert [context["handle"]._context.get(color) for context in handled] == ["red", "green"]
    handled.clear()


async def test_the_context_that_a_handle_shows_is_its_own(backend, schedule):
    if backend.name == "uvloop":
        pytest.skip("shows no contexts")
    seen = []
    handles = [schedule(lambda: seen.append(color.get())) for _ in range(3)]
    shown = [handle._context for handle in handles]
    assert len({id(context) for context in shown}) == 3
    assert all(handle._context is context for handle, context in zip(handles, shown, strict=True))
    shown[1].run(color.set, "red")
    await turns()
    assert seen == ["none", "red", "none"]


async def test_a_call_that_is_cancelled_within_another_one(schedule):
    seen = []
    handles = []

    def cancel():
        color.set("red")
        handles.pop().cancel()

    schedule(cancel)
    handles.append(schedule(seen.append, "cancelled"))
    schedule(lambda: seen.append(color.get()))
    await turns()
    assert seen == ["none"]


async def test_a_context_is_let_go_of_when_its_calls_are_over(schedule):
    class Value:
        pass

    known = []

    def begin():
        value = Value()
        known.append(weakref.ref(value))
        color.set(value)
        schedule(int)
        schedule(int)

    contextvars.copy_context().run(begin)
    for _ in range(1000):
        if known[0]() is None:
            break
        await asyncio.sleep(0)
    assert known[0]() is None


@pytest.mark.parametrize("seed", range(5))
async def test_any_order_of_setting_and_scheduling(loop, schedule, seed):
    """Each call is told what it has to see, and tells its own calls what these have to."""
    chance = random.Random(seed)
    wrong, count = [], 0

    def act(expected, depth):
        nonlocal count
        count += 1
        if number.get() != expected:
            wrong.append((expected, number.get()))
        for _ in range(chance.randrange(4) if depth < 5 else 0):
            if chance.random() < 0.3:
                expected = chance.randrange(1, 4)
                number.set(expected)
            handle = schedule(act, expected, depth + 1)
            if chance.random() < 0.1:
                handle.cancel()
            elif chance.random() < 0.1 and hasattr(handle, "_context"):
                assert handle._context.get(number, 0) == expected

    for _ in range(20):
        schedule(act, 0, 0)
    await turns(40)
    assert not wrong
    assert count > 20


class Value:
    pass


def among_many(loop, callback):
    """Handles of calls that share a context with a value, and a weak reference to that value."""

    def schedule():
        value = Value()
        color.set(value)
        return weakref.ref(value), [loop.call_later(1000, callback) for _ in range(300)]

    return contextvars.Context().run(schedule)


@deviates("uvloop", "its handles have no _run()")
def test_values_die_with_a_closed_loop_whose_handles_somebody_has_run(backend):
    loop = backend.new_event_loop()
    value, handles = among_many(loop, int)
    for handle in handles:
        handle._run()
        handle.cancel()
    del handle, handles
    loop.close()
    gc.collect()
    assert value() is None


@deviates("uvloop", "its handles have no _run()")
@pytest.mark.filterwarnings("ignore:unclosed event loop:ResourceWarning")
def test_a_handle_that_was_all_that_kept_its_loop_and_cancels_itself(backend):
    def callback():
        handles.pop().cancel()
        gc.collect()
        alive.append(known() is not None)

    loop = backend.new_event_loop()
    known, alive = weakref.ref(loop), []
    _, handles = among_many(loop, callback)
    run = handles[-1]._run
    del loop, handles[:-1]
    gc.collect()
    run()
    del run
    gc.collect()
    assert alive == [True]
    assert known() is None
