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
