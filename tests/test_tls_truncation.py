"""EventLoop.tls_truncation_is_error: a TLS connection that is cut off is lost with an error.

tideloop only; as it is by default, tests/parity/test_tls_transfer.py shows it.
"""

from __future__ import annotations

import asyncio
import ssl

import pytest
import tideloop

from tests.parity.test_buffered_protocol import Buffered
from tests.parity.test_tls_transfer import cut_off
from tests.peers import LOOPBACK, Recorder, settled
from tests.tls import NAME, authority, encrypted


@pytest.fixture
def strict():
    """A runner whose loop is strict."""
    with tideloop.Runner() as runner:
        runner.get_loop().tls_truncation_is_error = True
        yield runner


def test_it_is_none_by_default(strict):
    assert tideloop.EventLoop.tls_truncation_is_error is False
    with tideloop.Runner() as other:
        assert other.get_loop().tls_truncation_is_error is False


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("paused", [False, True])
def test_a_cut_is_an_error_behind_the_data(strict, paused, buffered):
    async def main():
        loop = asyncio.get_running_loop()
        make = Buffered if buffered else Recorder
        async with encrypted(loop, server=lambda: make(loop)) as (client, server):
            if paused:
                server.transport.pause_reading()
            client.transport.write(bytes(100_000))
            await settled(loop)
            cut_off(client)
            if paused:
                await settled(loop)
                assert not server.lost.done()
                server.transport.resume_reading()
            assert isinstance(await server.lost, ssl.SSLEOFError)
            assert len(server.data) == 100_000
            assert "eof" not in server.events

    strict.run(main())


def test_a_stream_reader_raises(strict):
    async def main():
        async def serve(reader, writer):
            writer.write(b"half of the ")
            await writer.drain()
            cut_off(type("Peer", (), {"transport": writer.transport}))
            await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, LOOPBACK, 0, ssl=authority().server())
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=authority().client(), server_hostname=NAME
        )
        with pytest.raises(ssl.SSLEOFError):
            await reader.read()
        writer.close()
        with pytest.raises(ssl.SSLEOFError):
            await writer.wait_closed()
        server.close()
        await settled(asyncio.get_running_loop(), 10)

    strict.run(main())


def test_a_proper_end_is_none(strict):
    async def main():
        async with encrypted(asyncio.get_running_loop()) as (client, server):
            client.transport.write(b"hello")
            client.transport.close()
            assert await server.lost is None
            assert server.events == ["made", "data", "eof", "lost"]
            assert await client.lost is None

    strict.run(main())


def test_an_answer_that_is_cut_off_after_our_farewell_is_none(strict):
    async def main():
        async with encrypted(asyncio.get_running_loop()) as (client, server):
            server.transport.close()
            cut_off(client)
            assert await server.lost is None

    strict.run(main())


def test_a_context_may_ignore_it(strict):
    async def main():
        context = authority().server()
        context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
        async with encrypted(asyncio.get_running_loop(), server_context=context) as (client, server):
            cut_off(client)
            assert await server.lost is None
            assert server.events == ["made", "eof", "lost"]

    strict.run(main())
