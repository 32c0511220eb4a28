"""sock_* methods, cancelled at every turn of their lives: no watch is left, no byte is lost, none is doubled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from tests.backends import deviates
from tests.peers import LOOPBACK, listening_socket, settled, socket_pair, turns

TURNS = range(8)


async def cancelled(task, after):
    """Cancel a task after some turns. Its result if it was done, or None."""
    await turns(after)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        return await task


@pytest.fixture
def pair():
    left, right = socket_pair()
    with left, right:
        yield left, right


@pytest.fixture
def datagrams():
    """Two UDP sockets."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2)]
        for sock in socks:
            sock.bind((LOOPBACK, 0))
            sock.setblocking(False)
        yield socks


def unwatched(loop, sock):
    return not loop.remove_reader(sock) and not loop.remove_writer(sock)


@pytest.mark.parametrize("after", TURNS)
@pytest.mark.parametrize("early", [False, True], ids=["later", "data there"])
async def test_receive_into(loop, pair, after, early):
    left, right = pair
    buffer = bytearray(10)
    if early:
        right.send(b"x")
    task = loop.create_task(loop.sock_recv_into(left, buffer))
    got = await cancelled(task, after)
    assert unwatched(loop, left)
    if not early:
        right.send(b"x")
    if got is None and buffer[0] == 0:
        assert await loop.sock_recv(left, 10) == b"x"
    else:
        assert buffer == b"x" + bytes(9)


@pytest.mark.parametrize("after", TURNS)
async def test_send(loop, pair, after):
    left, right = pair
    data = bytes(range(256)) * 8192
    task = loop.create_task(loop.sock_sendall(left, data))
    await cancelled(task, after)
    assert unwatched(loop, left)
    left.close()
    received = bytearray()
    while piece := await loop.sock_recv(right, 1 << 20):
        received += piece
    assert received == data[: len(received)]


@pytest.mark.parametrize("after", TURNS)
async def test_connect(loop, after):
    with listening_socket() as listener, socket.socket() as sock:
        sock.setblocking(False)
        task = loop.create_task(loop.sock_connect(sock, listener.getsockname()))
        await cancelled(task, after)
        assert unwatched(loop, sock)
        await settled(loop)
        assert unwatched(loop, sock)


@pytest.mark.parametrize("after", TURNS)
async def test_connect_by_name(loop, after):
    with listening_socket() as listener, socket.socket() as sock:
        sock.setblocking(False)
        task = loop.create_task(loop.sock_connect(sock, ("localhost", listener.getsockname()[1])))
        await cancelled(task, after)
        assert unwatched(loop, sock)
        await settled(loop)


# A connection that was accepted in the turn of the cancellation is dropped with the result that nobody takes.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("after", TURNS)
async def test_accept(loop, after):
    with listening_socket() as listener:
        task = loop.create_task(loop.sock_accept(listener))
        with socket.create_connection(listener.getsockname()):
            accepted = await cancelled(task, after)
            assert unwatched(loop, listener)
            if accepted:
                accepted[0].close()
        # The listener goes on.
        with socket.create_connection(listener.getsockname()) as peer:
            number = None
            while number != peer.getsockname():
                connection, number = await loop.sock_accept(listener)
                connection.close()


@deviates("uvloop", "NotImplementedError")
@pytest.mark.parametrize("after", TURNS)
async def test_receive_from(loop, datagrams, after):
    one, two = datagrams
    task = loop.create_task(loop.sock_recvfrom(two, 10))
    got = await cancelled(task, after)
    assert got is None
    assert unwatched(loop, two)
    await loop.sock_sendto(one, b"x", two.getsockname())
    assert await loop.sock_recvfrom(two, 10) == (b"x", one.getsockname())


@pytest.mark.parametrize("after", TURNS)
async def test_two_on_one_socket(loop, pair, after):
    """Receiving is cancelled while sending goes on."""
    left, right = pair
    sending = loop.create_task(loop.sock_sendall(left, bytes(4 << 20)))
    receiving = loop.create_task(loop.sock_recv(left, 10))
    await cancelled(receiving, after)
    count = 0
    while count < 4 << 20:
        count += len(await loop.sock_recv(right, 1 << 20))
    await sending
    assert unwatched(loop, left)


class TestWatchesThatAreLeftOver:
    """A socket that operations have waited for may be closed, and its number be another's, at any time."""

    async def test_a_file_that_lives_on_elsewhere_is_not_reported_any_more(self, loop):
        here, there = socket.socketpair()
        here.setblocking(False)
        receiving = asyncio.ensure_future(loop.sock_recv(here, 10))
        await settled(loop)
        there.send(b"1")
        await receiving
        kept, number = here.dup(), here.fileno()
        here.close()
        there.send(b"2")
        mine, other = socket.socketpair()
        mine.setblocking(False)
        calls = []
        assert number in (mine.fileno(), other.fileno())
        watched = mine if mine.fileno() == number else other
        loop.add_reader(watched, calls.append, 1)
        await settled(loop, 50)
        assert calls == []
        (other if watched is mine else mine).send(b"x")
        while not calls:
            await settled(loop, 1)
        loop.remove_reader(watched)
        for sock in (there, kept, mine, other):
            sock.close()

    async def test_a_number_whose_waiter_was_cancelled_after_the_close_is_watched(self, loop):
        here, there = socket.socketpair()
        here.setblocking(False)
        receiving = asyncio.ensure_future(loop.sock_recv(here, 10))
        await settled(loop)
        number = here.fileno()
        here.close()
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        reader, writer = os.pipe()
        assert number in (reader, writer)
        os.set_blocking(reader, False)
        got = loop.create_future()
        loop.add_reader(reader, lambda: got.done() or got.set_result(None))
        os.write(writer, b"x")
        await asyncio.wait_for(got, 5)
        loop.remove_reader(reader)
        os.close(reader)
        os.close(writer)
        there.close()

    @deviates("uvloop", "waits")
    async def test_receiving_nothing_does_not_wait(self, loop):
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            assert await asyncio.wait_for(loop.sock_recv(here, 0), 5) == b""


@deviates("uvloop", "NotImplementedError")
@pytest.mark.parametrize("after", TURNS)
async def test_receive_from_into(loop, datagrams, after):
    one, two = datagrams
    buffer = bytearray(10)
    task = loop.create_task(loop.sock_recvfrom_into(two, buffer, 5))
    assert await cancelled(task, after) is None
    assert unwatched(loop, two)
    await loop.sock_sendto(one, b"x", two.getsockname())
    assert await loop.sock_recvfrom_into(two, buffer) == (1, one.getsockname())
    assert buffer[:1] == b"x"


@deviates("uvloop", "NotImplementedError")
@pytest.mark.parametrize("after", TURNS)
async def test_send_to(loop, tmp_path, after):
    """A UNIX socket whose peer's queue is full takes no more."""
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("no UNIX sockets here")
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in range(2))
        two.bind(str(tmp_path / "two"))
        for sock in (one, two):
            sock.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                one.sendto(b"%d" % sent, two.getsockname())
                sent += 1
        task = loop.create_task(loop.sock_sendto(one, b"late", two.getsockname()))
        assert await cancelled(task, after) is None
        assert unwatched(loop, one)
        task = loop.create_task(loop.sock_sendto(one, b"last", two.getsockname()))
        await turns()
        assert not task.done()
        got = [await loop.sock_recv(two, 10) for _ in range(sent)]
        assert got == [b"%d" % number for number in range(sent)]
        assert await task == 4
        assert await loop.sock_recv(two, 10) == b"last"
