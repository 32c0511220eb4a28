"""How a guest ends: main's outcome, cancellation, Ctrl-C, an exiting interpreter; and that nothing is left."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest
import tideloop

from tests.conftest import open_fds
from tests.guest.hosts import QueueHost

kept = []
"""Tasks that must live until the guest winds them down."""


# --- the end -----------------------------------------------------------------------------------------


def test_an_exception_of_main_is_its_outcome(start, host):
    async def main():
        await asyncio.sleep(0)
        raise LookupError("main's own")

    started = start(main)
    host.run()
    assert started.outcome.value is None
    with pytest.raises(LookupError, match="main's own"):
        started.outcome.result()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["main", "callback"])
def test_what_ends_a_program_ends_the_guest(start, host, error, where):
    """It does not hit the host: it arrives in the outcome, after main has been cancelled and awaited."""
    cleaned = []

    def give_up():
        raise error

    async def main():
        try:
            if where == "main":
                await asyncio.sleep(0)
                give_up()
            asyncio.get_running_loop().call_soon(give_up)
            await asyncio.sleep(3600)
        finally:
            cleaned.append(True)

    started = start(main)
    host.run()
    assert started.outcome.exception is error
    assert cleaned == [True]


def test_cancel_awaits_mains_own_end(start, host):
    steps = []

    async def main():
        started.guest.loop.call_soon(host.call_soon_threadsafe, started.guest.cancel)
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.001)
            steps.append("cleaned")

    started = start(main)
    host.run()
    assert isinstance(started.outcome.exception, asyncio.CancelledError)
    assert steps == ["cleaned"]
    assert started.guest.ended
    started.guest.cancel()  # does nothing


def test_a_main_that_refuses_its_cancellation_ends_as_it_likes(start, host):
    async def main():
        host.call_soon_threadsafe(started.guest.cancel)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "not now"

    started = start(main)
    host.run()
    assert started.outcome.result() == "not now"


def test_the_rest_is_wound_down(start, host):
    ended = []

    async def forever(name):
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            ended.append("generator")

    async def main():
        kept.extend(asyncio.get_running_loop().create_task(forever(f"task {number}")) for number in range(3))
        generator = numbers()
        await anext(generator)
        kept.append(generator)
        await asyncio.to_thread(ended.append, "thread")
        return "value"

    started = start(main)
    host.run()
    assert started.outcome.result() == "value"
    assert ended[0] == "thread"
    assert set(ended[1:4]) == {"task 0", "task 1", "task 2"}
    assert ended[-1] == "generator"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")]
    kept.clear()


def test_what_fails_while_winding_down_is_reported(start, host):
    reports = []

    async def stubborn():
        try:
            await asyncio.sleep(3600)
        finally:
            raise ValueError("in the end")

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: reports.append(context))
        kept.append(loop.create_task(stubborn()))
        await asyncio.sleep(0)

    started = start(main)
    host.run()
    started.outcome.result()
    assert [str(context["exception"]) for context in reports] == ["in the end"]
    kept.clear()


@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_a_guest_without_a_main_runs_until_it_is_told_to_end(start, host, how):
    ran = []

    async def work():
        ran.append(asyncio.get_running_loop())
        host.call_soon_threadsafe(started.guest.cancel if how == "cancel" else stop)

    def stop():
        started.guest.loop.call_soon(started.guest.loop.stop)

    started = start()
    task = started.guest.loop.create_task(work())
    host.run()
    assert started.outcome.result() is None
    assert ran == [started.guest.loop]
    assert task.done()


def test_debug_mode_works_in_a_guest(run):
    async def main():
        loop = asyncio.get_running_loop()
        assert loop.get_debug()
        failed = []

        def elsewhere():
            try:
                loop.call_soon(print)
            except RuntimeError as error:
                failed.append(str(error))

        await asyncio.to_thread(elsewhere)
        return failed

    assert "Non-thread-safe operation" in run(main, debug=True)[0]


# --- Ctrl-C ------------------------------------------------------------------------------------------


def test_ctrl_c_cancels_main(loop_factory):
    cleaned = []

    async def main():
        try:
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    host, ended = QueueHost(), []
    tideloop.guest(
        host.call_soon_threadsafe, lambda outcome: (ended.append(outcome), host.stop()), main, loop_factory=loop_factory
    )
    host.run()
    assert isinstance(ended[0].exception, KeyboardInterrupt)
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_wakes_a_waiting_guest(loop_factory):
    """The signal arrives while the guest's thread waits and the host has nothing to do."""

    async def main():
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
        await asyncio.sleep(3600)

    host, ended = QueueHost(), []
    tideloop.guest(
        host.call_soon_threadsafe, lambda outcome: (ended.append(outcome), host.stop()), main, loop_factory=loop_factory
    )
    host.run()
    assert isinstance(ended[0].exception, KeyboardInterrupt)


def test_a_second_ctrl_c_does_not_wait_for_main(loop_factory):
    async def main():
        for _ in range(2):
            try:
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass  # refuses to go
        raise AssertionError("unreachable")

    host, ended = QueueHost(), []
    tideloop.guest(
        host.call_soon_threadsafe, lambda outcome: (ended.append(outcome), host.stop()), main, loop_factory=loop_factory
    )
    host.run()
    assert isinstance(ended[0].exception, KeyboardInterrupt)


@pytest.mark.parametrize("first", [0, 1])
def test_guests_that_overlap_hand_the_wakeups_by_signals_on(loop_factory, first):
    """Whichever ends first, the other is woken by signals as long as it lives, and in the end nobody is."""

    async def main(own):
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        await own.wait()
        if own is events[1 - first]:
            loop.add_signal_handler(signal.SIGUSR1, arrived.set)
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            await arrived.wait()
            loop.remove_signal_handler(signal.SIGUSR1)

    def done(outcome):
        outcome.result()
        ended.append(outcome)
        if len(ended) == 2:
            host.stop()
        else:
            host.call_soon_threadsafe(events[1 - first].set)

    host, ended, events = QueueHost(), [], [asyncio.Event(), asyncio.Event()]
    for event in events:
        tideloop.guest(host.call_soon_threadsafe, done, main(event), loop_factory=loop_factory)
    host.call_soon_threadsafe(events[first].set)
    host.run()
    host.close()
    assert signal.set_wakeup_fd(-1) == -1


# --- leaks and exits -------------------------------------------------------------------------------


def test_fifty_guests_leave_nothing(loop_factory):
    async def main():
        _, writer = await asyncio.open_connection(sock=socket.create_connection(listener.getsockname()))
        writer.close()
        await writer.wait_closed()
        loops.append(weakref.ref(asyncio.get_running_loop()))

    loops, guests = [], []
    host = QueueHost()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def once():
            started = tideloop.guest(
                host.call_soon_threadsafe, lambda outcome: host.stop(), main, loop_factory=loop_factory
            )
            guests.append(weakref.ref(started))
            host.run()

        once()
        gc.collect()
        threads, fds = threading.active_count(), len(open_fds())
        for _ in range(50):
            once()
        gc.collect()
        assert threading.active_count() == threads
        assert len(open_fds()) == fds
    assert len(loops) == 51
    assert [ref for ref in loops + guests if ref() is not None] == []


@pytest.mark.parametrize("selector", ["default", "polling"])
@pytest.mark.parametrize("asleep", [True, False])
def test_an_interpreter_may_exit_with_a_guest(selector, asleep):
    """The thread that waits is ended before the interpreter goes: no hang, no abort."""
    program = f"""
        import asyncio, queue, sys, tideloop
        calls = queue.SimpleQueue()
        async def main():
            print("started", flush=True)
            await asyncio.sleep(3600 if {asleep} else 0.001)
        tideloop.guest(calls.put, print, main, loop_factory=lambda: tideloop.EventLoop("{selector}"))
        calls.get()()
        if not {asleep}:
            calls.get()()
        sys.exit(7)
    """
    child = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    # The short sleep may be over by the second step, and the guest with it.
    assert child.stdout.startswith("started\n")
    assert child.returncode == 7, child.stderr
    assert "Fatal" not in child.stderr
