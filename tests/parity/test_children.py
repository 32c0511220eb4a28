"""Waiting for children: without a SIGCHLD handler, from any thread, beside others who wait."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading

import pytest
import tideloop

from tests.conftest import open_fds
from tests.parity.test_subprocess import Child, spawned
from tests.peers import run_child, settled


async def exit_code(number):
    child = await asyncio.create_subprocess_exec("sh", "-c", f"exit {number}")
    return await child.wait()


class TestSignals:
    async def test_no_handler_is_set(self, loop, backend):
        if backend.name == "uvloop":
            pytest.skip("keeps SIGCHLD for itself")
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
        child = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE)
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
        child.stdin.close()
        assert await child.wait() == 0
        await settled(loop)

    def test_the_users_handler_stays_and_is_called(self, backend):
        """In a child: pytest's own subprocesses shall not be waited for."""
        run = run_child(
            backend,
            """
seen = []
def handler(signum, frame):
    seen.append(signum)
signal.signal(signal.SIGCHLD, handler)
async def main():
    for code in range(5):
        child = await asyncio.create_subprocess_exec("sh", "-c", f"exit {code}")
        assert await child.wait() == code
asyncio.Runner(loop_factory=backend.new_event_loop).run(main())
if backend.__name__ != "uvloop":
    assert signal.getsignal(signal.SIGCHLD) is handler
    assert len(seen) == 5, seen
print("good")
""",
        )
        assert run.stdout == "good\n", run.stderr

    def test_a_handler_of_the_loop_is_called_too(self, backend):
        if backend.name == "uvloop":
            pytest.skip("keeps SIGCHLD for itself")
        run = run_child(
            backend,
            """
async def main():
    seen = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, seen.set)
    child = await asyncio.create_subprocess_exec("sh", "-c", "exit 5")
    assert await child.wait() == 5
    await seen.wait()
    asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
    print("good")
asyncio.Runner(loop_factory=backend.new_event_loop).run(main())
""",
        )
        assert run.stdout == "good\n", run.stderr

    @pytest.mark.skipif(sys.platform != "linux", reason="the system has no process descriptors")
    def test_ignored_children_are_reported_lost(self, backend):
        """With SIGCHLD ignored the system forgets exit codes; the wait ends nevertheless."""
        if backend.name == "uvloop":
            pytest.skip("keeps SIGCHLD for itself")
        if backend.name == "asyncio" and sys.version_info >= (3, 12):
            pytest.skip("cannot open a child that is gone already")
        run = run_child(
            backend,
            """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
async def main():
    child = await asyncio.create_subprocess_exec("sh", "-c", "exit 5")
    print(await child.wait())
asyncio.Runner(loop_factory=backend.new_event_loop).run(main())
""",
        )
        assert run.stdout == "255\n", run.stderr
        assert "255" in run.stderr


class TestThreads:
    def test_a_loop_in_another_thread(self, backend):
        if backend.name == "uvloop":
            pytest.skip("watches children in the main thread only")
        codes = []

        def run():
            with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
                codes.append(runner.run(exit_code(5)))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert codes == [5]

    def test_several_loops_at_once(self, backend):
        if backend.name == "uvloop":
            pytest.skip("races with itself to spawn")
        codes = {}

        async def several(first):
            return await asyncio.gather(*(exit_code(first + i) for i in range(5)))

        def run(first):
            with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
                codes[first] = runner.run(several(first))

        threads = [threading.Thread(target=run, args=(first,)) for first in (10, 20, 30, 40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert codes == {first: list(range(first, first + 5)) for first in (10, 20, 30, 40)}


class TestOthers:
    async def test_children_of_others_are_left_alone(self, loop):
        other = subprocess.Popen(["sh", "-c", "exit 9"])  # noqa: ASYNC220
        assert await exit_code(3) == 3
        assert other.wait() == 9
        await settled(loop)

    async def test_a_child_that_somebody_else_waited_for(self, loop, backend):
        if backend.name == "uvloop":
            pytest.skip("waits for ever")
        if backend.name == "asyncio" and sys.version_info < (3, 12):
            pytest.skip("a thread of its own waits, and is first")
        child = await spawned(loop, "cat", stdin=subprocess.PIPE)
        pid = child.transport.get_pid()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)  # noqa: ASYNC222
        assert await child.exited == 255
        await child.lost
        child.transport.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no process descriptors")
class TestProcessDescriptors:
    """tideloop on Linux: no threads, and no descriptor of a process outlives the wait or the loop."""

    @pytest.fixture
    def runner(self):
        with tideloop.Runner() as runner:
            yield runner

    def test_no_thread(self, runner):
        async def main():
            child = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE)
            assert threading.active_count() == before
            assert [kind for kind in open_fds().values() if "pidfd" in kind]
            child.stdin.close()
            await child.wait()
            await settled(asyncio.get_running_loop())
            assert not [kind for kind in open_fds().values() if "pidfd" in kind]

        before = threading.active_count()
        runner.run(main())

    def test_a_loop_that_is_closed_first_leaves_none_open(self):
        loop = tideloop.new_event_loop()
        _, child = loop.run_until_complete(
            loop.subprocess_exec(lambda: Child(loop), "sleep", "1000", stdin=None, stdout=None, stderr=None)
        )
        loop.close()
        assert not [kind for kind in open_fds().values() if "pidfd" in kind]
        child.transport.close()
        child.transport.get_extra_info("subprocess").wait()

    def test_without_them_a_thread_waits(self, runner, monkeypatch):
        def refuse(pid, flags=0):
            raise PermissionError("not in this sandbox")

        monkeypatch.setattr(os, "pidfd_open", refuse)
        monkeypatch.setattr(asyncio.unix_events, "can_use_pidfd", lambda: False, raising=False)
        if sys.version_info >= (3, 14):
            monkeypatch.setattr(runner.get_loop(), "_watcher", asyncio.unix_events._ThreadedChildWatcher())
        elif sys.version_info >= (3, 12):
            monkeypatch.setattr(
                asyncio.events._get_event_loop_policy()
                if hasattr(asyncio.events, "_get_event_loop_policy")
                else asyncio.get_event_loop_policy(),
                "_watcher",
                None,
            )
        assert runner.run(exit_code(5)) == 5

    def test_when_they_run_out_a_thread_waits(self, runner, monkeypatch):
        opened = []

        def first_only(pid, flags=0, real=os.pidfd_open):
            opened.append(pid)
            if pid != os.getpid():
                raise OSError(24, "Too many open files")
            return real(pid, flags)

        monkeypatch.setattr(os, "pidfd_open", first_only)
        assert runner.run(exit_code(5)) == 5
        assert len(opened) == 2
