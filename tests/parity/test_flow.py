"""Flow control of stream transports: pausing the reader, the writer's high- and low-water marks."""

from __future__ import annotations

import asyncio
import inspect
import sys

import pytest

from tests.backends import deviates
from tests.peers import Recorder, connected, facing_socket, settled, turns

WRITELINES = inspect.getsource(asyncio.selector_events._SelectorSocketTransport.writelines)
WRITELINES_PAUSES = "_maybe_pause" in WRITELINES or "self.write(" in WRITELINES
"""Whether this Python's asyncio heeds the high-water mark in writelines."""


class TestReading:
    async def test_paused_delivers_nothing_resumed_delivers_all(self, loop):
        async with connected(loop) as (client, server):
            assert server.transport.is_reading()
            server.transport.pause_reading()
            assert not server.transport.is_reading()
            client.transport.write(b"x" * 1000)
            await settled(loop)
            assert server.events == ["made"]
            server.transport.resume_reading()
            assert server.transport.is_reading()
            assert await server.received(1000) == b"x" * 1000

    async def test_paused_does_not_see_the_end(self, loop):
        async with facing_socket(loop) as (protocol, peer):
            protocol.transport.pause_reading()
            peer.send(b"last words")
            peer.close()
            await settled(loop)
            assert protocol.events == ["made"]
            protocol.transport.resume_reading()
            await protocol.lost
            assert bytes(protocol.data) == b"last words"
            assert protocol.events == ["made", "data", "eof", "lost"]

    @deviates("uvloop", "goes on reading until the turn ends")
    async def test_pausing_in_data_received_stops_at_once(self, loop):
        def pause(data, original):
            original(data)
            server.transport.pause_reading()

        async with connected(loop) as (client, server):
            original = server.data_received
            server.data_received = lambda data: pause(data, original)
            client.transport.write(bytes(4 << 20))
            await server.received(1)
            await settled(loop)
            assert server.events == ["made", "data"]
            server.data_received = original
            server.transport.resume_reading()
            await server.received(4 << 20)

    @deviates("uvloop", "starts reading after connection_made")
    async def test_pausing_in_connection_made(self, loop):
        async with connected(loop, server=lambda: PausedAtFirst(loop)) as (client, server):
            client.transport.write(b"x")
            await settled(loop)
            assert server.events == ["made"]
            server.transport.resume_reading()
            assert await server.received(1) == b"x"

    async def test_twice_is_once(self, loop):
        async with connected(loop) as (client, server):
            server.transport.pause_reading()
            server.transport.pause_reading()
            server.transport.resume_reading()
            server.transport.resume_reading()
            client.transport.write(b"x")
            assert await server.received(1) == b"x"

    async def test_after_close_it_is_ignored(self, loop):
        async with connected(loop) as (client, _):
            client.transport.close()
            assert not client.transport.is_reading()
            client.transport.pause_reading()
            client.transport.resume_reading()
            assert not client.transport.is_reading()
            await client.lost

    async def test_close_while_paused(self, loop):
        async with connected(loop) as (client, server):
            client.transport.pause_reading()
            server.transport.write(b"x")
            await turns()
            client.transport.close()
            await client.lost
            assert client.events == ["made", "lost"]


class TestWriting:
    async def test_pause_above_the_high_mark_resume_at_the_low_one(self, loop):
        async with facing_socket(loop) as (protocol, peer):
            protocol.transport.set_write_buffer_limits(high=1 << 20, low=1 << 16)
            while protocol.transport.get_write_buffer_size() <= 1 << 20:
                assert protocol.events == ["made"]
                protocol.transport.write(bytes(1 << 16))
            assert protocol.events == ["made", "pause"]
            sizes = []
            while protocol.events[-1] == "pause":
                await loop.sock_recv(peer, 1 << 16)
                sizes.append(protocol.transport.get_write_buffer_size())
            assert protocol.events == ["made", "pause", "resume"]
            assert sizes == sorted(sizes, reverse=True)
            assert sizes[-1] <= 1 << 16

    async def test_pause_is_told_once(self, loop):
        async with facing_socket(loop) as (protocol, _):
            for _ in range(100):
                protocol.transport.write(bytes(1 << 20))
            assert protocol.events == ["made", "pause"]

    async def test_pause_comes_during_the_write_that_passes_the_mark(self, loop):
        async with facing_socket(loop) as (protocol, _):
            protocol.transport.write(bytes(64 << 20))
            assert protocol.events == ["made", "pause"]

    @deviates("asyncio", "forgets to pause the protocol (some versions)", when=not WRITELINES_PAUSES)
    async def test_writelines_counts_too(self, loop):
        async with facing_socket(loop) as (protocol, peer):
            protocol.transport.writelines([bytes(1 << 20)] * 32)
            await turns()
            assert protocol.events == ["made", "pause"]
            received = 0
            while received < 32 << 20:
                received += len(await loop.sock_recv(peer, 1 << 20))
            while protocol.events[-1] != "resume":
                await turns(1)

    @deviates("asyncio", "loses the connection twice", when=sys.version_info < (3, 14))
    async def test_resume_writing_may_write_and_close(self, loop, handled):
        async with facing_socket(loop) as (protocol, peer):

            def resume():
                protocol.events.append("resume")
                protocol.transport.write(b"the end")
                protocol.transport.close()

            protocol.resume_writing = resume
            protocol.transport.write(bytes(16 << 20))
            received = bytearray()
            while data := await loop.sock_recv(peer, 1 << 20):
                received += data
            assert len(received) == (16 << 20) + 7
            assert received.endswith(b"the end")
            assert await protocol.lost is None
            await turns()
            assert protocol.events == ["made", "pause", "resume", "lost"]
            assert handled == []

    @deviates("uvloop", "loses what is written after it has tried to send once")
    async def test_resume_writing_writes_on_after_close(self, loop, backend, handled):
        if backend.name == "asyncio" and sys.version_info[:2] in ((3, 12), (3, 13)):
            pytest.skip("asyncio of 3.12 and 3.13.0 never ends the connection")

        async with facing_socket(loop) as (protocol, peer):

            def resume():
                protocol.events.append("resume")
                if protocol.events.count("resume") == 1:
                    protocol.transport.write(b"1")
                    protocol.transport.write(bytes(8 << 20))

            protocol.resume_writing = resume
            protocol.transport.set_write_buffer_limits(0)
            protocol.transport.write(bytes(16 << 20))
            protocol.transport.close()
            received = bytearray()
            while data := await loop.sock_recv(peer, 1 << 20):
                received += data
            assert len(received) == (24 << 20) + 1
            assert received[16 << 20] == ord("1")
            assert await protocol.lost is None
            await turns()
            assert protocol.events[-1] == "lost"
            assert handled == []

    @pytest.mark.parametrize("name", ["pause_writing", "resume_writing"])
    async def test_one_that_raises_is_reported(self, loop, handled, name):
        def fail():
            raise LookupError("expected")

        async with facing_socket(loop) as (protocol, peer):
            setattr(protocol, name, fail)
            protocol.transport.write(bytes(16 << 20))
            received = 0
            while received < 16 << 20:
                received += len(await loop.sock_recv(peer, 1 << 20))
            while protocol.transport.get_write_buffer_size():
                await turns(1)
            await turns()
            assert [type(context["exception"]) for context in handled] == [LookupError]
            assert context_of(handled)["protocol"] is protocol

    async def test_size_is_zero_when_all_is_sent(self, loop):
        async with connected(loop) as (client, server):
            assert client.transport.get_write_buffer_size() == 0
            client.transport.write(b"x")
            await server.received(1)
            assert client.transport.get_write_buffer_size() == 0

    async def test_abort_empties_the_buffer(self, loop):
        async with facing_socket(loop) as (protocol, _):
            protocol.transport.write(bytes(16 << 20))
            assert protocol.transport.get_write_buffer_size() > 0
            protocol.transport.abort()
            await protocol.lost
            assert protocol.transport.get_write_buffer_size() == 0


class TestLimits:
    @deviates("uvloop", "its low mark is 16 bytes")
    async def test_defaults(self, loop):
        async with connected(loop) as (client, _):
            assert client.transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)

    @pytest.mark.parametrize(
        ("arguments", "limits"),
        [
            ({}, (16 * 1024, 64 * 1024)),
            ({"high": 1000}, (250, 1000)),
            ({"low": 1000}, (1000, 4000)),
            ({"high": 1000, "low": 10}, (10, 1000)),
            ({"high": 0}, (0, 0)),
            ({"high": 5, "low": 5}, (5, 5)),
        ],
        ids=["none", "high", "low", "both", "zero", "equal"],
    )
    async def test_set(self, loop, arguments, limits):
        async with connected(loop) as (client, _):
            client.transport.set_write_buffer_limits(**arguments)
            assert client.transport.get_write_buffer_limits() == limits

    @pytest.mark.parametrize(
        "arguments", [{"high": 1, "low": 2}, {"high": -1}, {"low": -1}, {"high": 1, "low": -1}], ids=repr
    )
    async def test_refused(self, loop, arguments):
        async with connected(loop) as (client, _):
            before = client.transport.get_write_buffer_limits()
            with pytest.raises(ValueError, match="must be >= low"):
                client.transport.set_write_buffer_limits(**arguments)
            assert client.transport.get_write_buffer_limits() == before

    async def test_lowered_below_what_is_buffered_pauses(self, loop):
        async with facing_socket(loop) as (protocol, _):
            protocol.transport.set_write_buffer_limits(high=64 << 20)
            protocol.transport.write(bytes(16 << 20))
            assert protocol.events == ["made"]
            protocol.transport.set_write_buffer_limits(high=1024)
            assert protocol.events == ["made", "pause"]


def context_of(handled):
    (context,) = handled
    return context


class PausedAtFirst(Recorder):
    def connection_made(self, transport):
        super().connection_made(transport)
        transport.pause_reading()
