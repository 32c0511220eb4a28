"""connect_read_pipe and connect_write_pipe: pipes, FIFOs and sockets as one-way transports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat

import pytest

from tests.backends import deviates
from tests.peers import Recorder, settled, turns

BIG = 4 << 20


@contextlib.asynccontextmanager
async def reading(loop, protocol=None):
    """A protocol that reads a pipe, and the descriptor to write to it."""
    read_end, write_end = os.pipe()
    pipe = os.fdopen(read_end, "rb", 0)
    transport, mine = await loop.connect_read_pipe(protocol or (lambda: Recorder(loop)), pipe)
    try:
        yield mine, write_end
    finally:
        with contextlib.suppress(OSError):
            os.close(write_end)
        transport.close()
        await mine.lost


@contextlib.asynccontextmanager
async def writing(loop, protocol=None):
    """A protocol that writes to a pipe, and the descriptor to read from it."""
    read_end, write_end = os.pipe()
    pipe = os.fdopen(write_end, "wb", 0)
    transport, mine = await loop.connect_write_pipe(protocol or (lambda: Recorder(loop)), pipe)
    try:
        yield mine, read_end
    finally:
        with contextlib.suppress(OSError):
            os.close(read_end)
        if not mine.lost.done():
            transport.abort()
        await mine.lost


async def drain(loop, fd, count):
    """Read `count` bytes from a pipe, as they come."""
    data = bytearray()
    done = loop.create_future()

    def take():
        data.extend(os.read(fd, 1 << 20))
        if len(data) >= count:
            loop.remove_reader(fd)
            done.set_result(None)

    loop.add_reader(fd, take)
    await done
    return bytes(data)


class TestRead:
    async def test_data_and_end(self, loop):
        async with reading(loop) as (mine, peer):
            os.write(peer, b"hello")
            assert await mine.received(5) == b"hello"
            os.close(peer)
            await mine.ended
            assert await mine.lost is None
            assert mine.events == ["made", "data", "eof", "lost"]

    async def test_much_data(self, loop):
        async with reading(loop) as (mine, peer):
            data = os.urandom(BIG)
            await asyncio.gather(loop.run_in_executor(None, write_all, peer, data), mine.received(BIG))
            assert mine.data == data

    async def test_paused(self, loop):
        async with reading(loop) as (mine, peer):
            mine.transport.pause_reading()
            assert not mine.transport.is_reading()
            os.write(peer, b"hello")
            await settled(loop)
            assert mine.data == b""
            mine.transport.resume_reading()
            assert mine.transport.is_reading()
            assert await mine.received(5) == b"hello"

    @deviates("uvloop", "reads nevertheless")
    async def test_paused_in_connection_made(self, loop):
        class Late(Recorder):
            def connection_made(self, transport):
                super().connection_made(transport)
                transport.pause_reading()

        async with reading(loop, lambda: Late(loop)) as (mine, peer):
            os.write(peer, b"hello")
            await settled(loop)
            assert mine.data == b""
            mine.transport.resume_reading()
            await mine.received(5)

    async def test_close(self, loop):
        async with reading(loop) as (mine, peer):
            mine.transport.close()
            assert mine.transport.is_closing()
            assert await mine.lost is None
            mine.transport.close()
            with pytest.raises(BrokenPipeError):
                os.write(peer, b"x")

    async def test_what_the_transport_knows(self, loop):
        async with reading(loop) as (mine, _):
            pipe = mine.transport.get_extra_info("pipe")
            assert stat.S_ISFIFO(os.fstat(pipe.fileno()).st_mode)
            assert mine.transport.get_extra_info("nothing", 5) == 5
            assert mine.transport.get_protocol() is mine

    @deviates("uvloop", "its transports are types of their own")
    async def test_is_an_asyncio_transport(self, loop):
        async with reading(loop) as (mine, _):
            assert isinstance(mine.transport, asyncio.ReadTransport)

    async def test_the_protocol_may_be_replaced(self, loop):
        async with reading(loop) as (mine, peer):
            other = Recorder(loop)
            mine.transport.set_protocol(other)
            os.write(peer, b"hello")
            assert await other.received(5) == b"hello"
            mine.transport.set_protocol(mine)

    async def test_data_received_that_raises_is_reported(self, loop, handled):
        class Broken(Recorder):
            def data_received(self, data):
                self.data += data
                raise LookupError("expected")

        async with reading(loop, lambda: Broken(loop)) as (mine, peer):
            os.write(peer, b"x")
            while not handled:
                await turns(1)
            assert mine.data == b"x"
        assert isinstance(handled[0]["exception"], LookupError)

    async def test_a_fifo_by_name(self, loop, tmp_path):
        path = tmp_path / "fifo"
        os.mkfifo(path)
        peer = os.open(path, os.O_RDWR)
        with path.open("rb", 0) as pipe:
            transport, mine = await loop.connect_read_pipe(lambda: Recorder(loop), pipe)
            os.write(peer, b"hello")
            assert await mine.received(5) == b"hello"
            transport.close()
            await mine.lost
        os.close(peer)

    async def test_a_socket(self, loop):
        left, right = socket.socketpair()
        transport, mine = await loop.connect_read_pipe(lambda: Recorder(loop), left)
        right.send(b"hello")
        assert await mine.received(5) == b"hello"
        transport.close()
        await mine.lost
        right.close()

    async def test_a_regular_file_is_refused(self, loop, backend, tmp_path):
        if backend.name == "uvloop":
            pytest.skip("aborts the process")
        path = tmp_path / "file"
        path.write_bytes(b"text")
        with path.open("rb") as file, pytest.raises(ValueError, match="Pipe transport is for pipes/sockets only"):
            await loop.connect_read_pipe(lambda: Recorder(loop), file)


class TestWrite:
    async def test_data(self, loop):
        async with writing(loop) as (mine, peer):
            mine.transport.write(b"one")
            mine.transport.writelines([b"two", bytearray(b"three"), memoryview(b"four")])
            assert await drain(loop, peer, 15) == b"onetwothreefour"

    async def test_much_data_pauses_the_protocol(self, loop):
        async with writing(loop) as (mine, peer):
            data = os.urandom(BIG)
            mine.transport.write(data)
            assert mine.events == ["made", "pause"]
            assert 0 < mine.transport.get_write_buffer_size() <= BIG
            assert await drain(loop, peer, BIG) == data
            await settled(loop)
            assert mine.events == ["made", "pause", "resume"]
            assert mine.transport.get_write_buffer_size() == 0

    @deviates("uvloop", "queues the buffer itself")
    async def test_mutable_data_is_sent_as_it_was(self, loop):
        async with writing(loop) as (mine, peer):
            data = bytearray(b"a" * BIG)
            mine.transport.write(data)
            data[:] = b"b" * BIG
            assert await drain(loop, peer, BIG) == b"a" * BIG

    @deviates("uvloop", "has a low mark of 16 bytes")
    async def test_limits(self, loop):
        async with writing(loop) as (mine, _):
            assert mine.transport.get_write_buffer_limits() == (16384, 65536)
            mine.transport.set_write_buffer_limits(high=100)
            assert mine.transport.get_write_buffer_limits() == (25, 100)

    async def test_close_flushes(self, loop):
        async with writing(loop) as (mine, peer):
            data = os.urandom(BIG)
            mine.transport.write(data)
            mine.transport.close()
            assert await drain(loop, peer, BIG) == data
            assert await mine.lost is None

    @deviates("uvloop", "shuts the pipe down as if it were a socket, which fails")
    async def test_write_eof_flushes_and_closes(self, loop):
        async with writing(loop) as (mine, peer):
            assert mine.transport.can_write_eof()
            mine.transport.write(b"hello")
            mine.transport.write_eof()
            assert await drain(loop, peer, 5) == b"hello"
            assert await mine.lost is None
            assert os.read(peer, 1) == b""

    async def test_abort_drops(self, loop):
        async with writing(loop) as (mine, _):
            mine.transport.write(bytes(BIG))
            mine.transport.abort()
            assert await mine.lost is None

    async def test_a_reader_that_leaves(self, loop):
        async with writing(loop) as (mine, peer):
            os.close(peer)
            mine.transport.write(b"x")
            await mine.lost
            assert mine.events[-1] == "lost"

    async def test_a_reader_that_leaves_is_noticed_without_writing(self, loop):
        async with writing(loop) as (mine, peer):
            os.close(peer)
            await mine.lost

    async def test_a_reader_that_leaves_with_data_buffered(self, loop):
        async with writing(loop) as (mine, peer):
            mine.transport.write(bytes(BIG))
            os.close(peer)
            assert isinstance(await mine.lost, BrokenPipeError)

    @deviates("uvloop", "raises: the handler is closed")
    async def test_writes_after_the_end_are_dropped(self, loop):
        async with writing(loop) as (mine, peer):
            os.close(peer)
            await mine.lost
            mine.transport.write(b"x")

    @pytest.mark.parametrize("what", ["text", 5])
    async def test_what_is_not_bytes_is_refused(self, loop, what):
        async with writing(loop) as (mine, _):
            with pytest.raises((TypeError, AssertionError)):
                mine.transport.write(what)

    async def test_a_socket(self, loop):
        left, right = socket.socketpair()
        transport, mine = await loop.connect_write_pipe(lambda: Recorder(loop), left)
        transport.write(b"hello")
        right.setblocking(False)
        assert await loop.sock_recv(right, 100) == b"hello"
        right.close()
        await mine.lost

    async def test_a_regular_file_is_refused(self, loop, backend, tmp_path):
        if backend.name == "uvloop":
            pytest.skip("aborts the process")
        with (tmp_path / "file").open("wb") as file, pytest.raises(ValueError, match="Pipe transport is only for"):
            await loop.connect_write_pipe(lambda: Recorder(loop), file)


class TestStreams:
    async def test_a_reader_and_a_writer_over_one_pipe(self, loop):
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader()
        incoming, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader),
            os.fdopen(read_end, "rb", 0),
        )
        transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin,
            os.fdopen(write_end, "wb", 0),
        )
        writer = asyncio.StreamWriter(transport, protocol, None, loop)

        async def pour():
            for _ in range(64):
                writer.write(bytes(65536))
                await writer.drain()
            writer.close()

        pouring = loop.create_task(pour())
        assert len(await reader.read()) == BIG
        await pouring
        incoming.close()
        await settled(loop)


def write_all(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
