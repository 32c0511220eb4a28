"""Processes that are copied or begun anew while a loop exists: os.fork, multiprocessing, concurrent.futures.

Each program runs in an interpreter of its own, from a file, so that new processes can import it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WORK = """
import asyncio, importlib, multiprocessing, os, signal, socket, sys, warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

# What Python warns of when a process with threads forks is not the subject here.
warnings.simplefilter("ignore", DeprecationWarning)
backend = importlib.import_module(sys.argv[1])

async def echo():
    async def serve(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    server.close()
    await asyncio.to_thread(int)
    await asyncio.sleep(0.001)
    assert answer == b"hello\\n"
    return os.getpid()

def work():
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        return runner.run(echo())

def tell(pipe):
    pipe.send(work())
    pipe.close()
"""

FORKS = """
def child_of(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            print("child:", repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
"""

PROGRAMS = {
    "a loop in the child, beside one that sleeps in the parent": """
loop = backend.new_event_loop()
loop.run_until_complete(echo())
child_of(work)
loop.run_until_complete(echo())
loop.close()
""",
    "a fork in a callback": """
async def main():
    loop = asyncio.get_running_loop()
    def action():
        # From Python 3.14 on a child has none by itself.
        asyncio.events._set_running_loop(None)
        work()
    child_of(action)
    await echo()
asyncio.Runner(loop_factory=backend.new_event_loop).run(main())
""",
    "the parent's loop closed in the child": """
loop = backend.new_event_loop()
loop.run_until_complete(echo())
left, right = socket.socketpair()
seen = []
def readable():
    seen.append(left.recv(1))
    loop.stop()
loop.add_reader(left, readable)
child_of(loop.close)
# The parent's registration has survived.
right.send(b"x")
loop.run_forever()
assert seen == [b"x"]
loop.remove_reader(left)
left.close()
right.close()
loop.run_until_complete(echo())
loop.close()
""",
    "the parent's loop run in the child": """
loop = backend.new_event_loop()
loop.run_until_complete(echo())
def action():
    # A pool's threads do not survive a fork.
    loop.set_default_executor(ThreadPoolExecutor(1))
    loop.run_until_complete(echo())
child_of(action)
loop.run_until_complete(echo())
loop.close()
""",
    "ten children at once": """
loop = backend.new_event_loop()
loop.run_until_complete(echo())
pids = []
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work() else 1)
    pids.append(pid)
loop.run_until_complete(echo())
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 10
loop.close()
""",
    "a child that forks": """
loop = backend.new_event_loop()
loop.run_until_complete(echo())
child_of(lambda: (work(), child_of(work)))
loop.close()
""",
    "signal handlers in the child": """
async def signalled():
    got = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, got.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await got.wait()
def run():
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        runner.run(signalled())
run()
child_of(run)
run()
""",
}

NOT_ON_UVLOOP = {"the parent's loop run in the child", "a fork in a callback"}
"""Its loops are of no use in a forked process."""


def run(tmp_path, backend, program):
    file = tmp_path / "program.py"
    file.write_text(program)
    return subprocess.run(
        [sys.executable, file, backend.name],
        capture_output=True,
        text=True,
        timeout=25,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )


@pytest.mark.parametrize("name", PROGRAMS, ids=lambda name: name.replace(" ", "-"))
def test_fork(backend, tmp_path, name):
    if backend.name == "uvloop" and name in NOT_ON_UVLOOP:
        pytest.skip("does not work in a forked process")
    if backend.name == "asyncio" and name in (
        "the parent's loop run in the child",
        "the parent's loop closed in the child",
    ):
        pytest.skip("parent and child share one epoll")
    done = run(tmp_path, backend, WORK + FORKS + PROGRAMS[name])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(backend, tmp_path, method):
    done = run(
        tmp_path,
        backend,
        WORK
        + f"""
if __name__ == "__main__":
    loop = backend.new_event_loop()
    loop.run_until_complete(echo())
    context = multiprocessing.get_context({method!r})
    ours, theirs = context.Pipe()
    process = context.Process(target=tell, args=(theirs,))
    process.start()
    assert ours.recv() == process.pid != os.getpid()
    process.join()
    assert process.exitcode == 0
    loop.run_until_complete(echo())
    loop.close()
""",
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_pool_of_processes(backend, tmp_path, method):
    done = run(
        tmp_path,
        backend,
        WORK
        + f"""
async def main():
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context({method!r})) as pool:
        pids = await asyncio.gather(*(loop.run_in_executor(pool, work) for _ in range(4)))
    assert os.getpid() not in pids
    await echo()

if __name__ == "__main__":
    asyncio.Runner(loop_factory=backend.new_event_loop).run(main())
""",
    )
    assert (done.returncode, done.stderr) == (0, "")
