"""A loop that is a guest of another event loop is observed as any other; what its host does is not its own."""

import asyncio
import json
import sys
import time

import pytest
import tideloop
from tideloop import observe

from tests.guest.hosts import QueueHost
from tests.observe.serving import document


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def at_home(seconds):
    """What the host does between two steps."""
    spin(seconds)


def as_a_guest(seconds):
    """What a task does in a step."""
    spin(seconds)


def run(main, level, between):
    """Run a main as a guest; `between` is called by the host before each of its calls."""
    host, outcomes = QueueHost(), []

    def done(outcome):
        outcomes.append(outcome)
        host.stop()

    def ask(step):
        host.call_soon_threadsafe(lambda: (between(), step()))

    guest = tideloop.guest(ask, done, main, loop_factory=lambda: tideloop.EventLoop(observe=level))
    host.run()
    host.close()
    return guest.loop, outcomes[0].result()


@pytest.mark.parametrize("level", ["counts", "tasks", "trace"])
def test_the_times_of_its_host_are_not_its_own(level):
    calls = []

    def between():
        calls.append(None)
        at_home(0.01)

    async def main():
        for _ in range(5):
            as_a_guest(0.002)
            await asyncio.sleep(0.001)

    loop, _ = run(main, level, between)
    metrics = loop.metrics()
    assert metrics.steps >= 5
    assert metrics.spent.callbacks + metrics.spent.internal >= 0.01
    assert metrics.spent.idle == 0
    assert metrics.step_seconds.longest < 0.01 * len(calls)
    if level == "counts":
        return
    (function,) = [one for one in loop.tasks().coroutines if one.coroutine.endswith("main")]
    assert (function.created, function.ok) == (1, 1)
    assert 0.01 <= function.busy < 0.01 * len(calls)
    if level == "trace":
        names = [event["name"] for event in json.loads(loop.trace())["traceEvents"] if event["ph"] == "X"]
        assert names.count("step") >= 5


def test_what_blocks_is_a_step_of_the_guest_and_not_what_the_host_does():
    blocks = []
    slept = []

    def between():
        if not slept:
            slept.append(None)
            at_home(0.15)

    async def main():
        await asyncio.sleep(0.001)
        as_a_guest(0.12)
        await asyncio.sleep(0)

    before = observe.block_threshold()
    observe.set_block_threshold(0.06)
    observe.on_block(blocks.append)
    try:
        run(main, "counts", between)
    finally:
        observe.off_block(blocks.append)
        observe.set_block_threshold(before)
    functions = {frame.function for block in blocks for frame in block.stack}
    assert "at_home" not in functions
    assert any(block.what.endswith("main") and block.duration >= 0.12 for block in blocks)


@pytest.mark.skipif(sys.platform == "win32", reason="over UNIX sockets")
def test_who_looks_from_outside_sees_a_guest(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    async def main():
        asyncio.current_task().set_name("of a guest")
        number = asyncio.get_running_loop()._number()
        told = [await asyncio.to_thread(document, server, path) for path in ("/v1/loops", "/v1/tasks")]
        return [next(one for one in each["loops"] if one["id"] == number) for each in told]

    with observe.serve() as server:
        _, (loop, tasks) = run(main, "tasks", lambda: None)
    assert (loop["running"], loop["level"], loop["name"]) == (True, 1, "MainThread")
    (task,) = [task for task in tasks["tasks"] if task["name"] == "of a guest"]
    assert (task["state"], task["busy"] is not None) == ("waiting", True)
