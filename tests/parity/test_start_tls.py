"""loop.start_tls and StreamWriter.start_tls: a connection that is encrypted from some point on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import pytest

from tests.backends import deviates
from tests.peers import LOOPBACK, Recorder, connected, facing_socket, settled, turns
from tests.tls import NAME, authority, encrypted, stranger

DATA = bytes(range(256)) * 8_000


async def upgraded(loop, pair, **options):
    """Both ends of a pair upgrade; their new transports."""
    client, server = pair
    transports = await asyncio.gather(
        loop.start_tls(client.transport, client, authority().client(), server_hostname=NAME, **options),
        loop.start_tls(server.transport, server, authority().server(), server_side=True, **options),
    )
    client.transport, server.transport = transports
    return transports


class TestUpgrade:
    async def test_data_before_and_after(self, loop):
        async with connected(loop) as pair:
            client, server = pair
            client.transport.write(b"plain")
            await server.received(5)
            await upgraded(loop, pair)
            client.transport.write(b"secret")
            server.transport.write(b"answer")
            assert await server.received(11) == b"plainsecret"
            assert await client.received(6) == b"answer"

    async def test_much_data_both_ways(self, loop):
        async with connected(loop) as pair:
            client, server = pair
            client.transport.write(DATA)
            server.transport.write(DATA)
            await client.received(len(DATA))
            await server.received(len(DATA))
            await upgraded(loop, pair)
            client.transport.write(DATA)
            server.transport.write(DATA)
            assert await client.received(2 * len(DATA)) == DATA * 2
            assert await server.received(2 * len(DATA)) == DATA * 2

    @deviates("asyncio", "fails an assertion, and does not tell the protocol to resume writing")
    @deviates("uvloop", "fails an assertion, and does not tell the protocol to resume writing")
    async def test_what_is_still_buffered_goes_first(self, loop, handled):
        async with connected(loop, server=lambda: Later(loop)) as (client, server):
            client.transport.write(DATA * 4)
            assert client.events == ["made", "pause"]
            upgrading = loop.create_task(
                loop.start_tls(client.transport, client, authority().client(), server_hostname=NAME)
            )
            await turns()
            server.transport.resume_reading()
            await server.received(len(DATA) * 4)
            assert server.data[: len(DATA) * 4] == DATA * 4
            upgrading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await upgrading
            await finish(loop, client)
            assert client.events[:3] == ["made", "pause", "resume"]
            assert not handled

    async def test_connection_made_is_not_called_again(self, loop):
        async with connected(loop) as pair:
            await upgraded(loop, pair)
            pair.client.transport.close()
            await pair.server.lost
            assert [protocol.events.count("made") for protocol in pair] == [1, 1]

    async def test_what_the_new_transport_knows(self, loop):
        async with connected(loop) as pair:
            old = pair.client.transport
            address = old.get_extra_info("peername")
            new, _ = await upgraded(loop, pair)
            assert new is not old
            assert new.get_extra_info("peername") == address
            assert new.get_extra_info("ssl_object").version() == "TLSv1.3"
            assert new.get_extra_info("peercert")
            assert new.get_protocol() is pair.client

    async def test_over_a_unix_socket(self, loop, tmp_path):
        async with connected(loop, unix=str(tmp_path / "socket")) as pair:
            await upgraded(loop, pair)
            pair.client.transport.write(DATA)
            assert await pair.server.received(len(DATA)) == DATA

    async def test_tls_in_tls(self, loop):
        async with encrypted(loop) as pair:
            outer = pair.client.transport
            inner, _ = await upgraded(loop, pair)
            pair.client.transport.write(DATA)
            pair.server.transport.write(DATA)
            assert await pair.server.received(len(DATA)) == DATA
            assert await pair.client.received(len(DATA)) == DATA
            assert inner.get_extra_info("ssl_object") is not outer.get_extra_info("ssl_object")
            inner.close()
            await pair.server.lost
            await pair.client.lost


class TestFailed:
    async def test_an_unknown_authority(self, loop):
        async with connected(loop) as (client, server):
            serving = loop.create_task(loop.start_tls(server.transport, server, authority().server(), server_side=True))
            with pytest.raises(ssl.SSLCertVerificationError):
                await loop.start_tls(client.transport, client, stranger().client(), server_hostname=NAME)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await serving
            assert client.transport.is_closing()
            await finish(loop, client, server)

    async def test_a_silent_peer(self, loop):
        async with facing_socket(loop) as (client, peer):
            with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking longer than"):
                await loop.start_tls(
                    client.transport, client, authority().client(), server_hostname=NAME, ssl_handshake_timeout=0.01
                )
            await closed(loop, peer)
            await finish(loop, client)

    @pytest.mark.parametrize("side", ["client", "server"])
    async def test_a_peer_that_leaves(self, loop, side):
        async with facing_socket(loop) as (mine, peer):
            context = authority().server() if side == "server" else authority().client()
            upgrading = loop.create_task(
                loop.start_tls(mine.transport, mine, context, server_side=side == "server", server_hostname=NAME)
            )
            await turns()
            peer.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionResetError):
                await upgrading
            await finish(loop, mine)

    async def test_a_peer_that_does_not_speak_tls(self, loop):
        async with facing_socket(loop) as (mine, peer):
            peer.send(b"500 I do not speak that\r\n" * 10)
            with pytest.raises(ssl.SSLError):
                await loop.start_tls(mine.transport, mine, authority().client(), server_hostname=NAME)
            await finish(loop, mine)

    async def test_cancelled(self, loop):
        async with facing_socket(loop) as (mine, peer):
            upgrading = loop.create_task(
                loop.start_tls(mine.transport, mine, authority().client(), server_hostname=NAME)
            )
            await settled(loop)
            upgrading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await upgrading
            await closed(loop, peer)
            await finish(loop, mine)


class TestRefused:
    @pytest.mark.parametrize("context", [None, True, "tls"])
    async def test_what_is_no_context(self, loop, context):
        async with connected(loop) as (client, _):
            with pytest.raises(TypeError, match=r"sslcontext is expected to be an instance of ssl\.SSLContext"):
                await loop.start_tls(client.transport, client, context, server_hostname=NAME)

    @pytest.mark.parametrize("transport", [None, asyncio.Transport(), asyncio.DatagramTransport()])
    async def test_what_cannot_be_encrypted(self, loop, transport):
        with pytest.raises(TypeError, match=r"is not supported by start_tls\(\)|expected uvloop"):
            await loop.start_tls(transport, Recorder(loop), authority().client(), server_hostname=NAME)

    @pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
    @pytest.mark.parametrize("seconds", [0, -1])
    async def test_timeouts(self, loop, name, seconds):
        async with connected(loop) as (client, _):
            with pytest.raises(ValueError, match=name):
                await loop.start_tls(
                    client.transport, client, authority().client(), server_hostname=NAME, **{name: seconds}
                )


class TestStreams:
    async def test_both_sides(self, loop):
        async def serve(reader, writer):
            assert await reader.readline() == b"STARTTLS\n"
            writer.write(b"go ahead\n")
            await writer.drain()
            await writer.start_tls(authority().server())
            assert writer.get_extra_info("ssl_object")
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, LOOPBACK, 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go ahead\n"
        await writer.start_tls(authority().client(), server_hostname=NAME)
        writer.write(b"secret\n")
        assert await reader.readline() == b"SECRET\n"
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        await settled(loop)

    async def test_what_the_reader_took_ahead_belongs_to_the_handshake(self, loop, backend):
        """A client that does not wait for the answer sends its request and its hello in one piece."""
        if backend.name == "uvloop" or (backend.name == "asyncio" and not takes_along()):
            pytest.skip("loses it, and the connection hangs")
        done = loop.create_future()

        async def serve(reader, writer):
            assert await reader.readline() == b"STARTTLS\n"
            await settled(loop)  # the hello is in the reader's buffer
            try:
                await writer.start_tls(authority().server())
                writer.write(b"hello\n")
                await writer.drain()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)
            writer.close()

        server = await asyncio.start_server(serve, LOOPBACK, 0)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = authority().client().wrap_bio(incoming, outgoing, server_hostname=NAME)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        writer.write(b"STARTTLS\n" + outgoing.read())
        received = None
        while received is None:
            try:
                received = client.read(100)
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await reader.read(65536))
        assert received == b"hello\n"
        await done
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        await settled(loop)


def takes_along():
    """Whether this asyncio's start_tls() knows of stream readers."""
    return "_stream_reader" in asyncio.base_events.BaseEventLoop.start_tls.__code__.co_consts


class Later(Recorder):
    """Reads nothing until it is told to."""

    def connection_made(self, transport):
        super().connection_made(transport)
        transport.pause_reading()


async def finish(loop, *protocols):
    """asyncio does not tell a protocol whose upgrade has failed that the connection is lost; the fixtures wait."""
    await settled(loop)
    for protocol in protocols:
        if not protocol.lost.done():
            protocol.lost.set_result(None)


async def closed(loop, peer):
    with contextlib.suppress(ConnectionResetError):
        while await loop.sock_recv(peer, 65536):
            pass
