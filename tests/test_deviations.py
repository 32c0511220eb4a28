"""The deviations from asyncio that we keep, as docs/deviations.md lists them, those without a parity test.

What asyncio does in these cases is shown by the parity tests, where it can be shown without hanging.
"""

import asyncio
import errno
import gc
import pathlib
import re
import socket
import struct
import sys
import weakref

import pytest
import tideloop
from tideloop.loop import streams

from tests.peers import facing_socket, settled
from tests.tls import authority

TESTS = pathlib.Path(__file__).parent


def test_each_row_names_a_test_that_is_there():
    rows = [line for line in (TESTS.parent / "docs/deviations.md").read_text().splitlines() if line.startswith("| ")]
    rows = [row.split(" | ") for row in rows if not row.startswith("| what ")]
    assert rows
    there = {name for file in TESTS.rglob("*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    for row in rows:
        assert len(row) == 5, f"a row has what, asyncio, tideloop, why, test: {row}"
        assert row[-1].strip(" |`") in there, row


@pytest.fixture
def runner():
    with tideloop.Runner() as runner:
        yield runner


def test_timers_with_one_deadline_run_in_order_of_creation(runner):
    async def main():
        loop = asyncio.get_running_loop()
        when, order, done = loop.time(), [], loop.create_future()
        for n in range(100):
            # Every third one is later and goes through the heap.
            loop.call_at(when + (0.001 if n % 3 == 0 else 0.0005), order.append, n)
        loop.call_at(when + 0.002, done.set_result, None)
        await done
        return order

    order = runner.run(main())
    assert order == [n for n in range(100) if n % 3] + [n for n in range(100) if n % 3 == 0]


def test_a_sleep_below_a_millisecond_is_one(runner):
    async def main():
        loop = asyncio.get_running_loop()
        shortest = float("inf")
        for _ in range(50):
            before = loop.time()
            await asyncio.sleep(0.0002)
            took = loop.time() - before
            assert took >= 0.0002, "never early"
            shortest = min(shortest, took)
        return shortest

    # The shortest of fifty: a machine that cannot do it once has no such timers.
    assert runner.run(main()) < 0.001


def test_mutable_data_is_sent_as_it_was(runner):
    async def main():
        received = bytearray()
        ended = asyncio.get_running_loop().create_future()

        class Slow(asyncio.Protocol):
            def connection_made(self, transport):
                transport.pause_reading()
                made.set_result(transport)

            def data_received(self, data):
                received.extend(data)

            def connection_lost(self, exc):
                ended.set_result(exc)

        loop = asyncio.get_running_loop()
        made = loop.create_future()
        server = await loop.create_server(Slow, "127.0.0.1", 0)
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
        data = bytearray(b"a" * 16_000_000)
        transport.write(data)
        data[:] = b"b" * len(data)
        transport.close()
        (await made).resume_reading()
        assert await ended is None
        server.close()
        return received

    assert runner.run(main()) == b"a" * 16_000_000


@pytest.mark.parametrize("factory", [lambda: None, lambda: 1 / 0], ids=["makes none", "raises"])
def test_a_factory_without_a_protocol_is_reported_and_the_connection_closed(runner, factory):
    async def main():
        loop = asyncio.get_running_loop()
        contexts = []
        loop.set_exception_handler(lambda _, context: contexts.append(context))
        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        for _ in range(2):  # the server goes on
            reader, writer = await asyncio.open_connection(*address)
            assert await reader.read() == b""
            writer.close()
        server.close()
        return contexts

    contexts = runner.run(main())
    assert [type(context["exception"]) for context in contexts] in (
        [AttributeError, AttributeError],
        [ZeroDivisionError, ZeroDivisionError],
    )
    assert contexts[0]["message"] == "Error on transport creation for incoming connection"


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_a_factory_that_closes_its_server_gets_no_connection(runner, encrypted):
    async def main():
        loop = asyncio.get_running_loop()
        contexts = []
        loop.set_exception_handler(lambda _, context: contexts.append(context))

        def factory():
            server.close()
            return asyncio.Protocol()

        context = authority().server() if encrypted else None
        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=context)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        await server.wait_closed()
        assert contexts == []

    runner.run(main())


@pytest.mark.parametrize("end", ["run", "cancelled"])
def test_a_handle_at_its_end_keeps_nothing(runner, end):
    class Callback:
        def __call__(self):
            pass

    async def main():
        callback = Callback()
        handle = asyncio.get_running_loop().call_soon(callback)
        if end == "cancelled":
            handle.cancel()
        else:
            await asyncio.sleep(0)
        return handle, weakref.ref(callback)

    handle, alive = runner.run(main())
    gc.collect()
    assert alive() is None
    assert handle.cancelled() is (end == "cancelled")


def test_a_datagram_for_an_endpoint_that_has_ended_is_dropped(runner):
    async def main():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
        address = transport.get_extra_info("sockname")
        transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert transport.get_protocol() is None
        transport.sendto(b"too late", address)
        with pytest.raises(TypeError):
            transport.sendto("no bytes", address)

    runner.run(main())


def test_a_datagram_with_gaps_is_the_callers_error(runner):
    async def main():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
        with pytest.raises(BufferError):
            transport.sendto(memoryview(b"abcdef")[::2], ("127.0.0.1", 9))
        assert not transport.is_closing()
        transport.close()
        await asyncio.sleep(0)

    runner.run(main())


def test_a_memoryview_with_gaps_is_the_callers_error(runner):
    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
        with pytest.raises(BufferError):
            transport.write(memoryview(b"abcdef")[::2])
        assert not transport.is_closing()
        transport.close()
        server.close()
        await asyncio.sleep(0)

    runner.run(main())


def test_the_end_of_file_is_told_once(runner):
    async def main():
        loop = asyncio.get_running_loop()
        told, lost = [], loop.create_future()

        class Kept(asyncio.Protocol):
            def eof_received(self):
                told.append("eof")
                return True

            def connection_lost(self, exc):
                lost.set_result(exc)

        left, right = socket.socketpair()
        transport, _ = await loop.create_connection(Kept, sock=left)
        with right:
            right.shutdown(socket.SHUT_WR)
            await settled(loop)
            transport.pause_reading()
            transport.resume_reading()
            await settled(loop)
            transport.close()
            assert await lost is None
        return told

    assert runner.run(main()) == ["eof"]


def test_a_listener_that_is_shut_down_does_not_spin(runner):
    async def main():
        loop = asyncio.get_running_loop()
        contexts = []
        loop.set_exception_handler(lambda loop, context: contexts.append(context))
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        server.sockets[0]._sock.shutdown(socket.SHUT_RDWR)
        await settled(loop, 20)
        server.close()
        return [(context["message"], context["exception"].errno) for context in contexts]

    assert runner.run(main()) == [("socket.accept() failed", errno.EINVAL)]


def test_a_second_sendfile_is_refused(runner, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1_000_000))

    async def main():
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=left)
        right.setblocking(False)
        with right, path.open("rb") as file:
            first = loop.create_task(loop.sendfile(transport, file))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="in progress"):
                await loop.sendfile(transport, file)
            received = 0
            while received < 1_000_000:
                received += len(await loop.sock_recv(right, 1 << 16))
            transport.close()
            await asyncio.sleep(0)
            return await first, received

    assert runner.run(main()) == (1_000_000, 1_000_000)


def test_a_second_stream_reader_is_not_forgotten(runner):
    async def main():
        loop = asyncio.get_running_loop()
        reader = streams.StreamReader(loop=loop)
        first = loop.create_task(reader.read(1))
        await settled(loop)
        second = loop.create_task(reader.readexactly(5))
        # In the ring behind the second one, which therefore begins to wait before the first one goes on.
        reader.feed_data(b"a")
        await settled(loop)
        assert await first == b"a"
        reader.feed_data(b"bcdef")
        assert await asyncio.wait_for(second, 5) == b"bcdef"

    runner.run(main())


def test_a_method_in_a_dictionary_is_not_looked_for(runner):
    async def main():
        served = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda reader, writer: served.set_result((reader, writer)), "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        reader, theirs = await served
        passed = []
        vars(reader)["feed_data"] = passed.append
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        reader.feed_data = lambda data: (passed.append(data), type(reader).feed_data(reader, data))
        writer.write(b"two")
        assert await reader.readexactly(3) == b"two"
        assert passed == [b"two"]
        for stream in (writer, theirs):
            stream.close()
            await stream.wait_closed()
        server.close()
        await server.wait_closed()

    runner.run(main())


def test_a_separator_that_is_not_bytes_is_refused_at_once(runner):
    async def main():
        reader = streams.StreamReader(loop=asyncio.get_running_loop())
        for separator in ("a", 3, None):
            with pytest.raises(TypeError):
                await reader.readuntil(separator)

    runner.run(main())


def segments(transport):
    """TCP segments with data that a connection has sent (tcpi_data_segs_out of Linux's tcp_info)."""
    info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    return struct.unpack_from("I", info, 156)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_what_a_callback_writes_leaves_when_it_returns(runner):
    async def main():
        loop = asyncio.get_running_loop()
        async with facing_socket(loop) as (mine, peer):
            for count in (2, 16):
                before = segments(mine.transport)
                for _ in range(count):
                    mine.transport.write(b"x")
                with pytest.raises(BlockingIOError):
                    peer.recv(1)
                await asyncio.sleep(0)
                assert peer.recv(100) == b"x" * count
                assert segments(mine.transport) == before + 1

    runner.run(main())


def test_a_write_that_fails_is_known_when_the_callback_returns(runner):
    async def main():
        loop = asyncio.get_running_loop()
        async with facing_socket(loop) as (mine, peer):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            mine.transport.write(b"x")
            assert not mine.transport.is_closing()
            await asyncio.sleep(0)
            assert mine.transport.is_closing()
            assert isinstance(await mine.lost, ConnectionError)

    runner.run(main())


@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_what_a_delivery_schedules_runs_before_the_loop_stops(kind):
    log = []

    class Stops(asyncio.Protocol, asyncio.DatagramProtocol):
        def data_received(self, data):
            log.append("read")
            loop = asyncio.get_running_loop()
            loop.stop()
            loop.call_soon(log.append, "told")

        def datagram_received(self, data, addr):
            self.data_received(data)

    async def begin():
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair(type=socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM)
        near.setblocking(False)
        if kind == "stream":
            transport, _ = await loop.create_connection(Stops, sock=near)
        else:
            transport, _ = await loop.create_datagram_endpoint(Stops, sock=near)
        return transport, far

    with asyncio.Runner(loop_factory=tideloop.new_event_loop) as runner:
        transport, far = runner.run(begin())
        with far:
            far.send(b"x")
            runner.get_loop().run_forever()
            assert log == ["read", "told"]
            transport.abort()
            runner.run(settled(runner.get_loop()))
