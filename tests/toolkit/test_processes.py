"""Child processes: output of any size and shape, whole trees ended, nothing that hangs; real children on real loops."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys

import pytest
import tideloop
from tideloop import Capture, Process, run_process

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sh, cat and process groups")

MIB = 1 << 20
FOREVER = "exec sleep 1000"


def is_gone(pid):
    """Whether a process has ended; one that nobody has reaped yet has."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def gone(*pids):
    """Wait until children of our children have ended, whom no event tells of."""
    while not all(map(is_gone, pids)):  # noqa: ASYNC110
        await asyncio.sleep(0.005)


class TestRun:
    async def test_what_is_left(self, loop):
        result = await run_process(["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert (result.returncode, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
        assert (result.ok, result.text) == (False, "out\n")
        assert result.args == ("sh", "-c", "echo out; echo err >&2; exit 3")
        assert result.duration > 0
        assert is_gone(result.pid)

    async def test_check_names_the_command_and_its_last_words(self, loop):
        with pytest.raises(tideloop.ProcessError) as caught:
            await run_process("echo first >&2; echo last >&2; exit 7", shell=True, check=True)
        assert str(caught.value).endswith("exit 7' ended with exit status 7: last")
        assert caught.value.result.returncode == 7
        with pytest.raises(tideloop.ProcessError, match=r"was killed by SIGKILL$"):
            await run_process("kill -9 $$", shell=True, check=True)
        assert (await run_process(["true"], check=True)).ok

    async def test_a_program_that_is_not_there(self, loop):
        with pytest.raises(FileNotFoundError):
            await run_process(["/nowhere/at/all"])

    async def test_options(self, loop, tmp_path):
        result = await run_process(
            "pwd; echo $WORD; echo err >&2", shell=True, cwd=tmp_path, env={"WORD": "x"}, stderr="stdout"
        )
        assert result.stdout == f"{tmp_path}\nx\nerr\n".encode()

    @pytest.mark.parametrize(
        ("cmd", "options", "error"),
        [
            ("echo", {}, TypeError),
            ([], {}, ValueError),
            (["sh"], {"shell": True}, TypeError),
            (["sh"], {"timeout": -1}, ValueError),
            (["sh"], {"grace": "1"}, ValueError),
            (["sh"], {"capture": -1}, ValueError),
            (["sh"], {"capture": True}, ValueError),
            (["sh"], {"capture": Capture(1, "middle")}, ValueError),
            (["sh"], {"stderr": "nowhere"}, ValueError),
            (["sh"], {"on_line": print, "max_line": 0}, ValueError),
        ],
    )
    async def test_bad_arguments_start_nothing(self, loop, cmd, options, error):
        with pytest.raises(error, match="must"):
            await run_process(cmd, **options)


class TestInput:
    async def test_bytes_and_iterables(self, loop):
        async def pieces():
            for _ in range(3):
                yield b"ab"

        data = bytes(range(256)) * 8192
        assert (await run_process(["cat"], input=data)).stdout == data
        assert (await run_process(["cat"], input=bytearray(b"x"))).stdout == b"x"
        assert (await run_process(["cat"], input=[b"1", b"2"])).stdout == b"12"
        assert (await run_process(["cat"], input=pieces())).stdout == b"ababab"
        assert (await run_process(["cat"])).stdout == b""

    async def test_a_child_that_does_not_read_it(self, loop):
        assert (await run_process(["true"], input=b"x" * MIB)).ok

    async def test_input_that_fails_ends_the_child(self, loop):
        def pieces():
            yield b"x"
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await run_process(f"cat >/dev/null; {FOREVER}", shell=True, input=pieces(), grace=0)

    @pytest.mark.limit(60)
    async def test_a_gibibyte_through_both_pipes(self, loop, backend):
        if backend.name != "tideloop":
            pytest.skip("takes seconds, and is the same code")
        block = b"\n" * 65_536
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = await run_process(["tee", "/dev/stderr"], input=(block for _ in range(16_384)), capture=1000)
        assert (len(result.stdout), result.stdout_dropped) == (1000, (1 << 30) - 1000)
        assert (len(result.stderr), result.stderr_dropped) == (1000, (1 << 30) - 1000)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


class TestCapture:
    async def test_either_end(self, loop):
        script = "for i in 0 1 2 3 4 5 6 7 8 9; do printf $i; done"
        tail = await run_process(script, shell=True, capture=4)
        assert (tail.stdout, tail.stdout_dropped) == (b"6789", 6)
        head = await run_process(script, shell=True, capture=Capture(4, "head"))
        assert (head.stdout, head.stdout_dropped) == (b"0123", 6)
        none = await run_process(script, shell=True, capture=None)
        assert (none.stdout, none.stdout_dropped) == (b"", 0)
        nothing = await run_process(script, shell=True, capture=0)
        assert (nothing.stdout, nothing.stdout_dropped) == (b"", 10)

    async def test_more_than_a_block(self, loop):
        data = b"".join(b"%07d\n" % number for number in range(50_000))
        result = await run_process(["cat"], input=data, capture=100_000)
        assert (result.stdout, result.stdout_dropped) == (data[-100_000:], len(data) - 100_000)
        result = await run_process(["cat"], input=data, capture=Capture(100_000, "head"))
        assert (result.stdout, result.stdout_dropped) == (data[:100_000], len(data) - 100_000)


class TestOnLine:
    async def test_lines_of_both_streams(self, loop):
        lines = []
        result = await run_process(
            "echo a; echo b; echo c >&2; printf d", shell=True, on_line=lambda *line: lines.append(line)
        )
        assert sorted(lines) == [("stderr", b"c\n"), ("stdout", b"a\n"), ("stdout", b"b\n"), ("stdout", b"d")]
        assert [line for name, line in lines if name == "stdout"] == [b"a\n", b"b\n", b"d"]
        assert result.stdout == b"a\nb\nd"

    async def test_one_that_raises_ends_the_child(self, loop):
        def on_line(name, line):
            raise ZeroDivisionError(line)

        with pytest.raises(ZeroDivisionError, match="x"):
            await run_process(f"echo x; {FOREVER}", shell=True, on_line=on_line, grace=0)

    async def test_a_last_line_that_raises(self, loop):
        def on_line(name, line):
            raise ZeroDivisionError(line)

        with pytest.raises(ZeroDivisionError, match="x"):
            await run_process("printf x", shell=True, on_line=on_line)


class TestEnding:
    async def test_timeout(self, loop):
        with pytest.raises(tideloop.ProcessTimeout, match=r"was not done in 0\.05 s and was ended") as caught:
            await run_process(FOREVER, shell=True, timeout=0.05)
        assert caught.value.result.returncode == -signal.SIGTERM
        assert isinstance(caught.value, TimeoutError)
        assert is_gone(caught.value.result.pid)

    async def test_cancelling_keeps_what_was_left(self, loop):
        came = asyncio.Event()
        task = asyncio.ensure_future(
            run_process(f"echo partial; {FOREVER}", shell=True, on_line=lambda *line: came.set())
        )
        await came.wait()
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_a_cancelled_one_tells_inside_of_the_task(self, loop):
        came = asyncio.Event()

        async def work():
            try:
                await run_process(f"echo partial; {FOREVER}", shell=True, on_line=lambda *line: came.set())
            except asyncio.CancelledError as error:
                return error.result

        task = asyncio.ensure_future(work())
        await came.wait()
        task.cancel()
        result = await task
        assert (result.stdout, result.returncode) == (b"partial\n", -signal.SIGTERM)

    async def test_the_whole_tree_goes(self, loop):
        # Each generation ignores SIGTERM, so it takes the second, impolite one.
        script = "trap '' TERM; (trap '' TERM; echo $$; sleep 1000 & echo $!; wait) & echo $!; wait"
        pids, three = [], asyncio.Event()

        def on_line(name, line):
            pids.append(int(line))
            if len(pids) == 3:
                three.set()

        task = asyncio.ensure_future(run_process(script, shell=True, on_line=on_line, grace=0.05))
        await three.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone(*pids)

    async def test_a_second_cancellation_does_not_wait(self, loop):
        came = asyncio.Event()
        task = asyncio.ensure_future(
            run_process(
                "trap '' TERM; echo x; while :; do sleep 1000; done",
                shell=True,
                grace=1000,
                on_line=lambda *line: came.set(),
            )
        )
        await came.wait()
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_somebody_who_holds_the_pipe(self, loop):
        # The grandchild has a session of its own, as a daemon has, so that no signal to the group reaches it.
        result = await run_process("setsid sleep 1000 & echo $!", shell=True, linger=0.05)
        try:
            assert result.returncode == 0
        finally:
            os.kill(int(result.stdout), signal.SIGKILL)

    async def test_output_after_the_end_of_the_child(self, loop):
        result = await run_process("(read x; echo late) </dev/null & exit 4", shell=True)
        assert (result.returncode, result.stdout) == (4, b"late\n")


class TestLines:
    async def test_any_length(self, loop):
        async with Process(["cat"]) as process:
            await process.write(b"short\n" + b"x" * 25 + b"\nend")
            process.close_stdin()
            lines = [line async for name, line in process.lines(max_line=10)]
        assert lines == [b"short\n", b"x" * 10, b"x" * 10, b"xxxxx\n", b"end"]
        assert process.returncode == 0

    async def test_a_line_of_megabytes(self, loop):
        async with Process(["head", "-c", str(5 * MIB), "/dev/zero"], stdin="null") as process:
            lines = [line async for name, line in process.lines()]
        assert [len(line) for line in lines] == [MIB] * 5

    async def test_a_slow_reader_makes_the_child_wait(self, loop):
        async with Process("seq 1000000", shell=True, stdin="null") as process:
            lines = process.lines()
            first = await anext(lines)
            assert first == ("stdout", b"1\n")
            for _ in range(100):
                await asyncio.sleep(0.001)
            assert process.stats().unread <= 600_000
            assert process.returncode is None
            numbers = [int(line) async for name, line in lines]
        assert numbers == list(range(2, 1_000_001))

    async def test_who_breaks_out_holds_nobody(self, loop):
        async with Process("seq 1000000; echo done >&2", shell=True, stdin="null", capture=100) as process:
            async for _, line in process.lines():
                if line == b"17\n":
                    break
        assert process.returncode == 0
        assert process.result.stderr == b"done\n"

    async def test_going_on_after_a_break(self, loop):
        async with Process("seq 10", shell=True, stdin="null") as process:
            async for _, line in process.lines():
                if line == b"4\n":
                    break
            rest = [int(line) async for _, line in process.lines()]
        assert rest == [5, 6, 7, 8, 9, 10]

    @pytest.mark.parametrize("writing", [False, True])
    async def test_a_reader_whose_task_ends_holds_nobody(self, loop, writing):
        """Also if what he has read from is kept."""
        leave = asyncio.Event()

        async def read(lines):
            await anext(lines)
            await leave.wait()

        async with Process("seq 1000000; cat", shell=True, grace=0) as process:
            lines = process.lines()
            assert await anext(lines) == ("stdout", b"1\n")
            reading = asyncio.ensure_future(read(lines))
            if not writing:
                process.close_stdin()
            waiting = asyncio.ensure_future(process.write(b"x" * (8 * MIB)) if writing else process.wait())
            await asyncio.sleep(0)
            while not process._output.paused:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert not waiting.done()
            leave.set()
            await asyncio.wait([waiting, reading])
            assert isinstance(waiting.exception(), RuntimeError if writing else type(None))

    async def test_one_at_a_time(self, loop):
        async with Process("echo x", shell=True) as process:
            lines = process.lines()
            with pytest.raises(RuntimeError, match=r"somebody reads the lines of .* already"):
                process.lines()
            with pytest.raises(ValueError, match="max_line must be"):
                process.lines(max_line=0)
            del lines

    async def test_too_late(self, loop):
        async with Process("echo x", shell=True) as process:
            await process.wait()
            with pytest.raises(RuntimeError, match="comes too late"):
                process.lines()


class TestWrite:
    async def test_a_conversation(self, loop):
        async with Process(["cat"], name="echo") as process:
            lines = process.lines()
            for number in range(10):
                await process.write(b"%d\n" % number)
                assert await anext(lines) == ("stdout", b"%d\n" % number)
            assert "'echo' 'cat' pid=" in repr(process)
        assert repr(process).endswith("ended with exit status 0>")

    async def test_a_child_that_waits_for_its_reader(self, loop):
        async with Process(["cat"], grace=0) as process:
            with pytest.raises(RuntimeError, match="waits for its output to be read"):
                await process.write(b"x" * (8 * MIB))

    async def test_with_a_capture_nobody_waits(self, loop):
        async with Process(["cat"], capture=10) as process:
            await process.write(b"x" * (8 * MIB))
        assert process.result.stdout == b"x" * 10

    async def test_no_input_any_more(self, loop):
        async with Process("exec <&-; echo closed; read x </dev/null", shell=True) as process:
            await anext(process.lines())
            with pytest.raises(BrokenPipeError, match="does not read its input"):
                await process.write(b"x" * (8 * MIB))
        async with Process(["cat"]) as process:
            process.close_stdin()
            process.close_stdin()
            with pytest.raises(RuntimeError, match="was closed"):
                await process.write(b"x")
        async with Process(["cat"], stdin="null") as process:
            with pytest.raises(RuntimeError, match="has no pipe for its input"):
                await process.write(b"x")


class TestProcess:
    async def test_signals_reach_the_tree(self, loop):
        async with Process(
            "trap 'echo got' USR1; echo ready; while :; do sleep 0.01; done 2>/dev/null", shell=True, grace=0
        ) as process:
            lines = process.lines()
            await anext(lines)
            process.signal(signal.SIGUSR1)
            assert await anext(lines) == ("stdout", b"got\n")
            process.kill()
            assert await process.wait() == -signal.SIGKILL
            process.terminate()

    async def test_an_exception_in_the_block_ends_it(self, loop):
        with pytest.raises(ZeroDivisionError):
            async with Process(FOREVER, shell=True) as process:
                raise ZeroDivisionError
        assert process.returncode == -signal.SIGTERM

    async def test_stop(self, loop):
        async with Process(FOREVER, shell=True) as process:
            await process.stop()
            assert process.returncode == -signal.SIGTERM
            await process.stop()
        async with Process(FOREVER, shell=True) as process:
            await process.stop(grace=0)
            assert process.returncode == -signal.SIGKILL

    async def test_entered_once(self, loop):
        process = Process(["true"])
        assert repr(process) == "<tideloop.Process 'true' not started>"
        with pytest.raises(RuntimeError, match="not started"):
            _ = process.result
        with pytest.raises(RuntimeError, match="not started"):
            process.kill()
        await process.stop()
        async with process:
            pass
        with pytest.raises(RuntimeError, match="entered before"):
            await process.__aenter__()

    async def test_cancelling_wait_leaves_it_alone(self, loop):
        async with Process(["cat"]) as process:
            waiting = asyncio.ensure_future(process.wait())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            assert process.returncode is None

    async def test_stats(self, loop):
        async with Process("printf 12345", shell=True, capture=3) as process:
            await process.wait()
        assert process.stats() == (process.pid, 0, 5, 0, 2)
