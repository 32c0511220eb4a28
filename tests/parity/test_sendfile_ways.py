"""The ways in which a file is sent: by the kernel, by reading and writing, over TLS, over a plain socket."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os

import pytest

from tests.backends import deviates
from tests.peers import connected, facing_socket, settled, socket_pair, turns
from tests.tls import encrypted

SIZE = 1_500_000
not_on_uvloop = deviates("uvloop", "NotImplementedError")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        yield file


def contents(file):
    with open(file.name, "rb") as again:
        return again.read()


async def take(loop, sock, count):
    data = bytearray()
    while len(data) < count:
        data += await loop.sock_recv(sock, 1 << 20)
    return bytes(data)


class Unsendable(io.RawIOBase):
    """A file without a descriptor."""

    def __init__(self, data):
        self.inner = io.BytesIO(data)
        self.readinto = self.inner.readinto
        self.seek = self.inner.seek
        self.tell = self.inner.tell

    def readable(self):
        return True


@not_on_uvloop
class TestTransport:
    async def test_over_tls(self, loop, file):
        async with encrypted(loop) as (client, server):
            assert await loop.sendfile(client.transport, file) == SIZE
            assert await server.received(SIZE) == contents(file)
            assert file.tell() == SIZE

    async def test_over_tls_only_by_reading(self, loop, file):
        async with encrypted(loop) as (client, _):
            with pytest.raises(RuntimeError, match="fallback is disabled"):
                await loop.sendfile(client.transport, file, fallback=False)

    async def test_a_file_without_a_descriptor(self, loop):
        data = os.urandom(SIZE)
        async with connected(loop) as (client, server):
            assert await loop.sendfile(client.transport, Unsendable(data)) == SIZE
            assert await server.received(SIZE) == data

    async def test_a_file_without_a_descriptor_only_by_the_kernel(self, loop):
        async with connected(loop) as (client, _):
            with pytest.raises(asyncio.SendfileNotAvailableError):
                await loop.sendfile(client.transport, Unsendable(b"x"), fallback=False)
            client.transport.write(b"still fine")

    @pytest.mark.parametrize(
        ("offset", "count", "sent"),
        [
            (0, None, SIZE),
            (100, None, SIZE - 100),
            (0, 100, 100),
            (SIZE - 10, 100, 10),
            (SIZE, None, 0),
            (SIZE + 10, 5, 0),
        ],
    )
    @pytest.mark.parametrize("descriptor", [True, False])
    async def test_parts(self, loop, file, descriptor, offset, count, sent):
        data = contents(file)
        source = file if descriptor else Unsendable(data)
        async with connected(loop) as (client, server):
            assert await loop.sendfile(client.transport, source, offset, count) == sent
            client.transport.write(b"!")
            assert await server.received(sent + 1) == data[offset : offset + sent] + b"!"

    async def test_over_a_unix_socket(self, loop, file, tmp_path):
        async with connected(loop, unix=str(tmp_path / "socket")) as (client, server):
            assert await loop.sendfile(client.transport, file) == SIZE
            assert await server.received(SIZE) == contents(file)

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [((-1,), ValueError), ((0, 0), ValueError), ((0, -5), ValueError), (("0",), TypeError), ((0, 1.5), TypeError)],
    )
    async def test_numbers_that_do_not_fit(self, loop, file, arguments, error):
        left, right = socket_pair()
        with left, right, pytest.raises(error):
            await loop.sock_sendfile(left, file, *arguments)

    @pytest.mark.parametrize("after", [1, 3, 10])
    async def test_cancelled(self, loop, file, after):
        """The connection stays, and what follows comes behind what was sent of the file."""
        end = b"the end of the data"
        async with facing_socket(loop) as (mine, peer):
            sending = loop.create_task(loop.sendfile(mine.transport, file, 0, None))
            await turns(after)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
            mine.transport.write(end)
            received = bytearray()
            while not received.endswith(end):
                received += await loop.sock_recv(peer, 1 << 20)
            sent = len(received) - len(end)
            assert received[:sent] == contents(file)[:sent]

    async def test_a_peer_that_leaves(self, loop, tmp_path):
        path = tmp_path / "large"
        with path.open("wb") as large:
            large.truncate(64 << 20)
        async with facing_socket(loop) as (mine, peer):
            with path.open("rb") as large:
                sending = loop.create_task(loop.sendfile(mine.transport, large))
                await settled(loop)
                peer.close()
                with pytest.raises(ConnectionError):
                    await sending


@not_on_uvloop
class TestSocket:
    async def test_by_the_kernel(self, loop, file):
        left, right = socket_pair()
        with left, right:
            receiving = loop.create_task(take(loop, right, SIZE))
            assert await loop.sock_sendfile(left, file, fallback=False) == SIZE
            assert await receiving == contents(file)
            assert file.tell() == SIZE

    async def test_by_reading(self, loop):
        data = os.urandom(SIZE)
        left, right = socket_pair()
        with left, right:
            receiving = loop.create_task(take(loop, right, SIZE))
            assert await loop.sock_sendfile(left, Unsendable(data)) == SIZE
            assert await receiving == data

    async def test_a_part(self, loop, file):
        left, right = socket_pair()
        with left, right:
            assert await loop.sock_sendfile(left, file, 10, 100) == 100
            assert right.recv(1000) == contents(file)[10:110]
            assert file.tell() == 110

    async def test_a_text_file_is_refused(self, loop, tmp_path):
        (tmp_path / "text").write_text("x")
        left, right = socket_pair()
        with left, right, (tmp_path / "text").open() as text, pytest.raises(ValueError, match="binary mode"):
            await loop.sock_sendfile(left, text)

    async def test_cancelled(self, loop, file):
        left, right = socket_pair()
        with left, right:
            sending = loop.create_task(loop.sock_sendfile(left, file))
            await settled(loop)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert not loop.remove_writer(left)
            left.close()
            received = bytearray()
            while data := await loop.sock_recv(right, 1 << 20):
                received += data
            assert 0 < len(received) < SIZE
            assert received == contents(file)[: len(received)]


async def test_a_transport_of_another_kind_is_refused(loop, file):
    with pytest.raises((RuntimeError, NotImplementedError)):
        await loop.sendfile(asyncio.Transport(), file)
