"""Child processes: subprocess_exec and subprocess_shell with protocols, create_subprocess_* with streams."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from tests.backends import deviates
from tests.peers import settled, turns

PIPE, DEVNULL, STDOUT = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT
BIG = 4 << 20


class Child(asyncio.SubprocessProtocol):
    """Writes down what happens to a child; `exited` and `lost` are futures."""

    def __init__(self, loop):
        self.events = []
        self.output = {1: bytearray(), 2: bytearray()}
        self.transport = None
        self.exited = loop.create_future()
        self.lost = loop.create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.events.append("made")

    def pipe_data_received(self, fd, data):
        self.output[fd] += data

    def pipe_connection_lost(self, fd, exc):
        self.events.append(f"pipe {fd} lost")

    def process_exited(self):
        self.events.append("exited")
        self.exited.set_result(self.transport.get_returncode())

    def connection_lost(self, exc):
        self.events.append("lost")
        self.lost.set_result(exc)


async def spawned(loop, *args, **options):
    options = {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": DEVNULL} | options
    _, child = await loop.subprocess_exec(lambda: Child(loop), *args, **options)
    return child


class TestProtocol:
    async def test_output_and_exit(self, loop, backend):
        if backend.name == "uvloop":
            pytest.skip("may lose the connection before its pipes")
        child = await spawned(loop, "sh", "-c", "echo out; echo err >&2; exit 3", stdout=PIPE, stderr=PIPE)
        assert await child.lost is None
        assert child.transport.get_returncode() == 3
        assert child.output == {1: b"out\n", 2: b"err\n"}
        assert child.events[0] == "made"
        assert child.events[-1] == "lost"
        assert {"exited", "pipe 1 lost", "pipe 2 lost"} <= set(child.events)
        child.transport.close()

    async def test_shell(self, loop):
        _, child = await loop.subprocess_shell(lambda: Child(loop), "echo $((1 + 2)) && exit 5", stdin=DEVNULL)
        await child.lost
        assert child.output[1] == b"3\n"
        assert child.transport.get_returncode() == 5
        child.transport.close()

    async def test_input(self, loop):
        child = await spawned(loop, "cat", stdin=PIPE, stdout=PIPE)
        pipe = child.transport.get_pipe_transport(0)
        pipe.write(b"hello")
        pipe.close()
        await child.lost
        assert child.output[1] == b"hello"
        child.transport.close()

    async def test_what_the_transport_knows(self, loop):
        child = await spawned(loop, "cat", stdin=PIPE)
        transport = child.transport
        assert transport.get_returncode() is None
        assert os.getpgid(transport.get_pid()) == os.getpgid(0)
        assert transport.get_pipe_transport(1) is None
        assert transport.get_pipe_transport(5) is None
        assert not transport.is_closing()
        assert transport.get_protocol() is child
        transport.get_pipe_transport(0).close()
        assert await child.exited == 0
        await child.lost
        transport.close()

    async def test_exit_before_the_pipes_are_drained(self, loop, backend):
        """What the child has written is delivered, and only then the connection is lost."""
        if backend.name == "uvloop":
            pytest.skip("may lose the connection before its pipes")
        child = await spawned(loop, "sh", "-c", "head -c 60000 /dev/zero", stdout=PIPE)
        await child.lost
        assert len(child.output[1]) == 60000
        assert child.events.index("pipe 1 lost") < child.events.index("lost")
        child.transport.close()

    async def test_a_grandchild_that_keeps_the_pipe(self, loop, backend):
        """The child has exited; its output ends when the last holder of the pipe does."""
        if backend.name == "uvloop":
            pytest.skip("may lose the connection before its pipes")
        read_end, write_end = os.pipe()
        child = await spawned(
            loop, "sh", "-c", f"(read line; echo late) < /dev/fd/{read_end} & exit 0", stdout=PIPE, pass_fds=[read_end]
        )
        os.close(read_end)
        assert await child.exited == 0
        await settled(loop)
        assert not child.lost.done()
        os.write(write_end, b"go\n")
        os.close(write_end)
        await child.lost
        assert child.output[1] == b"late\n"
        child.transport.close()

    @pytest.mark.parametrize(("name", "number"), [("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)])
    async def test_ended_by_a_signal(self, loop, name, number):
        child = await spawned(loop, "cat", stdin=PIPE)
        getattr(child.transport, name)()
        assert await child.exited == -number
        await child.lost
        child.transport.close()

    async def test_send_signal(self, loop):
        child = await spawned(
            loop,
            "sh",
            "-c",
            "trap 'echo caught; exit 7' USR1; echo ready; while :; do read x; done",
            stdin=PIPE,
            stdout=PIPE,
        )
        while child.output[1] != b"ready\n":
            await settled(loop, 1)
        child.transport.send_signal(signal.SIGUSR1)
        child.transport.get_pipe_transport(0).close()
        assert await child.exited == 7
        await child.lost
        assert child.output[1] == b"ready\ncaught\n"
        child.transport.close()

    @deviates("uvloop", "does not tell the signal")
    async def test_close_kills(self, loop):
        child = await spawned(loop, "cat", stdin=PIPE, stdout=PIPE)
        child.transport.close()
        assert child.transport.is_closing()
        await child.lost
        assert child.transport.get_returncode() == -signal.SIGKILL

    @pytest.mark.parametrize("name", ["terminate", "kill"])
    async def test_signals_after_the_end(self, loop, name):
        child = await spawned(loop, "true")
        await child.lost
        with pytest.raises(ProcessLookupError):
            getattr(child.transport, name)()
        child.transport.close()

    async def test_signals_that_cross_the_exit(self, loop, backend):
        """The child ends while it is signalled: its exit status survives, whoever comes first."""
        if backend.name == "asyncio" and sys.version_info < (3, 14):
            pytest.skip("Popen takes the exit status away, if it is fast enough")
        for _ in range(20):
            child = await spawned(loop, "sh", "-c", "exit 3", stdin=PIPE)
            while not child.lost.done():
                try:
                    child.transport.send_signal(signal.SIGCONT)
                except ProcessLookupError:
                    break
                await turns(1)
            await child.lost
            assert child.transport.get_returncode() == 3
            child.transport.close()


class TestArguments:
    async def test_no_such_program(self, loop):
        with pytest.raises(FileNotFoundError):
            await spawned(loop, "/nonexistent/program")

    async def test_no_such_directory(self, loop):
        with pytest.raises(FileNotFoundError):
            await spawned(loop, "true", cwd="/nonexistent")

    async def test_not_executable(self, loop, tmp_path):
        (tmp_path / "program").write_text("")
        with pytest.raises(PermissionError):
            await spawned(loop, str(tmp_path / "program"))

    @pytest.mark.parametrize(
        "options", [{"universal_newlines": True}, {"shell": True}, {"bufsize": 100}, {"text": True}]
    )
    async def test_options_of_popen_that_do_not_fit(self, loop, options):
        with pytest.raises(ValueError):  # noqa: PT011
            await spawned(loop, "true", **options)

    @pytest.mark.parametrize("args", [(), (5,)])
    async def test_what_is_no_program(self, loop, args):
        with pytest.raises(TypeError):
            await loop.subprocess_exec(lambda: Child(loop), *args)

    @deviates("uvloop", "another error")
    async def test_shell_takes_one_string(self, loop):
        with pytest.raises(ValueError, match="cmd must be a string"):
            await loop.subprocess_shell(lambda: Child(loop), ["true"])

    async def test_environment_and_directory(self, loop, tmp_path):
        child = await spawned(
            loop, "/bin/sh", "-c", 'echo "$NAME $PWD $HOME"', stdout=PIPE, env={"NAME": "value"}, cwd=tmp_path
        )
        await child.lost
        assert child.output[1] == f"value {tmp_path} \n".encode()
        child.transport.close()

    async def test_an_empty_environment(self, loop):
        child = await spawned(loop, "/usr/bin/env", stdout=PIPE, env={})
        await child.lost
        assert child.output[1] == b""
        child.transport.close()

    async def test_stderr_to_stdout(self, loop):
        child = await spawned(loop, "sh", "-c", "echo one; echo two >&2", stdout=PIPE, stderr=STDOUT)
        await child.lost
        assert child.output == {1: b"one\ntwo\n", 2: b""}
        child.transport.close()

    async def test_files_as_streams(self, loop, tmp_path):
        (tmp_path / "in").write_bytes(b"hello")
        with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
            child = await spawned(loop, "cat", stdin=source, stdout=sink)
            await child.lost
        assert (tmp_path / "out").read_bytes() == b"hello"
        child.transport.close()

    async def test_a_new_session(self, loop):
        child = await spawned(loop, "cat", stdin=PIPE, start_new_session=True)
        assert os.getsid(child.transport.get_pid()) == child.transport.get_pid()
        child.transport.kill()
        await child.lost
        child.transport.close()

    @deviates("uvloop", "leaves inheritable descriptors open in the child")
    async def test_only_the_descriptors_that_are_passed(self, loop):
        read_end, write_end = os.pipe()
        os.set_inheritable(read_end, True)
        child = await spawned(
            loop,
            "sh",
            "-c",
            f"echo passed > /dev/fd/{write_end}; test ! -e /proc/$$/fd/{read_end}",
            pass_fds=[write_end],
        )
        await child.lost
        os.close(write_end)
        received = os.read(read_end, 100)
        os.close(read_end)
        child.transport.close()
        assert received == b"passed\n"
        assert child.transport.get_returncode() == 0

    async def test_preexec(self, loop):
        child = await spawned(loop, "sh", "-c", "umask", stdout=PIPE, preexec_fn=lambda: os.umask(0o027))
        await child.lost
        assert child.output[1].strip() == b"0027"
        child.transport.close()

    async def test_signal_handlers_are_restored(self, loop):
        """Python ignores SIGPIPE; a child must not inherit that."""
        child = await spawned(loop, "sh", "-c", "kill -PIPE $$; exit 0")
        assert await child.exited == -signal.SIGPIPE
        await child.lost
        child.transport.close()

    async def test_the_environment_of_this_process(self, loop, monkeypatch):
        monkeypatch.setenv("TIDELOOP_TEST", "seen")
        child = await spawned(loop, "sh", "-c", "echo $TIDELOOP_TEST", stdout=PIPE)
        await child.lost
        assert child.output[1] == b"seen\n"
        child.transport.close()


class TestStreams:
    async def test_communicate(self, loop):
        child = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        data = os.urandom(BIG)
        assert await child.communicate(data) == (data, None)
        assert child.returncode == 0

    async def test_shell(self, loop):
        child = await asyncio.create_subprocess_shell("tr a-z A-Z; echo oops >&2", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        assert await child.communicate(b"hello\n") == (b"HELLO\n", b"oops\n")

    async def test_line_by_line(self, loop):
        child = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        for line in (b"one\n", b"two\n"):
            child.stdin.write(line)
            await child.stdin.drain()
            assert await child.stdout.readline() == line
        child.stdin.close()
        await child.stdin.wait_closed()
        assert await child.wait() == 0
        await settled(loop)

    async def test_a_child_that_does_not_read_stops_the_writer(self, loop):
        child = await asyncio.create_subprocess_exec("sleep", "1000", stdin=PIPE)
        child.stdin.write(bytes(BIG))
        draining = loop.create_task(child.stdin.drain())
        await settled(loop, 10)
        assert not draining.done()
        child.kill()
        assert await child.wait() == -signal.SIGKILL
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await draining
        await settled(loop)

    async def test_a_child_that_writes_is_stopped_by_a_reader_that_does_not(self, loop, backend):
        if backend.name == "uvloop":
            pytest.skip("what it reads before it stops depends on the child's speed")
        child = await asyncio.create_subprocess_exec("cat", "/dev/zero", stdout=PIPE, limit=1024)
        try:
            await settled(loop, 50)
            # Twice the limit, and what one read brings.
            assert len(child.stdout._buffer) <= 2 * 1024 + 256 * 1024
        finally:
            child.kill()
            await child.communicate()

    async def test_a_child_that_closes_its_input(self, loop, backend):
        if backend.name == "uvloop":
            pytest.skip("raises that the handler is closed")
        child = await asyncio.create_subprocess_exec("sh", "-c", "exec 0<&-; sleep 1000", stdin=PIPE)

        async def insist():
            while True:
                child.stdin.write(b"x" * 1000)
                await child.stdin.drain()
                await settled(loop, 1)

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await insist()
        child.kill()
        await child.wait()
        await settled(loop)

    async def test_communicate_with_a_child_that_is_gone(self, loop, backend):
        if backend.name == "uvloop":
            pytest.skip("raises that the handler is closed, if the child is fast enough")
        child = await asyncio.create_subprocess_exec("true", stdin=PIPE, stdout=PIPE)
        assert await child.communicate(bytes(BIG)) == (b"", None)

    async def test_several_may_wait(self, loop):
        child = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
        waiting = [loop.create_task(child.wait()) for _ in range(5)]
        await turns()
        child.stdin.close()
        assert await asyncio.gather(*waiting) == [0] * 5
        await settled(loop)

    async def test_many_at_once(self, loop):
        async def one(number):
            child = await asyncio.create_subprocess_exec("sh", "-c", f"exit {number}", stdin=DEVNULL)
            return await child.wait()

        assert await asyncio.gather(*map(one, range(30))) == list(range(30))
        await settled(loop)

    async def test_a_cancelled_wait_leaves_the_child(self, loop):
        child = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
        waiting = loop.create_task(child.wait())
        await turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert child.returncode is None
        child.stdin.close()
        assert await child.wait() == 0
        await settled(loop)

    @pytest.mark.parametrize("after", range(6))
    async def test_a_cancelled_spawn_leaves_none(self, loop, backend, after):
        if backend.name == "uvloop":
            pytest.skip("leaves the child running")
        task = loop.create_task(asyncio.create_subprocess_exec("sleep", "1000", stdin=PIPE, stdout=PIPE))
        await turns(after)
        task.cancel()
        try:
            child = await task
            child.kill()
            await child.wait()
        except asyncio.CancelledError:
            pass
        await settled(loop, 10)
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)  # noqa: ASYNC222

    async def test_with_time_limit(self, loop):
        child = await asyncio.create_subprocess_exec("sleep", "1000")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(child.wait(), 0.01)
        child.kill()
        await child.wait()
        await settled(loop)
