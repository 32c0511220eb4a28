"""TCP transports: the protocol's life, what the transport tells, writing, half-close, close and abort."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys

import pytest

from tests.backends import deviates
from tests.peers import LOOPBACK, Recorder, connected, facing_socket, settled, turns


class TestLife:
    async def test_made_data_eof_lost(self, loop):
        async with connected(loop) as (client, server):
            client.transport.write(b"hello")
            client.transport.close()
            assert await server.lost is None
            assert server.events == ["made", "data", "eof", "lost"]
            assert bytes(server.data) == b"hello"
            assert await client.lost is None
            assert client.events == ["made", "lost"]

    async def test_connection_made_comes_before_create_connection_returns(self, loop):
        async with connected(loop) as (client, _):
            assert client.events == ["made"]

    async def test_data_sent_right_after_connecting_comes_after_connection_made(self, loop):
        class Eager(Recorder):
            def connection_made(self, transport):
                super().connection_made(transport)
                transport.write(b"hello")

        async with connected(loop, server=lambda: Eager(loop)) as (client, _):
            assert await client.received(5) == b"hello"
            assert client.events == ["made", "data"]

    async def test_echo_both_ways(self, loop):
        async with connected(loop) as (client, server):
            for i in range(100):
                client.transport.write(b"ping%03d" % i)
                assert (await server.received(7 * (i + 1)))[-7:] == b"ping%03d" % i
                server.transport.write(b"pong%03d" % i)
                assert (await client.received(7 * (i + 1)))[-7:] == b"pong%03d" % i

    async def test_connection_lost_comes_later_than_the_close(self, loop):
        async with connected(loop) as (client, _):
            client.transport.close()
            assert "lost" not in client.events
            await client.lost

    async def test_connection_lost_comes_once(self, loop):
        async with connected(loop) as (client, server):
            server.transport.abort()
            client.transport.close()
            client.transport.abort()
            client.transport.close()
            await client.lost
            client.transport.abort()
            await settled(loop)
            assert client.events.count("lost") == 1

    async def test_data_is_bytes(self, loop):
        types = []

        class Typed(Recorder):
            def data_received(self, data):
                types.append(type(data))
                super().data_received(data)

        async with connected(loop, server=lambda: Typed(loop)) as (client, server):
            client.transport.write(bytearray(b"x" * 100_000))
            await server.received(100_000)
        assert set(types) == {bytes}


class TestTold:
    @deviates("uvloop", "its transports are types of their own")
    async def test_is_an_asyncio_transport(self, loop):
        async with connected(loop) as (client, server):
            assert isinstance(client.transport, asyncio.Transport)
            assert isinstance(server.transport, asyncio.Transport)

    async def test_addresses(self, loop):
        async with connected(loop) as (client, server):
            assert client.transport.get_extra_info("peername") == server.transport.get_extra_info("sockname")
            assert client.transport.get_extra_info("sockname") == server.transport.get_extra_info("peername")
            assert client.transport.get_extra_info("peername")[0] == LOOPBACK

    async def test_addresses_outlive_the_connection(self, loop):
        async with connected(loop) as (client, server):
            peername = client.transport.get_extra_info("peername")
            client.transport.close()
            await client.lost
            assert client.transport.get_extra_info("peername") == peername
            await server.lost

    async def test_socket(self, loop):
        async with connected(loop) as (client, _):
            sock = client.transport.get_extra_info("socket")
            assert sock.family == socket.AF_INET
            assert sock.type & socket.SOCK_STREAM
            assert sock.fileno() >= 0
            assert sock.getsockname() == client.transport.get_extra_info("sockname")
            assert sock.getpeername() == client.transport.get_extra_info("peername")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1

    @deviates("uvloop", "its transports have slots")
    async def test_takes_attributes(self, loop):
        """Programs hang theirs on it, and put their own methods in place of its."""
        async with connected(loop) as (client, server):
            client.transport.note = 5
            assert client.transport.note == 5
            client.transport.write, send = (lambda data: send(data.upper())), client.transport.write
            client.transport.write(b"hello")
            assert await server.received(5) == b"HELLO"
            del client.transport.write

    async def test_nagle_is_off(self, loop):
        async with connected(loop) as (client, server):
            for end in (client, server):
                sock = end.transport.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    async def test_unknown_is_none_or_the_default(self, loop):
        async with connected(loop) as (client, _):
            assert client.transport.get_extra_info("color") is None
            assert client.transport.get_extra_info("color", "red") == "red"
            assert client.transport.get_extra_info("sslcontext") is None

    async def test_is_closing(self, loop):
        async with connected(loop) as (client, _):
            assert not client.transport.is_closing()
            client.transport.close()
            assert client.transport.is_closing()
            await client.lost
            assert client.transport.is_closing()

    async def test_protocol_is_known_and_may_be_replaced(self, loop):
        async with connected(loop) as (client, server):
            assert server.transport.get_protocol() is server
            second = Recorder(loop)
            server.transport.set_protocol(second)
            assert server.transport.get_protocol() is second
            client.transport.write(b"to the second")
            assert await second.received(13) == b"to the second"
            assert server.data == b""
            server.transport.set_protocol(server)

    async def test_repr(self, loop):
        async with connected(loop) as (client, _):
            before = repr(client.transport)
            client.transport.close()
            assert "clos" in repr(client.transport)
            assert repr(client.transport) != before


class TestWrite:
    @deviates("uvloop", "its parameter has another name")
    async def test_by_keyword(self, loop):
        async with connected(loop) as (client, server):
            client.transport.write(data=b"text")
            assert await server.received(4) == b"text"

    async def test_other_arguments_are_refused(self, loop):
        async with connected(loop) as (client, server):
            refused = (((), {}), ((b"a", b"b"), {}), ((b"a",), {"data": b"b"}), ((), {"else": b"a"}), (("text",), {}))
            for arguments, keywords in refused:
                with pytest.raises(TypeError):
                    client.transport.write(*arguments, **keywords)
            client.transport.write(b"text")
            assert await server.received(4) == b"text"

    async def test_writes_arrive_in_order(self, loop):
        parts = [b"%d," % i for i in range(2000)]
        async with connected(loop) as (client, server):
            for i, part in enumerate(parts):
                client.transport.writelines([part]) if i % 3 else client.transport.write(part)
            assert await server.received(len(b"".join(parts))) == b"".join(parts)

    async def test_writelines_takes_any_iterable(self, loop):
        async with connected(loop) as (client, server):
            client.transport.writelines([b"a", bytearray(b"b"), memoryview(b"c")])
            client.transport.writelines(bytes([i]) for i in b"def")
            client.transport.writelines([])
            client.transport.writelines((b"", b"g"))
            assert await server.received(7) == b"abcdefg"

    async def test_large_write(self, loop):
        data = bytes(range(256)) * 40_000
        async with connected(loop) as (client, server):
            client.transport.write(data)
            assert await server.received(len(data)) == data

    async def test_large_writelines(self, loop):
        parts = [bytes([i % 256]) * 10_000 for i in range(1000)]
        async with connected(loop) as (client, server):
            client.transport.writelines(parts)
            assert await server.received(10_000_000) == b"".join(parts)

    async def test_nothing_is_no_event(self, loop):
        async with connected(loop) as (client, server):
            client.transport.write(b"")
            client.transport.write(b"x")
            await server.received(1)
            assert server.events == ["made", "data"]

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    async def test_takes_bytes_like(self, loop, kind):
        async with connected(loop) as (client, server):
            client.transport.write(kind(b"hello"))
            assert await server.received(5) == b"hello"

    async def test_takes_a_memoryview_of_larger_items(self, loop):
        async with connected(loop) as (client, server):
            client.transport.write(memoryview(b"12345678").cast("I"))
            assert await server.received(8) == b"12345678"

    @deviates("uvloop", "ignores it")
    async def test_refuses_none(self, loop):
        async with connected(loop) as (client, _):
            with pytest.raises(TypeError):
                client.transport.write(None)

    @pytest.mark.parametrize("what", ["text", 1, [1]], ids=["str", "int", "list"])
    async def test_refuses_what_is_not_bytes_like(self, loop, what):
        async with connected(loop) as (client, server):
            with pytest.raises(TypeError):
                client.transport.write(what)
            client.transport.write(b"alive")
            assert await server.received(5) == b"alive"

    async def test_a_view_with_gaps_arrives_or_is_refused(self, loop, handled):
        """asyncio closes the transport, reporting a BufferError; uvloop raises it; both are better than wrong bytes."""
        async with connected(loop) as (client, server):
            try:
                client.transport.write(memoryview(b"a-b-c-")[::2])
            except (BufferError, ValueError, TypeError):
                client.transport.write(b"abc")
            client.transport.close()
            await server.lost
            assert bytes(server.data) == (b"" if handled else b"abc")
        assert all(isinstance(context["exception"], BufferError) for context in handled)

    async def test_a_buffer_changed_after_a_small_write_was_sent_as_it_was(self, loop):
        data = bytearray(b"before")
        async with connected(loop) as (client, server):
            client.transport.write(data)
            await turns()
            data[:] = b"after!"
            assert await server.received(6) == b"before"

    @deviates("asyncio", "sends from the caller's buffer since 3.12", when=sys.version_info >= (3, 12))
    @deviates("uvloop", "sends from the caller's buffer")
    async def test_a_buffer_changed_after_a_large_write_was_sent_as_it_was(self, loop):
        size = 16 << 20
        data = bytearray(size)
        async with facing_socket(loop) as (protocol, peer):
            protocol.transport.write(data)
            assert protocol.transport.get_write_buffer_size() > 0
            data[:] = b"x" * size
            received = bytearray()
            while len(received) < size:
                received += await loop.sock_recv(peer, 1 << 20)
            assert received.count(b"\0") == size

    @pytest.mark.parametrize("end", ["close", "abort"])
    async def test_after_close_is_dropped(self, loop, end):
        async with connected(loop) as (client, server):
            client.transport.write(b"in time")
            await server.received(7)
            getattr(client.transport, end)()
            client.transport.write(b"too late")
            await server.lost
            assert bytes(server.data) == b"in time"

    async def test_writelines_after_close_is_dropped(self, loop, backend):
        if backend.name == "asyncio":
            pytest.skip("asyncio of 3.12 and 3.13.0 raises a TypeError out of its own code")
        async with connected(loop) as (client, server):
            client.transport.close()
            client.transport.writelines([b"too", b"late"])
            await server.lost
            assert server.data == b""

    @deviates("uvloop", "raises RuntimeError")
    async def test_many_after_a_lost_connection_are_warned_about(self, loop, caplog):
        async with connected(loop) as (client, server):
            server.transport.abort()
            await client.lost
            with caplog.at_level(logging.WARNING, "asyncio"):
                for _ in range(10):
                    client.transport.write(b"x")
            assert "socket.send() raised exception." in caplog.messages


class TestHalfClose:
    async def test_write_eof_lets_the_other_way_open(self, loop):
        async with connected(loop, server=lambda: Recorder(loop, keep_open=True)) as (client, server):
            assert client.transport.can_write_eof()
            client.transport.write(b"question")
            client.transport.write_eof()
            await server.ended
            assert bytes(server.data) == b"question"
            assert not server.transport.is_closing()
            server.transport.write(b"answer")
            assert await client.received(6) == b"answer"
            server.transport.close()
            await client.lost
            assert client.events == ["made", "data", "eof", "lost"]

    async def test_without_keep_open_eof_closes(self, loop):
        async with connected(loop) as (client, server):
            client.transport.write_eof()
            assert await server.lost is None
            assert await client.lost is None
            assert server.events == ["made", "eof", "lost"]

    async def test_write_eof_comes_behind_what_is_buffered(self, loop):
        data = bytes(8 << 20)
        async with connected(loop, server=lambda: Recorder(loop, keep_open=True)) as (client, server):
            client.transport.write(data)
            client.transport.write_eof()
            await server.ended
            assert len(server.data) == len(data)

    async def test_write_eof_twice_is_once(self, loop):
        async with connected(loop, server=lambda: Recorder(loop, keep_open=True)) as (client, server):
            client.transport.write_eof()
            client.transport.write_eof()
            await server.ended
            await turns()
            assert server.events.count("eof") == 1

    async def test_write_after_write_eof_is_refused(self, loop):
        async with connected(loop, server=lambda: Recorder(loop, keep_open=True)) as (client, server):
            client.transport.write_eof()
            with pytest.raises(RuntimeError, match="Cannot call write"):
                client.transport.write(b"x")
            await server.ended

    async def test_write_eof_after_close_is_ignored(self, loop):
        async with connected(loop) as (client, _):
            client.transport.close()
            client.transport.write_eof()
            await client.lost

    async def test_both_ways(self, loop):
        async with connected(
            loop, client=lambda: Recorder(loop, keep_open=True), server=lambda: Recorder(loop, keep_open=True)
        ) as (client, server):
            client.transport.write_eof()
            server.transport.write_eof()
            await client.ended
            await server.ended
            client.transport.close()
            server.transport.close()
            assert await client.lost is None
            assert await server.lost is None


class TestClose:
    async def test_flushes_what_is_buffered(self, loop):
        data = bytes(range(256)) * (32 << 10)
        async with connected(loop) as (client, server):
            client.transport.write(data)
            client.transport.close()
            assert await server.lost is None
            assert bytes(server.data) == data
            assert await client.lost is None

    async def test_flushes_to_a_reader_that_comes_late(self, loop):
        size = 16 << 20
        async with facing_socket(loop) as (protocol, peer):
            protocol.transport.write(bytes(size))
            protocol.transport.close()
            await settled(loop)
            assert not protocol.lost.done()
            received = 0
            while data := await loop.sock_recv(peer, 1 << 20):
                received += len(data)
            assert received == size
            assert await protocol.lost is None

    async def test_stops_reading(self, loop):
        async with facing_socket(loop) as (protocol, peer):
            protocol.transport.close()
            peer.send(b"too late")
            await protocol.lost
            assert protocol.events == ["made", "lost"]

    async def test_in_connection_made(self, loop):
        class Closing(Recorder):
            def connection_made(self, transport):
                super().connection_made(transport)
                transport.close()

        async with connected(loop, client=lambda: Closing(loop)) as (client, server):
            await client.lost
            await server.lost
            assert client.events == ["made", "lost"]

    async def test_in_data_received(self, loop):
        class Closing(Recorder):
            def data_received(self, data):
                super().data_received(data)
                self.transport.close()

        async with connected(loop, server=lambda: Closing(loop)) as (client, server):
            client.transport.write(b"x" * 1_000_000)
            await server.lost
            assert server.events == ["made", "data", "lost"]

    async def test_abort_drops_what_is_buffered(self, loop):
        size = 32 << 20
        async with facing_socket(loop) as (protocol, peer):
            protocol.transport.write(bytes(size))
            assert protocol.transport.get_write_buffer_size() > 0
            protocol.transport.abort()
            assert await protocol.lost is None
            received = 0
            try:
                while data := await loop.sock_recv(peer, 1 << 20):
                    received += len(data)
            except ConnectionResetError:
                pass
            assert received < size

    async def test_abort_after_close_ends_the_flushing(self, loop):
        async with facing_socket(loop) as (protocol, _):
            protocol.transport.write(bytes(32 << 20))
            protocol.transport.close()
            await turns()
            assert not protocol.lost.done()
            protocol.transport.abort()
            assert await protocol.lost is None

    async def test_the_peers_reset_is_told(self, loop):
        async with facing_socket(loop) as (protocol, peer):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()
            assert isinstance(await protocol.lost, ConnectionResetError)
            assert protocol.events == ["made", "lost"]

    async def test_writing_to_a_gone_peer_ends_with_an_error(self, loop):
        async with facing_socket(loop, lambda: Recorder(loop, keep_open=True)) as (protocol, peer):
            peer.close()
            await protocol.ended
            while not protocol.lost.done():
                protocol.transport.write(b"x")
                await turns(1)
            assert isinstance(await protocol.lost, BrokenPipeError | ConnectionResetError)


class TestBroken:
    """Protocols that raise."""

    async def test_data_received_closes_the_transport_and_is_reported(self, loop, handled):
        class Broken(Recorder):
            def data_received(self, data):
                raise LookupError("expected")

        async with connected(loop, server=lambda: Broken(loop)) as (client, server):
            client.transport.write(b"x")
            assert isinstance(await server.lost, LookupError)
            await client.lost
        (context,) = handled
        assert isinstance(context["exception"], LookupError)
        assert context["protocol"] is server
        assert context["transport"] is server.transport

    async def test_eof_received_closes_the_transport_and_is_reported(self, loop, handled):
        class Broken(Recorder):
            def eof_received(self):
                raise LookupError("expected")

        async with connected(loop, server=lambda: Broken(loop)) as (client, server):
            client.transport.write_eof()
            assert isinstance(await server.lost, LookupError)
        assert [type(context["exception"]) for context in handled] == [LookupError]

    async def test_connection_lost_is_reported_and_the_socket_closed(self, loop, handled):
        class Broken(Recorder):
            def connection_lost(self, exc):
                super().connection_lost(exc)
                raise LookupError("expected")

        async with connected(loop, server=lambda: Broken(loop)) as (client, server):
            server.transport.close()
            await client.lost
        assert [type(context["exception"]) for context in handled] == [LookupError]

    async def test_connection_made_is_reported_and_the_server_lives(self, loop, handled):
        class Broken(Recorder):
            def connection_made(self, transport):
                transport.abort()
                raise LookupError("expected")

        broken = True
        server = await loop.create_server(lambda: (Broken if broken else Recorder)(loop), LOOPBACK, 0)
        _, client = await loop.create_connection(lambda: Recorder(loop), *server.sockets[0].getsockname())
        await client.lost
        broken = False
        _, client = await loop.create_connection(lambda: Recorder(loop), *server.sockets[0].getsockname())
        server.close()
        client.transport.abort()
        await client.lost
        await turns()
        assert [type(context["exception"]) for context in handled] == [LookupError]

    @pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    async def test_factory_does_not_end_the_server(self, loop, backend, handled):
        if backend.name == "uvloop":
            pytest.skip("uvloop leaves the accepted socket open")
        made = []

        def factory():
            if not made:
                made.append(None)
                raise LookupError("expected")
            made.append(Recorder(loop))
            return made[-1]

        server = await loop.create_server(factory, LOOPBACK, 0)
        _, refused = await loop.create_connection(lambda: Recorder(loop), *server.sockets[0].getsockname())
        await refused.lost
        _, client = await loop.create_connection(lambda: Recorder(loop), *server.sockets[0].getsockname())
        client.transport.write(b"hello")
        while len(made) < 2:
            await turns(1)
        assert await made[1].received(5) == b"hello"
        client.transport.close()
        await client.lost
        await made[1].lost
        server.close()
        await server.wait_closed()
        # asyncio reports it in debug mode only.
        assert [type(context["exception"]) for context in handled] in ([], [LookupError])

    @pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    async def test_factory_of_a_client_raises_in_create_connection(self, loop):
        def factory():
            raise LookupError("expected")

        server = await loop.create_server(lambda: Recorder(loop), LOOPBACK, 0)
        with pytest.raises(LookupError):
            await loop.create_connection(factory, *server.sockets[0].getsockname())
        await settled(loop)
        server.close()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_what_ends_the_program_leaves_the_run(self, loop, backend, error):
        if backend.name == "uvloop":
            pytest.skip("uvloop closes the transport and goes on")

        class Fatal(Recorder):
            def data_received(self, data):
                raise error("expected")

        async def main():
            left, right = socket.socketpair()
            transport, protocol = await loop.create_connection(lambda: Fatal(loop), sock=left)
            return transport, protocol, right

        transport, protocol, right = loop.run_until_complete(main())
        right.send(b"x")
        with pytest.raises(error, match="expected"):
            loop.run_forever()
        transport.abort()
        loop.run_until_complete(protocol.lost)
        right.close()
