"""loop.sendfile over a plain connection."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from tests.backends import deviates

SIZE = 8 * 1024 * 1024
not_on_uvloop = deviates("uvloop", "NotImplementedError")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        yield file


async def served(loop, send):
    """Runs `send(transport)` on a connection and returns what the peer received."""
    done = loop.create_future()

    async def serve(reader, writer):
        try:
            done.set_result(await send(writer.transport))
        except BaseException as error:
            done.set_exception(error)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    received = await reader.read()
    writer.close()
    await writer.wait_closed()
    server.close()
    return await done, received


@not_on_uvloop
async def test_a_large_file_arrives_whole(loop, file):
    sent, received = await served(loop, lambda transport: loop.sendfile(transport, file))
    assert sent == SIZE
    file.seek(0)
    assert received == file.read()


@not_on_uvloop
async def test_a_part_leaves_the_position_behind_it(loop, file):
    sent, received = await served(loop, lambda transport: loop.sendfile(transport, file, 1000, 5000))
    assert sent == 5000
    assert file.tell() == 6000
    file.seek(1000)
    assert received == file.read(5000)


@not_on_uvloop
async def test_what_was_written_before_and_after_keeps_its_place(loop, file):
    async def send(transport):
        transport.write(b"<" * 1_000_000)
        await loop.sendfile(transport, file)
        transport.write(b">")

    _, received = await served(loop, send)
    file.seek(0)
    assert received == b"<" * 1_000_000 + file.read() + b">"


@not_on_uvloop
@pytest.mark.skipif(sys.platform == "win32", reason="falls back to writes there")
async def test_writes_meanwhile_are_refused(loop, file):
    async def send(transport):
        sending = loop.create_task(loop.sendfile(transport, file))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="unable to write; sendfile is in progress"):
            transport.write(b"in between")
        await sending

    _, received = await served(loop, send)
    assert len(received) == SIZE


@not_on_uvloop
@pytest.mark.skipif(sys.platform == "win32", reason="falls back to writes there")
async def test_a_second_file_meanwhile_is_refused(loop, backend, file):
    if backend.name == "asyncio":
        pytest.skip("raises KeyError, and the connection breaks")

    async def send(transport):
        sending = loop.create_task(loop.sendfile(transport, file))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await loop.sendfile(transport, file)
        with pytest.raises(RuntimeError, match="unable to write; sendfile is in progress"):
            transport.write(b"in between")
        await sending

    _, received = await served(loop, send)
    file.seek(0)
    assert received == file.read()


@not_on_uvloop
async def test_a_connection_that_is_closing_is_refused(loop, file):
    async def send(transport):
        transport.close()
        with pytest.raises(RuntimeError, match="closing"):
            await loop.sendfile(transport, file)

    await served(loop, send)
