"""How often the system is asked: what a loop gains on others it mostly gains by asking less."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.shim import run_shimmed

# The peer reads and writes past the shim, so that only the loop's calls are counted.
ECHOES = """
import ctypes, json, socket
from tests.peers import connected, facing_socket, turns
from tests.shim import shim

ROUNDS = 20

class Echo(asyncio.Protocol):
    pieces = 1

    def __init__(self):
        loop = asyncio.get_running_loop()
        self.made, self.lost = loop.create_future(), loop.create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.made.set_result(None)

    def data_received(self, data):
        for _ in range(self.pieces):
            self.transport.write(data)

    def connection_lost(self, exc):
        self.lost.set_result(exc)

class Twice(Echo):
    pieces = 2

class Many(Echo):
    pieces = 100

class Shown(Twice):
    # As web servers do it.

    def connection_made(self, transport):
        transport.get_extra_info("socket")
        super().connection_made(transport)

class Buffered(Echo, asyncio.BufferedProtocol):
    room = (ctypes.c_char * 1000)()

    def get_buffer(self, hint):
        return self.room

    def buffer_updated(self, count):
        assert shim.received_into() == ctypes.addressof(self.room)
        self.data_received(self.room[:count])

async def echoes(loop, kind):
    async with facing_socket(loop, kind) as (mine, peer):
        before = shim.counts()[0]
        for number in range(ROUNDS):
            os.write(peer.fileno(), b"%03d" % number)
            answer = b""
            while len(answer) < 3 * kind.pieces:
                await asyncio.sleep(0)
                try:
                    answer += os.read(peer.fileno(), 1000)
                except BlockingIOError:
                    pass
            assert answer == b"%03d" % number * kind.pieces
        return shim.counts()[0] - before

def run(main):
    loop = backend.new_event_loop()
    try:
        print(json.dumps(loop.run_until_complete(main(loop))))
    finally:
        loop.close()
"""

ROUNDS = 20


def asked(backend, program: str) -> int:
    child = run_shimmed(backend, ECHOES + program)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@pytest.mark.parametrize("kind", ["Echo", "Buffered"])
def test_an_echo_is_one_receive_and_one_send(backend, kind):
    """Into the protocol's own buffer, if it has one."""
    assert asked(backend, f"run(lambda loop: echoes(loop, {kind}))") == 2 * ROUNDS


@pytest.mark.parametrize(("kind", "writes"), [("Twice", 2), ("Many", 100), ("Shown", 2)])
def test_an_answer_of_several_writes_is_one_send(backend, kind, writes):
    sends = 1 if backend.name == "tideloop" else writes
    assert asked(backend, f"run(lambda loop: echoes(loop, {kind}))") == (1 + sends) * ROUNDS


def test_a_client_receives_and_sends_once_as_well(backend):
    """Its Python socket is not asked about, but it is the loop's all the same."""
    program = """
class Client(Echo):
    left = ROUNDS

    def data_received(self, data):
        self.left -= 1
        if self.left:
            self.transport.write(data)
        else:
            # Before the other end hears of the close.
            self.seen = shim.counts()[0]
            self.transport.close()

async def main(loop):
    async with connected(loop, client=Client, server=Echo) as (client, server):
        before = shim.counts()[0]
        client.transport.write(b"x")
        await client.lost
        return client.seen - before
run(main)
"""
    assert asked(backend, program) == 4 * ROUNDS


def test_connections_that_wait_are_accepted_together(backend):
    program = """
async def main(loop):
    made = []
    server = await loop.create_server(lambda: made.append(1) or asyncio.Protocol(), "127.0.0.1", 0)
    clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(7)]
    before = shim.counts()[0]
    while len(made) < len(clients):
        await asyncio.sleep(0)
    accepts = shim.counts()[0] - before
    for client in clients:
        client.close()
    server.close()
    await server.wait_closed()
    return accepts
run(main)
"""
    assert asked(backend, program) == 8, "the last one finds nothing more"


@pytest.mark.skipif(sys.platform != "linux", reason="an eventfd tells its count there")
def test_calls_that_end_while_the_loop_is_awake_do_not_wake_it(loop, backend):
    """One turn takes the ends of all of them."""
    import asyncio
    import threading
    from concurrent.futures import ThreadPoolExecutor

    if backend.name != "tideloop":
        pytest.skip("who is woken how is each loop's own affair")
    if loop.selector_name != "epoll":
        pytest.skip("another selector has another waker")
    jobs = 50
    gate, ended, left = threading.Event(), threading.Event(), threading.Semaphore(0)
    call_soon_threadsafe = loop.call_soon_threadsafe

    def counted(*arguments, **keywords):
        handle = call_soon_threadsafe(*arguments, **keywords)
        left.release()
        return handle

    async def main() -> None:
        with ThreadPoolExecutor(4) as pool:
            futures = [loop.run_in_executor(pool, gate.wait) for _ in range(jobs)]
            loop.call_soon_threadsafe = counted
            try:
                gate.set()
                for _ in range(jobs):
                    assert left.acquire(timeout=10)
            finally:
                del loop.call_soon_threadsafe
            assert wakes() == [0]
            assert not any(future.done() for future in futures)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert all(future.done() for future in futures)
            ended.set()

    loop.run_until_complete(main())
    assert ended.is_set()


def wakes() -> list[int]:
    """How often each eventfd of this process was written to since it was read."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]":
                continue
            with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
                told = dict(line.split(":", 1) for line in lines)
        except FileNotFoundError:
            continue
        found.append(int(told["eventfd-count"], 16))
    return found
