"""A descriptor has one owner: whoever gives up a connection does not close the next one that has its number."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref

import pytest

from tests.peers import LOOPBACK, Recorder, connected, dropped, listening_socket, settled, socket_pair, turns
from tests.tls import NAME, authority


@pytest.fixture
def listener():
    with listening_socket() as sock:
        yield sock


@pytest.fixture
def given(listener):
    """A connected socket, and its peer."""
    sock = socket.create_connection(listener.getsockname())
    listener.setblocking(True)
    peer, _ = listener.accept()
    with peer:
        yield sock, peer
    sock.close()


@contextlib.contextmanager
def the_next_owner(number):
    """A pipe whose reading end has this number, as the next socket of the process might; it must stay open."""
    read_end, write_end = os.pipe()
    if read_end != number:
        os.dup2(read_end, number)
        os.close(read_end)
    before = os.fstat(number)
    try:
        yield
        assert os.fstat(number) == before, "somebody has closed it, or put something else there"
        os.write(write_end, b"x")
        assert os.read(number, 1) == b"x"
    finally:
        os.close(write_end)
        os.close(number)


def is_open(number):
    with contextlib.suppress(OSError):
        os.fstat(number)
        return True
    return False


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
async def test_a_cancelled_connection_over_a_given_socket(loop, backend, given, after, encrypted):
    sock, _ = given
    number = sock.fileno()
    options = {"ssl": authority().client(), "server_hostname": NAME} if encrypted else {}
    task = loop.create_task(loop.create_connection(lambda: Recorder(loop), sock=sock, **options))
    await turns(after)
    task.cancel()
    try:
        _, protocol = await task
        await dropped(protocol)
    except asyncio.CancelledError:
        pass
    await settled(loop)
    sock.close()
    assert not is_open(number)
    with the_next_owner(number):
        del task
        await settled(loop)


async def test_a_socket_that_its_giver_closes(loop, given, handled):
    """The transport must not go on with the number."""
    sock, peer = given
    number = sock.fileno()
    transport, protocol = await loop.create_connection(lambda: Recorder(loop), sock=sock)
    with contextlib.ExitStack() as stack:
        sock.close()
        if not is_open(number):  # uvloop has an own one
            stack.enter_context(the_next_owner(number))
        transport.write(b"not for the next owner")
        await settled(loop)
        transport.abort()
        await protocol.lost
        await settled(loop)
    peer.setblocking(False)


@pytest.mark.parametrize("known", ["kept", "weakly", "shown"])
async def test_a_socket_that_is_closed_when_it_was_used_for_a_while(loop, backend, listener, handled, known):
    """However the program knows it: it may be the only one that does for most of the time."""
    if backend.name == "uvloop":
        pytest.skip("it has an own descriptor")
    sock = socket.create_connection(listener.getsockname())
    listener.setblocking(True)
    peer, _ = listener.accept()
    number = sock.fileno()
    transport, protocol = await loop.create_connection(lambda: Recorder(loop), sock=sock)
    reference = weakref.ref(sock) if known == "weakly" else None
    kept = sock if known == "kept" else None
    del sock
    with peer:
        for length in range(1, 4):
            transport.write(b"x")
            await settled(loop)
            assert peer.recv(10) == b"x"
            peer.send(b"y")
            assert await protocol.received(length) == b"y" * length
        closing = kept or (reference() if reference else transport.get_extra_info("socket")._sock)
        closing.close()
        del closing, kept
        with the_next_owner(number):
            transport.write(b"not for the next owner")
            await settled(loop)
            transport.abort()
            await protocol.lost
            await settled(loop)


async def test_close_and_abort_in_every_order(loop, given):
    sock, _ = given
    number = sock.fileno()
    transport, protocol = await loop.create_connection(lambda: Recorder(loop), sock=sock)
    transport.close()
    transport.abort()
    transport.close()
    await protocol.lost
    await turns()
    assert not is_open(number)
    with the_next_owner(number):
        transport.abort()
        transport.close()
        sock.close()
        await settled(loop)


async def test_an_accepted_connection(loop):
    """Its number is free at once when the connection is lost, and nobody comes back to it."""
    served = loop.create_future()

    def accept():
        protocol = Recorder(loop)
        served.set_result(protocol)
        return protocol

    server = await loop.create_server(accept, LOOPBACK, 0)
    with socket.create_connection(server.sockets[0].getsockname()) as peer:
        protocol = await served
        await protocol.made
        number = protocol.transport.get_extra_info("socket").fileno()
        shown = protocol.transport.get_extra_info("socket")
        protocol.transport.abort()
        await protocol.lost
        await turns()
        assert not is_open(number)
        with the_next_owner(number):
            del shown, protocol
            await settled(loop)
        peer.close()
    server.close()
    await server.wait_closed()


async def test_a_watched_descriptor_that_is_closed_and_opened_again(loop):
    left, right = socket_pair()
    number = left.fileno()
    seen = []
    loop.add_reader(left, seen.append, "old")
    loop.remove_reader(left)
    left.close()
    right.close()
    with the_next_owner(number):
        loop.add_reader(number, seen.append, "new")
        await settled(loop)
        assert seen == []
        loop.remove_reader(number)


async def test_an_accepted_connection_whose_shown_socket_is_closed(loop, backend, handled):
    """It has told its descriptor before, once for each write."""
    if backend.name == "uvloop":
        pytest.skip("it shows another descriptor")
    async with connected(loop) as (client, server):
        shown = server.transport.get_extra_info("socket")
        for length in range(1, 4):
            server.transport.write(b"x")
            assert await client.received(length) == b"x" * length
        number = shown.fileno()
        # Closed by the loop itself, as far as it knows.
        shown._sock.close()
        with the_next_owner(number):
            server.transport.write(b"not for ")
            server.transport.write(b"the next owner")
            await settled(loop)
            server.transport.abort()
            await server.lost
            await settled(loop)
        client.transport.abort()
