"""A server whose accept() fails: it says so, does not spin, and serves again as soon as it can."""

from __future__ import annotations

import errno
import json

import pytest

from tests.peers import run_child
from tests.shim import run_shimmed

# A server, clients that wait to be accepted, and a loop whose second of waiting is over at once.
SERVER = """
import json, resource, socket
from tests.peers import LOOPBACK, settled

loop = backend.new_event_loop()
contexts, delays, served = [], [], []
later = loop.call_later

def at_once(delay, *args, **kwargs):
    delays.append(delay)
    if release:
        return later(0, *args, **kwargs)
    waiting.append(args)

release, waiting = False, []
loop.call_later = at_once
loop.set_exception_handler(lambda loop, context: contexts.append(context))

class Greeter(asyncio.Protocol):
    def connection_made(self, transport):
        served.append(transport)
        transport.write(b"hello")
        transport.close()

async def serve(count):
    server = await loop.create_server(Greeter, LOOPBACK, 0, backlog=20)
    clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(count)]
    for client in clients:
        client.settimeout(10)
    return server, clients

async def greeted(clients):
    for client in clients:
        client.setblocking(False)
        assert await loop.sock_recv(client, 10) == b"hello"
        client.close()

def finish(main, *more):
    loop.run_until_complete(main)
    loop.close()
    errors = {context["exception"].errno for context in contexts}
    messages = {context["message"] for context in contexts}
    print(json.dumps([sorted(errors), sorted(messages), sorted(set(delays)), len(served), *more]))
"""

OUT_OF_DESCRIPTORS = """
async def main():
    global release
    await settled(loop, 1)
    server, clients = await serve(5)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    while not contexts:
        await asyncio.sleep(0)
    said = len(contexts)
    # Room for the sockets that the polls need.
    for _ in range(4):
        os.close(taken.pop())
    rounds = len(contexts)
    await settled(loop, 20)
    spun.append(len(contexts) - rounds)
    assert not served
    for fd in taken:
        os.close(fd)
    release = True
    for args in waiting:
        loop.call_soon(*args)
    await greeted(clients)
    server.close()
    await server.wait_closed()

spun = []
finish(main(), spun)
"""


def test_out_of_descriptors(backend):
    if backend.name == "uvloop":
        pytest.skip("libuv accepts and closes the connection, with a descriptor that it keeps for this")
    child = run_child(backend, SERVER + OUT_OF_DESCRIPTORS)
    assert child.returncode == 0, child.stderr
    errors, messages, delays, served, spun = json.loads(child.stdout)
    assert errors == [errno.EMFILE]
    assert messages == ["socket.accept() out of system resource"]
    assert delays == [1]
    assert served == 5
    assert spun == [0], "a server that cannot accept waits, it does not try again and again"


FAILS = """
from tests.shim import shim

async def main():
    global release
    release = True
    server, clients = await serve(3)
    shim.fail("accept", {code}, 1)
    await greeted(clients)
    server.close()
    await server.wait_closed()

finish(main())
"""


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_out_of_resources(backend, code):
    child = run_shimmed(backend, SERVER + FAILS.format(code=code))
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == [[code], ["socket.accept() out of system resource"], [1], 3]


@pytest.mark.parametrize("code", [errno.EINTR, errno.EAGAIN, errno.ECONNABORTED])
def test_what_is_no_failure_is_not_told(backend, code):
    child = run_shimmed(backend, SERVER + FAILS.format(code=code))
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == [[], [], [], 3]


@pytest.mark.parametrize("code", [errno.EPROTO, errno.EPERM, errno.ENETUNREACH])
def test_a_connection_that_fails_alone_does_not_stop_the_others(backend, code):
    child = run_shimmed(backend, SERVER + FAILS.format(code=code))
    assert child.returncode == 0, child.stderr
    errors, messages, delays, served = json.loads(child.stdout)
    assert (errors, delays, served) == ([code], [], 3)
    assert len(messages) == 1


BROKEN = """
from tests.shim import shim

async def main():
    global release
    server, clients = await serve(3)
    shim.fail("accept", errno.EINVAL, 1_000_000)
    while not contexts:
        await asyncio.sleep(0)
    await settled(loop, 20)
    said.append(len(contexts))
    shim.fail("accept", 0, 0)
    release = True
    for args in waiting:
        loop.call_soon(*args)
    await greeted(clients)
    server.close()
    await server.wait_closed()

import errno
said = []
finish(main(), said)
"""


def test_a_listener_that_is_broken_does_not_keep_the_loop_busy(backend):
    if backend.name != "tideloop":
        pytest.skip("asyncio reports it in every turn")
    child = run_shimmed(backend, SERVER + BROKEN)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == [[errno.EINVAL], ["socket.accept() failed"], [1], 3, [1]]


CLOSED_MEANWHILE = """
from tests.shim import shim

async def main():
    server, clients = await serve(1)
    shim.fail("accept", errno.EMFILE, 1)
    while not contexts:
        await asyncio.sleep(0)
    server.close()
    for args in waiting:
        loop.call_soon(*args)
    await settled(loop, 3)
    for client in clients:
        client.close()

import errno
finish(main())
"""


def test_a_server_that_was_closed_meanwhile_stays_closed(backend):
    if backend.name == "asyncio":
        pytest.skip("watches the closed socket's descriptor again")
    child = run_shimmed(backend, SERVER + CLOSED_MEANWHILE)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == [[errno.EMFILE], ["socket.accept() out of system resource"], [1], 0]
