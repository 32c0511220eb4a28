"""What one callback writes may leave together; nothing that a program can tell changes by it.

A test's body is a task's step, so everything between two awaits is written by one callback.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time

import pytest

from tests.backends import deviates
from tests.peers import Recorder, connected, facing_socket, listening_socket, run_child, settled, turns
from tests.tls import NAME, authority


def arrived(peer: socket.socket) -> bytes:
    """What the peer's end of a loopback connection has received by now."""
    pieces = []
    try:
        while piece := peer.recv(1 << 20):
            pieces.append(piece)
    except BlockingIOError:
        pass
    return b"".join(pieces)


async def all_of(loop, peer) -> bytes:
    """What the peer receives until the connection ends."""
    pieces = []
    while piece := await loop.sock_recv(peer, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


class TestOrder:
    """What is written comes before what follows it."""

    async def test_many_small_writes(self, loop):
        pieces = [b"%d," % index for index in range(5000)]
        async with connected(loop) as (client, server):
            for piece in pieces:
                client.transport.write(piece)
            whole = b"".join(pieces)
            assert await server.received(len(whole)) == whole

    @pytest.mark.parametrize("size", [2048, 2049])
    async def test_two_that_are_joined_or_listed(self, loop, size):
        async with connected(loop) as (client, server):
            for first in (b"a", b"c"):
                client.transport.write(first * size)
                client.transport.write(b"b" * 2048)
                await turns()
            whole = b"".join(first * size + b"b" * 2048 for first in (b"a", b"c"))
            assert await server.received(len(whole)) == whole

    async def test_small_ones_around_a_large_one(self, loop):
        large = bytes(range(256)) * 4096
        async with connected(loop) as (client, server):
            for piece in (b"head", large, b"tail", large, b"end"):
                client.transport.write(piece)
            whole = b"head" + large + b"tail" + large + b"end"
            assert await server.received(len(whole)) == whole

    async def test_of_all_kinds_of_data(self, loop):
        changing = bytearray(b"changing")
        async with connected(loop) as (client, server):
            client.transport.write(b"bytes ")
            client.transport.write(changing)
            changing[:] = b"CHANGED!"
            client.transport.write(memoryview(b" view ")[1:])
            client.transport.writelines([b"a", bytearray(b"b"), memoryview(b"c")])
            whole = b"bytes changingview abc"
            assert await server.received(len(whole)) == whole

    async def test_close(self, loop):
        async with facing_socket(loop) as (mine, peer):
            mine.transport.write(b"one ")
            mine.transport.write(b"two")
            mine.transport.close()
            assert await all_of(loop, peer) == b"one two"
            assert await mine.lost is None
            assert mine.events == ["made", "lost"]

    async def test_write_eof(self, loop):
        async with facing_socket(loop, lambda: Recorder(loop, keep_open=True)) as (mine, peer):
            mine.transport.write(b"one ")
            mine.transport.write(b"two")
            mine.transport.write_eof()
            with pytest.raises(RuntimeError):
                mine.transport.write(b"three")
            assert await all_of(loop, peer) == b"one two"
            peer.send(b"answer")
            assert await mine.received(6) == b"answer"

    async def test_abort(self, loop):
        async with facing_socket(loop) as (mine, peer):
            mine.transport.write(b"one ")
            mine.transport.write(b"two")
            mine.transport.abort()
            assert await all_of(loop, peer) == b"one two"
            assert await mine.lost is None

    async def test_set_protocol(self, loop):
        async with facing_socket(loop) as (mine, peer):
            heir = Recorder(loop)
            mine.transport.write(b"old ")
            mine.transport.set_protocol(heir)
            mine.transport.write(b"new")
            await settled(loop)
            assert arrived(peer) == b"old new"
            mine.transport.close()
            assert await heir.lost is None
            mine.lost.set_result(None)

    async def test_start_tls(self, loop):
        async with connected(loop) as (client, server):
            client.transport.write(b"STARTTLS\n")
            upgrading = loop.start_tls(client.transport, client, authority().client(), server_hostname=NAME)
            upgrading = loop.create_task(upgrading)
            assert await server.received(9) == b"STARTTLS\n"
            server.data.clear()
            server.transport = await loop.start_tls(server.transport, server, authority().server(), server_side=True)
            client.transport = await upgrading
            client.transport.write(b"one ")
            client.transport.write(b"two")
            assert await server.received(7) == b"one two"
            client.transport.close()
            server.transport.close()
            await client.lost
            await server.lost

    @deviates("uvloop", "NotImplementedError")
    async def test_sendfile(self, loop, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"file ")
        async with facing_socket(loop) as (mine, peer):
            mine.transport.write(b"head ")
            with path.open("rb") as file:
                await loop.sendfile(mine.transport, file)
            mine.transport.write(b"tail")
            await settled(loop)
            assert arrived(peer) == b"head file tail"

    @deviates("uvloop", "another socket object, which shuts nothing down")
    async def test_the_socket_itself(self, loop):
        async with facing_socket(loop) as (mine, peer):
            mine.transport.write(b"one")
            mine.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
            assert await all_of(loop, peer) == b"one"

    @deviates("uvloop", "another socket object, which shuts nothing down")
    async def test_a_socket_that_was_shown_before(self, loop):
        async with facing_socket(loop) as (mine, peer):
            shown = mine.transport.get_extra_info("socket")
            mine.transport.write(b"one ")
            mine.transport.write(b"two")
            shown.shutdown(socket.SHUT_WR)
            assert await all_of(loop, peer) == b"one two"

    async def test_what_is_written_to_the_descriptor_of_a_socket_that_was_shown_before(self, loop):
        async with facing_socket(loop) as (mine, peer):
            shown = mine.transport.get_extra_info("socket")
            mine.transport.write(b"one ")
            os.write(shown.fileno(), b"two")
            await settled(loop)
            assert arrived(peer) == b"one two"

    async def test_a_socket_that_was_shown_outlives_its_transport(self, loop):
        async with facing_socket(loop) as (mine, _):
            shown = mine.transport.get_extra_info("socket")
            mine.transport.abort()
            await mine.lost
            assert shown.fileno() == -1

    async def test_a_protocol_that_fails(self, loop, handled):
        class Failing(Recorder):
            def data_received(self, data):
                self.transport.write(b"refused")
                raise ZeroDivisionError

        async with facing_socket(loop, lambda: Failing(loop)) as (mine, peer):
            peer.send(b"x")
            assert await all_of(loop, peer) == b"refused"
            assert isinstance(await mine.lost, ZeroDivisionError)
        assert [context["exception"].__class__ for context in handled] == [ZeroDivisionError]
        handled.clear()

    async def test_a_write_that_fails_before_the_protocol_does(self, loop, handled):
        class Failing(Recorder):
            def data_received(self, data):
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()
                self.transport.write(b"x")
                raise ZeroDivisionError

        async with facing_socket(loop, lambda: Failing(loop)) as (mine, peer):
            peer.send(b"x")
            assert isinstance(await mine.lost, ConnectionError)
        handled.clear()

    async def test_a_pause_that_writes_comes_behind_the_whole_of_writelines(self, loop, backend):
        if backend.name == "asyncio" and sys.version_info[:2] in ((3, 12), (3, 13)):
            pytest.skip("asyncio of 3.12 and 3.13.0 does not wait for room after writelines()")

        class Writing(Recorder):
            def pause_writing(self):
                super().pause_writing()
                if self.events.count("pause") == 1:
                    self.transport.write(b"!")

        async with connected(loop, client=lambda: Writing(loop)) as (client, server):
            large = bytes(16 << 20)
            server.transport.pause_reading()
            client.transport.writelines([b"one", large, b"two", large])
            server.transport.resume_reading()
            await server.received(2 * len(large) + 7)
            assert client.events[:2] == ["made", "pause"]
            assert server.data == b"one" + large + b"two" + large + b"!"

    async def test_a_unix_socket(self, loop, tmp_path):
        async with connected(loop, unix=str(tmp_path / "socket")) as (client, server):
            for piece in (b"one ", b"two ", bytes(100_000), b" end"):
                client.transport.write(piece)
            client.transport.write_eof()
            await server.ended
            assert server.data == b"one two " + bytes(100_000) + b" end"


class TestTold:
    """What a transport tells, and when, is what it would tell if each write were sent at once."""

    async def test_what_the_socket_takes_is_not_in_the_buffer(self, loop):
        async with facing_socket(loop) as (mine, peer):
            mine.transport.write(b"x" * 100)
            assert mine.transport.get_write_buffer_size() == 0
            assert arrived(peer) == b"x" * 100

    async def test_no_pause_for_what_the_socket_takes(self, loop):
        async with facing_socket(loop) as (mine, peer):
            mine.transport.set_write_buffer_limits(high=0)
            for _ in range(10):
                mine.transport.write(b"x" * 100)
            await turns()
            assert mine.events == ["made"]
            assert arrived(peer) == b"x" * 1000

    async def test_a_writer_that_never_waits_is_paused(self, loop):
        async with facing_socket(loop) as (mine, _):
            mine.transport.set_write_buffer_limits(high=10_000, low=1000)
            written = 0
            while "pause" not in mine.events:
                mine.transport.write(b"x" * 1000)
                written += 1000
                assert written < 1 << 30
            assert mine.events == ["made", "pause"]
            assert 10_000 < mine.transport.get_write_buffer_size() <= 11_000

    async def test_a_writer_that_never_waits_hears_of_the_end(self, loop):
        async with facing_socket(loop) as (mine, peer):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            while not mine.transport.is_closing():
                mine.transport.write(b"x" * 1000)
            assert isinstance(await mine.lost, ConnectionError)
            assert mine.events == ["made", "lost"]

    async def test_new_limits_count_what_the_socket_did_not_take(self, loop):
        async with facing_socket(loop) as (mine, _):
            mine.transport.write(b"x" * 100)
            await turns()
            mine.transport.write(b"x" * 100)
            mine.transport.set_write_buffer_limits(high=10)
            assert mine.events == ["made"]


class TestAtOnce:
    """What does not wait for the end of the callback."""

    async def test_a_large_write(self, loop):
        async with facing_socket(loop) as (mine, peer):
            mine.transport.write(bytes(100_000))
            assert arrived(peer).count(0) > 0

    async def test_more_than_64_kib_together(self, loop):
        async with facing_socket(loop) as (mine, peer):
            for _ in range(17):
                mine.transport.write(bytes(4096))
            assert len(arrived(peer)) > 0

    async def test_what_was_written_50_microseconds_before_the_next_write(self, loop):
        async with facing_socket(loop) as (mine, peer):
            mine.transport.write(b"one ")
            start = time.perf_counter_ns()
            while time.perf_counter_ns() - start < 60_000:
                pass
            mine.transport.write(b"two")
            assert arrived(peer) == b"one two"

    def test_what_is_written_outside_of_a_callback(self, backend):
        loop = backend.new_event_loop()
        listener = listening_socket()
        with listener:
            listener.setblocking(True)
            mine = loop.run_until_complete(connection(loop, listener))
            peer, _ = listener.accept()
        peer.setblocking(False)
        with peer:
            mine.transport.write(b"one ")
            assert arrived(peer) == b"one "
            mine.transport.writelines([b"two ", b"three"])
            assert arrived(peer) == b"two three"
            mine.transport.close()
            loop.run_until_complete(mine.lost)
        loop.close()


class TestEnds:
    """A callback that ends the loop has written nonetheless."""

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
    def test_an_exception_that_ends_the_loop(self, backend, error):
        loop = backend.new_event_loop()
        with listening_socket() as listener:
            listener.setblocking(True)
            mine = loop.run_until_complete(connection(loop, listener))
            peer, _ = listener.accept()

        def last():
            mine.transport.write(b"last words")
            raise error

        loop.call_soon(last)
        with peer:
            with pytest.raises(error):
                loop.run_forever()
            assert peer.recv(100, socket.MSG_DONTWAIT) == b"last words"
        mine.transport.abort()
        loop.run_until_complete(mine.lost)
        loop.close()

    def test_a_fork(self, backend):
        if backend.name == "uvloop":
            pytest.skip("its loops are of no use in a forked process")
        done = run_child(backend, FORK)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout in ("once and again\n", "and again once\n")


FORK = """
import socket, warnings
warnings.simplefilter("ignore", DeprecationWarning)
loop = backend.new_event_loop()
mine, peer = socket.socketpair()
mine.setblocking(False)

transport, _ = loop.run_until_complete(loop.create_connection(asyncio.Protocol, sock=mine))

def fork():
    transport.write(b"once ")
    child = os.fork()
    if child == 0:
        # What the child writes itself is its own.
        transport.write(b"and again ")
        raise SystemExit
    os.waitpid(child, 0)
    transport.close()
    loop.stop()

loop.call_soon(fork)
try:
    loop.run_forever()
except SystemExit:
    os._exit(0)
loop.run_until_complete(asyncio.sleep(0))
received = b""
while piece := peer.recv(100):
    received += piece
print(received.decode().strip())
loop.close()
"""


async def connection(loop, listener) -> Recorder:
    _, mine = await loop.create_connection(lambda: Recorder(loop), *listener.getsockname())
    return mine


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("how", ["close", "abort", "get_extra_info"])
async def test_a_forked_child_that_lets_go_of_a_connection_sends_nothing(loop, how):
    async with facing_socket(loop) as (mine, peer):
        mine.transport.write(b"hello")
        if (child := os.fork()) == 0:
            try:
                getattr(mine.transport, how)(*(("socket",) if how == "get_extra_info" else ()))
            finally:
                os._exit(0)
        os.waitpid(child, 0)  # noqa: ASYNC222  it ends at once
        await settled(loop)
        assert await loop.sock_recv(peer, 100) == b"hello"


@pytest.mark.parametrize("way", ["shutdown", "close", "send"])
async def test_a_socket_of_the_programs_own_finds_sent_what_was_written(loop, backend, way):
    if backend.name == "uvloop":
        pytest.skip("works on a duplicate of the descriptor")
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    transport, recorder = await loop.create_connection(lambda: Recorder(loop), sock=ours)
    with theirs:
        transport.write(b"bye")
        if way == "shutdown":
            ours.shutdown(socket.SHUT_WR)
        elif way == "send":
            ours.send(b"X")
        else:
            ours.close()
        assert theirs.recv(9) == (b"byeX" if way == "send" else b"bye")
        transport.abort()
        await recorder.lost


async def test_a_socket_that_is_asked_for_too_late(loop):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        transport, recorder = await loop.create_connection(lambda: Recorder(loop), sock=ours)
        transport.close()
        await recorder.lost
        await turns(3)
        sock = transport.get_extra_info("socket")
        assert sock is None or sock.fileno() == -1
