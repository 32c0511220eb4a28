"""TLS connections after the handshake: data, flow control, the end of one side, and of both."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess

import pytest

from tests.backends import deviates
from tests.parity.test_buffered_protocol import Buffered
from tests.peers import LOOPBACK, Recorder, dropped, settled
from tests.tls import NAME, alone, authority, encrypted, only

SIZE = 5_000_000
DATA = bytes(range(256)) * (SIZE // 256)


class Stalling(Recorder):
    """Reads nothing until it is told to."""

    def connection_made(self, transport):
        super().connection_made(transport)
        transport.pause_reading()


class TestData:
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    async def test_both_ways_at_once(self, loop, version):
        async with encrypted(loop, client_context=only(authority().client(), version)) as (client, server):
            client.transport.write(DATA)
            server.transport.write(DATA[::-1])
            assert await server.received(len(DATA)) == DATA
            assert await client.received(len(DATA)) == DATA[::-1]

    async def test_in_order_and_in_pieces(self, loop):
        async with encrypted(loop) as (client, server):
            for i in range(100):
                client.transport.write(b"%02d" % i)
            client.transport.writelines([b"one", bytearray(b"two"), memoryview(b"three")])
            assert await server.received(211) == b"".join(b"%02d" % i for i in range(100)) + b"onetwothree"

    async def test_data_sent_with_the_handshake_comes_after_connection_made(self, loop):
        class Greeter(Recorder):
            def connection_made(self, transport):
                super().connection_made(transport)
                transport.write(b"hello")

        async with encrypted(loop, server=lambda: Greeter(loop)) as (client, _):
            await client.received(5)
            assert client.events[:2] == ["made", "data"]

    async def test_mutable_data_is_sent_as_it_was(self, loop):
        async with encrypted(loop, server=lambda: Stalling(loop)) as (client, server):
            data = bytearray(DATA)
            client.transport.write(data)
            data[:] = bytes(len(data))
            server.transport.resume_reading()
            assert await server.received(len(DATA)) == DATA

    @deviates("asyncio", "decrypts into copies of the rest of a bytearray")
    @pytest.mark.parametrize("size", [1000, 100_000])
    async def test_into_a_buffered_protocol(self, loop, size):
        async with encrypted(loop, server=lambda: Buffered(loop, size)) as (client, server):
            data = DATA[: 1000 * size]
            client.transport.write(data)
            assert await server.inner.received(len(data)) == data

    @pytest.mark.parametrize("what", [None, "text", 5])
    async def test_what_is_not_bytes_is_refused(self, loop, what):
        async with encrypted(loop) as (client, _):
            with pytest.raises(TypeError):
                client.transport.write(what)

    async def test_over_a_unix_socket(self, loop, tmp_path):
        async with encrypted(loop, unix=str(tmp_path / "socket")) as (client, server):
            assert client.transport.get_extra_info("socket").family == socket.AF_UNIX
            client.transport.write(DATA)
            assert await server.received(len(DATA)) == DATA
            client.transport.close()
            assert await server.lost is None

    async def test_over_a_given_socket(self, loop):
        left, right = tcp_pair()
        server = Recorder(loop)
        accepting = loop.create_task(loop.connect_accepted_socket(lambda: server, right, ssl=authority().server()))
        _, client = await loop.create_connection(
            lambda: Recorder(loop), sock=left, ssl=authority().client(), server_hostname=NAME
        )
        await accepting
        client.transport.write(b"question")
        assert await server.received(8) == b"question"
        await dropped(client, server)

    async def test_streams(self, loop):
        async def serve(reader, writer):
            async for line in reader:
                writer.write(line.upper())
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, LOOPBACK, 0, ssl=authority().server())
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=authority().client(), server_hostname=NAME
        )
        for line in (b"one\n", b"two\n"):
            writer.write(line)
            assert await reader.readline() == line.upper()
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        await settled(loop)


class TestFlow:
    async def test_a_peer_that_does_not_read_pauses_the_writer(self, loop):
        """A writer that heeds pause_writing() never holds more than the mark and one piece."""
        piece = bytes(64 * 1024)

        class Source(Recorder):
            written = most = 0

            def connection_made(self, transport):
                super().connection_made(transport)
                self.pour()

            def resume_writing(self):
                super().resume_writing()
                self.pour()

            def pour(self):
                while self.events[-1] != "pause" and self.written < 200 * len(piece):
                    self.transport.write(piece)
                    self.written += len(piece)
                    self.most = max(self.most, self.transport.get_write_buffer_size())

        async with encrypted(loop, client=lambda: Source(loop), server=lambda: Stalling(loop)) as (client, server):
            seen = -1
            while seen != client.written:  # what the system's buffers take comes first
                seen = client.written
                await settled(loop, 20)
            assert client.events[-1] == "pause"
            high = client.transport.get_write_buffer_limits()[1]
            assert high <= client.most <= high + 2 * len(piece)
            server.transport.resume_reading()
            await server.received(200 * len(piece))
            await settled(loop)
            assert client.events[-1] == "resume"
            assert client.transport.get_write_buffer_size() == 0

    async def test_a_paused_reader_takes_no_more_than_its_mark(self, loop):
        async with encrypted(loop, server=lambda: Stalling(loop)) as (client, server):
            client.transport.write(DATA)
            await settled(loop, 20)
            assert server.data == b""
            # What was received is still encrypted; one read may pass the mark.
            assert server.transport.get_read_buffer_size() <= 2 * 256 * 1024
            server.transport.resume_reading()
            assert await server.received(len(DATA)) == DATA

    async def test_is_reading(self, loop):
        async with encrypted(loop) as (client, _):
            assert client.transport.is_reading()
            client.transport.pause_reading()
            assert not client.transport.is_reading()
            client.transport.resume_reading()
            assert client.transport.is_reading()

    async def test_limits(self, loop):
        async with encrypted(loop) as (client, _):
            client.transport.set_write_buffer_limits(high=1000)
            assert client.transport.get_write_buffer_limits() == (250, 1000)
            with pytest.raises(ValueError, match="high"):
                client.transport.set_write_buffer_limits(high=1, low=2)


class TestEnd:
    async def test_close_tells_both_sides_in_order(self, loop):
        async with encrypted(loop) as (client, server):
            client.transport.write(b"hello")
            client.transport.close()
            assert client.transport.is_closing()
            assert await server.lost is None
            assert await client.lost is None
            assert server.events == ["made", "data", "eof", "lost"]

    async def test_close_flushes_what_is_buffered(self, loop):
        async with encrypted(loop, server=lambda: Stalling(loop)) as (client, server):
            client.transport.write(DATA)
            client.transport.close()
            server.transport.resume_reading()
            assert await server.lost is None
            assert server.data == DATA

    async def test_there_is_no_half_close(self, loop):
        async with encrypted(loop) as (client, _):
            assert client.transport.can_write_eof() is False
            with pytest.raises(NotImplementedError):
                client.transport.write_eof()

    async def test_keeping_open_has_no_effect(self, loop, caplog):
        async with encrypted(loop, server=lambda: Recorder(loop, keep_open=True)) as (client, server):
            client.transport.close()
            assert await server.lost is None
            assert server.events == ["made", "eof", "lost"]
        assert "returning true from eof_received() has no effect when using ssl" in caplog.text

    async def test_abort(self, loop):
        async with encrypted(loop) as (client, server):
            client.transport.abort()
            assert await client.lost is None
            await server.lost
            assert client.events == ["made", "lost"]

    async def test_a_write_after_close_is_dropped(self, loop):
        async with encrypted(loop) as (client, server):
            client.transport.close()
            client.transport.write(b"late")
            await server.lost
            assert server.data == b""

    @deviates("uvloop", "does not call eof_received()")
    @pytest.mark.parametrize("after", [b"", b"some data"])
    async def test_a_peer_that_is_cut_off(self, loop, after):
        """asyncio does not tell it from a proper end."""
        async with encrypted(loop) as (client, server):
            client.transport.write(after)
            cut_off(client)
            assert await server.lost is None
            assert server.data == after
            assert server.events[-2:] == ["eof", "lost"]

    async def test_a_peer_that_resets(self, loop):
        async with encrypted(loop) as (client, server):
            cut_off(client, reset=True)
            assert isinstance(await server.lost, ConnectionResetError)

    @deviates("uvloop", "loses the connection without an error")
    async def test_a_peer_that_sends_something_else(self, loop):
        async with encrypted(loop) as (client, server):
            client.transport.get_extra_info("socket")._sock.send(b"GET / HTTP/1.0\r\n\r\n")
            error = await server.lost
            assert isinstance(error, ssl.SSLError)

    async def test_a_peer_that_does_not_answer_the_farewell(self, loop):
        left, right = tcp_pair()
        server = Recorder(loop)
        accepting = loop.create_task(
            loop.connect_accepted_socket(lambda: server, right, ssl=authority().server(), ssl_shutdown_timeout=0.01)
        )
        async with silent_client(loop, left) as peer:
            await accepting
            server.transport.close()
            assert isinstance(await server.lost, TimeoutError)
            assert peer.version()

    async def test_a_peer_that_does_not_read_the_rest(self, loop):
        """The timeout also ends a close that waits for a full socket."""
        async with encrypted(loop, server=lambda: Stalling(loop), options={"ssl_shutdown_timeout": 0.01}) as (
            client,
            server,
        ):
            client.transport.write(DATA)
            client.transport.close()
            assert isinstance(await client.lost, TimeoutError)
            server.transport.abort()

    async def test_eof_received_that_raises_is_reported(self, loop, handled):
        class Broken(Recorder):
            def eof_received(self):
                raise LookupError("expected")

        async with encrypted(loop, server=lambda: Broken(loop)) as (client, server):
            client.transport.close()
            assert isinstance(await server.lost, LookupError)
        assert [type(context["exception"]) for context in handled] == [LookupError]

    async def test_data_received_that_raises_closes_the_connection(self, loop, handled):
        class Broken(Recorder):
            def data_received(self, data):
                raise LookupError("expected")

        async with encrypted(loop, server=lambda: Broken(loop)) as (client, server):
            client.transport.write(b"x")
            assert isinstance(await server.lost, LookupError)
            await client.lost
        assert [type(context["exception"]) for context in handled] == [LookupError]


@pytest.mark.skipif(subprocess.run(["which", "openssl"], capture_output=True).returncode != 0, reason="no openssl")
async def test_renegotiation_is_refused(loop):
    """TLS 1.2 only; OpenSSL refuses it, and nothing of ours asks it not to."""
    server = await loop.create_server(
        lambda: Recorder(loop), LOOPBACK, 0, ssl=only(authority().server(), ssl.TLSVersion.TLSv1_2)
    )
    host, port = server.sockets[0].getsockname()
    client = await asyncio.create_subprocess_exec(
        *("openssl", "s_client", "-tls1_2", "-connect", f"{host}:{port}"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    client.stdin.write(b"R\n")
    out, err = await client.communicate()
    assert b"RENEGOTIATING" in out + err
    assert b"no renegotiation" in err
    server.close()
    await server.wait_closed()
    await alone(loop)


def cut_off(protocol, *, reset=False):
    """End the TCP connection below TLS, without TLS's farewell."""
    sock = protocol.transport.get_extra_info("socket")
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        protocol.transport.abort()
    else:
        with socket.socket(fileno=sock.fileno()) as shared:
            shared.shutdown(socket.SHUT_WR)
            shared.detach()


def tcp_pair():
    """Two connected TCP sockets."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    left.setblocking(False)
    right.setblocking(False)
    return left, right


@contextlib.asynccontextmanager
async def silent_client(loop, sock):
    """A TLS client that says nothing after its handshake, which it makes in a thread."""
    context = authority().client()
    sock.setblocking(True)
    with await loop.run_in_executor(None, lambda: context.wrap_socket(sock, server_hostname=NAME)) as wrapped:
        yield wrapped
