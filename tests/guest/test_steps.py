"""A guest's steps: which loop runs when, what ends a wait, and what is refused; with hosts that are not Qt."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import socket
import subprocess
import sys
import threading

import pytest
import tideloop

from tests.conftest import open_fds
from tests.guest.hosts import QueueHost

# --- in a step, and between two steps ----------------------------------------------------------------


def test_main_ends_with_its_value(run):
    async def main():
        await asyncio.sleep(0)
        return 42

    assert run(main()) == 42
    assert run(main) == 42


def test_the_running_loop_and_task_are_the_guests_in_a_step_and_the_hosts_outside(start, host):
    seen = []

    async def main():
        for _ in range(3):
            seen.append(("guest", asyncio.get_running_loop(), asyncio.current_task()))
            host.call_soon_threadsafe(look)
            await asyncio.sleep(0)
        await looked.wait()

    def look():
        seen.append(("host", asyncio._get_running_loop(), sys.get_asyncgen_hooks().firstiter))
        if len(seen) == 6:
            started.guest.loop.call_soon(looked.set)

    looked = asyncio.Event()
    hooks = sys.get_asyncgen_hooks()
    started = start(main())
    host.run()
    started.outcome.result()
    inside = [entry for entry in seen if entry[0] == "guest"]
    outside = [entry for entry in seen if entry[0] == "host"]
    assert {loop for _, loop, _ in inside} == {started.guest.loop}
    assert {task.get_coro().__name__ for _, _, task in inside} == {"main"}
    assert {loop for _, loop, _ in outside} == {getattr(host, "loop", None)}
    firsts = [first for _, _, first in outside]
    assert len(firsts) == 3
    assert all(getattr(first, "__self__", None) is not started.guest.loop for first in firsts)
    assert sys.get_asyncgen_hooks() == hooks


def test_both_loops_of_asyncio_keep_their_own_tasks(loop_factory):
    seen = []

    async def inner():
        seen.append((asyncio.current_task().get_name(), len(asyncio.all_tasks())))
        await asyncio.sleep(0)
        seen.append((asyncio.current_task().get_name(), len(asyncio.all_tasks())))
        return "inner"

    async def outer():
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        tideloop.guest(loop.call_soon_threadsafe, ended.set_result, inner, loop_factory=loop_factory)
        assert asyncio.current_task().get_name() == "outer"
        outcome = await ended
        assert asyncio.current_task().get_name() == "outer"
        assert asyncio.get_running_loop() is loop
        return outcome.result()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        task = runner.get_loop().create_task(outer(), name="outer")
        assert runner.get_loop().run_until_complete(task) == "inner"
    assert [count for _, count in seen] == [1, 1]
    assert "outer" not in {name for name, _ in seen}


def test_a_tideloop_loop_is_a_host_too():
    async def inner():
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"from the guest")
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async def answer(reader, writer):
        writer.write((await reader.read()).upper())
        writer.close()
        await writer.wait_closed()

    async def outer():
        nonlocal server
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            tideloop.guest(loop.call_soon_threadsafe, ended.set_result, inner)
            return (await ended).result()

    server = None
    assert tideloop.run(outer()) == b"FROM THE GUEST"


def test_what_the_host_schedules_between_steps_ends_the_wait(start, host):
    async def wait():
        return await future

    def poke():
        # The guest has nothing to do and no timer: its wait has no end of its own.
        assert asyncio._get_running_loop() is getattr(host, "loop", None)
        started.guest.loop.create_task(finish())

    async def finish():
        future.set_result("poked")

    started = start(wait)
    future = started.guest.loop.create_future()
    started.guest.loop.call_soon(host.call_soon_threadsafe, poke)
    host.run()
    assert started.outcome.result() == "poked"


@pytest.mark.parametrize("how", ["set_result", "call_later", "call_at", "cancel", "stop"])
def test_each_way_to_schedule_ends_the_wait(start, host, how):
    async def main():
        with_timer = asyncio.get_running_loop().call_later(3600, print)
        try:
            return await future
        finally:
            with_timer.cancel()

    def poke():
        loop = started.guest.loop
        match how:
            case "set_result":
                future.set_result("poked")
            case "call_later":
                loop.call_later(0.001, future.set_result, "poked")
            case "call_at":
                loop.call_at(loop.time() + 0.001, future.set_result, "poked")
            case "cancel":
                started.guest.cancel()
            case "stop":
                loop.call_soon(loop.stop)

    started = start(main)
    future = started.guest.loop.create_future()
    started.guest.loop.call_soon(host.call_soon_threadsafe, poke)
    host.run()
    match how:
        case "cancel":
            assert isinstance(started.outcome.exception, asyncio.CancelledError)
        case "stop":
            assert isinstance(started.outcome.exception, RuntimeError)
            assert "stopped before main completed" in str(started.outcome.exception)
        case _:
            assert started.outcome.result() == "poked"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in 3.12")
def test_an_eager_task_of_the_host_waits_for_a_step(start, host):
    seen = []

    async def look():
        seen.append(asyncio.get_running_loop())

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        task = asyncio.create_task(look())
        assert seen == [started.guest.loop]
        host.call_soon_threadsafe(between)
        return await future, task

    def between():
        task = started.guest.loop.create_task(look())
        assert not task.done()
        task.add_done_callback(future.set_result)

    started = start(main)
    future = started.guest.loop.create_future()
    host.run()
    started.outcome.result()
    assert seen == [started.guest.loop] * 2


def test_other_threads_wake_it(run):
    async def main():
        loop = asyncio.get_running_loop()
        arrived = asyncio.Queue()

        def send():
            for number in range(200):
                loop.call_soon_threadsafe(arrived.put_nowait, number)

        thread = threading.Thread(target=send)
        thread.start()
        numbers = [await arrived.get() for _ in range(200)]
        await asyncio.to_thread(thread.join)
        return numbers

    assert run(main) == list(range(200))


def test_timers_are_in_order_and_never_early(run):
    async def main():
        loop = asyncio.get_running_loop()
        fired = []
        started = loop.time()
        for delay in (0.01, 0.002, 0.005, 0.0005, 0):
            loop.call_later(delay, lambda delay=delay: fired.append((delay, loop.time() - started)))
        await asyncio.sleep(0.02)
        assert loop.time() - started >= 0.02
        return fired

    fired = run(main)
    assert [delay for delay, _ in fired] == [0, 0.0005, 0.002, 0.005, 0.01]
    assert all(after >= delay for delay, after in fired)


def test_a_busy_guest_leaves_the_host_its_turns(host, start):
    """A guest that always has something to do asks its host as often as its selector: after 61 turns at most."""

    async def main():
        host.call_soon_threadsafe(host_turn)
        for _ in range(5000):
            turns[-1] += 1
            await asyncio.sleep(0)
        ended.append(True)

    def host_turn():
        turns.append(0)
        if not ended:
            host.call_soon_threadsafe(host_turn)

    turns, ended = [0], []
    started = start(main)
    host.run()
    started.outcome.result()
    assert sum(turns) == 5000
    # Two steps may come in a row before the host's own call, which was asked for during the first of them.
    assert max(turns) <= 2 * 62


def test_sockets_and_the_host_are_both_live(run, host):
    ticks = []

    def tick():
        ticks.append(asyncio._get_running_loop())
        if not ended:
            host.call_soon_threadsafe(tick)

    async def answer(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def talk(address, number):
        reader, writer = await asyncio.open_connection(*address)
        for length in (1, 1000, 300_000):
            message = bytes([number]) * length
            writer.write(message)
            assert await reader.readexactly(length) == message
        writer.close()
        await writer.wait_closed()
        return number

    async def main():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            talks = (talk(server.sockets[0].getsockname(), number) for number in range(20))
            numbers = await asyncio.gather(*talks)
        ended.append(True)
        return numbers

    ended = []
    host.call_soon_threadsafe(tick)
    assert run(main) == list(range(20))
    assert len(ticks) > 3


def test_add_reader_between_two_turns(start, host):
    ours, theirs = socket.socketpair()
    with ours, theirs:

        async def main():
            return await got

        def watch():
            started.guest.loop.add_reader(ours, lambda: got.done() or got.set_result(ours.recv(10)))
            theirs.send(b"hello")

        started = start(main)
        got = started.guest.loop.create_future()
        started.guest.loop.call_soon(host.call_soon_threadsafe, watch)
        started.guest.loop.call_soon(lambda: got.add_done_callback(lambda _: started.guest.loop.remove_reader(ours)))
        host.run()
        assert started.outcome.result() == b"hello"


def test_subprocesses(run):
    async def main():
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(input()[::-1])", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        out, _ = await child.communicate(b"guest\n")
        return out, child.returncode

    assert run(main) == (b"tseug\n", 0)


def test_main_runs_in_the_context_of_its_caller(run):
    variable = contextvars.ContextVar("variable", default="unset")

    async def main():
        return variable.get()

    variable.set("set")
    assert run(main) == "set"


# --- refusals ----------------------------------------------------------------------------------------


def test_running_it_otherwise_is_refused_in_a_step_and_between(start, host):
    refused = []

    async def nothing():
        pass

    def try_all():
        loop = started.guest.loop
        coroutine = nothing()
        for attempt in (loop.run_forever, lambda: loop.run_until_complete(coroutine)):
            with pytest.raises(RuntimeError, match="guest of another one, which must not be blocked"):
                attempt()
            refused.append(True)
        coroutine.close()
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            loop.close()

    def between():
        try_all()
        assert not started.guest.loop.is_running()
        future.set_result(None)

    async def main():
        try_all()
        assert started.guest.loop.is_running()
        host.call_soon_threadsafe(between)
        await future

    started = start(main)
    future = started.guest.loop.create_future()
    host.run()
    started.outcome.result()
    assert len(refused) == 4


def test_no_step_begins_inside_a_step(loop_factory):
    """As with a modal dialog: a task runs the host, which must not run tasks in the middle of a task."""
    order = []

    async def other():
        order.append("other")

    async def main():
        task = asyncio.get_running_loop().create_task(other())
        order.append("pump")
        host.call_soon_threadsafe(lambda: order.append("host"))
        host.call_soon_threadsafe(started.step)
        host.run_one()
        host.run_one()
        order.append("pumped")
        await task
        return order

    host = QueueHost()
    ended = []
    started = tideloop.guest(
        host.call_soon_threadsafe, lambda outcome: (ended.append(outcome), host.stop()), main, loop_factory=loop_factory
    )
    host.run()
    assert ended[0].result() == ["pump", "host", "pumped", "other"]
    host.close()


def test_a_step_in_another_thread_is_refused(start, host):
    caught = []

    def step():
        with pytest.raises(RuntimeError, match="another thread"):
            started.guest.step()
        caught.append(True)

    async def main():
        await future

    def elsewhere():
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
        future.set_result(None)

    started = start(main)
    future = started.guest.loop.create_future()
    started.guest.loop.call_soon(host.call_soon_threadsafe, elsewhere)
    host.run()
    assert caught == [True]


@pytest.mark.parametrize("main", [42, "main", object()])
def test_main_must_be_a_coroutine(main):
    with pytest.raises(ValueError, match="expected a coroutine"):
        tideloop.guest(print, print, main)


def test_only_tideloops_loops_are_guests():
    async def main():
        pass

    with pytest.raises(TypeError, match=r"only a tideloop\.EventLoop"):
        tideloop.guest(print, print, main(), loop_factory=asyncio.SelectorEventLoop)


def test_a_host_that_refuses_leaves_nothing(loop_factory):
    async def main():
        pass

    def refuse(step):
        raise OSError("the host is gone")

    threads, fds = threading.active_count(), open_fds().keys()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match="the host is gone"):
        tideloop.guest(refuse, print, main(), loop_factory=loop_factory)
    assert threading.active_count() == threads
    assert open_fds().keys() <= fds
    assert signal.getsignal(signal.SIGINT) is before
