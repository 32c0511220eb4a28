"""Who is the current task, and which tasks there are, as everybody in the process sees it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import pytest

IMPORTED_FIRST = """
import sys
from asyncio import all_tasks, current_task
import asyncio, importlib
backend = importlib.import_module(sys.argv[1])

async def child():
    assert current_task().get_name() == "child"
    await asyncio.sleep(1000)

async def main():
    task = asyncio.ensure_future(child())
    task.set_name("child")
    await asyncio.sleep(0)
    assert all_tasks() == {task, current_task()}, all_tasks()
    task.cancel()

loop = backend.new_event_loop()
loop.run_until_complete(main())
loop.close()
print("seen")
"""


def test_functions_that_were_imported_first_see_them(backend):
    """`all_tasks` that a module has got hold of before the backend was imported."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED_FIRST, backend.name],
        capture_output=True,
        text=True,
        timeout=20,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "seen\n"), done.stderr


def test_each_threads_loop_has_its_own(backend):
    inside = threading.Barrier(3)
    seen = {}

    async def waits():
        await asyncio.sleep(1000)

    async def main(name):
        tasks = {asyncio.create_task(waits(), name=f"{name}{n}") for n in range(3)}
        await asyncio.sleep(0)
        inside.wait(10)
        seen[name] = {task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()}}
        inside.wait(10)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def work(name):
        with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
            runner.run(main(name))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {name: {f"{name}{n}" for n in range(3)} for name in "abc"}


async def who():
    before = asyncio.current_task()
    await asyncio.sleep(0)
    assert asyncio.current_task() is before
    return before


async def test_a_stock_task_among_the_loops_own(loop):
    me = asyncio.current_task()
    task = asyncio.Task(who(), loop=loop)
    assert await task is task
    assert asyncio.current_task() is me


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in 3.12")
async def test_an_eager_stock_task_is_current_while_it_starts(loop):
    me = asyncio.current_task()
    started = []

    async def starts():
        started.append(asyncio.current_task())
        await asyncio.sleep(0)
        started.append(asyncio.current_task())

    task = asyncio.Task(starts(), loop=loop, eager_start=True)
    assert asyncio.current_task() is me
    assert started == [task]
    await task
    assert started == [task, task]
    assert asyncio.current_task() is me


async def test_what_anyio_looks_at(loop):
    """`_fut_waiter` is what a task waits for, and `_must_cancel` whether it is cancelled in its next step."""
    future = loop.create_future()

    async def waits():
        await future

    task = loop.create_task(waits())
    assert task._fut_waiter is None
    assert not task._must_cancel
    task.cancel()
    assert task._must_cancel
    with pytest.raises(asyncio.CancelledError):
        await task
    task = loop.create_task(waits())
    await asyncio.sleep(0)
    assert task._fut_waiter is future
    task.cancel()
    assert future.cancelled()
    assert not task._must_cancel
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelling_goes_through_to_the_last_of_a_chain(loop):
    """Each task of the chain counts the request, and only what the last one waits for is cancelled."""
    future = loop.create_future()
    chain = [future]

    async def waits(for_whom):
        await for_whom

    for _ in range(5):
        chain.append(loop.create_task(waits(chain[-1])))
    await asyncio.sleep(0)
    chain[-1].cancel("enough")
    assert future.cancelled()
    assert [task.cancelling() for task in chain[1:]] == [1] * 5
    assert not any(task._must_cancel for task in chain[1:])
    with pytest.raises(asyncio.CancelledError) as caught:
        await chain[-1]
    assert caught.value.args == ("enough",)
    assert all(task.cancelled() for task in chain)


async def test_a_chain_whose_end_cannot_be_cancelled(loop):
    """What ends before the request arrives: the task that waited for it is cancelled in its next step."""
    future = loop.create_future()

    async def waits(for_whom):
        return await for_whom

    inner = loop.create_task(waits(future))
    outer = loop.create_task(waits(inner))
    await asyncio.sleep(0)
    future.set_result(1)
    outer.cancel("late")
    assert (inner.cancelling(), outer.cancelling()) == (1, 1)
    assert (inner._must_cancel, outer._must_cancel) == (True, False)
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert inner.cancelled()
