"""Children as the toolkit watches them: how they are started and collected, and what is left when nobody waits."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest
from tideloop import Process, children, processes, run_process, starts

from tests.peers import run_child
from tests.toolkit import test_process_ends, test_processes
from tests.toolkit.test_processes import FOREVER, MIB, is_gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system has no process descriptors")


@pytest.fixture
def nobody_else(monkeypatch):
    """Asking the loop for a child fails."""

    async def refuse(*args, **options):
        raise AssertionError("the loop was asked")

    monkeypatch.setattr(Process, "_start", refuse)


@pytest.fixture
def asked(monkeypatch):
    """Who asked the loop for a child."""
    found = []
    start = Process._start

    async def note(process, protocol):
        found.append(process)
        await start(process, protocol)

    monkeypatch.setattr(Process, "_start", note)
    return found


class Refusing:
    """In the place of a function that fails as often as it is told to; then the real one is called."""

    def __init__(self, function, error, times=1):
        self.function, self.error, self.left = function, error, times

    def __call__(self, *args, **options):
        if self.left:
            self.left -= 1
            raise self.error
        return self.function(*args, **options)


@pytest.fixture(params=["posix_spawn", "Popen"])
def started_by(request, monkeypatch):
    """Either way of starting a program, on any Python version."""
    called = []
    if request.param == "Popen":
        monkeypatch.setattr(starts, "_spawn", lambda *args: None)
    elif not hasattr(starts, "_CLOSE_THE_REST"):
        pytest.skip("this Python's posix_spawn() cannot close descriptors")
    else:
        spawn = starts._spawn

        def note(*args):
            called.append(spawn(*args))
            return called[-1]

        monkeypatch.setattr(starts, "_spawn", note)
    yield request.param
    assert None not in called


class TestStart:
    """posix_spawn() and Popen start a program alike."""

    async def test_what_it_has(self, loop, started_by, nobody_else):
        read, write = os.pipe()
        try:
            os.set_inheritable(write, True)
            script = "cat /proc/$$/status; ls -l /proc/$$/fd; cut -d' ' -f6 /proc/$$/stat"
            result = await run_process(["/bin/sh", "-c", script], env={"PATH": os.environ["PATH"]})
        finally:
            os.close(read)
            os.close(write)
        lines = result.text.splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert not int(status["SigIgn"], 16) & (1 << (signal.SIGPIPE - 1))
        links = [line for line in lines if " -> " in line]
        assert sorted(link.split()[-3] for link in links) == ["0", "1", "2"]
        assert next(link for link in links if " 0 -> " in link).endswith("/dev/null")
        # A session of its own.
        assert int(lines[-1]) == result.pid

    async def test_where_it_is_looked_for(self, loop, started_by, tmp_path, monkeypatch):
        program = tmp_path / "only-here"
        program.write_text("#!/bin/sh\necho $0 $WORD\n")
        program.chmod(0o755)
        assert (await run_process([program], env={"WORD": "x"})).text == f"{program} x\n"
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        assert (await run_process(["only-here"])).text == f"{program}\n"
        assert (await run_process([b"only-here"])).text == f"{program}\n"

    async def test_what_cannot_be_started(self, loop, started_by, tmp_path):
        nobodys = tmp_path / "data"
        nobodys.write_text("x")
        for cmd, error in (
            (["/nowhere/at/all"], FileNotFoundError),
            (["nowhere-at-all"], FileNotFoundError),
            ([nobodys], PermissionError),
            ([tmp_path], PermissionError),
            (["/bin/echo", "a\0b"], ValueError),
            (["/bin/echo", 1], TypeError),
        ):
            with pytest.raises(error) as caught:
                await run_process(cmd)
            if isinstance(caught.value, OSError):
                assert os.fspath(caught.value.filename) == os.fspath(cmd[0])

    async def test_errors_go_where_the_output_goes(self, loop, started_by):
        result = await run_process("echo 1; echo 2 >&2; echo 3", shell=True, stderr="stdout")
        assert (result.stdout, result.stderr) == (b"1\n2\n3\n", b"")

    def test_without_a_stdin_and_a_stdout(self, backend, started_by):
        run = run_child(
            backend,
            f"""
import os, tideloop
from tideloop import starts
if {started_by == "Popen"}:
    starts._spawn = lambda *args: None
async def main():
    os.close(0), os.close(1)
    result = await tideloop.run_process("cat; echo err >&2", shell=True, input=b"in")
    os.write(2, repr((result.stdout, result.stderr)).encode())
asyncio.Runner(loop_factory=backend.new_event_loop).run(main())
""",
        )
        assert run.stderr.startswith("(b'in', b'err\\n')"), run.stderr


@pytest.mark.skipif(
    not hasattr(starts, "_CLOSE_THE_REST"), reason="this Python's posix_spawn() cannot close descriptors"
)
class TestWhoStarts:
    @pytest.mark.parametrize(
        ("cmd", "options", "spawned"),
        [
            (["true"], {}, True),
            (["/bin/true"], {"env": {}}, True),
            ("true", {"shell": True}, True),
            (["true"], {"env": dict(os.environ)}, False),
            (["true"], {"cwd": "/"}, False),
        ],
    )
    async def test_who(self, loop, monkeypatch, cmd, options, spawned):
        monkeypatch.setattr(subprocess.Popen, "__init__", Refusing(None, ZeroDivisionError, -1))
        if spawned:
            assert (await run_process(cmd, **options)).ok
        else:
            with pytest.raises(ZeroDivisionError):
                await run_process(cmd, **options)


class TestWatched:
    async def test_by_descriptors_alone(self, loop, nobody_else, backend):
        before = threading.active_count()
        async with Process(["cat"]) as process:
            assert threading.active_count() == before
            await process.write(b"x")
        if backend.name != "uvloop":
            assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL

    async def test_nothing_is_left_for_the_collector(self, loop, monkeypatch):
        made = []

        class Known(Process):
            def __init__(self, *args, **options):
                super().__init__(*args, **options)
                made.append(weakref.ref(self))

        monkeypatch.setattr("tideloop.process_runs.Process", Known)
        gc.collect()
        gc.disable()
        try:
            await run_process("echo x", shell=True, input=b"x" * MIB)
            await asyncio.sleep(0)
            assert made[0]() is None
        finally:
            gc.enable()

    async def test_without_a_descriptor_a_thread_waits(self, loop, monkeypatch):
        assert children.can_watch()
        monkeypatch.setattr(os, "pidfd_open", Refusing(os.pidfd_open, OSError(24, "Too many open files")))
        process = Process(["cat"])
        async with process:
            assert any(thread.name == f"tideloop-child-{process.pid}" for thread in threading.enumerate())
        assert process.returncode == 0
        assert (await run_process(["true"])).ok

    async def test_one_that_somebody_else_has_collected(self, loop, caplog):
        async with Process(["cat"]) as process:
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)  # noqa: ASYNC222
        assert process.returncode == 255
        assert "exit status already read" in caplog.text

    def test_with_children_ignored(self, backend):
        if backend.name == "uvloop":
            pytest.skip("keeps SIGCHLD for itself")
        run = run_child(
            backend,
            """
import tideloop
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
async def main():
    print((await tideloop.run_process("sleep 0.01; echo x; exit 5", shell=True))[2:4])
    print((await tideloop.run_process(["true"]))[2:4])
asyncio.Runner(loop_factory=backend.new_event_loop).run(main())
""",
        )
        assert run.stdout == "(255, b'x\\n')\n(255, b'')\n", run.stderr

    async def test_an_end_that_the_pipes_do_not_tell(self, loop):
        """It closes them and goes on for a while."""
        result = await run_process("exec >&- 2>&-; sleep 0.02; exit 3", shell=True)
        assert result.returncode == 3

    async def test_input_for_those_who_are_left(self, loop, tmp_path):
        """The child has ended; what it has started reads its input to the end."""
        data = b"x" * (4 * MIB)
        read = tmp_path / "read"
        script = f"exec 3<&0; (exec cat <&3 >{read} 2>/dev/null 3<&-) & exec 3<&-"
        assert (await run_process(script, shell=True, input=data, linger=20)).ok
        while read.stat().st_size != len(data):  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def test_input_that_nobody_reads_any_more(self, loop):
        async with Process(["true"]) as process:
            assert await process.wait() == 0
            with pytest.raises(BrokenPipeError, match="does not read its input"):
                await process.write(b"x")
        async with Process("exec <&-; echo x; exec sleep 1000", shell=True, grace=0) as process:
            await anext(process.lines())
            with pytest.raises(BrokenPipeError, match="does not read its input"):
                await process.write(b"x")
            await process.stop()


class TestByTheLoop:
    """Where the toolkit does not watch, the loop does."""

    async def test_where_there_are_no_descriptors(self, loop, monkeypatch, asked):
        monkeypatch.setattr(children, "_has_pidfds", False)
        refuse = Refusing(os.pidfd_open, PermissionError("not in this sandbox"))
        monkeypatch.setattr(os, "pidfd_open", refuse)
        assert not children.can_watch()
        assert children.can_watch()
        monkeypatch.setattr(children, "_has_pidfds", False)
        refuse.left = 1
        assert (await run_process("echo x", shell=True)).text == "x\n"
        assert len(asked) == 1

    @pytest.mark.skipif(sys.version_info >= (3, 14), reason="there are no child watchers any more")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    async def test_a_watcher_that_the_program_has_chosen(self, loop, backend, asked, monkeypatch):
        policy = asyncio.get_event_loop_policy()
        monkeypatch.setattr(policy, "_watcher", asyncio.SafeChildWatcher())
        assert not children.can_watch()
        monkeypatch.setattr(policy, "_watcher", asyncio.ThreadedChildWatcher())
        assert children.can_watch()


def by_the_loop(tests):
    """The same tests on children of the loop's."""

    class Same(tests):
        @pytest.fixture(autouse=True)
        def ask_the_loop(self, monkeypatch):
            monkeypatch.setattr(processes, "can_watch", lambda: False)

    Same.__name__ = f"{tests.__name__}ByTheLoop"
    return Same


TestCaptureByTheLoop = by_the_loop(test_processes.TestCapture)
TestWriteByTheLoop = by_the_loop(test_processes.TestWrite)
TestEndingByTheLoop = by_the_loop(test_processes.TestEnding)
TestDaemonsByTheLoop = by_the_loop(test_process_ends.TestDaemons)


class TestClosedLoops:
    def test_one_that_is_closed_first(self, backend, recwarn):
        loop = backend.new_event_loop()
        before = set(os.listdir("/proc/self/fd"))

        async def start():
            process = Process(f"sleep 1000 & echo $!; {FOREVER}", shell=True)
            await process.__aenter__()
            return process.pid, int((await anext(process.lines()))[1])

        pid, other = loop.run_until_complete(start())
        loop.close()
        gc.collect()
        assert set(os.listdir("/proc/self/fd")) <= before
        assert ["the loop was closed before the end of" in str(warning.message) for warning in recwarn] == [True]
        while not (is_gone(pid) and is_gone(other)):
            os.sched_yield()
        # Whoever starts the next one collects it.
        assert pid in starts._abandoned
        asyncio.run(run_process(["true"]))
        assert pid not in starts._abandoned
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)

    def test_a_fork_leaves_the_parents_children_alone(self, backend):
        run = run_child(
            backend,
            """
import gc, tideloop
async def main():
    global process
    async with tideloop.Process(["cat"]) as process:
        pid = os.fork()
        if pid == 0:
            os._exit(child())
        assert os.waitpid(pid, 0)[1] == 0
        await process.write(b"still there\\n")
        async for line in process.lines():
            print(line)
            process.close_stdin()
    print(process.returncode)
def child():
    transport = process._transport
    transport.__del__()
    return 0
asyncio.Runner(loop_factory=backend.new_event_loop).run(main())
""",
        )
        assert run.stdout == "('stdout', b'still there\\n')\n0\n", run.stderr


async def test_the_pids_of_a_forked_process_are_its_own(loop):
    starts.abandon(1)
    pid = os.fork()
    if pid == 0:
        os._exit(len(starts._abandoned))
    assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222
    await run_process(["true"])
    # It is no child of ours.
    assert 1 not in starts._abandoned
