"""create_server and Server: sockets, starting, serving, closing, and waiting for the end."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from tests.backends import deviates
from tests.peers import LOOPBACK, Recorder, dropped, settled, turns

NEW_WAIT = sys.version_info >= (3, 12, 1)
"""wait_closed waits for the connections too (3.12.1)."""


class Service:
    """Makes recorders and keeps them."""

    def __init__(self, loop):
        self.loop = loop
        self.made: list[Recorder] = []

    def __call__(self):
        self.made.append(Recorder(self.loop))
        return self.made[-1]

    async def connection(self, number: int) -> Recorder:
        while len(self.made) <= number:
            await turns(1)
        await self.made[number].made
        return self.made[number]


async def connect(loop, server):
    """A client of the server."""
    _, protocol = await loop.create_connection(lambda: Recorder(loop), *server.sockets[0].getsockname()[:2])
    return protocol


@pytest.fixture
def listen(loop):
    """create_server whose servers are closed after the test, whatever happened."""
    servers = []

    async def listen(*args, **kwargs):
        servers.append(await loop.create_server(*args, **kwargs))
        return servers[-1]

    yield listen
    for server in servers:
        server.close()


class TestCreate:
    async def test_listens_on_the_address(self, loop, listen):
        server = await listen(Service(loop), LOOPBACK, 0)
        (sock,) = server.sockets
        assert sock.family == socket.AF_INET
        assert sock.getsockname()[0] == LOOPBACK
        assert sock.getsockname()[1] > 0
        assert server.is_serving()
        server.close()
        await server.wait_closed()

    @deviates("uvloop", "its Server is a type of its own")
    async def test_is_an_asyncio_server(self, loop, listen):
        server = await listen(Service(loop), LOOPBACK, 0)
        assert isinstance(server, asyncio.AbstractServer)

    @deviates("uvloop", "a list")
    async def test_sockets_are_a_tuple(self, loop, listen):
        server = await listen(Service(loop), LOOPBACK, 0)
        assert isinstance(server.sockets, tuple)
        server.close()

    @deviates("uvloop", "still lists them")
    async def test_no_sockets_after_close(self, loop, listen):
        server = await listen(Service(loop), LOOPBACK, 0)
        server.close()
        assert server.sockets == ()

    @pytest.mark.parametrize("hosts", [None, ["127.0.0.1", "::1"], ("127.0.0.1",)], ids=["all", "list", "tuple"])
    async def test_hosts(self, loop, listen, hosts):
        server = await listen(Service(loop), hosts, 0, family=socket.AF_UNSPEC)
        families = {sock.family for sock in server.sockets}
        assert families == ({socket.AF_INET} if hosts == ("127.0.0.1",) else {socket.AF_INET, socket.AF_INET6})
        server.close()
        await server.wait_closed()

    async def test_several_clients(self, loop, listen):
        service = Service(loop)
        server = await listen(service, LOOPBACK, 0)
        clients = await asyncio.gather(*(connect(loop, server) for _ in range(50)))
        for i, client in enumerate(clients):
            client.transport.write(b"%02d" % i)
        served = [await service.connection(i) for i in range(50)]
        assert sorted([await protocol.received(2) for protocol in served]) == [b"%02d" % i for i in range(50)]
        await dropped(*clients, *served)
        server.close()
        await server.wait_closed()

    async def test_address_in_use(self, loop, listen):
        server = await listen(Service(loop), LOOPBACK, 0)
        with pytest.raises(OSError, match=r"(?i)address already in use|error while attempting to bind"):
            await listen(Service(loop), *server.sockets[0].getsockname())
        server.close()

    async def test_unknown_name(self, loop, listen):
        with pytest.raises(socket.gaierror):
            await listen(Service(loop), "name.invalid", 0)

    async def test_given_socket(self, loop, listen):
        sock = socket.create_server((LOOPBACK, 0))
        service = Service(loop)
        server = await listen(service, sock=sock)
        client = await connect(loop, server)
        await dropped(client, await service.connection(0))
        server.close()
        await server.wait_closed()
        sock.close()

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({}, "Neither host/port nor sock were specified"),
            ({"host": LOOPBACK, "port": 0, "sock": ...}, "can not be specified at the same time"),
            ({"ssl": True}, "ssl argument must be an SSLContext or None"),
            ({"ssl_handshake_timeout": 1}, "ssl_handshake_timeout is only meaningful with ssl"),
        ],
        ids=["nothing", "both", "ssl", "ssl_handshake_timeout"],
    )
    async def test_arguments_that_do_not_fit(self, loop, listen, arguments, text):
        with socket.socket() as sock:
            arguments = {name: sock if value is ... else value for name, value in arguments.items()}
            with pytest.raises((ValueError, TypeError), match=text):
                await listen(Service(loop), **arguments)

    async def test_a_datagram_socket_is_refused(self, loop, listen):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
            pytest.raises(ValueError, match="A Stream Socket was expected"),
        ):
            await listen(Service(loop), sock=sock)

    async def test_reuse_port(self, loop, listen):
        one = await listen(Service(loop), LOOPBACK, 0, reuse_port=True)
        two = await listen(Service(loop), *one.sockets[0].getsockname(), reuse_port=True)
        assert one.sockets[0].getsockname() == two.sockets[0].getsockname()
        one.close()
        two.close()

    async def test_reuse_address_is_on(self, loop, listen):
        server = await listen(Service(loop), LOOPBACK, 0)
        assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        server.close()

    @pytest.mark.skipif(sys.version_info < (3, 13), reason="keep_alive is new in 3.13")
    @deviates("uvloop", "has no such argument", when=sys.version_info >= (3, 13))
    async def test_keep_alive(self, loop, listen):
        for wanted in (True, False):
            server = await listen(Service(loop), LOOPBACK, 0, keep_alive=wanted)
            assert bool(server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is wanted
            server.close()

    async def test_a_port_is_free_after_close(self, loop, listen):
        server = await listen(Service(loop), LOOPBACK, 0)
        address = server.sockets[0].getsockname()
        for _ in range(5):
            server.close()
            await server.wait_closed()
            server = await listen(Service(loop), *address)
        server.close()

    async def test_a_burst_of_connections_that_leave_at_once(self, loop, listen):
        service = Service(loop)
        server = await listen(service, LOOPBACK, 0, backlog=200)
        for _ in range(100):
            socket.create_connection(server.sockets[0].getsockname()).close()
        for i in range(100):
            protocol = await service.connection(i)
            await protocol.lost
            assert protocol.events[0] == "made"
            assert protocol.events[-1] == "lost"
        server.close()
        await server.wait_closed()


class TestStart:
    async def test_later(self, loop, listen):
        service = Service(loop)
        server = await listen(service, LOOPBACK, 0, start_serving=False)
        assert not server.is_serving()
        assert len(server.sockets) == 1
        address = server.sockets[0].getsockname()
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(lambda: Recorder(loop), *address)
        await server.start_serving()
        assert server.is_serving()
        await server.start_serving()
        client = await connect(loop, server)
        await dropped(client, await service.connection(0))
        server.close()
        await server.wait_closed()

    async def test_after_close_is_refused(self, loop, listen):
        server = await listen(Service(loop), LOOPBACK, 0, start_serving=False)
        server.close()
        with pytest.raises(RuntimeError, match="is closed"):
            await server.serve_forever()

    async def test_serve_forever_ends_when_cancelled(self, loop, listen):
        server = await listen(Service(loop), LOOPBACK, 0, start_serving=False)
        task = loop.create_task(server.serve_forever())
        while not server.is_serving():
            await turns(1)
        with pytest.raises(RuntimeError, match="is already being awaited"):
            await server.serve_forever()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not server.is_serving()

    async def test_serve_forever_ends_when_closed(self, loop, listen, backend):
        if backend.name == "uvloop":
            pytest.skip("uvloop's serve_forever goes on when the server is closed")
        server = await listen(Service(loop), LOOPBACK, 0)
        task = loop.create_task(server.serve_forever())
        await turns()
        server.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_as_a_context(self, loop, listen):
        async with await listen(Service(loop), LOOPBACK, 0) as server:
            assert server.is_serving()
        assert not server.is_serving()

    async def test_its_loop(self, loop, listen):
        server = await listen(Service(loop), LOOPBACK, 0)
        assert server.get_loop() is loop
        server.close()


class TestClose:
    async def test_refuses_new_connections_and_keeps_old_ones(self, loop, listen):
        service = Service(loop)
        server = await listen(service, LOOPBACK, 0)
        address = server.sockets[0].getsockname()
        client = await connect(loop, server)
        served = await service.connection(0)
        server.close()
        await turns()
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(lambda: Recorder(loop), *address)
        client.transport.write(b"alive")
        assert await served.received(5) == b"alive"
        await dropped(client, served)
        await server.wait_closed()

    async def test_twice_is_once(self, loop, listen):
        server = await listen(Service(loop), LOOPBACK, 0)
        server.close()
        server.close()
        await server.wait_closed()
        await server.wait_closed()
        assert not server.is_serving()

    @pytest.mark.skipif(not NEW_WAIT, reason="wait_closed waits for connections since 3.12.1")
    @deviates("uvloop", "does not wait", when=NEW_WAIT)
    async def test_wait_closed_waits_for_connections(self, loop, listen):
        service = Service(loop)
        server = await listen(service, LOOPBACK, 0)
        client = await connect(loop, server)
        served = await service.connection(0)
        server.close()
        task = loop.create_task(server.wait_closed())
        await settled(loop)
        waited = not task.done()
        await dropped(client, served)
        await task
        assert waited

    @pytest.mark.skipif(not NEW_WAIT, reason="wait_closed waits for close since 3.12.1")
    async def test_wait_closed_waits_for_close(self, loop, listen):
        server = await listen(Service(loop), LOOPBACK, 0)
        task = loop.create_task(server.wait_closed())
        await settled(loop)
        waited = not task.done()
        server.close()
        await task
        assert waited

    @pytest.mark.skipif(sys.version_info < (3, 13), reason="close_clients is new in 3.13")
    @deviates("uvloop", "has no such method", when=sys.version_info >= (3, 13))
    async def test_close_clients(self, loop, listen):
        service = Service(loop)
        server = await listen(service, LOOPBACK, 0)
        clients = [await connect(loop, server) for _ in range(3)]
        served = [await service.connection(i) for i in range(3)]
        try:
            served[0].transport.write(b"x" * 1_000_000)
            server.close()
            server.close_clients()
            await server.wait_closed()
            assert len(await clients[0].received(1_000_000)) == 1_000_000
            for protocol in (*served, *clients):
                assert await protocol.lost is None
        finally:
            server.close()
            await dropped(*clients, *served)

    @pytest.mark.skipif(sys.version_info < (3, 13), reason="abort_clients is new in 3.13")
    @deviates("uvloop", "has no such method", when=sys.version_info >= (3, 13))
    async def test_abort_clients(self, loop, listen):
        service = Service(loop)
        server = await listen(service, LOOPBACK, 0)
        client = await connect(loop, server)
        served = await service.connection(0)
        try:
            client.transport.pause_reading()
            served.transport.write(bytes(32 << 20))
            server.close()
            server.abort_clients()
            await server.wait_closed()
            assert await served.lost is None
        finally:
            server.close()
            await dropped(client, served)
