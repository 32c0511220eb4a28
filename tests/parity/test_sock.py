"""The sock_* methods: non-blocking sockets driven by the loop, without transports."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from tests.backends import deviates
from tests.peers import LOOPBACK, listening_socket, settled, socket_pair, turns


@pytest.fixture
def pair():
    left, right = socket_pair()
    yield left, right
    left.close()
    right.close()


@pytest.fixture
def listener():
    with listening_socket() as sock:
        yield sock


@pytest.fixture
def datagrams():
    """Two UDP sockets."""
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in socks:
        sock.bind((LOOPBACK, 0))
        sock.setblocking(False)
    yield socks
    for sock in socks:
        sock.close()


class TestReceive:
    async def test_data_that_is_there(self, loop, pair):
        left, right = pair
        right.send(b"hello")
        assert await loop.sock_recv(left, 100) == b"hello"

    async def test_data_that_comes_later(self, loop, pair):
        left, right = pair
        task = loop.create_task(loop.sock_recv(left, 100))
        await turns()
        assert not task.done()
        right.send(b"hello")
        assert await task == b"hello"

    async def test_at_most(self, loop, pair):
        left, right = pair
        right.send(b"hello")
        assert await loop.sock_recv(left, 2) == b"he"
        assert await loop.sock_recv(left, 100) == b"llo"

    async def test_end_of_file(self, loop, pair):
        left, right = pair
        right.close()
        assert await loop.sock_recv(left, 100) == b""

    @pytest.mark.parametrize("later", [False, True])
    async def test_into_a_buffer(self, loop, pair, later):
        left, right = pair
        buffer = bytearray(10)
        task = loop.create_task(loop.sock_recv_into(left, buffer))
        if later:
            await turns()
        right.send(b"hello")
        assert await task == 5
        assert buffer == b"hello\0\0\0\0\0"

    async def test_into_a_view(self, loop, pair):
        left, right = pair
        buffer = bytearray(10)
        right.send(b"hello")
        assert await loop.sock_recv_into(left, memoryview(buffer)[5:]) == 5
        assert buffer == b"\0\0\0\0\0hello"

    async def test_100_in_turn(self, loop, pair):
        left, right = pair
        for i in range(100):
            task = loop.create_task(loop.sock_recv(left, 100))
            await turns(i % 3)
            right.send(b"%d" % i)
            assert await task == b"%d" % i

    async def test_an_error_arrives(self, loop, listener):
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, listener.getsockname())
            peer, _ = await loop.sock_accept(listener)
            task = loop.create_task(loop.sock_recv(sock, 1))
            await turns()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()
            with pytest.raises(ConnectionResetError):
                await task


class TestSend:
    async def test_small(self, loop, pair):
        left, right = pair
        assert await loop.sock_sendall(left, b"hello") is None
        assert right.recv(100) == b"hello"

    async def test_large(self, loop, pair):
        left, right = pair
        data = bytes(range(256)) * 40_000
        task = loop.create_task(loop.sock_sendall(left, data))
        received = bytearray()
        while len(received) < len(data):
            received += await loop.sock_recv(right, 1 << 16)
        await task
        assert received == data

    async def test_nothing(self, loop, pair):
        left, _ = pair
        await loop.sock_sendall(left, b"")

    @pytest.mark.parametrize("kind", [bytearray, memoryview])
    async def test_bytes_like(self, loop, pair, kind):
        left, right = pair
        await loop.sock_sendall(left, kind(b"hello"))
        assert right.recv(100) == b"hello"

    async def test_a_gone_peer(self, loop, pair):
        left, right = pair
        right.close()
        with pytest.raises(BrokenPipeError):
            await loop.sock_sendall(left, b"hello")

    async def test_a_peer_that_leaves_meanwhile(self, loop, pair):
        left, right = pair
        task = loop.create_task(loop.sock_sendall(left, bytes(16 << 20)))
        await turns()
        assert not task.done()
        right.close()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await task

    async def test_sending_and_receiving_on_one_socket(self, loop, pair):
        left, right = pair
        data = bytes(4 << 20)

        async def receive(sock):
            received = 0
            while received < len(data):
                received += len(await loop.sock_recv(sock, 1 << 16))
            return received

        results = await asyncio.gather(
            loop.sock_sendall(left, data), loop.sock_sendall(right, data), receive(left), receive(right)
        )
        assert results == [None, None, len(data), len(data)]


class TestConnect:
    async def test_and_accept(self, loop, listener):
        with socket.socket() as sock:
            sock.setblocking(False)
            accept = loop.create_task(loop.sock_accept(listener))
            await turns()
            assert await loop.sock_connect(sock, listener.getsockname()) is None
            peer, address = await accept
            with peer:
                assert address == sock.getsockname()
                assert not peer.getblocking()
                await loop.sock_sendall(sock, b"hello")
                assert await loop.sock_recv(peer, 100) == b"hello"

    async def test_refused(self, loop):
        with socket.socket() as unused, socket.socket() as sock:
            unused.bind((LOOPBACK, 0))
            sock.setblocking(False)
            with pytest.raises(ConnectionRefusedError):
                await loop.sock_connect(sock, unused.getsockname())

    async def test_by_name(self, loop, listener):
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("localhost", listener.getsockname()[1]))
        await loop.shutdown_default_executor()

    async def test_unix(self, loop, tmp_path):
        path = str(tmp_path / "socket")
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as sock:
            listener.bind(path)
            listener.listen()
            listener.setblocking(False)
            sock.setblocking(False)
            await loop.sock_connect(sock, path)
            peer, _ = await loop.sock_accept(listener)
            peer.close()

    async def test_several_accepts_in_turn(self, loop, listener):
        for _ in range(20):
            accept = loop.create_task(loop.sock_accept(listener))
            await turns(2)
            with socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, listener.getsockname())
                peer, _ = await accept
                peer.close()


@deviates("uvloop", "NotImplementedError")
class TestDatagrams:
    async def test_there_and_back(self, loop, datagrams):
        one, two = datagrams
        assert await loop.sock_sendto(one, b"hello", two.getsockname()) == 5
        assert await loop.sock_recvfrom(two, 100) == (b"hello", one.getsockname())

    async def test_one_that_comes_later(self, loop, datagrams):
        one, two = datagrams
        task = loop.create_task(loop.sock_recvfrom(two, 100))
        await turns()
        await loop.sock_sendto(one, b"hello", two.getsockname())
        assert await task == (b"hello", one.getsockname())

    async def test_into_a_buffer(self, loop, datagrams):
        one, two = datagrams
        buffer = bytearray(10)
        await loop.sock_sendto(one, b"hello", two.getsockname())
        assert await loop.sock_recvfrom_into(two, buffer) == (5, one.getsockname())
        assert buffer[:5] == b"hello"
        await loop.sock_sendto(one, b"hello", two.getsockname())
        assert await loop.sock_recvfrom_into(two, buffer, 2) == (2, one.getsockname())

    async def test_empty(self, loop, datagrams):
        one, two = datagrams
        assert await loop.sock_sendto(one, b"", two.getsockname()) == 0
        assert await loop.sock_recvfrom(two, 100) == (b"", one.getsockname())


class TestCancel:
    """A cancelled operation lets go of the descriptor."""

    async def test_receive(self, loop, pair):
        left, right = pair
        task = loop.create_task(loop.sock_recv(left, 100))
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not loop.remove_reader(left)
        right.send(b"hello")
        await turns()
        assert await loop.sock_recv(left, 100) == b"hello"

    async def test_receive_into(self, loop, pair):
        left, right = pair
        buffer = bytearray(10)
        task = loop.create_task(loop.sock_recv_into(left, buffer))
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        right.send(b"hello")
        await turns()
        assert buffer == bytes(10)
        buffer.extend(b"no export is left")

    async def test_send(self, loop, pair):
        left, right = pair
        task = loop.create_task(loop.sock_sendall(left, bytes(16 << 20)))
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not loop.remove_writer(left)
        assert right.recv(1)

    async def test_accept(self, loop, listener):
        task = loop.create_task(loop.sock_accept(listener))
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not loop.remove_reader(listener)
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, listener.getsockname())
            peer, _ = await loop.sock_accept(listener)
            peer.close()

    async def test_connect(self, loop):
        """A listener whose backlog is full keeps connect waiting."""
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.create_server((LOOPBACK, 0), backlog=0))
            for _ in range(20):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                task = loop.create_task(loop.sock_connect(sock, listener.getsockname()))
                await settled(loop)
                if not task.done():
                    break
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not loop.remove_writer(sock)

    async def test_at_any_turn(self, loop, pair):
        left, right = pair
        for after in range(8):
            task = loop.create_task(loop.sock_recv(left, 100))
            await turns(after)
            right.send(b"x")
            task.cancel()
            try:
                assert await task == b"x"
            except asyncio.CancelledError:
                assert await loop.sock_recv(left, 100) == b"x"

    async def test_and_the_socket_closed_in_the_same_turn(self, loop):
        left, right = socket_pair()
        task = loop.create_task(loop.sock_recv(left, 100))
        await turns()
        task.cancel()
        left.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        right.close()
        again = socket_pair()
        again[1].send(b"x")
        assert await loop.sock_recv(again[0], 1) == b"x"
        for sock in again:
            sock.close()


class TestRefused:
    @pytest.mark.parametrize(
        "call",
        [
            lambda loop, sock: loop.sock_recv(sock, 1),
            lambda loop, sock: loop.sock_recv_into(sock, bytearray(1)),
            lambda loop, sock: loop.sock_sendall(sock, b"x"),
            lambda loop, sock: loop.sock_accept(sock),
            lambda loop, sock: loop.sock_connect(sock, (LOOPBACK, 1)),
        ],
        ids=["recv", "recv_into", "sendall", "accept", "connect"],
    )
    async def test_a_blocking_socket_in_debug_mode(self, loop, call):
        loop.set_debug(True)
        with socket.socket() as sock, pytest.raises(ValueError, match="the socket must be non-blocking"):
            await call(loop, sock)

    async def test_a_closed_socket(self, loop):
        left, right = socket_pair()
        left.close()
        right.close()
        with pytest.raises((OSError, ValueError)):
            await loop.sock_recv(left, 1)
        with pytest.raises((OSError, ValueError)):
            await loop.sock_sendall(left, b"x")

    async def test_they_are_coroutines_or_futures_that_tasks_take(self, loop, pair):
        left, right = pair
        right.send(b"x")
        assert await loop.create_task(loop.sock_recv(left, 1)) == b"x"
