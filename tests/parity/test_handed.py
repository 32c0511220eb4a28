"""What threads hand over: in which context it runs and fails, and what is kept of it."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import tideloop

variable = contextvars.ContextVar("variable", default="unset")


async def in_a_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    while thread.is_alive():  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0)


@pytest.mark.parametrize("kept", [True, False])
async def test_a_callback_that_fails_is_reported_with_the_context_it_ran_in(loop, backend, kept, handled):
    if backend.name == "uvloop":
        pytest.skip("shows no contexts")
    handles = []

    def fail():
        variable.set("in the call")
        raise ZeroDivisionError

    def hand_over():
        handle = loop.call_soon_threadsafe(fail)
        if kept:
            handles.append(handle)

    await in_a_thread(hand_over)
    (context,) = handled
    assert isinstance(context["exception"], ZeroDivisionError)
    assert context["handle"]._context.get(variable) == "in the call"
    handled.clear()


async def test_a_loop_that_never_sleeps_lets_go_of_contexts(loop):
    class Value:
        pass

    known = []

    def hand_over():
        value = Value()
        known.append(weakref.ref(value))
        variable.set(value)
        loop.call_soon_threadsafe(int)

    await in_a_thread(hand_over)
    for _ in range(1000):
        if known[0]() is None:
            break
        await asyncio.sleep(0)
    assert known[0]() is None


def outcome(program, *arguments):
    package = Path(tideloop.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=25,
        env={**os.environ, "PYTHONPATH": str(package)},
    )
    return done.returncode, done.stdout.strip(), done.stderr


@pytest.mark.skipif(sys.version_info < (3, 14), reason="destructions are put off since 3.14")
def test_a_handle_whose_destruction_is_put_off():
    program = """
import sys, threading, time, tideloop
threading.stack_size(512 * 1024)
sys.setrecursionlimit(10**6)
loop = tideloop.new_event_loop()
def deep(_):
    try:
        list(map(deep, [0]))
    except RecursionError:
        pass
    loop.call_soon_threadsafe(int)
    time.sleep(0.0005)
def work():
    deep(0)
    loop.call_soon_threadsafe(loop.stop)
thread = threading.Thread(target=work)
thread.start()
loop.run_forever()
thread.join()
loop.close()
print("ok")
"""
    assert outcome(program)[:2] == (0, "ok")


@pytest.mark.parametrize("threshold", range(1, 16))
def test_a_collection_during_the_first_call(threshold):
    program = """
import asyncio, gc, sys, tideloop
loop = tideloop.new_event_loop()
class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        loop.call_soon_threadsafe(int)
async def main():
    loop.call_soon(int)
    await asyncio.sleep(0)
    gc.collect()
    Cycle()
    gc.set_threshold(int(sys.argv[1]))
    gc.enable()
    loop.call_soon_threadsafe(int)
gc.disable()
loop.run_until_complete(main())
loop.close()
print("ok")
"""
    assert outcome(program, str(threshold))[:2] == (0, "ok")
