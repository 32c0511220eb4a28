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


class TestReaders:
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
