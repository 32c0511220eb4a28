"""UNIX sockets: servers, connections, paths, and what is left on the disk."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys

import pytest

from tests.backends import deviates
from tests.peers import Recorder, connected, dropped, socket_pair


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


def exists(path: str) -> bool:
    return os.path.exists(path)


async def test_echo(loop, path):
    async with connected(loop, unix=path) as (client, server):
        client.transport.write(b"question")
        assert await server.received(8) == b"question"
        server.transport.write(b"answer")
        assert await client.received(6) == b"answer"
        client.transport.close()
        assert await server.lost is None
        assert server.events == ["made", "data", "eof", "lost"]


async def test_what_the_transport_tells(loop, path):
    async with connected(loop, unix=path) as (client, server):
        assert client.transport.get_extra_info("peername") == path
        assert server.transport.get_extra_info("sockname") == path
        assert client.transport.get_extra_info("socket").family == socket.AF_UNIX


async def test_large_data_and_half_close(loop, path):
    data = bytes(range(256)) * 20_000
    async with connected(loop, unix=path, server=lambda: Recorder(loop, keep_open=True)) as (client, server):
        client.transport.write(data)
        client.transport.write_eof()
        await server.ended
        assert bytes(server.data) == data
        server.transport.write(b"answer")
        assert await client.received(6) == b"answer"


@pytest.mark.parametrize("kind", ["str", "bytes", "Path"])
async def test_kinds_of_path(loop, tmp_path, kind):
    path = tmp_path / "socket"
    given = {"str": str(path), "bytes": os.fsencode(path), "Path": path}[kind]
    server = await loop.create_unix_server(lambda: Recorder(loop), given)
    _, client = await loop.create_unix_connection(lambda: Recorder(loop), given)
    await dropped(client)
    server.close()
    await server.wait_closed()


@deviates("uvloop", "cannot connect: Invalid argument")
async def test_abstract(loop):
    path = f"\0tideloop-test-{os.getpid()}"
    async with connected(loop, unix=path) as (client, server):
        client.transport.write(b"hello")
        assert await server.received(5) == b"hello"


class TestPathErrors:
    async def test_nobody_there(self, loop, path):
        with pytest.raises(FileNotFoundError):
            await loop.create_unix_connection(lambda: Recorder(loop), path)

    async def test_nobody_listens(self, loop, path):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
        with pytest.raises(ConnectionRefusedError):
            await loop.create_unix_connection(lambda: Recorder(loop), path)

    async def test_not_a_socket(self, loop, tmp_path):
        path = tmp_path / "file"
        path.write_text("")
        with pytest.raises(ConnectionRefusedError):
            await loop.create_unix_connection(lambda: Recorder(loop), str(path))
        with pytest.raises(OSError, match="already in use"):
            await loop.create_unix_server(lambda: Recorder(loop), str(path))
        assert path.read_text() == ""

    async def test_no_such_directory(self, loop, tmp_path):
        with pytest.raises(FileNotFoundError):
            await loop.create_unix_server(lambda: Recorder(loop), str(tmp_path / "none" / "socket"))

    @deviates("uvloop", "cuts the path that it connects to")
    async def test_too_long(self, loop, tmp_path):
        path = str(tmp_path / ("x" * 200))
        with pytest.raises(OSError, match="too long"):
            await loop.create_unix_server(lambda: Recorder(loop), path)
        with pytest.raises(OSError, match="too long"):
            await loop.create_unix_connection(lambda: Recorder(loop), path)

    async def test_no_permission_to_overwrite_a_directory(self, loop, tmp_path):
        with pytest.raises(OSError, match=r"(?i)in use|directory"):
            await loop.create_unix_server(lambda: Recorder(loop), str(tmp_path))


class TestStale:
    async def test_a_socket_left_behind_is_replaced(self, loop, path):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
        server = await loop.create_unix_server(lambda: Recorder(loop), path)
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        _, client = await loop.create_unix_connection(lambda: Recorder(loop), path)
        await dropped(client)
        server.close()
        await server.wait_closed()

    @pytest.mark.skipif(sys.version_info < (3, 13), reason="cleanup_socket is new in 3.13")
    async def test_close_removes_it(self, loop, path):
        server = await loop.create_unix_server(lambda: Recorder(loop), path)
        assert exists(path)
        server.close()
        await server.wait_closed()
        assert not exists(path)

    @pytest.mark.skipif(sys.version_info < (3, 13), reason="cleanup_socket is new in 3.13")
    async def test_close_leaves_it_when_asked(self, loop, path):
        server = await loop.create_unix_server(lambda: Recorder(loop), path, cleanup_socket=False)
        server.close()
        await server.wait_closed()
        assert exists(path)

    @pytest.mark.skipif(sys.version_info < (3, 13), reason="cleanup_socket is new in 3.13")
    async def test_close_leaves_another_servers(self, loop, path):
        one = await loop.create_unix_server(lambda: Recorder(loop), path)
        os.unlink(path)
        two = await loop.create_unix_server(lambda: Recorder(loop), path)
        one.close()
        await one.wait_closed()
        assert exists(path)
        two.close()
        await two.wait_closed()
        assert not exists(path)

    @pytest.mark.skipif(sys.version_info >= (3, 13), reason="the socket is removed since 3.13")
    async def test_close_leaves_it_on_old_pythons(self, loop, path):
        server = await loop.create_unix_server(lambda: Recorder(loop), path)
        server.close()
        await server.wait_closed()
        assert exists(path)


class TestGivenSocket:
    async def test_connection(self, loop):
        left, right = socket_pair()
        transport, protocol = await loop.create_unix_connection(lambda: Recorder(loop), sock=left)
        right.send(b"x")
        assert await protocol.received(1) == b"x"
        assert protocol.transport is transport
        await dropped(protocol)
        right.close()

    async def test_server(self, loop, path):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        server = await loop.create_unix_server(lambda: Recorder(loop), sock=sock)
        _, client = await loop.create_unix_connection(lambda: Recorder(loop), path)
        await dropped(client)
        server.close()
        await server.wait_closed()
        sock.close()

    async def test_another_family_is_refused(self, loop):
        with socket.socket() as sock:
            with pytest.raises(ValueError, match="A UNIX Domain Stream"):
                await loop.create_unix_connection(lambda: Recorder(loop), sock=sock)
            with pytest.raises(ValueError, match="A UNIX Domain Stream"):
                await loop.create_unix_server(lambda: Recorder(loop), sock=sock)

    @pytest.mark.parametrize("method", ["create_unix_connection", "create_unix_server"])
    async def test_path_and_socket_exclude_each_other(self, loop, path, method):
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ValueError, match="at the same time"):
            await getattr(loop, method)(lambda: Recorder(loop), path, sock=sock)

    @pytest.mark.parametrize("method", ["create_unix_connection", "create_unix_server"])
    async def test_one_of_them_is_needed(self, loop, method):
        with pytest.raises(ValueError, match=r"not specified|were specified|no path and sock"):
            await getattr(loop, method)(lambda: Recorder(loop))


async def test_streams(loop, path):
    async def serve(reader, writer):
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, path)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"hello\n")
    assert await reader.read() == b"HELLO\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


@deviates("uvloop", "its transports are types of their own")
async def test_is_an_asyncio_transport(loop, path):
    async with connected(loop, unix=path) as (client, _):
        assert isinstance(client.transport, asyncio.Transport)
