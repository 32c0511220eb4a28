"""200 interpreter exits with work in flight: no abort, no hang, no complaint from the interpreter.

Each scenario is a program that ends while something is pending. It runs in interpreters of its own, two at a time, as
often as makes `EXITS` in all; an exit is good when the code is the expected one and stderr shows no crash.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.peers import run_child

EXITS = 200
AT_ONCE = 2
TIMEOUT = 20.0

CRASHES = ("Fatal Python error", "panicked", "Segmentation fault", "Aborted", "PyGILState", "deadlock", "BorrowMut")
"""What must not be said on stderr."""

SERVE = """
class Protocol(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(bytes(4 << 20))

async def serve():
    server = await loop.create_server(Protocol, "127.0.0.1", 0)
    keep = [await loop.create_connection(Protocol, *server.sockets[0].getsockname()) for _ in range(5)]
    for transport, _ in keep[::2]:
        transport.pause_reading()
    return server, keep
"""

SCENARIOS = {
    "pending timers and callbacks": (
        0,
        """
loop = backend.new_event_loop()
for i in range(1000):
    loop.call_later(i, print)
    loop.call_soon_threadsafe(int)
loop.run_until_complete(asyncio.sleep(0))
loop.call_soon(print, "never printed")
""",
    ),
    "a loop that is never closed": (
        0,
        """
loop = backend.new_event_loop()
task = loop.create_task(asyncio.sleep(1000))
loop.run_until_complete(asyncio.sleep(0))
sys.stderr = open(os.devnull, "w")
""",
    ),
    "open transports": (
        0,
        """
loop = backend.new_event_loop()
"""
        + SERVE
        + """
kept = loop.run_until_complete(serve())
sys.stderr = open(os.devnull, "w")
""",
    ),
    "tasks that read": (
        0,
        """
import socket
loop = backend.new_event_loop()
near, far = socket.socketpair()
near.setblocking(False)
far.setblocking(False)

async def echo():
    reader, writer = await asyncio.open_connection(sock=near)
    await reader.readline()

async def receive():
    await loop.sock_recv(far, 10)

async def main():
    keep = [loop.create_task(echo()), loop.create_task(receive())]
    for _ in range(10):
        await asyncio.sleep(0)
    return keep

kept = loop.run_until_complete(main())
""",
    ),
    "a running executor job": (
        0,
        """
import time
loop = backend.new_event_loop()
started = threading.Event()
def job():
    started.set()
    time.sleep(0.05)
future = loop.run_in_executor(None, job)
started.wait()
loop.run_until_complete(asyncio.sleep(0))
""",
    ),
    "a daemon thread that calls call_soon_threadsafe": (
        0,
        """
loop = backend.new_event_loop()
started = threading.Event()
def call():
    while True:
        loop.call_soon_threadsafe(started.set)
threading.Thread(target=call, daemon=True).start()
async def main():
    while not started.is_set():
        await asyncio.sleep(0)
loop.run_until_complete(main())
""",
    ),
    "a daemon thread that runs a loop": (
        0,
        """
loop = backend.new_event_loop()
started = threading.Event()
def run():
    loop.call_soon(started.set)
    loop.call_later(0.001, spin)
    loop.run_forever()
def spin():
    loop.call_later(0.0001, spin)
threading.Thread(target=run, daemon=True).start()
started.wait()
""",
    ),
    "sys.exit in a callback": (
        7,
        """
loop = backend.new_event_loop()
loop.call_soon(sys.exit, 7)
loop.call_soon(print)
loop.call_later(1, print)
loop.run_forever()
""",
    ),
    "sys.exit in data_received": (
        7,
        """
class Protocol(asyncio.Protocol):
    def data_received(self, data):
        sys.exit(7)
async def main():
    loop = asyncio.get_running_loop()
    import socket
    left, right = socket.socketpair()
    await loop.create_connection(Protocol, sock=left)
    right.send(b"x")
    await asyncio.Event().wait()
loop = backend.new_event_loop()
loop.run_until_complete(main())
""",
    ),
    "os._exit in a callback": (
        7,
        """
loop = backend.new_event_loop()
loop.call_soon(os._exit, 7)
loop.run_forever()
""",
    ),
    "an exception in the main task": (
        1,
        """
async def main():
    asyncio.get_running_loop().call_later(1000, print)
    task = asyncio.create_task(asyncio.sleep(1000))
    await asyncio.sleep(0)
    raise SystemExit(1)
with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
    runner.run(main())
""",
    ),
    "a child forked while the loop runs": (
        0,
        """
async def main():
    loop = asyncio.get_running_loop()
    loop.call_later(1000, print)
    pid = os.fork()
    if pid == 0:
        # From 3.14 on a forked child has no running loop: a Runner that closes there waits for ever.
        os._exit(3) if sys.version_info >= (3, 14) else sys.exit(3)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 3, status
    await asyncio.sleep(0.001)
with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
    runner.run(main())
""",
    ),
    "a forked child with a loop of its own": (
        0,
        """
async def work():
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(done.set,))
    thread.start()
    await done.wait()
    await asyncio.sleep(0.001)
    thread.join()
    return 3
def run():
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        return runner.run(work())
run()
loop = backend.new_event_loop()
loop.run_until_complete(work())
pid = os.fork()
if pid == 0:
    os._exit(run())
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 3, status
assert loop.run_until_complete(work()) == 3
loop.close()
""",
    ),
    "an atexit handler that uses the loop": (
        0,
        """
import atexit
loop = backend.new_event_loop()
def leave():
    assert loop.run_until_complete(asyncio.sleep(0.001, 5)) == 5
    loop.close()
atexit.register(leave)
loop.run_until_complete(asyncio.sleep(0))
""",
    ),
    "a finaliser that uses the loop": (
        0,
        """
class Late:
    def __init__(self, loop):
        self.loop = loop
    def __del__(self):
        try:
            self.loop.call_soon(int)
            self.loop.call_later(1, int)
        except RuntimeError:
            pass
loop = backend.new_event_loop()
loop.run_until_complete(asyncio.sleep(0))
sys.late = late = Late(loop)
""",
    ),
    "waiters in a cycle": (
        0,
        """
import tideloop
limiter, semaphore, queue = tideloop.Limiter(1), tideloop.Semaphore(1), tideloop.Queue(1)
rates = tideloop.RateLimiter(tideloop.rate(1, per=60))

async def hold(entered):
    async with entered:
        await queue.put(entered)
        await asyncio.sleep(1000)

loop = backend.new_event_loop()
kept = [loop.create_task(hold(entered)) for entered in (limiter, semaphore, rates) for _ in range(3)]
loop.run_until_complete(asyncio.sleep(0))
loop.run_until_complete(asyncio.sleep(0))
kept.append(kept)
""",
    ),
    "tasks made while the interpreter ends": (
        0,
        """
class Late:
    def __init__(self, loop):
        self.loop = loop
    def __del__(self):
        coroutine = asyncio.sleep(0)
        try:
            asyncio.Task(coroutine, loop=self.loop)
        except Exception:
            coroutine.close()
loop = backend.new_event_loop()
loop.run_until_complete(asyncio.sleep(0))
sys.late = late = Late(loop)
sys.stderr = open(os.devnull, "w")
""",
    ),
}


@pytest.mark.limit(80.0)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda name: name.replace(" ", "-"))
def test_exit_is_clean(backend, scenario):
    if (backend.name, scenario) == ("uvloop", "sys.exit in data_received"):
        pytest.skip("uvloop closes the transport and goes on")
    code, source = SCENARIOS[scenario]
    # The others are the reference: once shows that the program is right.
    rounds = -(-EXITS // len(SCENARIOS)) if backend.name == "tideloop" else 1

    def leave(number: int) -> str | None:
        try:
            child = run_child(backend, source, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return f"exit {number} hangs"
        crash = next((text for text in CRASHES if text in child.stderr), None)
        if child.returncode == code and crash is None:
            return None
        return f"exit {number}: code {child.returncode} instead of {code}, stderr:\n{child.stderr[-2000:]}"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        faults = [fault for fault in pool.map(leave, range(rounds)) if fault]
    assert not faults, faults[0] + f"\n({len(faults)} of {rounds} on {sys.version.split()[0]})"
