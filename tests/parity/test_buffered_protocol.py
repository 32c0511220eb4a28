"""BufferedProtocol: the loop reads into the protocol's own buffer."""

from __future__ import annotations

import asyncio

import pytest

from tests.backends import deviates
from tests.peers import Recorder, connected, dropped, facing_socket, settled


class Buffered(asyncio.BufferedProtocol):
    """Reads into one buffer of `size` bytes; writes down what happens."""

    def __init__(self, loop, size=1 << 16):
        self.inner = Recorder(loop)
        self.events = self.inner.events
        self.data = self.inner.data
        self.lost = self.inner.lost
        self.made = self.inner.made
        self.hints = []
        self.buffer = bytearray(size)

    @property
    def transport(self):
        return self.inner.transport

    def connection_made(self, transport):
        self.inner.connection_made(transport)

    def get_buffer(self, sizehint):
        self.hints.append(sizehint)
        return self.buffer

    def buffer_updated(self, nbytes):
        self.inner.data_received(self.buffer[:nbytes])

    def eof_received(self):
        return self.inner.eof_received()

    def connection_lost(self, exc):
        self.inner.connection_lost(exc)


async def test_data_arrives(loop):
    async with connected(loop, server=lambda: Buffered(loop)) as (client, server):
        client.transport.write(b"hello")
        assert await server.inner.received(5) == b"hello"
        client.transport.close()
        assert await server.lost is None
        assert server.events == ["made", "data", "eof", "lost"]


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
async def test_any_size_of_buffer(loop, size):
    data = bytes(range(256)) * (4 if size == 1 else 400)
    async with connected(loop, server=lambda: Buffered(loop, size)) as (client, server):
        client.transport.write(data)
        assert await server.inner.received(len(data)) == data


async def test_the_size_hint_is_a_number(loop):
    async with connected(loop, server=lambda: Buffered(loop)) as (client, server):
        client.transport.write(b"x")
        await server.inner.received(1)
        assert server.hints
        assert all(isinstance(hint, int) for hint in server.hints)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_kinds_of_buffer(loop, kind):
    async with connected(loop, server=lambda: Buffered(loop)) as (client, server):
        whole = bytearray(100)
        server.get_buffer = lambda hint: kind(whole) if kind is memoryview else whole
        server.buffer_updated = lambda count: server.inner.data_received(bytes(whole[:count]))
        client.transport.write(b"hello")
        assert await server.inner.received(5) == b"hello"


async def test_the_buffer_may_be_resized_after_each_update(loop):
    """No export of it is kept between two reads."""
    async with connected(loop, server=lambda: Buffered(loop)) as (client, server):

        def updated(count):
            server.inner.data_received(server.buffer[:count])
            server.buffer.extend(bytes(10))

        server.buffer_updated = updated
        client.transport.write(b"one")
        await server.inner.received(3)
        client.transport.write(b"two")
        assert await server.inner.received(6) == b"onetwo"


class Broken(Buffered):
    fault = staticmethod(lambda hint: None)

    def get_buffer(self, sizehint):
        return self.fault(sizehint)


def fail(*args):
    raise LookupError("expected")


@pytest.mark.parametrize(
    "fault",
    [lambda hint: b"", lambda hint: bytearray(), fail, lambda hint: None, lambda hint: b"readonly"],
    ids=["empty bytes", "empty", "raises", "None", "read-only"],
)
async def test_get_buffer_that_fails_closes_the_transport_and_is_reported(loop, handled, fault):
    async with facing_socket(loop, lambda: Broken(loop)) as (protocol, peer):
        protocol.fault = fault
        peer.send(b"x")
        assert isinstance(await protocol.lost, Exception)
        assert "data" not in protocol.events
    (context,) = handled
    assert isinstance(context["exception"], Exception)
    assert context["protocol"] is protocol


@deviates("uvloop", "reports it, but leaves the transport open")
async def test_buffer_updated_that_raises_closes_the_transport_and_is_reported(loop, handled):
    async with facing_socket(loop, lambda: Buffered(loop)) as (protocol, peer):
        protocol.buffer_updated = fail
        peer.send(b"x")
        async with asyncio.timeout(1):
            assert isinstance(await protocol.lost, LookupError)
    assert [type(context["exception"]) for context in handled] == [LookupError]


async def test_half_close(loop):
    async with connected(loop, server=lambda: Buffered(loop)) as (client, server):
        server.inner.keep_open = True
        client.transport.write_eof()
        await server.inner.ended
        server.transport.write(b"answer")
        assert await client.received(6) == b"answer"


async def test_a_plain_protocol_may_become_buffered_and_back(loop):
    async with connected(loop) as (client, server):
        client.transport.write(b"one")
        await server.received(3)
        buffered = Buffered(loop)
        server.transport.set_protocol(buffered)
        client.transport.write(b"two")
        assert await buffered.inner.received(3) == b"two"
        server.transport.set_protocol(server)
        client.transport.write(b"three")
        assert await server.received(8) == b"onethree"


async def test_pause_and_resume(loop):
    async with connected(loop, server=lambda: Buffered(loop, 100)) as (client, server):
        server.transport.pause_reading()
        client.transport.write(bytes(1000))
        await settled(loop)
        assert server.events == ["made"]
        server.transport.resume_reading()
        assert len(await server.inner.received(1000)) == 1000
        await dropped(client)
