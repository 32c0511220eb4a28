"""Work in processes and interpreters: what comes back, what dies, what is killed. Workers are shared by the tests."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tideloop
from tideloop import Limiter, run_blocking

from tests.toolkit import foreign_work
from tests.toolkit.work import turns

PACKAGE = Path(tideloop.__file__).parent.parent
ROOT = Path(__file__).parents[2]
NEEDS_314 = pytest.mark.skipif(sys.version_info < (3, 14), reason="interpreters need Python 3.14")
KINDS = ["process", pytest.param("interpreter", marks=NEEDS_314)]


@pytest.fixture
def run(backend):
    """Not by the fixture `loop`: a worker stays, and so do its descriptors."""

    def run(main):
        with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
            return runner.run(asyncio.wait_for(main, 20))

    return run


@tideloop.blocking(kind="process")
def decorated(number, *, times=1):
    return number * times, os.getpid()


async def until(condition):
    while not condition():
        await asyncio.get_running_loop().run_in_executor(None, threading.Event().wait, 0.002)


@pytest.mark.parametrize("where", KINDS)
def test_it_returns_and_raises(run, where):
    async def main():
        assert await run_blocking(divmod, 7, 2, kind=where) == (3, 1)
        with pytest.raises(LookupError, match="lost") as caught:
            await run_blocking(foreign_work.fail, "lost", kind=where)
        assert "in fail\n    raise LookupError(words)" in str(caught.value.__cause__)
        assert "foreign_work.py" in str(caught.value.__cause__)
        with pytest.raises(RuntimeError, match=r"cannot be pickled: Proud\(1\)"):
            await run_blocking(foreign_work.fail_proudly, kind=where)
        with pytest.raises(RuntimeError, match=r"cannot be pickled: <function give_a_lambda.<locals>.<lambda>"):
            await run_blocking(foreign_work.give_a_lambda, kind=where)
        with pytest.raises(SystemExit):
            await run_blocking(sys.exit, 3, kind=where)
        assert await run_blocking(divmod, 7, 2, kind=where) == (3, 1)
        assert tideloop.offload_stats(where).limit.in_use == 0

    run(main())


def test_it_is_another_process_and_the_same_again(run):
    async def main():
        pids = {await run_blocking(os.getpid, kind="process") for _ in range(5)}
        assert len(pids) == 1
        assert os.getpid() not in pids
        number, pid = await decorated(2, times=3)
        assert (number, {pid}) == (6, pids)

    run(main())


def test_what_pickle_does_not_take(run):
    async def main():
        with pytest.raises(Exception, match="ickle") as caught:
            await run_blocking(lambda: 1, kind="process")
        assert "so pickle has to take them" in caught.value.__notes__[-1]
        assert await run_blocking(int, kind="process") == 0

    run(main())


@pytest.mark.parametrize(
    ("number", "ending"), [(None, "has ended with exit status 3"), (signal.SIGKILL, "was killed by SIGKILL")]
)
def test_a_process_that_dies_harms_its_own_call_only(run, number, ending):
    async def main():
        limiter = Limiter(2)
        other = asyncio.ensure_future(run_blocking(foreign_work.pause, 0.05, kind="process", limit=limiter))
        with pytest.raises(tideloop.WorkerDied, match=rf"process \d+, which did .*kill_myself.*, {ending}"):
            await run_blocking(foreign_work.kill_myself, number, kind="process", limit=limiter)
        assert await run_blocking(os.getpid, kind="process", limit=limiter) != os.getpid()
        await other
        assert limiter.in_use == 0

    run(main())


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs process descriptors")
def test_a_dead_process_whose_child_holds_the_pipe(run):
    async def main():
        with pytest.raises(tideloop.WorkerDied, match="SIGKILL"):
            await run_blocking(foreign_work.leave_a_child_that_holds_the_pipe, kind="process")

    run(main())


def test_an_idle_process_that_was_killed_is_replaced(run):
    async def main():
        first = await run_blocking(os.getpid, kind="process")
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222  # it is being killed
        assert await run_blocking(os.getpid, kind="process") != first

    run(main())


@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_a_stuck_process_is_killed_and_replaced(run, tmp_path, how, caplog):
    async def main():
        path = tmp_path / "pid"
        limiter = Limiter(1)
        timeout = 1.0 if how == "timeout" else None
        options = {"kind": "process", "limit": limiter, "timeout": timeout, "on_cancel": "kill"}
        await run_blocking(int, kind="process", limit=limiter)
        task = asyncio.ensure_future(run_blocking(foreign_work.sleep_for_ever, str(path), **options))
        await until(lambda: path.exists() and path.read_text())
        if how == "kill":
            task.cancel()
        with pytest.raises(tideloop.OffloadTimeout if how == "timeout" else asyncio.CancelledError):
            await task
        assert await run_blocking(os.getpid, kind="process", limit=limiter) != int(path.read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
        assert limiter.in_use == 0

    run(main())
    assert not caplog.records


@pytest.mark.parametrize("where", KINDS)
def test_cancelled_it_waits_with_its_permit(run, where):
    async def main():
        limiter = Limiter(1)
        await run_blocking(int, kind=where)
        task = asyncio.ensure_future(run_blocking(foreign_work.pause, 0.1, kind=where, limit=limiter))
        late = asyncio.ensure_future(run_blocking(int, kind=where, limit=limiter))
        await asyncio.sleep(0.05)
        task.cancel()
        await turns(3)
        assert limiter.waiting == 1
        assert await late == 0
        assert task.cancelled()
        assert limiter.in_use == 0

    run(main())


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="there are interpreters")
def test_interpreters_need_a_newer_python(run):
    async def main():
        with pytest.raises(RuntimeError, match=r"kind='interpreter' needs Python 3.14 or newer .*; this is 3\.1"):
            await run_blocking(int, kind="interpreter")

    run(main())


@NEEDS_314
def test_what_an_interpreter_does_not_take(run):
    async def main():
        with pytest.raises(TypeError, match="so pickle has to take them"):
            await run_blocking(int, threading.Lock(), kind="interpreter")
        assert await run_blocking(int, kind="interpreter") == 0

    run(main())


@NEEDS_314
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_idle_interpreters_end_before_a_fork(run):
    """CPython crashes in the child of a process that has one."""
    assert run(run_blocking(int, kind="interpreter")) == 0
    child = os.fork()
    if not child:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


EXIT = """
import asyncio, os, sys, tideloop
from tests.toolkit import foreign_work

async def main():
    await tideloop.run_blocking(os.getpid, kind="process")
    task = asyncio.ensure_future(
        tideloop.run_blocking(foreign_work.sleep_for_ever, sys.argv[1], kind="process", on_cancel="abandon")
    )
    while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read():
        await asyncio.sleep(0.002)
    task.cancel()
    {last}

if __name__ == "__main__":
    tideloop.run(main())
"""


@pytest.mark.parametrize("last", ["pass", "os.kill(os.getpid(), 9)"])
def test_processes_end_with_the_program(last, tmp_path):
    """The one that is busy is killed, if the program can do that still; an idle one sees that it is alone."""
    program = tmp_path / "program.py"
    program.write_text(EXIT.replace("{last}", last))
    path = tmp_path / "pid"
    # A file: a pipe would be held by a worker that outlives the program.
    with (tmp_path / "stderr").open("w+") as stderr:
        done = subprocess.run(
            [sys.executable, str(program), str(path)],
            stderr=stderr,
            check=False,
            timeout=25,
            env={**os.environ, "PYTHONPATH": f"{PACKAGE}{os.pathsep}{ROOT}"},
        )
        stderr.seek(0)
        assert stderr.read() == ""
    busy = int(path.read_text())
    if last == "pass":
        assert done.returncode == 0
        with pytest.raises(ProcessLookupError):
            os.kill(busy, 0)
    else:
        assert done.returncode == -signal.SIGKILL
        os.kill(busy, signal.SIGKILL)


FORK = """
import asyncio, os, sys, tideloop

async def main():
    assert await tideloop.run_blocking(os.getpid, kind="process") != os.getpid()

if __name__ == "__main__":
    asyncio.run(main())
    if not (child := os.fork()):
        asyncio.run(main())
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_has_processes_of_its_own(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(FORK)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=25,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )
    assert (done.returncode, done.stderr) == (0, "")
