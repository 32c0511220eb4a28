"""Much data and many connections: memory stays bounded, nothing is lost."""

from __future__ import annotations

import asyncio
import resource

import pytest

from tests.peers import LOOPBACK, Recorder, turns

MIB = 1 << 20
GIB = 1 << 30
CONNECTIONS = 2000


def resident() -> int:
    """Bytes of this process that are in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class Source(asyncio.Protocol):
    """Sends `total` bytes, one chunk at a time, as fast as flow control allows."""

    chunk = bytes(range(256)) * (MIB // 256)

    def __init__(self, loop, total):
        self.loop = loop
        self.left = total
        self.running = True
        self.largest = 0
        self.lost = loop.create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.high = transport.get_write_buffer_limits()[1]
        self.feed()

    def feed(self):
        while self.running and self.left:
            self.transport.write(self.chunk)
            self.left -= len(self.chunk)
            self.largest = max(self.largest, self.transport.get_write_buffer_size())
        if not self.left and not self.transport.is_closing():
            self.loop.call_soon(self.transport.close)  # not here: asyncio would lose the connection twice

    def pause_writing(self):
        self.running = False

    def resume_writing(self):
        self.running = True
        self.feed()

    def connection_lost(self, exc):
        self.lost.set_result(exc)


class Sink(asyncio.Protocol):
    """Counts, checks the first and last byte of each piece, and pauses now and then."""

    def __init__(self, loop):
        self.loop = loop
        self.count = 0
        self.pieces = 0
        self.highest = 0
        self.faults = 0
        self.lost = loop.create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.faults += data[0] != self.count % 256 or data[-1] != (self.count + len(data) - 1) % 256
        self.count += len(data)
        self.pieces += 1
        if self.pieces % 200 == 0:
            self.highest = max(self.highest, resident())
            self.transport.pause_reading()
            self.loop.call_soon(self.transport.resume_reading)

    def connection_lost(self, exc):
        self.lost.set_result(exc)


async def test_a_gibibyte_in_bounded_memory(loop):
    sink = Sink(loop)
    before = resident()
    server = await loop.create_server(lambda: sink, LOOPBACK, 0)
    _, source = await loop.create_connection(lambda: Source(loop, GIB), *server.sockets[0].getsockname())
    assert await source.lost is None
    assert await sink.lost is None
    server.close()
    await server.wait_closed()
    assert sink.count == GIB
    assert sink.faults == 0
    assert source.largest <= source.high + MIB
    assert sink.highest - before < 64 * MIB


@pytest.fixture
def many_descriptors():
    """Room for both ends of the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * CONNECTIONS + 200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"at most {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_2000_connections_at_once(loop, many_descriptors):
    made = []

    class Echo(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            made.append(self)

        def data_received(self, data):
            self.transport.write(data)

    server = await loop.create_server(lambda: Echo(loop), LOOPBACK, 0, backlog=512)
    address = server.sockets[0].getsockname()
    clients = []
    for _ in range(CONNECTIONS // 100):
        connecting = (loop.create_connection(lambda: Recorder(loop), *address) for _ in range(100))
        clients += [protocol for _, protocol in await asyncio.gather(*connecting)]
    for i, client in enumerate(clients):
        client.transport.write(b"%04d" % i)
    assert [await client.received(4) for client in clients] == [b"%04d" % i for i in range(CONNECTIONS)]
    while len(made) < CONNECTIONS:
        await turns(1)
    for client in clients:
        client.transport.close()
    for end in (*clients, *made):
        assert await end.lost is None
    server.close()
    await server.wait_closed()
