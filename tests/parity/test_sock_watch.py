"""What sock_* operations leave behind in the selector: nothing that anybody else can notice.

A watch may outlive its operation, so that the next one finds it; the socket may be closed, and its number be
another's, at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile

import pytest
import tideloop

from tests.peers import LOOPBACK, Recorder, settled, socket_pair, turns


def successor(sock, peer):
    """Close a socket and its peer; a connected pair whose first end has its number."""
    number = sock.fileno()
    peer.close()
    new, other = socket_pair()
    sock.close()
    moved = socket.socket(fileno=os.dup2(new.fileno(), number, inheritable=False))
    moved.setblocking(False)
    new.close()
    assert moved.fileno() == number
    return moved, other


async def waited(loop, left, right):
    """An operation on `left` that had to wait is over."""
    task = loop.create_task(loop.sock_recv(left, 10))
    await turns()
    right.send(b"first")
    assert await task == b"first"


async def test_the_next_owner_of_a_number_is_heard(loop):
    left, right = socket_pair()
    await waited(loop, left, right)
    left, right = successor(left, right)
    with left, right:
        task = loop.create_task(loop.sock_recv(left, 10))
        await settled(loop)
        right.send(b"second")
        assert await task == b"second"


@pytest.mark.parametrize("kept", [False, True], ids=["closed", "kept by a duplicate"])
@pytest.mark.parametrize("unread", [False, True])
async def test_a_file_that_is_put_in_the_place_of_another_is_heard(loop, kept, unread):
    """dup2() closes what was there, and the socket object, which knows a number, goes on as the new one."""
    left, right = socket_pair()
    await waited(loop, left, right)
    with left, right, contextlib.ExitStack() as stack:
        if kept:
            stack.callback(os.close, os.dup(left.fileno()))
        if unread:
            right.send(b"for the old file")
        new, other = socket_pair()
        os.dup2(new.fileno(), left.fileno(), inheritable=False)
        new.close()
        with other:
            for text in (b"second", b"third"):
                task = loop.create_task(loop.sock_recv(left, 10))
                await settled(loop)
                other.send(text)
                assert await task == text


async def test_a_reader_of_a_number_that_was_another_sockets(loop):
    left, right = socket_pair()
    await waited(loop, left, right)
    left, right = successor(left, right)
    with left, right:
        heard = loop.create_future()
        loop.add_reader(left.fileno(), lambda: heard.done() or heard.set_result(None))
        right.send(b"x")
        await heard
        loop.remove_reader(left.fileno())
        assert not loop.remove_reader(left.fileno())


async def test_a_transport_of_a_number_that_was_another_sockets(loop):
    left, right = socket_pair()
    await waited(loop, left, right)
    left, right = successor(left, right)
    with right:
        protocol = Recorder(loop)
        transport, _ = await loop.create_connection(lambda: protocol, sock=left)
        right.send(b"text")
        assert await protocol.received(4) == b"text"
        transport.close()
        await protocol.lost


async def test_the_socket_of_a_transport_is_refused(loop):
    left, right = socket_pair()
    with right:
        protocol = Recorder(loop)
        transport, _ = await loop.create_connection(lambda: protocol, sock=left)
        with pytest.raises(RuntimeError):
            await loop.sock_recv(left, 10)
        transport.close()
        await protocol.lost


async def test_both_directions_at_once(loop):
    left, right = socket_pair()
    with left, right:
        data = bytes(range(256)) * 16384
        sending = loop.create_task(loop.sock_sendall(left, data))
        receiving = loop.create_task(loop.sock_recv(left, 10))
        await settled(loop)
        assert not sending.done()
        assert not receiving.done()
        await loop.sock_sendall(right, b"other way")
        assert await receiving == b"other way"
        got = bytearray()
        while len(got) < len(data):
            got += await loop.sock_recv(right, 1 << 20)
        await sending
        assert got == data


async def test_a_reader_beside_an_operation_that_sends(loop):
    left, right = socket_pair()
    with left, right:
        heard = []
        loop.add_reader(left, lambda: heard.append(left.recv(10)))
        data = bytes(4 << 20)
        sending = loop.create_task(loop.sock_sendall(left, data))
        right.send(b"x")
        left_to_read = len(data)
        while left_to_read:
            left_to_read -= len(await loop.sock_recv(right, 1 << 20))
        await sending
        right.send(b"y")
        await settled(loop)
        assert b"".join(heard) == b"xy"
        loop.remove_reader(left)


async def test_a_mutable_buffer_is_held_until_it_is_sent(loop):
    left, right = socket_pair()
    with left, right:
        data = bytearray(4 << 20)
        sending = loop.create_task(loop.sock_sendall(left, data))
        await settled(loop)
        with pytest.raises(BufferError):
            data.clear()
        got = 0
        while got < 4 << 20:
            got += len(await loop.sock_recv(right, 1 << 20))
        await sending
        del sending
        data.clear()


GIVEN = {
    "sock_recv_into": [bytearray(1)],
    "sock_recvfrom_into": [bytearray(1)],
    "sock_accept": [],
    "sock_sendall": [b"x"],
    "sock_sendto": [b"x", (LOOPBACK, 9)],
    "sock_connect": [(LOOPBACK, 9)],
}
DIRECT = ["sock_recv", "sock_recvfrom", *GIVEN]


def run(main):
    with tideloop.Runner() as runner:
        return runner.run(main())


def test_the_watch_stays_until_something_comes_that_nobody_waits_for():
    async def main():
        loop = asyncio.get_running_loop()
        left, right = socket_pair()
        with left, right:
            await waited(loop, left, right)
            assert loop._interest(left.fileno()) == (True, False)
            assert not loop.remove_writer(left)
            right.send(b"unexpected")
            await settled(loop)
            assert loop._interest(left.fileno()) == (False, False)
            assert await loop.sock_recv(left, 100) == b"unexpected"
            await waited(loop, left, right)

    run(main)


def test_what_cannot_be_watched_is_no_reason_to_wait_for_ever():
    """Once the operation waits, another file takes the place of its socket."""

    async def main():
        loop = asyncio.get_running_loop()
        left, right = socket_pair()
        with left, right, tempfile.TemporaryFile() as file:
            await waited(loop, left, right)
            task = loop.create_task(loop.sock_recv(left, 10))
            await asyncio.sleep(0)
            os.dup2(file.fileno(), left.fileno(), inheritable=False)
            with pytest.raises(OSError, match="non-socket"):
                await task

    run(main)


def test_a_blocking_socket_does_not_block_the_loop():
    async def main():
        loop = asyncio.get_running_loop()
        left, right = socket_pair()
        with left, right:
            left.setblocking(True)
            task = loop.create_task(loop.sock_recv(left, 10))
            await turns()
            right.send(b"x")
            assert await task == b"x"

    run(main)


@pytest.mark.parametrize("method", DIRECT)
def test_a_blocking_socket_is_refused_in_debug_mode(method):
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        given = GIVEN.get(method, [1])
        with socket.create_server((LOOPBACK, 0)) as sock, pytest.raises(ValueError, match="must be non-blocking"):
            await getattr(loop, method)(sock, *given)

    run(main)


def test_a_subclass_of_socket_is_asked_itself():
    class Socket(socket.socket):
        def recv(self, n):
            return super().recv(n).upper()

        def send(self, data):
            return super().send(bytes(data[:1]))

    async def main():
        loop = asyncio.get_running_loop()
        left, right = socket_pair()
        with right, Socket(fileno=left.detach()) as sock:
            sock.setblocking(False)
            task = loop.create_task(loop.sock_recv(sock, 10))
            await turns()
            right.send(b"text")
            assert await task == b"TEXT"
            await loop.sock_sendall(sock, b"abc")
            assert right.recv(10) == b"abc"

    run(main)


async def test_a_descriptor_that_is_replaced_while_the_loop_never_sleeps(loop):
    pairs = [socket_pair() for _ in range(2)]
    (ours, theirs), (other, others) = pairs
    with ours, theirs, other, others:
        for sock in (ours, other):
            sock.setblocking(False)
        waiting = asyncio.ensure_future(loop.sock_recv(ours, 9))
        await turns(3)
        theirs.send(b"first")
        assert await waiting == b"first"
        os.dup2(other.fileno(), ours.fileno())
        waiting = asyncio.ensure_future(loop.sock_recv(ours, 9))
        await turns(3)
        others.send(b"second")
        for _ in range(100_000):
            if waiting.done():
                break
            await asyncio.sleep(0)
        assert await waiting == b"second"
