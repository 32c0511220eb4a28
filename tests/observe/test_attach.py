"""tideloop.observe.attach(): a loop that is not tideloop's."""

import asyncio
import contextlib
import logging
import sys
import threading
import time

import pytest
import tideloop
from tideloop import observe

from tests import backends
from tests.observe import captured
from tests.observe.serving import ask, document

OTHERS = ("asyncio", "uvloop")
STACKS = sys.platform != "win32"


@pytest.fixture(params=OTHERS)
def make(request):
    if request.param not in backends.NAMES:
        pytest.skip(f"{request.param} is not among this system's loops")
    return backends.load(request.param).new_event_loop


@pytest.fixture
def threshold():
    before = observe.block_threshold()
    observe.set_block_threshold(0.05)
    yield 0.05
    observe.set_block_threshold(before)


def the_culprit():
    captured.block(0.16, lambda: time.sleep(0.02))


def test_what_blocks_is_seen_while_it_does(make, threshold, caplog):
    blocks = []

    async def main():
        with observe.attach(asyncio.get_running_loop(), interval=0.01) as attached:
            await asyncio.sleep(0.03)
            the_culprit()
            await asyncio.sleep(0.03)
            return attached.metrics()

    observe.on_block(blocks.append)
    try:
        with caplog.at_level(logging.WARNING, "tideloop"), asyncio.Runner(loop_factory=make) as runner:
            metrics = runner.run(main())
    finally:
        observe.off_block(blocks.append)
    # A busy machine may have blocked it otherwise, too.
    block = max(blocks, key=lambda block: block.duration)
    assert block.duration >= 0.14
    assert metrics.blocks == len(blocks)
    assert metrics.lag.longest >= 0.14
    assert metrics.tasks == 1
    assert metrics.running
    assert "the loop was blocked for " in caplog.text
    if STACKS:
        functions = [frame.function for frame in block.stack if frame.file == __file__]
        assert "the_culprit" in functions[:2]
        assert (block.what, block.file, block.line) == (
            block.stack[0].function,
            block.stack[0].file,
            block.stack[0].line,
        )


def test_between_two_runs_nothing_blocks(make, threshold):
    # So long that a busy machine does not block it by itself.
    observe.set_block_threshold(0.5)
    with asyncio.Runner(loop_factory=make) as runner:
        loop = runner.get_loop()
        attached = observe.attach(loop, interval=0.005)
        runner.run(asyncio.sleep(0.02))
        beats = attached.metrics().lag.count
        assert beats >= 1
        # Nothing is due: whatever the threshold, that no beat comes is no block.
        observe.set_block_threshold(0.001)
        time.sleep(0.02)
        assert attached.metrics().blocked_for is None
        observe.set_block_threshold(0.5)
        runner.run(asyncio.sleep(0.02))
        metrics = attached.metrics()
        assert metrics.blocks == 0
        assert metrics.lag.count > beats
        assert not metrics.running
        attached.detach()
        attached.detach()
        runner.run(asyncio.sleep(0.01))
        assert attached.metrics().lag.count == metrics.lag.count
        assert "run_forever" not in vars(loop)


def test_a_loop_that_closes_is_left(make):
    loop = make()
    attached = observe.attach(loop)
    loop.close()
    assert loop.is_closed()
    assert "detached" in repr(attached)


def test_its_tasks_are_seen(make):
    async def waits():
        await asyncio.Event().wait()

    async def main():
        task = asyncio.create_task(waits(), name="seen")
        with observe.attach(asyncio.get_running_loop()) as attached:
            await asyncio.sleep(0)
            seen = attached.tasks()
        task.cancel()
        await asyncio.wait([task])
        return seen

    with asyncio.Runner(loop_factory=make) as runner:
        seen = runner.run(main())
    (task,) = [task for task in seen.tasks if task.name == "seen"]
    assert (task.state, task.busy, task.stack[-1].function.endswith("waits")) == ("waiting", None, True)


def test_what_cannot_be_attached_to():
    loop = tideloop.EventLoop()
    with pytest.raises(ValueError, match="observes itself"):
        observe.attach(loop)
    loop.close()
    loop = asyncio.SelectorEventLoop()
    with pytest.raises(ValueError, match="interval is 0"):
        observe.attach(loop, interval=0)
    loop.close()
    with pytest.raises(RuntimeError, match="is closed"):
        observe.attach(loop)


def test_it_is_attached_to_once(make):
    loop = make()
    attached = observe.attach(loop)
    with pytest.raises(RuntimeError, match="is attached to already"):
        observe.attach(loop)
    attached.detach()
    observe.attach(loop)
    loop.close()


def test_between_two_beats_nothing_blocks(make, threshold):
    """An interval above the threshold: what waits for the next beat is not blocked."""

    async def main():
        with observe.attach(asyncio.get_running_loop(), interval=0.2) as attached:
            until = time.monotonic() + 0.12
            while time.monotonic() < until:  # noqa: ASYNC110  no event tells
                await asyncio.sleep(0.005)
            return attached.metrics().blocked_for

    with asyncio.Runner(loop_factory=make) as runner:
        assert runner.run(main()) is None


@pytest.mark.skipif(sys.platform == "win32", reason="over UNIX sockets")
def test_who_looks_from_outside_sees_it(make, threshold, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    async def main(server):
        loop = asyncio.get_running_loop()
        with observe.attach(loop, interval=0.01) as attached:
            waiting = asyncio.create_task(asyncio.Event().wait(), name="of a foreign loop")
            await asyncio.sleep(0.03)
            the_culprit()
            await asyncio.sleep(0.03)
            number = attached._pulse.number()

            def look():
                paths = ("/v1/loops", "/v1/blocks", "/v1/tasks")
                return [document(server, path) for path in paths], ask(server, "/metrics")[1].decode()

            seen = await asyncio.to_thread(look)
            waiting.cancel()
        after = await asyncio.to_thread(document, server, "/v1/loops")
        return number, *seen, after

    with observe.serve() as server, asyncio.Runner(loop_factory=make) as runner:
        number, (loops, blocks, tasks), text, after = runner.run(main(server))
    (told,) = [one for one in loops["loops"] if one["id"] == number]
    assert (told["attached"], told["metrics"], told["running"], told["name"]) == (True, None, True, "MainThread")
    assert told["lag"]["longest"] >= 0.14
    block = max((one for one in blocks["blocks"] if one["loop"] == number), key=lambda one: one["duration"])
    assert (block["ended"], block["task"]) == (True, None)
    if STACKS:
        assert block["what"] == block["stack"][0][2]
        assert "the_culprit" in [function for _file, _line, function in block["stack"]]
    (of_loop,) = [one for one in tasks["loops"] if one["id"] == number]
    assert "of a foreign loop" in {task["name"] for task in of_loop["tasks"]}
    assert f'tideloop_eventloop_running{{loop="{number}"}} 1' in text
    assert f'tideloop_eventloop_timer_lateness_seconds_count{{loop="{number}"}} ' in text
    assert f'tideloop_eventloop_steps_total{{loop="{number}"}}' not in text
    assert number not in [one["id"] for one in after["loops"]], "it is left"


def test_a_loop_of_another_thread_is_attached_to_there():
    loop = asyncio.SelectorEventLoop()
    running = threading.Event()
    loop.call_soon(running.set)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        assert running.wait(10)
        with pytest.raises(RuntimeError, match="runs in another thread"):
            observe.attach(loop)
        attached, done = [], threading.Event()
        loop.call_soon_threadsafe(lambda: (attached.append(observe.attach(loop)), done.set()))
        assert done.wait(10)
        with pytest.raises(RuntimeError, match="detach in the loop's thread"):
            attached[0].detach()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_thread_that_ends_within_a_run_is_watched_no_longer(make):
    kept = []

    def runs():
        loop = make()
        kept.append(loop)

        async def main():
            kept.append(observe.attach(loop))
            loop.call_soon(sys.exit)
            await asyncio.Event().wait()

        with contextlib.suppress(SystemExit):
            loop.run_until_complete(main())

    thread = threading.Thread(target=runs)
    thread.start()
    thread.join()
    loop, attached = kept
    assert attached._thread is None, "a signal would be sent to a thread that is no more"
    assert attached.metrics().blocked_for is None
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
