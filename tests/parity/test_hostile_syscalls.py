"""System calls that are interrupted, do less than asked, or fail: what arrives is right, and what failed is told."""

from __future__ import annotations

import errno
import json

import pytest

from tests.peers import run_child
from tests.shim import run_shimmed

# A transfer in both directions at once, and a digest of each direction at both of its ends.
TRANSFER = """
import hashlib, random
from tests.peers import LOOPBACK

SIZE = 3_000_000

class End(asyncio.Protocol):
    def __init__(self, seed, done):
        self.rng = random.Random(seed)
        self.left = self.missing = SIZE
        self.sent, self.received = hashlib.sha256(), hashlib.sha256()
        self.may_write, self.done = True, done

    def connection_made(self, transport):
        self.transport = transport
        self.write()

    def write(self):
        while self.left and self.may_write:
            pieces = [self.rng.randbytes(min(self.rng.randint(1, 30_000), self.left)) for _ in range(3)]
            data = b"".join(pieces)[:self.left]
            self.left -= len(data)
            self.sent.update(data)
            if self.rng.random() < 0.3:
                self.transport.writelines([data[:100], data[100:]])
            else:
                self.transport.write(data)
        if not self.left:
            self.transport.write_eof()

    def pause_writing(self): self.may_write = False

    def resume_writing(self):
        self.may_write = True
        self.write()

    def data_received(self, data):
        self.received.update(data)
        self.missing -= len(data)

    def eof_received(self):
        self.done.set_result(None)
        return True

    def connection_lost(self, exc):
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("too early"))

class BufferedEnd(End, asyncio.BufferedProtocol):
    room = bytearray(20_000)

    def get_buffer(self, hint): return self.room
    def buffer_updated(self, count): self.data_received(self.room[:count])

async def transfer(kind):
    loop = asyncio.get_running_loop()
    ends = [kind(1, loop.create_future()), kind(2, loop.create_future())]
    server = await loop.create_server(lambda: ends[1], LOOPBACK, 0)
    await loop.create_connection(lambda: ends[0], *server.sockets[0].getsockname())
    await asyncio.gather(*(end.done for end in ends))
    for end in ends:
        end.transport.close()
    server.close()
    await server.wait_closed()
    for one, other in (ends, ends[::-1]):
        assert one.missing == 0
        assert one.sent.digest() == other.received.digest()

def run(main):
    loop = backend.new_event_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()
"""


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", ["End", "BufferedEnd"])
def test_interrupted_and_partial_calls_lose_nothing(backend, kind, seed):
    program = f"""
from tests.shim import shim
shim.misbehave({seed}, 60)
run(transfer({kind}))
print(*shim.counts())
"""
    child = run_shimmed(backend, TRANSFER + program)
    assert child.returncode == 0, child.stderr
    _, failed, cut = map(int, child.stdout.split())
    assert failed > 20
    assert cut > 20


@pytest.mark.parametrize("selector", ["epoll", "polling"])
def test_a_signal_at_any_instant_loses_nothing(backend, selector):
    if selector == "polling" and backend.name != "tideloop":
        pytest.skip("a selector of tideloop")
    program = """
ticks = 0

def tick(number, frame):
    global ticks
    ticks += 1

signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
run(transfer(End))
signal.setitimer(signal.ITIMER_REAL, 0)
print(ticks)
"""
    environment = {"TIDELOOP_SELECTOR": "polling"} if selector == "polling" else {}
    child = run_child(backend, TRANSFER + program, **environment)
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) > 5


# One end sends to a socket; the calls that fail are those of the end.
ONE_END = """
import json
from tests.peers import Recorder, facing_socket
from tests.shim import shim

contexts = []

def run(main):
    loop = backend.new_event_loop()
    loop.set_exception_handler(lambda loop, context: contexts.append(context["message"]))
    try:
        print(json.dumps(loop.run_until_complete(main(loop))))
    finally:
        loop.close()
    assert not contexts, contexts

async def told(protocol):
    error = await protocol.lost
    return [getattr(error, "errno", None), protocol.transport.get_write_buffer_size()]
"""


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.ENOMEM, errno.EPIPE, errno.ETIMEDOUT])
@pytest.mark.parametrize("call", ["recv", "send"])
def test_a_failing_call_ends_the_connection_with_its_error(backend, call, code):
    program = f"""
async def main(loop):
    async with facing_socket(loop) as (mine, peer):
        shim.fail("{call}", {code}, 1)
        if "{call}" == "send":
            mine.transport.write(b"x" * 100_000)
            assert mine.transport.is_closing()
        else:
            # Past the shim, whose failure is for the other end.
            os.write(peer.fileno(), b"x")
        return await told(mine)
run(main)
"""
    child = run_shimmed(backend, ONE_END + program)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == [code, 0]


def test_a_failure_of_the_rest_ends_the_connection_and_does_not_resume(backend):
    program = f"""
async def main(loop):
    async with facing_socket(loop) as (mine, peer):
        while mine.transport.get_write_buffer_size() < 100_000:
            mine.transport.write(b"x" * 50_000)
        for call in ("send", "sendmsg"):
            shim.fail(call, {errno.ENOBUFS}, 1)
        while True:
            try:
                if not os.read(peer.fileno(), 1 << 20):
                    break
            except BlockingIOError:
                if mine.lost.done():
                    break
            await asyncio.sleep(0)
        return [*await told(mine), mine.events]
run(main)
"""
    child = run_shimmed(backend, ONE_END + program)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == [errno.ENOBUFS, 0, ["made", "pause", "lost"]]


@pytest.mark.parametrize("code", [errno.EINTR, errno.EAGAIN])
def test_sendfile_goes_on_after_an_interruption(backend, code):
    program = f"""
import tempfile

async def main(loop):
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(200_000))
        file.flush()
        async with facing_socket(loop) as (mine, peer):
            shim.fail("sendfile", {code}, 3)
            received = bytearray()
            loop.add_reader(peer, lambda: received.extend(os.read(peer.fileno(), 1 << 20)))
            sent = await loop.sendfile(mine.transport, file, fallback=False)
            while len(received) < sent:
                await asyncio.sleep(0)
            loop.remove_reader(peer)
            file.seek(0)
            return [sent, bytes(received) == file.read()]
run(main)
"""
    child = run_shimmed(backend, ONE_END + program)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == [200_000, True]
