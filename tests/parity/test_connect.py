"""create_connection and connect_accepted_socket: addresses, given sockets, errors, cancelling."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from tests.backends import deviates
from tests.peers import LOOPBACK, Recorder, dropped, listening_socket, settled, socket_pair, turns


@pytest.fixture
def listener():
    with listening_socket() as sock:
        yield sock


@pytest.fixture
def address(listener):
    return listener.getsockname()


@pytest.fixture
def unused():
    """An address where nobody listens: a bound socket that does not."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        yield sock.getsockname()


async def test_by_address(loop, address):
    transport, protocol = await loop.create_connection(lambda: Recorder(loop), *address)
    assert protocol.transport is transport
    assert transport.get_extra_info("peername") == address
    await dropped(protocol)


async def test_by_name(loop, address):
    _, protocol = await loop.create_connection(lambda: Recorder(loop), "localhost", address[1], family=socket.AF_INET)
    await dropped(protocol)


async def test_port_may_be_text(loop, address):
    _, protocol = await loop.create_connection(lambda: Recorder(loop), address[0], str(address[1]))
    await dropped(protocol)


async def test_ipv6(loop):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        transport, protocol = await loop.create_connection(lambda: Recorder(loop), *listener.getsockname()[:2])
        assert transport.get_extra_info("peername") == listener.getsockname()
        await dropped(protocol)


async def test_local_address(loop, address, listener):
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        local = probe.getsockname()
    transport, protocol = await loop.create_connection(lambda: Recorder(loop), *address, local_addr=local)
    assert transport.get_extra_info("sockname") == local
    await dropped(protocol)


async def test_local_address_that_is_taken(loop, address):
    with pytest.raises(OSError, match=r"(?i)address"):
        await loop.create_connection(lambda: Recorder(loop), *address, local_addr=address)
    await turns()


async def test_refused(loop, unused):
    with pytest.raises(ConnectionRefusedError):
        await loop.create_connection(lambda: Recorder(loop), *unused)
    await turns()


async def test_unknown_name(loop):
    with pytest.raises(socket.gaierror):
        await loop.create_connection(lambda: Recorder(loop), "name.invalid", 1)


@pytest.mark.parametrize("port", [-1, 65536, 1 << 40])
async def test_bad_port(loop, port):
    with pytest.raises((OverflowError, OSError, ValueError)):
        await loop.create_connection(lambda: Recorder(loop), LOOPBACK, port)
    await turns()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "host and port was not specified and no sock specified"),
        ({"ssl": None, "server_hostname": "name"}, "server_hostname is only meaningful with ssl"),
        ({"ssl_handshake_timeout": 1}, "ssl_handshake_timeout is only meaningful with ssl"),
        ({"ssl_shutdown_timeout": 1}, "ssl_shutdown_timeout is only meaningful with ssl"),
    ],
    ids=["nothing", "server_hostname", "ssl_handshake_timeout", "ssl_shutdown_timeout"],
)
async def test_arguments_that_do_not_fit(loop, arguments, text):
    with pytest.raises(ValueError, match=text):
        await loop.create_connection(lambda: Recorder(loop), **arguments)


async def test_address_and_socket_exclude_each_other(loop, address):
    with socket.socket() as sock, pytest.raises(ValueError, match="can not be specified at the same time"):
        await loop.create_connection(lambda: Recorder(loop), *address, sock=sock)


async def test_cancelled_at_once(loop, address, listener):
    task = loop.create_task(loop.create_connection(lambda: Recorder(loop), *address))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled(loop)


async def test_cancelled_at_any_turn_leaks_nothing(loop, backend, address):
    if backend.name == "uvloop":
        pytest.skip("uvloop leaves a connection open when cancelled right after connection_made")
    for after in range(12):
        protocols = []

        def factory(protocols=protocols):
            protocols.append(Recorder(loop))
            return protocols[-1]

        task = loop.create_task(loop.create_connection(factory, *address))
        await turns(after)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            await settled(loop)
            for protocol in protocols:
                if protocol.transport:
                    await protocol.lost
        else:
            await dropped(*protocols)
    await loop.shutdown_default_executor()


class TestSeveralAddresses:
    async def test_the_next_is_tried(self, loop, address, unused, monkeypatch):
        async def two_addresses(host, port, **kwargs):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", found) for found in (unused, address)]

        if not patchable(loop, monkeypatch, two_addresses):
            pytest.skip("this loop asks its own resolver")
        transport, protocol = await loop.create_connection(lambda: Recorder(loop), "some.name", 1)
        assert transport.get_extra_info("peername") == address
        await dropped(protocol)

    @deviates("uvloop", "has no such argument")
    async def test_happy_eyeballs(self, loop, address):
        _, protocol = await loop.create_connection(
            lambda: Recorder(loop), "localhost", address[1], happy_eyeballs_delay=0.25, interleave=1
        )
        await dropped(protocol)

    @deviates("uvloop", "has no such argument")
    async def test_happy_eyeballs_with_every_address_refusing(self, loop, unused):
        with pytest.raises(OSError, match=r"Connect call failed|Multiple exceptions"):
            await loop.create_connection(lambda: Recorder(loop), "localhost", unused[1], happy_eyeballs_delay=0.25)
        await turns()

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="all_errors is new in 3.12")
    @deviates("uvloop", "has no such argument", when=sys.version_info >= (3, 12))
    async def test_all_errors(self, loop, unused):
        with pytest.raises(ExceptionGroup) as caught:
            await loop.create_connection(lambda: Recorder(loop), *unused, all_errors=True)
        assert caught.group_contains(ConnectionRefusedError)
        await turns()


class TestGivenSocket:
    async def test_is_used(self, loop):
        left, right = socket_pair()
        transport, protocol = await loop.create_connection(lambda: Recorder(loop), sock=left)
        right.send(b"hello")
        assert await protocol.received(5) == b"hello"
        transport.write(b"world")
        await turns()
        assert right.recv(10) == b"world"
        await dropped(protocol)
        right.close()

    async def test_is_closed_with_the_transport(self, loop):
        left, right = socket_pair()
        _, protocol = await loop.create_connection(lambda: Recorder(loop), sock=left)
        await dropped(protocol)
        assert await loop.sock_recv(right, 1) == b""
        right.close()

    async def test_a_blocking_one_is_made_non_blocking(self, loop):
        left, right = socket.socketpair()
        _, protocol = await loop.create_connection(lambda: Recorder(loop), sock=left)
        right.send(b"x")
        assert await protocol.received(1) == b"x"
        await dropped(protocol)
        right.close()

    async def test_a_datagram_one_is_refused(self, loop):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
            pytest.raises(ValueError, match="A Stream Socket was expected"),
        ):
            await loop.create_connection(lambda: Recorder(loop), sock=sock)

    async def test_another_connections_descriptor_is_not_closed(self, loop):
        """The socket object and the transport must not both close one number."""
        left, right = socket_pair()
        _, protocol = await loop.create_connection(lambda: Recorder(loop), sock=left)
        await dropped(protocol)
        again = [socket_pair() for _ in range(3)]
        left.close()
        del left
        for one, two in again:
            one.send(b"alive")
            assert two.recv(5) == b"alive"
            one.close()
            two.close()
        right.close()


class TestAcceptedSocket:
    async def test_is_served(self, loop, listener, address):
        client = socket.create_connection(address)
        listener.setblocking(True)
        accepted, _ = listener.accept()
        transport, protocol = await loop.connect_accepted_socket(lambda: Recorder(loop), accepted)
        client.sendall(b"hello")
        assert await protocol.received(5) == b"hello"
        transport.write(b"world")
        await turns()
        assert client.recv(5) == b"world"
        client.close()
        await protocol.lost
        assert protocol.events == ["made", "data", "eof", "lost"]

    async def test_a_datagram_one_is_refused(self, loop):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
            pytest.raises(ValueError, match="A Stream Socket was expected"),
        ):
            await loop.connect_accepted_socket(lambda: Recorder(loop), sock)

    async def test_ssl_arguments_without_ssl_are_refused(self, loop):
        left, right = socket_pair()
        with left, right, pytest.raises(ValueError, match="ssl_handshake_timeout is only meaningful with ssl"):
            await loop.connect_accepted_socket(lambda: Recorder(loop), left, ssl_handshake_timeout=1)


def patchable(loop, monkeypatch, getaddrinfo) -> bool:
    """Replace the loop's resolver where that is possible and is what create_connection asks."""
    if type(loop).__module__.startswith("uvloop"):
        return False
    try:
        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    except AttributeError:
        return False
    return True
