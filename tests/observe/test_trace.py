"""loop.trace(): what a loop did of late, as Perfetto reads it."""

import asyncio
import collections
import functools
import gc
import itertools
import json
import threading
import time
from random import Random

import pytest
import tideloop

from tests.observe import chrome_format


@pytest.fixture
def loop():
    with asyncio.Runner(loop_factory=lambda: tideloop.EventLoop(observe="trace")) as runner:
        yield runner.get_loop()


def events_of(trace):
    chrome_format.check(trace)
    return json.loads(trace)["traceEvents"]


async def worker(times):
    for _ in range(times):
        await asyncio.sleep(0)


def test_each_task_has_a_named_track_with_its_steps(loop):
    def called():
        pass

    async def main():
        loop.call_soon(called)
        await asyncio.gather(worker(2), worker(4))
        await asyncio.sleep(0.001)

    loop.run_until_complete(main())
    events = events_of(loop.trace())
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    steps = collections.Counter(tracks[e["tid"]] for e in events if e["name"] == "step")
    assert sorted(count for name, count in steps.items() if name.startswith("worker #")) == [3, 5]
    on_loop = [e for e in events if e["ph"] == "X" and tracks[e["tid"]] == "event loop"]
    assert {"worker", "poll", "wait", called.__qualname__} <= {e["name"] for e in on_loop}
    step = next(e for e in on_loop if e["name"] == "worker")
    assert step["args"]["file"] == __file__
    assert any(e["ph"] == "i" and e["name"] == "timer" for e in events)
    # One after the other, without a hole; a collection is within one.
    for each, following in itertools.pairwise(e for e in on_loop if e["name"] != "gc"):
        assert each["ts"] + each["dur"] == pytest.approx(following["ts"], abs=0.01)


def test_tasks_that_follow_each_other_are_told_apart(loop):
    async def main():
        for _ in range(20):
            await asyncio.create_task(worker(0))

    loop.run_until_complete(main())
    names = [e["args"]["name"] for e in events_of(loop.trace()) if e["ph"] == "M"]
    assert sum(name.startswith("worker #") for name in names) == 20


def test_another_thread_reads_it_while_a_step_blocks_the_loop(loop):
    found = []

    async def blocks():
        thread = threading.Thread(target=lambda: found.append(events_of(loop.trace())))
        thread.start()
        thread.join()

    async def main():
        await asyncio.create_task(blocks())

    loop.run_until_complete(main())
    last = [e for e in found[0] if e["ph"] == "X"][-1]
    assert last["name"] == "step"
    assert last["args"]["file"] == __file__


def test_only_the_last_seconds(loop):
    loop.run_until_complete(worker(100))
    assert len(events_of(loop.trace())) > 200
    until = time.monotonic() + 0.01
    while time.monotonic() < until:
        pass
    # What the loop does since is to rest.
    assert sum(e["ph"] == "X" for e in events_of(loop.trace(0.001))) <= 2
    assert len(events_of(loop.trace(1e30))) == len(events_of(loop.trace()))


def test_the_ring_keeps_the_last_events(loop):
    loop.run_until_complete(worker(70_000))
    events = events_of(loop.trace())
    steps = sum(e["name"] == "step" for e in events)
    assert 30_000 < steps <= 65_536


def test_callbacks_that_are_builtins_are_told_apart(loop):
    class Mine(list):
        pass

    class Other(list):
        pass

    async def main():
        mine, other = Mine(), Other()
        callbacks = [mine.append, other.append, functools.partial(mine.append), Mine().append, mine.extend]
        for _ in range(3):
            for callback in callbacks:
                loop.call_soon(callback, ())
            loop.call_soon(sorted, ())
            loop.call_soon(dict.fromkeys, ())
            await asyncio.sleep(0)
            future = loop.create_future()
            loop.call_soon(future.set_result, None)
            await future

    loop.run_until_complete(main())
    phases = chrome_format.check(loop.trace())
    names = collections.Counter(".".join(e["name"].split(".")[-2:]) for e in phases["X"])
    assert [names[f"{kind}.append"] for kind in ("Mine", "Other")] == [9, 3]
    assert [names[name] for name in ("Mine.extend", "sorted", "dict.fromkeys", "Future.set_result")] == [3] * 4


def test_who_was_made_and_woken_is_shown_with_what_did_it(loop):
    def works():
        until = time.perf_counter() + 0.0001
        while time.perf_counter() < until:
            pass

    async def woken(event):
        await event.wait()

    async def wakes(event):
        loop.call_soon(works)
        event.set()

    async def main():
        event = asyncio.Event()
        loop.call_soon(works)
        waits = asyncio.create_task(woken(event))
        await asyncio.sleep(0)
        await asyncio.create_task(wakes(event))
        await waits

    loop.run_until_complete(main())
    trace = loop.trace()
    phases = chrome_format.check(trace)
    tracks = {e["tid"]: e["args"]["name"] for e in phases["M"] if e["name"] == "thread_name"}
    name = {tid: name.rpartition(".")[2] for tid, name in tracks.items()}
    # The task of woken() was ready twice, when it was made and when the event was set, and had to wait behind works().
    ready = [
        e["args"]["by"].rpartition(".")[2] for e in phases["X"] if e["name"] == "ready" and name[e["tid"]] == "woken #2"
    ]
    assert ready == ["main", "wakes"]
    spawned = [e["args"]["task"] for e in phases["i"] if e["name"] == "spawn"]
    assert spawned == [2, 3]
    arrows = {e["id"]: e["ts"] for e in phases["s"]}
    made, set_ = [(arrows[e["id"]], e["ts"]) for e in phases["f"] if name[e["tid"]] == "woken #2"]
    on_loop = [e for e in phases["X"] if tracks[e["tid"]] == "event loop" and e["name"] != "gc"]

    def runs_at(ts):
        # In nanoseconds: floats do not add up.
        at = round(ts * 1e3)
        spans = [(round(e["ts"] * 1e3), round(e["dur"] * 1e3), e["name"].rpartition(".")[2]) for e in on_loop]
        return next(name for began, took, name in spans if began <= at < began + took)

    assert [runs_at(ts) for ts in (*made, *set_)] == ["main", "woken", "wakes", "woken"]


def test_collections_are_in_the_step_that_they_interrupt(loop):
    async def collects():
        gc.collect()

    async def main():
        await asyncio.create_task(collects())

    loop.run_until_complete(main())
    events = events_of(loop.trace())
    step = next(e for e in events if e["ph"] == "X" and e["tid"] == 1 and e["name"].endswith("collects"))
    inside = [e for e in events if e["name"] == "gc" and step["ts"] <= e["ts"] < step["ts"] + step["dur"]]
    assert inside
    assert inside[-1]["tid"] == step["tid"]
    # What happens in another thread is none of the loop's.
    thread = threading.Thread(target=gc.collect)
    before = sum(e["name"] == "gc" for e in events)
    thread.start()
    thread.join()
    assert sum(e["name"] == "gc" for e in events_of(loop.trace())) == before


def test_random_programs_give_traces_that_keep_the_rules(loop):
    random = Random(20)

    async def node(depth):
        for _ in range(random.randrange(4)):
            match random.randrange(6):
                case 0 if depth < 4:
                    await asyncio.gather(*[node(depth + 1) for _ in range(random.randrange(4))])
                case 1 if depth < 4:
                    asyncio.create_task(node(depth + 1)).cancel()
                case 2:
                    await asyncio.sleep(random.choice([0.0001, 0.001]))
                case 3:
                    loop.call_soon(gc.collect, 0)
                case 4:
                    await loop.run_in_executor(None, int)
                case _:
                    await asyncio.sleep(0)

    for _ in range(10):
        loop.run_until_complete(node(0))
        phases = chrome_format.check(loop.trace())
    assert {"M", "X", "i", "s", "f"} <= set(phases)
    chrome_format.check(loop.trace(0.002))


def test_what_is_not_traced_says_so(loop):
    with pytest.raises(ValueError, match="seconds is -1"):
        loop.trace(-1)
    with pytest.raises(ValueError, match="seconds is nan"):
        loop.trace(float("nan"))
    plain = tideloop.EventLoop(observe=True)
    with pytest.raises(RuntimeError, match="is not traced"):
        plain.trace()
    plain.close()
    with pytest.raises(ValueError, match="observe is 'everything'"):
        tideloop.EventLoop(observe="everything")
