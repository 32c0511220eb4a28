"""Children that do not end as one would like, and those who wait for them; real children on real loops."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest
import tideloop
from tideloop import Process, run_process

from tests.toolkit.test_processes import FOREVER, MIB, gone

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sh and process groups")


def daemon(body):
    """A child that ends at once, and the Python code that somebody goes on with whom it leaves in his own session."""
    code = f"import os, sys, time\nif os.fork():\n    os._exit(0)\nos.setsid()\n{body}"
    return [sys.executable, "-S", "-c", code]


class TestDaemons:
    async def test_one_that_goes_on_writing_is_left_when_the_time_is_over(self, loop):
        pids = []
        chatty = daemon("while True:\n    print(os.getpid(), flush=True)\n    time.sleep(0.005)")
        with pytest.raises(tideloop.ProcessTimeout):
            await run_process(
                chatty, timeout=0.3, grace=0, linger=0.05, on_line=lambda name, line: pids.append(int(line))
            )
        # Nobody reads any more, of which it dies.
        await gone(pids[0])

    async def test_one_that_holds_the_input_and_does_not_read(self, loop):
        holder = daemon("print(os.getpid(), flush=True)\nos.close(1)\nos.close(2)\ntime.sleep(1000)")
        result = await run_process(holder, input=b"x" * MIB, linger=0.05)
        assert result.ok
        os.kill(int(result.stdout), signal.SIGKILL)


class TestTheUnkillable:
    """A program of another user's is one; here the system refuses our signals to every group."""

    @pytest.fixture(autouse=True)
    def refusals(self, monkeypatch):
        def refuse(pid, number):
            raise PermissionError

        monkeypatch.setattr(os, "killpg", refuse)

    async def test_is_logged_and_left_alone(self, loop, caplog):
        async with Process(FOREVER, shell=True, grace=0.01, patience=0.02) as process:
            await process.stop()
            assert process.returncode is None
            assert "could not be ended, and is left alone" in caplog.text
            # The loop still knows it, and had it ended as well when its pipes were closed.
            assert await process.wait() == -signal.SIGKILL

    async def test_cannot_hold_whoever_is_cancelled(self, loop):
        process = Process(FOREVER, shell=True, grace=1000, patience=0.02)

        started = asyncio.Event()

        async def work():
            async with process:
                started.set()
                await asyncio.get_running_loop().create_future()

        task = asyncio.ensure_future(work())
        await started.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await process.wait()

    async def test_a_timeout_is_one(self, loop, monkeypatch):
        made = []

        class Known(Process):
            async def __aenter__(self):
                made.append(self)
                return await super().__aenter__()

        monkeypatch.setattr("tideloop.process_runs.Process", Known)
        with pytest.raises(tideloop.ProcessTimeout, match=r"was not done in 0\.02 s and could not be ended") as caught:
            await run_process(FOREVER, shell=True, timeout=0.02, grace=0.01, patience=0.02)
        assert caught.value.result.returncode is None
        await made[0].wait()


class TestReaders:
    async def test_one_at_a_time(self, loop):
        async with Process(["cat"]) as process:
            lines = process.lines()
            first = asyncio.ensure_future(anext(lines))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match=r"another task waits for a line of .* already"):
                await anext(lines)
            await process.write(b"1\n2\n")
            assert await first == ("stdout", b"1\n")
            assert await anext(lines) == ("stdout", b"2\n")
            waiting = asyncio.ensure_future(anext(lines))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            process.close_stdin()
            assert [line async for line in lines] == []

    async def test_in_another_loop(self, loop):
        async with Process(["true"]) as process:
            await process.wait()

        async def elsewhere():
            for use in (process.wait, process.stop, lambda: process.write(b"x")):
                with pytest.raises(RuntimeError, match=r"'true' .* belongs to another event loop"):
                    await use()
            with pytest.raises(RuntimeError, match="belongs to another event loop"):
                process.lines()

        await asyncio.to_thread(asyncio.run, elsewhere())

    async def test_before_the_start(self, loop):
        process = Process(["cat"])
        for use in (process.close_stdin, process.lines):
            with pytest.raises(RuntimeError, match="was not started"):
                use()
        for wait in (process.wait, lambda: process.write(b"x")):
            with pytest.raises(RuntimeError, match="was not started"):
                await wait()

    async def test_one_who_stops_while_another_waits(self, loop):
        async with Process("seq 1000000", shell=True, stdin="null") as process:

            async def read_one():
                async for line in process.lines():
                    return line

            reading = asyncio.ensure_future(read_one())
            await asyncio.sleep(0)
            waiting = asyncio.ensure_future(process.wait())
            assert await reading == ("stdout", b"1\n")
            assert await waiting == 0

    async def test_one_who_writes_to_a_child_that_waits_for_him(self, loop):
        async with Process(["cat"], grace=0) as process:
            await process.write(b"x\n")
            lines = process.lines()
            await anext(lines)
            with pytest.raises(RuntimeError, match="waits for its output to be read"):
                await process.write(b"x" * (8 * MIB))


class TestLimits:
    async def test_a_start_that_is_cancelled_leaves_nobody(self, loop, tmp_path):
        started = tmp_path / "pids"
        for count in range(8):
            task = asyncio.ensure_future(
                run_process(f"sleep 1000 & echo $! $$ >>{started}; wait", shell=True, grace=0, input=b"x")
            )
            for _ in range(count):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        pids = map(int, started.read_text().split()) if started.exists() else ()
        await gone(*pids)

    async def test_a_deadline_keeps_what_was_left(self, loop):
        with pytest.raises(tideloop.DeadlineExceeded) as caught, tideloop.deadline(0.2):
            await run_process(f"echo partial; {FOREVER}", shell=True)
        result = caught.value.__cause__.result
        assert (result.stdout, result.returncode) == (b"partial\n", -signal.SIGTERM)

    async def test_who_has_inherited_a_deadline_waits_no_longer(self, loop):
        async with tideloop.Process(["cat"]) as process:

            async def read():
                return await anext(aiter(process.lines()))

            with tideloop.deadline(0.1):
                waits = asyncio.ensure_future(read()), asyncio.ensure_future(process.wait())
            for wait in waits:
                with pytest.raises(tideloop.DeadlineExceeded, match=r"Process.*cat"):
                    await wait
            assert process.returncode is None
            # Neither is in the way of who comes next.
            await process.write(b"a line\n")
            process.close_stdin()
            assert await process.wait() == 0
