"""call_soon_threadsafe and what is built on it: nothing is lost, order per thread is kept, a sleeping loop wakes."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import queue
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.backends import deviates

THREADS = 4
CALLS = 2000

color = contextvars.ContextVar("color", default="none")


def test_calls_from_several_threads_all_arrive_in_the_order_of_each(loop):
    seen = []
    ready = threading.Barrier(THREADS)

    def produce(name):
        ready.wait()
        for i in range(CALLS):
            loop.call_soon_threadsafe(seen.append, (name, i))

    async def main():
        with ThreadPoolExecutor(THREADS) as pool:
            await asyncio.gather(*(loop.run_in_executor(pool, produce, name) for name in range(THREADS)))

    loop.run_until_complete(main())
    loop.run_until_complete(asyncio.sleep(0))
    for name in range(THREADS):
        assert [i for owner, i in seen if owner == name] == list(range(CALLS))


def test_a_sleeping_loop_wakes(loop):
    """Ping-pong without any timer: each answer finds the loop asleep, or about to be."""
    questions = queue.SimpleQueue()
    answers = []

    def answer():
        while (question := questions.get()) is not None:
            loop.call_soon_threadsafe(question.set_result, "answer")

    async def main():
        for _ in range(500):
            question = loop.create_future()
            questions.put(question)
            answers.append(await question)

    thread = threading.Thread(target=answer)
    thread.start()
    loop.run_until_complete(main())
    questions.put(None)
    thread.join()
    assert answers == ["answer"] * 500


def test_calls_made_before_the_loop_runs_wait_for_it(loop):
    seen = []
    thread = threading.Thread(target=lambda: [loop.call_soon_threadsafe(seen.append, i) for i in range(100)])
    thread.start()
    thread.join()
    assert seen == []
    loop.run_until_complete(asyncio.sleep(0))
    assert seen == list(range(100))


def test_calls_made_between_two_runs_wait_for_the_second(loop):
    seen = []
    loop.run_until_complete(asyncio.sleep(0))
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(seen.append, 1))
    thread.start()
    thread.join()
    assert seen == []
    loop.run_until_complete(asyncio.sleep(0))
    assert seen == [1]


def test_from_the_loops_own_thread_it_keeps_the_order_of_call_soon(loop):
    order = []

    async def main():
        loop.call_soon(order.append, 1)
        loop.call_soon_threadsafe(order.append, 2)
        loop.call_soon(order.append, 3)
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert order == [1, 2, 3]


def test_stop_from_another_thread_ends_the_loop(loop):
    threading.Thread(target=loop.call_soon_threadsafe, args=(loop.stop,)).start()
    loop.run_forever()


def test_the_handle_cancels(loop):
    seen = []
    handle = loop.call_soon_threadsafe(seen.append, 1)
    handle.cancel()
    assert handle.cancelled()
    loop.run_until_complete(asyncio.sleep(0))
    assert seen == []


def test_the_context_is_the_callers_or_the_given_one(loop):
    seen = []
    context = contextvars.copy_context()
    context.run(color.set, "given")

    def thread():
        color.set("caller's")
        loop.call_soon_threadsafe(lambda: seen.append(color.get()))
        loop.call_soon_threadsafe(lambda: seen.append(color.get()), context=context)

    worker = threading.Thread(target=thread)
    worker.start()
    worker.join()
    loop.run_until_complete(asyncio.sleep(0))
    assert seen == ["caller's", "given"]


def test_a_closed_loop_refuses(backend):
    loop = backend.new_event_loop()
    loop.close()
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="Event loop is closed"):
        pool.submit(loop.call_soon_threadsafe, print).result()


def test_a_thread_that_calls_while_the_loop_closes_gets_an_error_or_is_served(backend):
    for _ in range(20):
        loop = backend.new_event_loop()
        started = threading.Event()
        outcome = []

        def produce(loop=loop, started=started, outcome=outcome):
            try:
                while True:
                    loop.call_soon_threadsafe(lambda: None)
                    started.set()
            except RuntimeError as exc:
                outcome.append(str(exc))

        thread = threading.Thread(target=produce)
        thread.start()
        started.wait()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        thread.join()
        assert len(outcome) == 1


def test_run_coroutine_threadsafe(loop):
    async def double(value):
        await asyncio.sleep(0)
        return value * 2

    async def fail():
        raise LookupError("expected")

    def thread():
        results = [asyncio.run_coroutine_threadsafe(double(i), loop).result() for i in range(10)]
        error = asyncio.run_coroutine_threadsafe(fail(), loop).exception()
        return results, error

    async def main():
        with ThreadPoolExecutor(1) as pool:
            return await loop.run_in_executor(pool, thread)

    results, error = loop.run_until_complete(main())
    assert results == [i * 2 for i in range(10)]
    assert isinstance(error, LookupError)


def test_run_coroutine_threadsafe_cancels_the_task(loop):
    started = threading.Event()
    cancelled = asyncio.Event()

    async def forever():
        started.set()
        try:
            await loop.create_future()
        finally:
            cancelled.set()

    def thread():
        future = asyncio.run_coroutine_threadsafe(forever(), loop)
        started.wait()
        return future.cancel()

    async def main():
        with ThreadPoolExecutor(1) as pool:
            assert await loop.run_in_executor(pool, thread)
        await cancelled.wait()

    loop.run_until_complete(main())


def test_two_loops_in_two_threads_call_each_other(backend):
    rounds = 200
    loops = [backend.new_event_loop() for _ in range(2)]
    counts = [0, 0]

    def serve(i):
        counts[i] += 1
        if counts[i] < rounds:
            loops[1 - i].call_soon_threadsafe(serve, 1 - i)
        else:
            for loop in loops:
                loop.call_soon_threadsafe(loop.stop)

    other = threading.Thread(target=loops[1].run_forever)
    other.start()
    loops[0].call_soon_threadsafe(serve, 0)
    loops[0].run_forever()
    other.join()
    for loop in loops:
        loop.close()
    assert max(counts) == rounds


def test_heavy_traffic_with_tiny_switch_interval(loop):
    """Many thread switches at arbitrary points of the queue's code."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        test_calls_from_several_threads_all_arrive_in_the_order_of_each(loop)
    finally:
        sys.setswitchinterval(interval)


def test_pending_calls_survive_the_collector_a_cancellation_and_a_stop(loop):
    seen = []

    def schedule():
        handles = [loop.call_soon_threadsafe(lambda number=number: seen.append(color.get())) for number in range(300)]
        handles[0].cancel()
        if hasattr(handles[1], "get_context"):  # new in 3.12; uvloop has none
            assert color not in handles[1].get_context()
        del handles
        gc.collect()
        loop.stop()

    loop.call_soon(schedule)
    loop.run_forever()
    gc.collect()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == ["none"] * 299


def test_a_loop_that_is_dropped_with_calls_pending(backend):
    def schedule(loop):
        for number in range(300):
            loop.call_soon_threadsafe(print, number)
        loop.stop()

    loop = backend.new_event_loop()
    loop.call_soon(schedule, loop)
    loop.run_forever()
    loop.close()
    known = weakref.ref(loop)
    del loop
    gc.collect()
    assert known() is None


# --- calls whose handle nobody keeps, and calls whose handle somebody does ------------------------


def test_kept_and_dropped_handles_run_in_one_order(loop):
    seen = []

    def schedule():
        kept = []
        for number in range(60):
            handle = loop.call_soon_threadsafe(seen.append, number)
            if number % 3 == 1:
                kept.append(handle)
            if number % 3 == 2:
                handle.cancel()
            if number % 5 == 0:
                loop.call_soon(seen.append, -number)
            del handle
        kept[0].cancel()
        kept[-1].cancel()
        return kept

    async def main():
        kept = schedule()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return [handle.cancelled() for handle in kept]

    cancelled = loop.run_until_complete(main())
    assert cancelled == [True, *[False] * 18, True]
    expected = []
    for number in range(60):
        if number % 3 != 2 and number not in (1, 58):
            expected.append(number)
        if number % 5 == 0:
            expected.append(-number)
    assert seen == expected


@pytest.mark.parametrize("method", ["cancel", "cancelled"])
def test_a_thread_that_asks_while_the_call_cancels_itself(loop, method):
    handles, begun = [], threading.Event()

    def callback():
        begun.set()
        # As long as the other thread needs to come and wait for us, if it is to.
        other.join(0.02)
        handles[0].cancel()
        loop.stop()

    def ask():
        begun.wait()
        getattr(handles[0], method)()

    other = threading.Thread(target=ask, daemon=True)
    other.start()
    loop.call_soon(lambda: handles.append(loop.call_soon_threadsafe(callback)))
    loop.run_forever()
    other.join(10)
    assert not other.is_alive()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 9])
def test_any_number_of_arguments(loop, count):
    seen = []

    async def main():
        loop.call_soon_threadsafe(lambda *args: seen.append(args), *range(count))
        kept = loop.call_soon_threadsafe(lambda *args: seen.append(args), *range(count))
        await asyncio.sleep(0)
        assert not kept.cancelled()

    loop.run_until_complete(main())
    assert seen == [tuple(range(count))] * 2


def test_what_a_callback_sets_is_its_own(loop):
    """Calls of one context run in a copy each, though nobody sees the copies."""
    seen = []
    tokens = []

    def setting(value):
        seen.append(color.get())
        tokens.append(color.set(value))

    def resetting():
        with pytest.raises(ValueError, match="different Context"):
            color.reset(tokens[0])
        seen.append(color.get())

    def setting_back():
        color.reset(color.set("for a moment"))
        seen.append(color.get())

    async def main():
        color.set("main's")
        for callback in [lambda: setting("first"), lambda: setting("second"), resetting, setting_back, setting_back]:
            loop.call_soon_threadsafe(callback)
        color.set("later")
        loop.call_soon_threadsafe(lambda: seen.append(color.get()))
        await asyncio.sleep(0)
        assert color.get() == "later"

    loop.run_until_complete(main())
    assert seen == ["main's"] * 5 + ["later"]


def test_a_callback_that_keeps_its_context_has_it_for_itself(loop):
    kept = []

    async def main():
        color.set("main's")
        for _ in range(3):
            loop.call_soon_threadsafe(lambda: kept.append(asyncio.ensure_future(asyncio.sleep(0))))
            loop.call_soon_threadsafe(lambda: kept.append(contextvars.copy_context()))
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    loop.run_until_complete(asyncio.sleep(0))
    contexts = kept[1::2]
    contexts[0].run(color.set, "changed")
    assert [context[color] for context in contexts] == ["changed", "main's", "main's"]


def test_the_context_of_a_pending_handle_is_its_own(loop):
    async def main():
        color.set("main's")
        seen = []
        handles = [loop.call_soon_threadsafe(lambda: seen.append(color.get())) for _ in range(3)]
        if not hasattr(handles[1], "get_context"):
            return ["main's", "changed", "main's"]  # new in 3.12; uvloop has none
        context = handles[1].get_context()
        assert context is handles[1].get_context()
        context.run(color.set, "changed")
        await asyncio.sleep(0)
        return seen

    assert loop.run_until_complete(main()) == ["main's", "changed", "main's"]


def test_what_a_context_holds_dies_with_the_calls(loop):
    class Value:
        pass

    async def main():
        def thread():
            value = Value()
            color.set(value)
            loop.call_soon_threadsafe(int)
            loop.call_soon_threadsafe(int)
            return weakref.ref(value)

        with ThreadPoolExecutor(1) as pool:
            known = await loop.run_in_executor(pool, lambda: contextvars.Context().run(thread))
            while known() is not None:
                await asyncio.sleep(0.001)
                gc.collect()

    loop.run_until_complete(main())


def test_a_weakly_known_handle_lives_until_its_call_has_run(loop):
    async def main():
        seen = []
        try:
            known = weakref.ref(loop.call_soon_threadsafe(seen.append, 1))
        except TypeError:
            return  # uvloop's handles know no weak references
        assert known() is not None
        other = weakref.ref(loop.call_soon_threadsafe(seen.append, 2))
        other().cancel()
        await asyncio.sleep(0)
        gc.collect()
        assert known() is None
        assert seen == [1]

    loop.run_until_complete(main())


def test_a_callback_that_fails_is_told_with_its_handle(loop, handled):
    def failing(*args):
        raise LookupError("expected")

    async def main():
        loop.call_soon_threadsafe(failing, 1, 2)
        loop.call_soon_threadsafe(failing, *range(5))
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert [str(context["exception"]) for context in handled] == ["expected"] * 2
    for context in handled:
        assert "failing" in context["message"]
        assert "failing" in repr(context["handle"])
        assert not context["handle"].cancelled()
    handled.clear()


@deviates("uvloop", "raises it once everything has run")
@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_loop_leaves_the_other_calls_for_the_next_run(loop, raised):
    seen = []

    def ending():
        raise raised

    def schedule():
        loop.call_soon_threadsafe(seen.append, 1)
        loop.call_soon_threadsafe(ending)
        kept.append(loop.call_soon_threadsafe(seen.append, 2))
        loop.call_soon_threadsafe(seen.append, 3)
        kept.append(loop.call_soon_threadsafe(seen.append, 4))

    kept = []
    loop.call_soon(schedule)
    with pytest.raises(raised):
        loop.run_forever()
    kept.pop().cancel()
    gc.collect()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == [1, 2, 3]


def test_debug_mode_that_is_turned_on_meanwhile(loop):
    seen = []

    async def main():
        kept = loop.call_soon_threadsafe(seen.append, 1)
        loop.call_soon_threadsafe(seen.append, 2)
        loop.set_debug(True)
        await asyncio.sleep(0)
        loop.set_debug(False)
        assert not kept.cancelled()

    loop.run_until_complete(main())
    assert seen == [1, 2]


def test_a_handle_that_somebody_else_runs(loop):
    seen = []

    async def main():
        handle = loop.call_soon_threadsafe(seen.append, 1)
        if not hasattr(handle, "_run"):
            seen.append(1)
        else:
            handle._run()
        handle.cancel()
        del handle
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert seen == [1]


def test_arguments_die_when_their_call_has_run(loop):
    class Thing:
        pass

    async def main():
        things = [Thing(), Thing()]
        known = [weakref.ref(thing) for thing in things]
        loop.call_soon_threadsafe(id, things[0])
        kept = loop.call_soon_threadsafe(id, things[1])
        things.clear()
        gc.collect()
        assert None not in [ref() for ref in known]
        await asyncio.sleep(0)
        del kept
        assert [ref() for ref in known] == [None, None]

    loop.run_until_complete(main())


def test_a_cycle_through_a_pending_call_waits_for_it(loop):
    """A loop that runs is not garbage, and neither is what it is going to call."""
    seen = []

    class Thing:
        def __init__(self):
            self.handle = loop.call_soon_threadsafe(self.run)

        def run(self):
            seen.append(self.handle is not None)

    async def main():
        Thing()
        gc.collect()
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert seen == [True]
