"""The number of open file descriptors returns to the start."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import threading

import pytest

from tests.conftest import open_fds
from tests.peers import LOOPBACK, Recorder, connected, turns

ROUNDS = 200


def use_nothing(loop):
    pass


def use_sleep(loop):
    loop.run_until_complete(asyncio.sleep(0))


def use_thread(loop):
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(loop.stop,))
    thread.start()
    loop.run_forever()
    thread.join()


def use_signals(loop):
    async def main():
        loop.add_signal_handler(signal.SIGUSR1, int)

    loop.run_until_complete(main())


def use_connection(loop):
    async def main():
        async with connected(loop) as (client, server):
            client.transport.close()
            await server.lost

    loop.run_until_complete(main())


def use_refused_connection(loop):
    async def main():
        with socket.socket() as unused:
            unused.bind((LOOPBACK, 0))
            with pytest.raises(ConnectionRefusedError):
                await loop.create_connection(lambda: Recorder(loop), *unused.getsockname())
        await turns(1)

    loop.run_until_complete(main())


def use_reader(loop):
    left, right = socket.socketpair()
    loop.add_reader(left, int)
    loop.run_until_complete(asyncio.sleep(0))
    loop.remove_reader(left)
    left.close()
    right.close()


def use_endpoint(loop):
    async def main():
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=(LOOPBACK, 0))
        transport.sendto(b"hello", transport.get_extra_info("sockname"))
        transport.close()

    loop.run_until_complete(main())
    loop.run_until_complete(asyncio.sleep(0))


@pytest.mark.parametrize(
    "use",
    [use_endpoint, use_nothing, use_sleep, use_thread, use_signals, use_connection, use_refused_connection, use_reader],
    ids=lambda use: use.__name__.removeprefix("use_"),
)
def test_200_loops_leave_none(backend, use):
    before = open_fds()
    for _ in range(ROUNDS):
        loop = backend.new_event_loop()
        use(loop)
        loop.close()
    if len(open_fds()) > len(before):
        gc.collect()
    assert len(open_fds()) <= len(before)


def test_close_frees_them_at_once(backend):
    """Not when the loop object is collected."""
    before = len(open_fds())
    loops = [backend.new_event_loop() for _ in range(20)]
    assert len(open_fds()) > before
    for loop in loops:
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    assert len(open_fds()) <= before


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_unclosed_loops_leave_none_when_collected(backend):
    if backend.name == "uvloop":
        pytest.skip("uvloop keeps an unclosed loop's descriptors")
    before = len(open_fds())
    for _ in range(20):
        backend.new_event_loop()
    gc.collect()
    assert len(open_fds()) <= before


async def test_1000_connections_on_one_loop_leave_none(loop):
    protocols = []

    def factory():
        protocols.append(Recorder(loop))
        return protocols[-1]

    server = await loop.create_server(factory, LOOPBACK, 0)
    address = server.sockets[0].getsockname()
    before = len(open_fds())
    for i in range(1000):
        _, client = await loop.create_connection(lambda: Recorder(loop), *address)
        client.transport.close() if i % 2 else client.transport.abort()
        await client.lost
    while len(protocols) < 1000:
        await turns(1)
    for protocol in protocols:
        await protocol.lost
    await turns()
    assert len(open_fds()) == before
    server.close()
    await server.wait_closed()
