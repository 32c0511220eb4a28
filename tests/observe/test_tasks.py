"""loop.tasks(), tree() and on_unretrieved(): what single tasks do, on a loop that counts it."""

import asyncio
import functools
import gc
import json
import logging
import os
import subprocess
import sys
import time

import pytest
import tideloop
from tideloop import _tideloop, observe
from tideloop.observe import collected
from tideloop.observe.tasks import look_at
from tideloop.testing import new_virtual_loop


def spin(seconds):
    """Work, which takes so long by the clock that the loop uses."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.fixture(params=["native", "stock"])
def loop(request):
    with asyncio.Runner(loop_factory=lambda: tideloop.EventLoop(tasks=request.param, observe="tasks")) as runner:
        yield runner.get_loop()


def of(seen, name):
    (found,) = [task for task in seen.tasks if task.name == name]
    return found


def function(seen, name):
    (found,) = [function for function in seen.coroutines if function.coroutine.endswith(name)]
    return found


async def works(times, seconds):
    for _ in range(times):
        spin(seconds)
        await asyncio.sleep(0)
    await asyncio.Event().wait()


def test_busy_scheduled_and_idle(loop):
    async def main():
        tasks = [asyncio.create_task(works(3, 0.004), name=f"worker {n}") for n in range(3)]
        made_at = sys._getframe().f_lineno - 1
        await asyncio.sleep(0.01)
        # Three times work and one step that waits.
        while any(of(loop.tasks(), f"worker {n}").steps < 4 for n in range(3)):  # noqa: ASYNC110  no event tells
            await asyncio.sleep(0)
        seen = loop.tasks()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return seen, made_at

    seen, made_at = loop.run_until_complete(main())
    first = of(seen, "worker 0")
    assert first.steps == 4
    assert first.busy >= 0.012
    assert 0.004 <= first.longest < first.busy
    # Behind two others, twice.
    assert first.scheduled >= 0.015
    assert first.idle >= 0
    assert first.age == pytest.approx(first.busy + first.scheduled + first.idle)
    assert first.spawned_at == (__file__, made_at)
    assert [first.parent] == [task.id for task in seen.tasks if task.state == "running"]
    assert first.state == "waiting"
    assert (first.coroutine, first.file, first.line) == ("works", __file__, works.__code__.co_firstlineno)
    assert first.stack[-1].function == "works"
    assert "Event.wait" in first.waiting_on
    live = function(seen, "works")
    assert (live.live, live.created, live.steps) == (3, 3, 12)
    assert live.busy >= 0.036
    after = function(loop.tasks(), "works")
    assert (after.live, after.created, after.ok, after.failed, after.cancelled) == (0, 3, 0, 0, 3)
    # One more step each, in which they were cancelled.
    assert after.steps == 15
    assert after.idle >= live.idle
    assert after.busy >= live.busy


def test_how_tasks_end_is_counted_by_function(loop):
    async def answers():
        return 1

    async def fails():
        raise ZeroDivisionError

    async def main():
        for make in (answers, answers, fails):
            await asyncio.wait([asyncio.create_task(make())])
        cancelled = asyncio.create_task(answers())
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)

    loop.run_until_complete(main())
    gc.collect()
    seen = loop.tasks()
    answered, failed = function(seen, "answers"), function(seen, "fails")
    assert (answered.created, answered.ok, answered.cancelled, answered.live) == (3, 2, 1, 0)
    assert (failed.created, failed.failed, failed.live) == (1, 1, 0)
    assert seen.tasks == ()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_tasks_are_counted_if_they_have_to_wait(loop):
    async def waits(event):
        await event.wait()

    async def main():
        event = asyncio.Event()
        loop.set_task_factory(asyncio.eager_task_factory)
        task = asyncio.create_task(waits(event), name="eager")
        await asyncio.create_task(asyncio.sleep(0))
        steps = of(loop.tasks(), "eager").steps
        event.set()
        await task
        return steps

    assert loop.run_until_complete(main()) == 0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_tasks_that_end_at_once_are_counted_with_their_ends(loop):
    async def answers():
        return 1

    async def fails():
        raise ValueError("on purpose")

    async def is_cancelled():
        raise asyncio.CancelledError

    async def main():
        loop.set_task_factory(asyncio.eager_task_factory)
        for _ in range(3):
            ended = [asyncio.create_task(make()) for make in (answers, fails, is_cancelled)]
            assert all(task.done() for task in ended)
            await asyncio.wait(ended)
            assert isinstance(ended[1].exception(), ValueError)

    loop.run_until_complete(main())
    seen = loop.tasks()
    ends = [function(seen, name) for name in ("answers", "fails", "is_cancelled")]
    assert [(end.ok, end.failed, end.cancelled) for end in ends] == [(3, 0, 0), (0, 3, 0), (0, 0, 3)]
    assert [(end.created, end.live, end.steps) for end in ends] == [(3, 0, 0)] * 3


def test_tasks_that_are_destroyed_while_they_wait_are_forgotten(loop):
    async def waits():
        await loop.create_future()

    async def main():
        for _ in range(10):
            task = asyncio.create_task(waits(), name="lost")
            task._log_destroy_pending = False
            del task
        await asyncio.sleep(0)
        gc.collect()
        return loop.tasks()

    seen = loop.run_until_complete(main())
    assert [task.name for task in seen.tasks if task.name == "lost"] == []
    seen = loop.tasks()
    lost = function(seen, "waits")
    assert (lost.live, lost.created, lost.cancelled) == (0, 10, 10)


def test_a_loop_that_does_not_count_says_what_there_is():
    async def main():
        asyncio.current_task().set_name("main")
        return asyncio.get_running_loop().tasks()

    with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
        seen = runner.run(main())
    (task,) = seen.tasks
    assert (task.name, task.state, task.steps, task.busy, task.age) == ("main", "running", None, None, None)
    assert seen.coroutines == ()


def test_other_threads_may_look(loop):
    async def main():
        tasks = [asyncio.create_task(works(1, 0)) for _ in range(100)]
        found = await asyncio.to_thread(lambda: [len(loop.tasks().tasks) for _ in range(5)])
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return found

    assert set(loop.run_until_complete(main())) == {101}


def test_levels_are_chosen_by_argument_and_environment(monkeypatch):
    for asked, counts in {"tasks": True, "counts": False, "1": False}.items():
        monkeypatch.setenv("TIDELOOP_OBSERVE", asked)
        loop = tideloop.EventLoop()
        assert (loop._is_observed(), loop._counts_tasks()) == (True, counts)
        loop.close()
    monkeypatch.setenv("TIDELOOP_OBSERVE", "much")
    with pytest.raises(ValueError, match="TIDELOOP_OBSERVE is 'much'"):
        tideloop.EventLoop()
    with pytest.raises(ValueError, match="observe is 'all'"):
        tideloop.EventLoop(observe="all")


def test_a_record_is_small():
    """At most 160 bytes for a live task, by the memory that the process has."""
    script = """
import asyncio, sys, tideloop
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
async def main():
    async def waits(): await future
    future = asyncio.get_running_loop().create_future()
    tasks = [asyncio.create_task(waits()) for _ in range(2000)]
    await asyncio.sleep(0)
    before = resident()
    tasks += [asyncio.create_task(waits()) for _ in range(20_000)]
    await asyncio.sleep(0)
    print(resident() - before)
    future.set_result(None)
    await asyncio.wait(tasks)
with asyncio.Runner(loop_factory=lambda: tideloop.EventLoop(observe=sys.argv[1])) as runner:
    runner.run(main())
"""
    used = {}
    for level in ("counts", "tasks"):
        done = subprocess.run([sys.executable, "-c", script, level], capture_output=True, text=True, check=True)
        used[level] = int(done.stdout)
    assert (used["tasks"] - used["counts"]) / 20_000 <= 160


# --- who awaits whom ----------------------------------------------------------------------------------------------


def drawn(node):
    return (node.name, *map(drawn, node.awaits))


@pytest.mark.parametrize("kind", ["asyncio", "tideloop"])
def test_the_tree_shows_who_awaits_whom(kind):
    async def leaf(event):
        await event.wait()

    async def main():
        loop = asyncio.get_running_loop()
        asyncio.current_task().set_name("main")
        event = asyncio.Event()

        async def grouped():
            async with asyncio.TaskGroup() as group:
                for n in range(2):
                    group.create_task(leaf(event), name=f"grouped {n}")

        async def gathered():
            inner = [asyncio.create_task(leaf(event), name=f"gathered {n}") for n in range(2)]
            await asyncio.gather(*inner)

        async def waited():
            await asyncio.wait([asyncio.create_task(leaf(event), name="waited")])

        async def direct():
            await asyncio.create_task(leaf(event), name="direct")

        tops = [asyncio.create_task(each(), name=each.__name__) for each in (grouped, gathered, waited, direct)]
        for _ in range(5):
            await asyncio.sleep(0)
        tree = observe.tree(loop)
        event.set()
        await asyncio.wait(tops)
        return tree

    make = asyncio.SelectorEventLoop if kind == "asyncio" else tideloop.EventLoop
    with asyncio.Runner(loop_factory=make) as runner:
        tree = runner.run(main())
    assert {drawn(root) for root in tree.roots} == {
        ("main",),
        ("grouped", ("grouped 0",), ("grouped 1",)),
        ("gathered", ("gathered 0",), ("gathered 1",)),
        ("waited", ("waited",)),
        ("direct", ("direct",)),
    }
    lines = str(tree).splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("grouped: "))
    assert lines[at + 1].startswith("├─ grouped 0: ")
    assert lines[at + 2].startswith("└─ grouped 1: ")


@pytest.mark.parametrize("kind", ["tideloop", "asyncio"])
def test_a_tree_is_as_deep_as_its_tasks_and_drawn_for_a_hundred_levels(kind):
    async def main(depth):
        event = asyncio.Event()
        task = asyncio.create_task(event.wait(), name="leaf")

        async def awaits(other):
            await other

        for number in range(depth):
            task = asyncio.create_task(awaits(task), name=f"{number}")
        await asyncio.sleep(0)
        tree = observe.tree(asyncio.get_running_loop())
        event.set()
        await task
        return tree

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop if kind == "asyncio" else tideloop.EventLoop) as runner:
        tree = runner.run(main(3_000))
    (root,) = [root for root in tree.roots if root.awaits]
    names = [root.name]
    while root.awaits:
        (root,) = root.awaits
        names.append(root.name)
    assert names == [*(f"{number}" for number in range(2_999, -1, -1)), "leaf"]
    lines = [line.strip() for line in str(tree).splitlines()]
    assert len(lines) == 102, "main, a hundred, and what is left out"
    assert "└─ … 1 further down" in lines


def test_a_cycle_is_drawn_once_and_called_one():
    async def main():
        loop = asyncio.get_running_loop()
        tasks = []

        async def awaits(number):
            await asyncio.sleep(0)
            await tasks[number]

        tasks += [asyncio.create_task(awaits(1), name="one"), asyncio.create_task(awaits(0), name="two")]
        for _ in range(4):
            await asyncio.sleep(0)
        tree = observe.tree(loop)
        # Cancelling one of them would have them cancel each other without an end.
        for task in tasks:
            task._log_destroy_pending = False
        return tree

    loop = tideloop.EventLoop()
    tree = loop.run_until_complete(main())
    loop.close()
    (cycle,) = [root for root in tree.roots if root.name == "one"]
    assert drawn(cycle) == ("one", ("two", ("one",)))
    assert cycle.awaits[0].awaits[0].cycle
    assert "(a cycle)" in str(tree)


# --- failures that nobody asks for --------------------------------------------------------------------------------


@pytest.fixture
def virtual(monkeypatch):
    monkeypatch.setenv("TIDELOOP_OBSERVE", "tasks")
    with asyncio.Runner(loop_factory=new_virtual_loop) as runner:
        assert runner.get_loop()._counts_tasks()
        yield runner


async def fails():
    raise ZeroDivisionError("for nothing")


def test_a_failure_is_told_of_while_its_task_is_kept(virtual, caplog):
    told = []

    async def main():
        kept = asyncio.create_task(fails(), name="kept")
        asked = asyncio.create_task(fails(), name="asked for")
        await asyncio.sleep(1)
        assert isinstance(asked.exception(), ZeroDivisionError)
        assert told == []
        await asyncio.sleep(1.5)
        assert [(each.task, each.exception.args) for each in told] == [(kept, ("for nothing",))]
        assert told[0].age == pytest.approx(2)
        late = asyncio.create_task(fails(), name="late")
        await asyncio.sleep(3)
        assert [each.task for each in told] == [kept, late]
        told.clear()
        for task in (kept, late):
            task.exception()

    observe.on_unretrieved(told.append)
    try:
        with caplog.at_level(logging.ERROR, "tideloop"):
            virtual.run(main())
    finally:
        observe.off_unretrieved(told.append)
    assert "nobody has asked for the exception of task 'kept', fails, for 2.0 s" in caplog.text
    assert "'asked for'" not in caplog.text


def test_hooks_and_times_are_checked():
    with pytest.raises(TypeError, match="hook is 3"):
        observe.on_unretrieved(3)
    with pytest.raises(ValueError, match="was not given"):
        observe.off_unretrieved(print)
    with pytest.raises(ValueError, match="seconds is -1"):
        observe.set_unretrieved_after(-1)
    assert observe.unretrieved_after() == 2


LIBRARY = """
class Maker:
    def __init__(self, make):
        self.task = make()

def by_a_class(make):
    return Maker(make).task

def by_c_code(make):
    return [*map(lambda _: make(), [0])][0]

def by_a_generator(make):
    def generator():
        yield make()
    return next(generator())
"""


def test_the_place_is_the_first_one_outside_whatever_is_between(loop):
    library = {}
    exec(compile(LIBRARY, os.path.join(os.path.dirname(asyncio.__file__), "of_the_test.py"), "exec"), library)

    async def main():
        for _ in range(3):  # looked up, and then known
            for way in ("by_a_class", "by_c_code", "by_a_generator"):
                task = library[way](functools.partial(loop.create_task, works(1, 0)))
                made_at = sys._getframe().f_lineno - 1
                assert of(loop.tasks(), task.get_name()).spawned_at == (__file__, made_at), way
                task.cancel()

    loop.run_until_complete(main())


# --- for who looks from outside -----------------------------------------------------------------------------------


@pytest.mark.skipif(
    sys.version_info < (3, 13) or sys.implementation.name != "cpython", reason="frames have objects before 3.13"
)
def test_frames_are_found_without_objects():
    assert _tideloop.frames_are_found()


@pytest.fixture
def collects(monkeypatch):
    """Collecting, as long as no server is about to stop."""
    monkeypatch.setattr(collected, "leaving", False)


def test_what_is_collected_is_json(loop, collects):
    async def fails():
        raise ZeroDivisionError

    async def main():
        limiter = tideloop.Limiter(2, name="of the test")
        limits = tideloop.ResourceLimits(gpu=3, name="of the test")
        await asyncio.wait([asyncio.create_task(fails())])
        waiting = asyncio.create_task(works(1, 0.001), name="collected")
        await asyncio.sleep(0.01)
        found = json.loads(collected.tasks()), json.loads(collected.gauges()), collected.samples().decode()
        waiting.cancel()
        await asyncio.wait([waiting])
        del limiter, limits
        return found, loop._number()

    (tasks, gauges, samples), number = loop.run_until_complete(main())
    mine = [each for each in tasks["loops"] if any(task["name"] == "collected" for task in each["tasks"])]
    (of_loop,) = mine
    (task,) = [task for task in of_loop["tasks"] if task["name"] == "collected"]
    assert task["steps"] == 2
    assert task["busy"] >= 0.001
    assert task["stack"][-1][2] == "works"
    assert task["spawned_at"][0] == __file__
    assert of_loop["truncated"] is False
    assert {"coroutine", "file", "line", "live", "created", "ok", "failed", "cancelled"} <= set(of_loop["functions"][0])
    (gauge,) = [gauge for gauge in gauges["gauges"] if (gauge["name"], gauge["kind"]) == ("of the test", "limiter")]
    assert gauge["stats"]["capacity"] == 2
    names = f'name="of the test",id="{gauge["id"]}"'
    lines = samples.splitlines()
    for line in (
        f"tideloop_limiter_capacity{{{names}}} 2",
        f'tideloop_limiter_wait_seconds{{{names},quantile="0.99"}} 0',
        f"tideloop_limiter_wait_seconds_count{{{names}}} 0",
        f'tideloop_tasks{{loop="{number}",state="waiting"}} 1',
        f'tideloop_tasks_total{{loop="{number}",outcome="failed"}} 1',
    ):
        assert line in lines
    assert any(line.endswith('resource="gpu"} 3') for line in lines)
    (busy,) = [line for line in lines if line.startswith("tideloop_coroutine_busy_seconds_total{") and "works" in line]
    assert float(busy.rpartition(" ")[2]) >= 0.001
    families = [line for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))


@pytest.mark.parametrize("observe", ["counts", "tasks"])
def test_collecting_gives_way_after_each_slice(monkeypatch, collects, observe):
    """10,000 tasks and more are looked at in slices, between which whoever waits for the GIL gets it."""
    looks = slices = 0
    most = 0
    since = 0

    def clock():
        # Each look at the clock, and so what is between two of them, takes 0.01 ms.
        nonlocal looks
        looks += 1
        return looks * 0.00001

    def give_way():
        nonlocal slices, since, most
        slices += 1
        most, since = max(most, looks - since), looks

    async def main(count):
        nonlocal since
        tasks = [asyncio.create_task(asyncio.sleep(60)) for _ in range(count)]
        await asyncio.sleep(0)
        found = []
        for collect in (collected.tasks, collected.samples, collected.gauges):
            before, since = slices, looks
            document = collect()
            found.append((document, slices - before))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return found

    monkeypatch.setattr(collected, "_clock", clock)
    monkeypatch.setattr(collected, "_give_way", give_way)
    with asyncio.Runner(loop_factory=lambda: tideloop.EventLoop(observe=observe)) as runner:
        (tasks, in_tasks), (samples, in_samples), _ = runner.run(main(1_000))
    (of_loop,) = [each for each in json.loads(tasks)["loops"] if len(each["tasks"]) > 1_000]
    assert [task["id"] for task in of_loop["tasks"]] == sorted(task["id"] for task in of_loop["tasks"])
    assert b'state="waiting"} 1000' in samples
    # A slice is 2 ms, which is 200 looks at this clock: each task is looked at three times.
    assert in_tasks >= 14
    assert in_samples >= 14
    assert most <= 202


def test_what_has_ended_since_is_left_out(collects, monkeypatch):
    async def ends():
        await asyncio.sleep(0)

    async def main():
        tasks = [asyncio.create_task(ends(), name=f"ends {n}") for n in range(3)]
        loop = asyncio.get_running_loop()
        looked = look_at(loop)
        await asyncio.wait(tasks)
        return [task.name for task in looked.tasks]

    with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
        names = runner.run(main())
    assert not any(name.startswith("ends") for name in names)
    assert len(names) == 1


def test_what_is_collected_is_bounded(monkeypatch, collects):
    async def main():
        tasks = [asyncio.create_task(asyncio.sleep(60)) for _ in range(30)]
        await asyncio.sleep(0)
        found = json.loads(collected.tasks())
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return found

    monkeypatch.setattr(collected, "MOST", 10)
    with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
        found = runner.run(main())
    assert sum(len(each["tasks"]) for each in found["loops"]) == 10
    assert any(each["truncated"] for each in found["loops"])
