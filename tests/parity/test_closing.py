"""loop.close() with things still alive: it ends, frees their descriptors, and what is left of them is harmless."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import threading

import pytest

from tests.conftest import open_fds
from tests.parity.test_subprocess import Child
from tests.peers import LOOPBACK, Recorder, socket_pair
from tests.tls import NAME, authority

pytestmark = [
    # What is dropped without being closed says so.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def with_server(loop):
    return await loop.create_server(lambda: Recorder(loop), LOOPBACK, 0)


async def with_tls(loop):
    server = await loop.create_server(lambda: Recorder(loop), LOOPBACK, 0, ssl=authority().server())
    transport, _ = await loop.create_connection(
        lambda: Recorder(loop), *server.sockets[0].getsockname(), ssl=authority().client(), server_hostname=NAME
    )
    transport.write(bytes(1 << 20))
    return server, transport


async def with_handshake(loop):
    server = await loop.create_server(lambda: Recorder(loop), LOOPBACK, 0, ssl=authority().server())
    sock = socket.create_connection(server.sockets[0].getsockname())
    await asyncio.sleep(0)
    return server, sock


async def with_connection(loop):
    left, right = socket_pair()
    transport, _ = await loop.create_connection(lambda: Recorder(loop), sock=left)
    transport.write(bytes(1 << 22))
    return transport, right


async def with_closing_connection(loop):
    left, right = socket_pair()
    transport, _ = await loop.create_connection(lambda: Recorder(loop), sock=left)
    transport.write(bytes(1 << 22))
    transport.close()
    return transport, right


async def with_pipes(loop):
    read_end, write_end = os.pipe()
    incoming, _ = await loop.connect_read_pipe(lambda: Recorder(loop), os.fdopen(read_end, "rb", 0))
    outgoing, _ = await loop.connect_write_pipe(lambda: Recorder(loop), os.fdopen(write_end, "wb", 0))
    outgoing.write(bytes(1 << 20))
    return incoming, outgoing


async def with_child(loop):
    transport, _ = await loop.subprocess_exec(
        lambda: Child(loop), "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None
    )
    return transport


async def with_job(loop):
    started, ended = threading.Event(), threading.Event()

    def job():
        started.set()
        ended.wait()

    future = loop.run_in_executor(None, job)
    await asyncio.sleep(0)
    started.wait()
    loop.call_later(0, ended.set)
    threading.Timer(0.01, ended.set).start()
    return future


async def with_waits(loop):
    left, right = socket_pair()
    waits = [
        loop.create_task(loop.sock_recv(left, 10)),
        loop.create_task(loop.sock_sendall(right, bytes(1 << 22))),
        loop.create_task(asyncio.sleep(1000)),
        loop.create_task(asyncio.Event().wait()),
    ]
    await asyncio.sleep(0)
    return left, right, waits


SUBJECTS = [
    with_server,
    with_tls,
    with_handshake,
    with_connection,
    with_closing_connection,
    with_pipes,
    with_child,
    with_job,
    with_waits,
]


@pytest.mark.parametrize("make", SUBJECTS, ids=lambda make: make.__name__.removeprefix("with_"))
def test_close(backend, make):
    gc.collect()
    before = open_fds()
    loop = backend.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    kept = loop.run_until_complete(make(loop))
    loop.close()
    assert loop.is_closed()
    loop.close()
    for thing in kept if isinstance(kept, tuple) else (kept,):
        for call in ("close", "abort", "terminate"):
            # A closed loop may refuse; it may not crash, nor hang.
            with contextlib.suppress(RuntimeError, AttributeError, ProcessLookupError):
                getattr(thing, call)()
    del thing, kept, loop
    gc.collect()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0]:
            pass
    if backend.name == "tideloop":  # the others keep some until a thread or the process ends
        assert open_fds().keys() <= before.keys()
