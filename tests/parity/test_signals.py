"""Signal handlers, and ^C with asyncio.Runner.

What may end the process runs in a child; a signal is sent by a process to itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest

from tests.backends import deviates
from tests.peers import run_child, turns


class TestAdd:
    async def test_handler_is_called_with_its_arguments(self, loop):
        future = loop.create_future()
        loop.add_signal_handler(signal.SIGUSR1, future.set_result, "got it")
        os.kill(os.getpid(), signal.SIGUSR1)
        assert await future == "got it"
        assert loop.remove_signal_handler(signal.SIGUSR1)

    async def test_a_sleeping_loop_wakes(self, loop):
        asleep = threading.Event()
        future = loop.create_future()
        loop.add_signal_handler(signal.SIGUSR1, future.set_result, "got it")

        def send():
            asleep.wait()
            os.kill(os.getpid(), signal.SIGUSR1)

        thread = threading.Thread(target=send)
        thread.start()
        loop.call_soon(asleep.set)
        assert await future == "got it"
        thread.join()
        loop.remove_signal_handler(signal.SIGUSR1)

    async def test_handler_runs_as_a_callback_not_in_the_interrupted_one(self, loop):
        order = []
        done = loop.create_future()

        def handler():
            order.append("handler")
            assert asyncio.get_running_loop() is loop
            done.set_result(None)

        loop.add_signal_handler(signal.SIGUSR1, handler)
        os.kill(os.getpid(), signal.SIGUSR1)
        order.append("callback")
        await done
        assert order == ["callback", "handler"]
        loop.remove_signal_handler(signal.SIGUSR1)

    async def test_a_second_one_replaces_the_first(self, loop):
        seen = []
        done = loop.create_future()
        loop.add_signal_handler(signal.SIGUSR1, seen.append, "first")
        loop.add_signal_handler(signal.SIGUSR1, done.set_result, "second")
        os.kill(os.getpid(), signal.SIGUSR1)
        assert await done == "second"
        assert seen == []
        loop.remove_signal_handler(signal.SIGUSR1)

    async def test_several_signals_have_their_own(self, loop):
        one, two = loop.create_future(), loop.create_future()
        loop.add_signal_handler(signal.SIGUSR1, one.set_result, 1)
        loop.add_signal_handler(signal.SIGUSR2, two.set_result, 2)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert await two == 2
        assert not one.done()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert await one == 1
        loop.remove_signal_handler(signal.SIGUSR1)
        loop.remove_signal_handler(signal.SIGUSR2)

    async def test_one_that_raises_is_reported_and_stays(self, loop, handled):
        seen = []

        def handler():
            seen.append(1)
            raise LookupError("expected")

        loop.add_signal_handler(signal.SIGUSR1, handler)
        for count in (1, 2):
            os.kill(os.getpid(), signal.SIGUSR1)
            while len(seen) < count:
                await turns(1)
        assert [type(context["exception"]) for context in handled] == [LookupError] * 2
        loop.remove_signal_handler(signal.SIGUSR1)

    async def test_system_calls_are_restarted(self, loop):
        loop.add_signal_handler(signal.SIGUSR1, int)
        assert signal.getsignal(signal.SIGUSR1) not in (signal.SIG_DFL, signal.SIG_IGN, None)
        loop.remove_signal_handler(signal.SIGUSR1)

    @deviates("uvloop", "keeps SIGCHLD for itself")
    async def test_child_exits_may_be_watched(self, loop):
        loop.add_signal_handler(signal.SIGCHLD, int)
        assert loop.remove_signal_handler(signal.SIGCHLD)


class TestRemove:
    async def test_tells_whether_there_was_one(self, loop):
        assert loop.remove_signal_handler(signal.SIGUSR1) is False
        loop.add_signal_handler(signal.SIGUSR1, int)
        assert loop.remove_signal_handler(signal.SIGUSR1) is True
        assert loop.remove_signal_handler(signal.SIGUSR1) is False

    async def test_restores_the_default(self, loop):
        loop.add_signal_handler(signal.SIGUSR1, int)
        loop.add_signal_handler(signal.SIGINT, int)
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        loop.remove_signal_handler(signal.SIGUSR1)
        loop.remove_signal_handler(signal.SIGINT)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    @deviates("uvloop", "does so when it stops, and only if it ran")
    def test_close_removes_all(self, loop):
        loop.add_signal_handler(signal.SIGUSR1, int)
        loop.add_signal_handler(signal.SIGUSR2, int)
        loop.close()
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL

    async def test_a_pending_one_is_not_called_any_more(self, loop):
        seen = []
        loop.add_signal_handler(signal.SIGUSR1, seen.append, 1)
        loop.remove_signal_handler(signal.SIGUSR1)
        loop.add_signal_handler(signal.SIGUSR1, seen.append, 2)
        os.kill(os.getpid(), signal.SIGUSR1)
        while not seen:
            await turns(1)
        assert seen == [2]
        loop.remove_signal_handler(signal.SIGUSR1)


class TestRefused:
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
    def test_signals_that_cannot_be_caught(self, loop, number):
        with pytest.raises(RuntimeError, match=f"sig {int(number)} cannot be caught"):
            loop.add_signal_handler(number, int)

    @pytest.mark.parametrize("number", [0, -1, 65, 1000])
    def test_numbers_that_are_no_signals(self, loop, number):
        with pytest.raises(ValueError):  # noqa: PT011
            loop.add_signal_handler(number, int)
        with pytest.raises(ValueError):  # noqa: PT011
            loop.remove_signal_handler(number)

    @pytest.mark.parametrize("what", ["SIGINT", 1.5, None])
    def test_what_is_no_number(self, loop, what):
        with pytest.raises(TypeError):
            loop.add_signal_handler(what, int)

    def test_coroutines(self, loop):
        async def handler():
            pass

        with pytest.raises(TypeError, match="coroutines cannot be used with add_signal_handler"):
            loop.add_signal_handler(signal.SIGUSR1, handler)
        coroutine = handler()
        with pytest.raises(TypeError, match="coroutines cannot be used with add_signal_handler"):
            loop.add_signal_handler(signal.SIGUSR1, coroutine)
        coroutine.close()

    def test_another_thread(self, backend):
        errors = []

        def run():
            loop = backend.new_event_loop()
            try:
                loop.add_signal_handler(signal.SIGUSR1, int)
            except (RuntimeError, ValueError) as exc:
                errors.append(exc)
            finally:
                loop.close()

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert len(errors) == 1
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


class TestPythonHandlers:
    async def test_a_plain_one_may_wake_the_loop(self, loop):
        future = loop.create_future()
        before = signal.signal(signal.SIGUSR1, lambda *args: loop.call_soon_threadsafe(future.set_result, "got it"))
        thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
        loop.call_soon(thread.start)
        assert await future == "got it"
        thread.join()
        signal.signal(signal.SIGUSR1, before)


INTERRUPTED = """
async def main():
    os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        print("cancelled")
        raise
    finally:
        print("cleaned up")

try:
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        runner.run(main())
except KeyboardInterrupt:
    print("interrupted")
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""

INTERRUPTED_ASLEEP = """
async def main():
    loop = asyncio.get_running_loop()
    thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
    loop.call_soon(thread.start)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        print("cancelled")
        raise

try:
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        runner.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""

INTERRUPTED_TWICE = """
async def main():
    os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        print("cancelled")
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

try:
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        runner.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""

INTERRUPTED_WITHOUT_RUNNER = """
loop = backend.new_event_loop()
thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
loop.call_soon(thread.start)
try:
    loop.run_forever()
except KeyboardInterrupt:
    print("interrupted")
thread.join()
print(loop.run_until_complete(asyncio.sleep(0, "alive")))
loop.close()
"""

IGNORED = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
async def main():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10):
        await asyncio.sleep(0)
    return "ignored"
with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
    print(runner.run(main()))
"""

UNCAUGHT = """
async def main():
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()
with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
    runner.run(main())
"""


class TestInterrupt:
    @pytest.mark.parametrize(
        ("source", "output"),
        [
            (INTERRUPTED, ["cancelled", "cleaned up", "interrupted", "True"]),
            (INTERRUPTED_ASLEEP, ["cancelled", "interrupted"]),
            (INTERRUPTED_TWICE, ["cancelled", "interrupted"]),
            (INTERRUPTED_WITHOUT_RUNNER, ["interrupted", "alive"]),
            (IGNORED, ["ignored"]),
        ],
        ids=["runner", "asleep", "twice", "run_forever", "ignored"],
    )
    def test_ends_the_main_task(self, backend, source, output):
        child = run_child(backend, source)
        assert child.stdout.split("\n")[:-1] == output, child.stderr
        assert child.returncode == 0, child.stderr

    def test_uncaught_it_ends_the_process_as_usual(self, backend):
        child = run_child(backend, UNCAUGHT)
        assert child.returncode == -signal.SIGINT
        assert child.stderr.rstrip().endswith("KeyboardInterrupt")
