"""The end of a program: what is called, in which order, for how long; with real signals to real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tideloop

PACKAGE = Path(tideloop.__file__).parent.parent


class TestWithoutSignals:
    def test_what_was_registered_is_called_in_order(self):
        called = []

        async def last():
            await asyncio.sleep(0)
            called.append("last")

        async def main():
            tideloop.on_shutdown(last, order=10)
            tideloop.on_shutdown(lambda: called.append("one"))
            tideloop.on_shutdown(lambda: called.append("two"))
            tideloop.on_shutdown(lambda: called.append("first"), order=-1)
            take_back = tideloop.on_shutdown(lambda: called.append("never"))
            take_back()
            take_back()
            called.append("main")
            return 7

        assert tideloop.run(main()) == 7
        assert called == ["main", "first", "two", "one", "last"]

    def test_one_that_raises_holds_nobody_up(self, caplog):
        called = []

        def bad():
            raise ZeroDivisionError

        async def main():
            tideloop.on_shutdown(lambda: called.append("good"), order=1)
            tideloop.on_shutdown(bad)
            raise KeyError

        with pytest.raises(KeyError):
            tideloop.run(main())
        assert called == ["good"]
        (record,) = caplog.records
        assert isinstance(record.exc_info[1], ZeroDivisionError)

    def test_one_that_awaits_what_was_cancelled(self, caplog):
        called = []

        async def main():
            task = asyncio.ensure_future(asyncio.get_running_loop().create_future())

            async def stop():
                task.cancel()
                await task

            tideloop.on_shutdown(lambda: called.append("after"), order=1)
            tideloop.on_shutdown(stop)

        tideloop.run(main())
        assert called == ["after"]
        (record,) = caplog.records
        assert isinstance(record.exc_info[1], asyncio.CancelledError)

    def test_one_that_registers_another(self):
        called = []

        async def main():
            tideloop.on_shutdown(lambda: tideloop.on_shutdown(lambda: called.append("late")))

        tideloop.run(main())
        assert called == ["late"]

    def test_one_that_takes_too_long(self, caplog):
        called = []

        async def main():
            tideloop.on_shutdown(asyncio.get_running_loop().create_future, order=1)
            tideloop.on_shutdown(lambda: called.append("after"), order=2)

        tideloop.run(main(), grace=0)
        assert called == ["after"]
        assert "was not done when the grace of the shutdown was over" in caplog.text

    def test_stopping(self):
        async def main():
            waiting = asyncio.ensure_future(tideloop.stopping())
            cancelled = asyncio.ensure_future(tideloop.stopping())
            await asyncio.sleep(0)
            cancelled.cancel()
            assert not waiting.done()
            tideloop.request_shutdown()
            tideloop.request_shutdown()
            await waiting
            await tideloop.stopping()

        tideloop.run(main())

    def test_asked_for_by_the_program_itself(self):
        """No signal is to blame, so nothing is raised."""
        called = []

        async def main(heeds):
            tideloop.on_shutdown(lambda: called.append("closing"))
            tideloop.request_shutdown()
            if heeds:
                await tideloop.stopping()
                return "in peace"
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                called.append("cancelled")

        assert tideloop.run(main(False), signals=("TERM",)) is None
        assert called == ["closing", "cancelled"]
        assert tideloop.run(main(True), signals=("TERM",)) == "in peace"

        async def cancels_itself():
            asyncio.current_task().cancel()
            await asyncio.sleep(0)

        with pytest.raises(asyncio.CancelledError):
            tideloop.run(cancels_itself(), signals=("TERM",))

    def test_on_any_loop(self):
        async def main():
            tideloop.on_shutdown(print)
            tideloop.request_shutdown()
            await tideloop.stopping()

        asyncio.run(main())

    def test_bad_arguments(self):
        called = []

        async def main():
            with pytest.raises(TypeError, match="fn must be a function"):
                tideloop.on_shutdown(3)
            for order in (None, "1", float("nan")):
                with pytest.raises(TypeError, match=f"order must be a number, not {order!r}"):
                    tideloop.on_shutdown(called.append, order=order)

        tideloop.run(main())
        assert not called
        with pytest.raises(RuntimeError):
            tideloop.on_shutdown(print)
        with pytest.raises(ValueError, match="'WINK' is none"):
            tideloop.run(main(), signals=["WINK"])
        with pytest.raises(ValueError, match="999 is none"):
            tideloop.run(main(), signals=[999])
        with pytest.raises(TypeError, match="must be a sequence of names"):
            tideloop.run(main(), signals="INT")
        with pytest.raises(ValueError, match="grace must be"):
            tideloop.run(main(), grace=-1)
        # asyncio.Runner's own error, which 3.14 has changed.
        with pytest.raises((TypeError, ValueError), match="coroutine"):
            tideloop.run(3, signals=["INT"])


def test_signals_are_handled_as_before_in_the_end():
    async def main():
        assert signal.getsignal(signal.SIGTERM) is not handler

    def handler(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, handler), signal.getsignal(signal.SIGINT)
    try:
        tideloop.run(main(), signals=("TERM", "INT", "TERM"))
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGINT) is before[1]
    finally:
        signal.signal(signal.SIGTERM, before[0])


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_signal_that_cannot_be_handled_starts_nothing():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    async def main():
        raise AssertionError

    coroutine = main()
    with pytest.raises((OSError, RuntimeError, ValueError)):
        tideloop.run(coroutine, signals=("TERM", "KILL"))
    assert coroutine.cr_frame is None
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals to another process")
class TestSignals:
    def child(self, code, *events):
        """Run a program; send it a signal whenever it prints the next of the events. Returns exit status and output."""
        program = f"import asyncio, os, signal, sys, tideloop\ndef say(*words): print(*words, flush=True)\n{code}\n"
        child = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        )
        said, waiting = [], list(events)
        for line in child.stdout:
            said.append(line.strip())
            if waiting and waiting[0][0] == said[-1]:
                child.send_signal(waiting.pop(0)[1])
        child.stdout.close()
        return child.wait(), said

    def test_the_first_one_calls_and_cancels(self):
        code = """
async def main():
    tideloop.on_shutdown(lambda: say("closing"))
    say("up")
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        say("cancelled")
tideloop.run(main(), signals=("INT", "TERM"))
"""
        assert self.child(code, ("up", signal.SIGTERM)) == (128 + signal.SIGTERM, ["up", "closing", "cancelled"])

    def test_interrupt_is_keyboard_interrupt(self):
        code = """
async def main():
    say("up")
    await asyncio.get_running_loop().create_future()
try:
    tideloop.run(main(), signals=["SIGINT"])
except KeyboardInterrupt:
    say("interrupted", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
        assert self.child(code, ("up", signal.SIGINT)) == (0, ["up", "interrupted True"])

    def test_main_that_heeds_it_ends_by_itself(self):
        code = """
async def main():
    say("up")
    await tideloop.stopping()
    await asyncio.sleep(0.01)
    return "in peace"
say(tideloop.run(main(), signals=("TERM",)))
"""
        assert self.child(code, ("up", signal.SIGTERM)) == (0, ["up", "in peace"])

    def test_until_the_grace_is_over(self):
        code = """
async def main():
    say("up")
    await tideloop.stopping()
    await asyncio.get_running_loop().create_future()
tideloop.run(main(), signals=("TERM",), grace=0.05)
"""
        assert self.child(code, ("up", signal.SIGTERM)) == (128 + signal.SIGTERM, ["up"])

    def test_the_second_one_cancels(self):
        code = """
async def slowly():
    say("draining")
    await asyncio.get_running_loop().create_future()
async def main():
    tideloop.on_shutdown(slowly)
    say("up")
    await asyncio.get_running_loop().create_future()
tideloop.run(main(), signals=("INT", "TERM"), grace=1000)
"""
        ended = self.child(code, ("up", signal.SIGTERM), ("draining", signal.SIGINT))
        assert ended == (128 + signal.SIGTERM, ["up", "draining"])

    def test_the_third_one_leaves(self):
        code = """
async def main():
    say("up")
    while True:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            say("no")
tideloop.run(main(), signals=("TERM",), grace=1000)
"""
        events = [("up", signal.SIGTERM), ("no", signal.SIGTERM), ("no", signal.SIGTERM)]
        assert self.child(code, *events) == (128 + signal.SIGTERM, ["up", "no", "no"])

    def test_the_first_one_has_what_is_in_the_background_end_and_the_second_cancels_it(self):
        code = """
async def work(name):
    try:
        say(name)
        await signalled.wait()
        await asyncio.sleep(0.02 if name == "first" else 1000)
        say("done")
    except asyncio.CancelledError:
        say("cancelled")
        raise
async def main():
    global signalled
    signalled = asyncio.Event()
    tideloop.on_shutdown(lambda: signalled.set())
    async with tideloop.Background() as background:
        background.spawn(work, sys.argv[1])
        await asyncio.get_running_loop().create_future()
tideloop.run(main(), signals=("TERM",), grace=1000)
"""
        first = f"sys.argv[1:] = ['first']\n{code}"
        assert self.child(first, ("first", signal.SIGTERM)) == (128 + signal.SIGTERM, ["first", "done"])
        second = f"sys.argv[1:] = ['second']\n{code}".replace("signalled.set())", "(signalled.set(), say('draining')))")
        events = [("second", signal.SIGTERM), ("draining", signal.SIGTERM)]
        assert self.child(second, *events) == (128 + signal.SIGTERM, ["second", "draining", "cancelled"])

    def test_a_background_drains(self):
        code = """
async def work():
    say("working")
    await asyncio.sleep(0.02)
    say("done")
async def main():
    async with tideloop.Background() as background:
        background.spawn(work)
        await tideloop.stopping()
tideloop.run(main(), signals=("TERM",))
"""
        assert self.child(code, ("working", signal.SIGTERM)) == (0, ["working", "done"])
