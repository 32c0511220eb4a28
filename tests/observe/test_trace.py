"""loop.trace(): what a loop did of late, as Perfetto reads it."""

import asyncio
import collections
import itertools
import json
import threading
import time

import pytest
import tideloop


@pytest.fixture
def loop():
    with asyncio.Runner(loop_factory=lambda: tideloop.EventLoop(observe="trace")) as runner:
        yield runner.get_loop()


def events_of(trace):
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
    # One after the other, without a hole.
    for each, following in itertools.pairwise(on_loop):
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
