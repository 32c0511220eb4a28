"""asyncio's streams on the loop's transports."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from unittest import mock

import pytest

from tests.backends import deviates
from tests.peers import LOOPBACK, settled, turns


@contextlib.asynccontextmanager
async def streams(**arguments):
    """The ends of a connection: (reader, writer) of the client, (reader, writer) of the server."""
    accepted = asyncio.get_running_loop().create_future()
    released = asyncio.Event()

    async def serve(reader, writer):
        accepted.set_result((reader, writer))
        await released.wait()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, LOOPBACK, 0, **arguments) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), **arguments)
        theirs = await accepted
        try:
            yield (reader, writer), theirs
        finally:
            released.set()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            await turns()


class TestRead:
    async def test_line_by_line(self, loop):
        async with streams() as ((_, writer), (reader, _)):
            writer.write(b"one\ntwo\nthree")
            writer.write_eof()
            assert [line async for line in reader] == [b"one\n", b"two\n", b"three"]
            assert reader.at_eof()
            assert await reader.readline() == b""

    async def test_a_line_in_pieces(self, loop):
        async with streams() as ((_, writer), (reader, _)):
            task = loop.create_task(reader.readline())
            for piece in (b"a", b"b", b"c", b"\n"):
                assert not task.done()
                writer.write(piece)
                await writer.drain()
                await settled(loop)
            assert await task == b"abc\n"

    async def test_exactly(self, loop):
        async with streams() as ((_, writer), (reader, _)):
            writer.write(bytes(range(100)))
            assert await reader.readexactly(60) == bytes(range(60))
            assert await reader.readexactly(0) == b""
            writer.write_eof()
            with pytest.raises(asyncio.IncompleteReadError) as caught:
                await reader.readexactly(41)
            assert caught.value.partial == bytes(range(60, 100))
            assert caught.value.expected == 41

    async def test_until(self, loop):
        async with streams() as ((_, writer), (reader, _)):
            writer.write(b"key=value;rest")
            assert await reader.readuntil(b"=") == b"key="
            assert await reader.readuntil(b";") == b"value;"
            writer.write_eof()
            with pytest.raises(asyncio.IncompleteReadError) as caught:
                await reader.readuntil(b";")
            assert caught.value.partial == b"rest"

    async def test_to_the_end(self, loop):
        data = bytes(range(256)) * 10_000
        async with streams() as ((_, writer), (reader, _)):
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == data

    async def test_at_most(self, loop):
        async with streams() as ((_, writer), (reader, _)):
            writer.write(b"abcdef")
            assert await reader.read(4) == b"abcd"
            assert await reader.read(0) == b""
            assert await reader.read(4) == b"ef"

    async def test_over_the_limit(self, loop):
        async with streams(limit=100) as ((_, writer), (reader, _)):
            writer.write(b"x" * 1000 + b"\nshort\n")
            with pytest.raises(asyncio.LimitOverrunError):
                await reader.readuntil(b"\n")
            with pytest.raises(ValueError, match=r"longer than limit|exceed"):
                await reader.readline()

    async def test_two_readers_are_refused(self, loop):
        async with streams() as ((_, writer), (reader, _)):
            task = loop.create_task(reader.read(1))
            await turns()
            with pytest.raises(RuntimeError, match="while another coroutine is already waiting"):
                await reader.read(1)
            writer.write(b"x")
            assert await task == b"x"

    async def test_cancelled_read_loses_nothing(self, loop):
        async with streams() as ((_, writer), (reader, _)):
            task = loop.create_task(reader.readexactly(6))
            writer.write(b"abc")
            await settled(loop)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            writer.write(b"def")
            assert await reader.readexactly(6) == b"abcdef"

    async def test_a_slow_reader_stops_the_sender(self, loop):
        """What is not read stays with the sender: a reader buffers at most twice its limit and one read."""
        async with streams(limit=1 << 16) as ((_, writer), (reader, _)):
            writer.transport.set_write_buffer_limits(high=0)
            total = 32 << 20
            writer.write(bytes(total))
            drain = loop.create_task(writer.drain())
            await settled(loop, 200)
            assert not drain.done()
            received = 0
            while received < total:
                received += len(await reader.read(1 << 20))
            await drain


class TestReplaced:
    """Methods that a program has replaced on one reader or one protocol."""

    async def test_feed_data(self, loop):
        async with streams() as ((_, writer), (reader, _)):
            original = reader.feed_data
            reader.feed_data = lambda data: original(data.upper())
            assert "feed_data" in vars(reader)
            writer.write(b"first")
            assert await reader.readexactly(5) == b"FIRST"
            del reader.feed_data
            with pytest.raises(AttributeError):
                del reader.feed_data
            assert reader.feed_data == original
            writer.write(b"second")
            assert await reader.readexactly(6) == b"second"

    @deviates("uvloop", "keeps the method that the protocol had in the beginning")
    async def test_data_received(self, loop):
        async with streams() as ((_, writer), (reader, theirs)):
            protocol = theirs.transport.get_protocol()
            with mock.patch.object(protocol, "data_received", wraps=protocol.data_received) as received:
                writer.write(b"first")
                assert await reader.readexactly(5) == b"first"
            received.assert_called_once_with(b"first")
            writer.write(b"second")
            assert await reader.readexactly(6) == b"second"
            assert received.call_count == 1

    async def test_of_a_class_that_overrides_it(self, loop):
        async with streams() as ((_, writer), (reader, theirs)):

            class Reader(type(reader)):
                def feed_data(self, data):
                    super().feed_data(data + b"!")

            protocol = theirs.transport.get_protocol()
            other = Reader(loop=loop)
            protocol._stream_reader_wr = weakref.ref(other)
            original, fed = other.feed_data, []
            other.feed_data = lambda data: (fed.append(data), original(data))
            writer.write(b"first")
            assert await other.readexactly(6) == b"first!"
            assert fed == [b"first"]

    async def test_before_the_object_is_ready(self, loop):
        async with streams() as ((_, writer), (reader, theirs)):
            kind = type(reader)

            class Reader(kind):
                def __init__(self, **options):
                    self.feed_data = lambda data: kind.feed_data(self, data.upper())
                    super().__init__(**options)

            protocol = theirs.transport.get_protocol()
            other = Reader(loop=loop)
            protocol._stream_reader_wr = weakref.ref(other)
            writer.write(b"first")
            assert await other.readexactly(5) == b"FIRST"

    @deviates("uvloop", "keeps the method that the protocol had in the beginning")
    async def test_by_a_class_that_is_given_later(self, loop):
        async with streams() as ((_, writer), (reader, theirs)):
            protocol = theirs.transport.get_protocol()

            class Protocol(type(protocol)):
                def data_received(self, data):
                    super().data_received(data.upper())

            protocol.__class__ = Protocol
            writer.write(b"first")
            assert await reader.readexactly(5) == b"FIRST"

    async def test_a_reader_that_is_dropped_is_fed_no_more(self, loop):
        async with streams() as ((_, writer), (reader, theirs)):
            protocol = theirs.transport.get_protocol()
            other = type(reader)()
            protocol._stream_reader_wr = weakref.ref(other)
            assert protocol._stream_reader is other
            writer.write(b"first")
            assert await other.readexactly(5) == b"first"
            del other
            gc.collect()
            assert protocol._stream_reader is None
            writer.write(b"to nobody")
            await settled(loop)
            assert not theirs.transport.is_closing()


class TestWrite:
    async def test_echo(self, loop):
        async with streams() as ((reader, writer), (their_reader, their_writer)):
            for i in range(200):
                writer.write(b"%d\n" % i)
                await writer.drain()
                their_writer.write(await their_reader.readline())
                assert await reader.readline() == b"%d\n" % i

    async def test_writelines(self, loop):
        async with streams() as ((_, writer), (reader, _)):
            writer.writelines([b"a", b"b\n"])
            assert await reader.readline() == b"ab\n"

    async def test_drain_waits_for_the_low_mark(self, loop):
        async with streams() as ((_, writer), (reader, _)):
            writer.write(bytes(32 << 20))
            drain = loop.create_task(writer.drain())
            await settled(loop)
            assert not drain.done()
            while not drain.done():
                await reader.read(1 << 20)
            assert writer.transport.get_write_buffer_size() <= 64 << 10
            writer.transport.abort()

    async def test_several_may_drain(self, loop):
        async with streams() as ((_, writer), (reader, _)):
            writer.write(bytes(32 << 20))
            drains = [loop.create_task(writer.drain()) for _ in range(5)]
            received = 0
            while received < 32 << 20:
                received += len(await reader.read(1 << 20))
            await asyncio.gather(*drains)

    async def test_drain_after_the_peer_left_raises(self, loop):
        async with streams() as ((_, writer), (_, their_writer)):
            their_writer.transport.abort()

            async def write_on():
                while True:
                    writer.write(b"x" * 1000)
                    await writer.drain()

            with pytest.raises(ConnectionError):
                await write_on()

    async def test_close_and_wait(self, loop):
        async with streams() as ((reader, writer), (their_reader, _)):
            writer.write(b"last words")
            writer.close()
            assert writer.is_closing()
            await writer.wait_closed()
            assert await their_reader.read() == b"last words"
            assert await reader.read() == b""


class TestServer:
    async def test_many_clients(self, loop):
        async def serve(reader, writer):
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
            writer.close()
            await writer.wait_closed()

        async def client(address, i):
            reader, writer = await asyncio.open_connection(*address)
            for j in range(10):
                writer.write(b"client %d line %d\n" % (i, j))
                assert await reader.readline() == b"CLIENT %d LINE %d\n" % (i, j)
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(serve, LOOPBACK, 0) as server:
            address = server.sockets[0].getsockname()
            await asyncio.gather(*(client(address, i) for i in range(50)))
            while len(asyncio.all_tasks()) > 1:  # the server's sides see the end  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def test_a_handler_that_raises_is_reported(self, loop, handled):
        async def serve(reader, writer):
            raise LookupError("expected")

        async with await asyncio.start_server(serve, LOOPBACK, 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            while not handled:
                await turns(1)
            writer.close()
            await writer.wait_closed()
            del reader
            await turns()
        assert any(isinstance(context["exception"], LookupError) for context in handled)

    async def test_a_plain_function_may_serve(self, loop):
        got = loop.create_future()

        async with await asyncio.start_server(lambda reader, writer: got.set_result(writer), LOOPBACK, 0) as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            theirs = await got
            for end in (writer, theirs):
                end.close()
                await end.wait_closed()
