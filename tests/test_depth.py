"""Objects that are nested more deeply than a stack is deep: an error where something can be refused, and never a crash.

Each program runs in the main thread and in threads with small stacks, of a child interpreter for each subject.
asyncio's own tasks and futures overflow such stacks on Pythons before 3.14 in most of these.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

KIB = (0, 64, 128, 256, 512)
"""Sizes of the stacks. 0: the main thread, whose stack is that of the process; it comes first, since importing what is
used takes more than the smallest one."""

PREAMBLE = """
import asyncio, gc, sys, threading, warnings
import tideloop

warnings.simplefilter("ignore")
sys.unraisablehook = lambda unraisable: None

def at(kib, body, *arguments):
    said = []
    def work():
        said.append(body(*arguments))
    if not kib:
        work()
        return said[0]
    threading.stack_size(kib * 1024)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    threading.stack_size(0)
    return said[0]

def run(main):
    loop = tideloop.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()

def outcome(call, *arguments):
    try:
        return call(*arguments)
    except RecursionError:
        return "RecursionError"
"""

PROGRAMS = {
    # Destroying what destroys the next one.
    "futures that are results of futures": """
        def nested(loop):
            future = loop.create_future()
            for _ in range(30_000):
                outer = loop.create_future()
                outer.set_result(future)
                future = outer
            return future
        async def main():
            future = nested(asyncio.get_running_loop())
            del future
            return "done"
        say(run, main)
        """,
    "handles that are arguments of handles": """
        def body():
            loop = tideloop.new_event_loop()
            handle = None
            for _ in range(30_000):
                handle = loop.call_later(1000, print, handle)
            loop.close()
            del handle, loop
            gc.collect()
            return "done"
        say(body)
        """,
    "pending tasks that nobody has any more": """
        async def waits(task):
            await task
        async def main():
            loop = asyncio.get_running_loop()
            task = loop.create_future()
            for _ in range(10_000):
                task = loop.create_task(waits(task))
            await asyncio.sleep(0)
            return "done"
        def body():
            said = run(main)
            gc.collect()
            return said
        say(body)
        """,
    # Cancelling what cancels the next one.
    "tasks that wait for tasks are cancelled": """
        async def waits(task):
            await task
        async def chain(loop):
            tasks = [loop.create_future()]
            for _ in range(10_000):
                tasks.append(loop.create_task(waits(tasks[-1])))
            await asyncio.sleep(0)
            return tasks
        say(cancelled, chain, here=True)
        """,
    "gatherings that wait for gatherings are cancelled": """
        async def waits(task):
            await asyncio.gather(task)
        async def chain(loop):
            tasks = [loop.create_future()]
            for _ in range(3000):
                tasks.append(loop.create_task(waits(tasks[-1])))
            await asyncio.sleep(0)
            return tasks
        say(cancelled, chain, here=True)
        """,
    "tasks that wait for each other are cancelled": """
        async def waits(tasks, other):
            await tasks[other]
        async def main():
            loop = asyncio.get_running_loop()
            tasks = []
            for other in (1, 2, 3, 1):
                tasks.append(loop.create_task(waits(tasks, other)))
            await asyncio.sleep(0)
            return outcome(tasks[0].cancel)
        say(run, main, expected="RecursionError")
        """,
    # Calling what calls the next one.
    "the repr of futures that are results of futures": """
        async def main():
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            for _ in range(5000):
                outer = loop.create_future()
                outer.set_result(future)
                future = outer
            said = outcome(repr, future)
            return "done" if said == "RecursionError" or said.startswith("<Future") else said
        say(run, main)
        """,
}

SINCE_312 = {
    "wait_for() of wait_for()": """
        def nested(count, inner):
            for _ in range(count):
                inner = tideloop.wait_for(inner, 1000)
            return inner
        async def main():
            try:
                await nested(20_000, tideloop.sleep(0))
            except RecursionError:
                return "RecursionError"
        say(run, main, expected="RecursionError")

        async def never_run():
            nested(3000, tideloop.sleep(0)).close()
            nested(3000, tideloop.sleep(0))
            return "done"
        say(run, never_run)

        async def deep_enough():
            task = asyncio.ensure_future(nested(8, tideloop.sleep(1000)))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            return "done" if task.cancelled() else "no"
        say(run, deep_enough)
        """,
    "what was begun on a large stack ends on a small one": """
        async def begin():
            operation = tideloop.sleep(1000)
            for _ in range(500):
                operation = tideloop.wait_for(operation, 1000)
            operation.send(None)
            return operation
        for kib in sizes:
            for end in ("close", "drop"):
                kept = [run(begin)]
                def ends():
                    operation = kept.pop()
                    return outcome(operation.close) if end == "close" else None
                at(kib, ends)
        print("done")
        """,
    "eager tasks that start eager tasks": """
        async def starts():
            await asyncio.create_task(starts())
        async def main():
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            try:
                await starts()
            except RecursionError:
                return "RecursionError"
        sys.setrecursionlimit(100_000)
        async def nothing():
            pass
        run(nothing)
        for kib in sizes[1:]:
            assert at(kib, run, main) == "RecursionError", kib
        print("done")
        """,
}

SAY = """
def cancelled(kib, chain):
    # Only the cancellation is for the stack in question: before Python 3.14 the interpreter itself needs a large one to
    # destroy an exception that has come a long way.
    loop = tideloop.new_event_loop()
    tasks = loop.run_until_complete(chain(loop))
    said = at(kib, outcome, tasks[-1].cancel)
    tasks[0].cancel()
    loop.run_until_complete(asyncio.wait(tasks))
    ended = all(task.cancelled() for task in tasks)
    loop.close()
    return "done" if ended and said in (True, "RecursionError") else said

def say(body, *arguments, expected="done", here=False):
    for kib in sizes:
        said = body(kib, *arguments) if here else at(kib, body, *arguments)
        if said != expected:
            print(kib, said)
    print("done")
"""


def cases():
    for name, program in PROGRAMS.items():
        yield pytest.param(program, id=name)
    reason = "wait_for() is native, and tasks can be eager, since Python 3.12"
    since = pytest.mark.skipif(sys.version_info < (3, 12), reason=reason)
    for name, program in SINCE_312.items():
        yield pytest.param(program, id=name, marks=since)


@pytest.mark.parametrize("program", list(cases()))
def test_what_is_nested_deeply_does_not_overflow_a_stack(program):
    whole = f"{PREAMBLE}\nsizes = {KIB}\n{SAY}\n{textwrap.dedent(program)}"
    done = subprocess.run(
        [sys.executable, "-c", whole],
        capture_output=True,
        text=True,
        timeout=50,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TIDELOOP_BLOCK_THRESHOLD": "off"},
        check=False,
    )
    assert (done.returncode, set(done.stdout.split("\n"))) == (0, {"done", ""}), (done.stdout + done.stderr)[-2000:]
