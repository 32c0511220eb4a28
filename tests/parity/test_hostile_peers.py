"""Peers that are slow, half gone, or gone with a reset, in every state of a connection."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
import struct

import pytest

from tests.certificate import contexts
from tests.peers import LOOPBACK, Recorder, connected, dropped, facing_socket, listening_socket, settled

RESET = struct.pack("ii", 1, 0)
GONE = (ConnectionResetError, BrokenPipeError)


def reset(sock: socket.socket) -> None:
    """Close with a reset instead of an orderly end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def fill(protocol: Recorder) -> None:
    """Write until the system takes no more and the protocol is told to pause."""
    while "pause" not in protocol.events:
        protocol.transport.write(b"x" * 65_536)


@pytest.fixture
def many_descriptors():
    """Room for a few thousand descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4_096:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4_096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Counter(asyncio.Protocol):
    """Adds what it receives to a table of its server, by what it received first."""

    def __init__(self, server):
        self.server = server

    def connection_made(self, transport):
        self.transport = transport
        self.server.open.add(transport)

    def data_received(self, data):
        if data.startswith(b"e"):
            self.transport.write(data)
        else:
            self.server.arrived(len(data))

    def connection_lost(self, exc):
        self.server.open.discard(self.transport)
        self.server.arrived(0)


class Slowloris:
    """A server that counts the bytes of its slow clients, and echoes the messages of the others."""

    def __init__(self, loop):
        self.loop = loop
        self.open: set[asyncio.Transport] = set()
        self.bytes = 0
        self.waiting: list[tuple] = []

    def arrived(self, count):
        self.bytes += count
        for condition, future in self.waiting:
            if condition() and not future.done():
                future.set_result(None)

    async def until(self, condition):
        if not condition():
            future = self.loop.create_future()
            self.waiting = [(condition, future)]
            await future


async def test_a_thousand_slow_clients_do_not_hold_the_others(loop, many_descriptors):
    slow, rounds = 1_000, 3
    counts = Slowloris(loop)
    server = await loop.create_server(lambda: Counter(counts), LOOPBACK, 0, backlog=slow)
    address = server.sockets[0].getsockname()
    clients = []
    for _ in range(slow):
        clients.append(socket.create_connection(address))
        if len(clients) % 50 == 0:
            await settled(loop, 1)
    _, quick = await loop.create_connection(lambda: Recorder(loop), *address)
    echoed = 0
    for turn in range(rounds):
        for client in clients:
            client.send(b"x")
        for _ in range(20):
            message = b"e%d" % turn
            quick.transport.write(message)
            echoed += len(message)
            await quick.received(echoed)
        await counts.until(lambda sent=slow * (turn + 1): counts.bytes == sent)
    assert len(counts.open) == slow + 1, "nobody was turned away"
    assert counts.bytes == slow * rounds
    for number, client in enumerate(clients):
        reset(client) if number % 2 else client.close()
    await counts.until(lambda: len(counts.open) == 1)
    quick.transport.write(b"e")
    await quick.received(echoed + 1)
    await dropped(quick)
    server.close()
    await server.wait_closed()


class TestHalfOpen:
    async def test_much_can_be_sent_to_a_peer_that_sends_no_more(self, loop):
        async with facing_socket(loop, lambda: Recorder(loop, keep_open=True)) as (mine, peer):
            peer.shutdown(socket.SHUT_WR)
            await mine.ended
            sent = os.urandom(3_000_000)
            mine.transport.write(sent)
            mine.transport.close()
            received = bytearray()
            while data := await loop.sock_recv(peer, 1 << 16):
                received += data
            assert received == sent
            assert await mine.lost is None
            assert mine.events.count("eof") == 1

    async def test_much_can_be_received_after_our_eof(self, loop):
        async with facing_socket(loop) as (mine, peer):
            mine.transport.write_eof()
            assert await loop.sock_recv(peer, 1) == b""
            sent = os.urandom(3_000_000)
            await loop.sock_sendall(peer, sent)
            assert await mine.received(len(sent)) == sent
            peer.shutdown(socket.SHUT_WR)
            assert await mine.lost is None

    async def test_the_end_is_told_after_the_pause(self, loop):
        async with facing_socket(loop) as (mine, peer):
            mine.transport.pause_reading()
            peer.send(b"last words")
            peer.shutdown(socket.SHUT_WR)
            await settled(loop)
            assert mine.events == ["made"]
            mine.transport.resume_reading()
            assert await mine.lost is None
            assert mine.events == ["made", "data", "eof", "lost"]

    async def test_a_peer_that_never_reads_cannot_keep_us(self, loop):
        async with facing_socket(loop) as (mine, _):
            fill(mine)
            mine.transport.close()
            await settled(loop)
            assert not mine.lost.done(), "what is queued goes first"
            mine.transport.abort()
            assert await mine.lost is None
            assert mine.transport.get_write_buffer_size() == 0
            assert mine.events == ["made", "pause", "lost"]

    async def test_both_ends_stop_sending(self, loop):
        keep = lambda: Recorder(loop, keep_open=True)  # noqa: E731
        async with connected(loop, client=keep, server=keep) as (client, server):
            client.transport.write_eof()
            await server.ended
            server.transport.write_eof()
            await client.ended
            await settled(loop)
            assert not client.lost.done()
            assert not server.lost.done()


class TestReset:
    async def test_before_it_is_accepted(self, loop):
        made = []

        def factory():
            made.append(Recorder(loop))
            return made[-1]

        server = await loop.create_server(factory, LOOPBACK, 0)
        address = server.sockets[0].getsockname()
        for _ in range(5):
            reset(socket.create_connection(address))
        _, client = await loop.create_connection(lambda: Recorder(loop), *address)
        client.transport.write(b"still there?")
        await settled(loop)
        # Systems differ in whether they still report the connections that are gone.
        *early, last = made
        assert bytes(last.data) == b"still there?"
        for protocol in early:
            await protocol.lost
        await dropped(client, last)
        server.close()
        await server.wait_closed()

    async def test_of_an_idle_connection(self, loop):
        async with facing_socket(loop) as (mine, peer):
            reset(peer)
            assert isinstance(await mine.lost, ConnectionResetError)
            assert mine.events == ["made", "lost"]

    async def test_with_bytes_on_their_way(self, loop):
        async with facing_socket(loop) as (mine, peer):
            peer.send(b"x" * 1_000)
            reset(peer)
            assert isinstance(await mine.lost, ConnectionResetError)
            assert mine.events[-1] == "lost"

    async def test_while_paused(self, loop):
        async with facing_socket(loop) as (mine, peer):
            mine.transport.pause_reading()
            reset(peer)
            await settled(loop)
            assert mine.events == ["made"]
            assert not mine.transport.is_closing()
            mine.transport.resume_reading()
            assert isinstance(await mine.lost, ConnectionResetError)

    async def test_while_paused_and_closed(self, loop):
        async with facing_socket(loop) as (mine, peer):
            mine.transport.pause_reading()
            reset(peer)
            await settled(loop)
            mine.transport.close()
            assert await mine.lost is None

    async def test_while_our_buffer_is_full(self, loop):
        async with facing_socket(loop) as (mine, peer):
            fill(mine)
            reset(peer)
            assert isinstance(await mine.lost, GONE)
            assert mine.events == ["made", "pause", "lost"], "there is nothing to resume for"
            assert mine.transport.get_write_buffer_size() == 0

    async def test_while_our_buffer_is_full_and_we_read_not(self, loop):
        async with facing_socket(loop) as (mine, peer):
            mine.transport.pause_reading()
            fill(mine)
            reset(peer)
            assert isinstance(await mine.lost, GONE)

    async def test_while_closing_with_a_full_buffer(self, loop):
        async with facing_socket(loop) as (mine, peer):
            fill(mine)
            mine.transport.close()
            reset(peer)
            assert isinstance(await mine.lost, GONE)
            assert mine.transport.get_write_buffer_size() == 0

    async def test_after_our_eof(self, loop):
        async with facing_socket(loop) as (mine, peer):
            mine.transport.write_eof()
            assert await loop.sock_recv(peer, 1) == b""
            reset(peer)
            assert isinstance(await mine.lost, ConnectionResetError)

    async def test_after_the_peers_eof(self, loop):
        async with facing_socket(loop, lambda: Recorder(loop, keep_open=True)) as (mine, peer):
            peer.shutdown(socket.SHUT_WR)
            await mine.ended
            reset(peer)
            await settled(loop)
            for _ in range(2):
                mine.transport.write(b"is anybody there?")
            assert isinstance(await mine.lost, GONE)
            assert mine.events == ["made", "eof", "lost"]

    async def test_seen_by_write_first(self, loop):
        async with facing_socket(loop) as (mine, peer):
            reset(peer)
            mine.transport.write(b"too late")
            mine.transport.write(b"later still")
            assert isinstance(await mine.lost, GONE)
            assert mine.events == ["made", "lost"]

    async def test_during_sendfile(self, loop, backend, tmp_path):
        if backend.name == "uvloop":
            pytest.skip("has no sendfile")
        path = tmp_path / "file"
        path.write_bytes(bytes(16 << 20))
        async with facing_socket(loop) as (mine, peer):
            with path.open("rb") as file:
                sending = loop.create_task(loop.sendfile(mine.transport, file))
                await loop.sock_recv(peer, 1_000)
                assert not sending.done()
                reset(peer)
                with pytest.raises(ConnectionError):
                    await sending
            if not mine.lost.done():
                mine.transport.abort()
            await mine.lost

    async def test_during_a_servers_tls_handshake(self, loop):
        client_context, server_context = contexts()
        made = []

        def factory():
            made.append(Recorder(loop))
            return made[-1]

        server = await loop.create_server(factory, LOOPBACK, 0, ssl=server_context)
        address = server.sockets[0].getsockname()
        hello = client_hello()
        for beginning in (b"", hello[:20], hello):
            client = socket.create_connection(address)
            client.send(beginning)
            await settled(loop)
            reset(client)
            await settled(loop)
        _, client = await loop.create_connection(
            lambda: Recorder(loop), *address, ssl=client_context, server_hostname="localhost"
        )
        client.transport.write(b"still there?")
        while not (greeted := [protocol for protocol in made if protocol.transport]):
            await settled(loop, 1)
        (served,) = greeted
        await served.received(12)
        assert [protocol.events for protocol in made if protocol is not served] == [[]] * 3
        await dropped(client, served)
        server.close()
        await server.wait_closed()

    async def test_during_a_clients_tls_handshake(self, loop):
        client_context, _ = contexts()
        with listening_socket() as listener:
            protocol = Recorder(loop)
            connecting = loop.create_task(
                loop.create_connection(
                    lambda: protocol, *listener.getsockname(), ssl=client_context, server_hostname="localhost"
                )
            )
            peer, _ = await loop.sock_accept(listener)
            assert await loop.sock_recv(peer, 10) != b""
            reset(peer)
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await connecting
            assert "made" not in protocol.events

    async def test_of_a_connection_that_is_being_made(self, loop):
        with listening_socket() as listener:
            address = listener.getsockname()
        with pytest.raises(ConnectionRefusedError) as refused:
            await loop.create_connection(lambda: Recorder(loop), *address)
        assert refused.value.errno == errno.ECONNREFUSED


class TestDescriptorsClosedUnderneath:
    """The application closes a transport's socket itself: the connection ends with EBADF, and nothing else does."""

    @pytest.mark.parametrize("call", ["write", "pause_reading", "close", "abort"])
    @pytest.mark.parametrize("end", ["client", "server"])
    async def test_the_connection_ends(self, loop, backend, end, call):
        if backend.name == "uvloop":
            pytest.skip("its descriptors cannot be closed")
        async with connected(loop) as pair:
            mine, other = (pair.client, pair.server) if end == "client" else (pair.server, pair.client)
            mine.transport.get_extra_info("socket")._sock.close()
            if call == "write":
                mine.transport.write(b"x")
                error = await mine.lost
                assert isinstance(error, OSError)
                assert error.errno == errno.EBADF
            else:
                getattr(mine.transport, call)()
                mine.transport.abort()
                assert await mine.lost is None
            assert await other.lost is None
            assert mine.events == ["made", "lost"]

    async def test_a_file_is_not_sent_to_whoever_has_the_number_next(self, loop, backend, tmp_path):
        if backend.name != "tideloop":
            pytest.skip("uvloop has no sendfile; asyncio looks at the socket once")
        path = tmp_path / "file"
        path.write_bytes(b"for the peer of before")
        async with connected(loop) as pair:
            transport = pair.server.transport
            sock = transport.get_extra_info("socket")._sock
            number = sock.fileno()
            sock.close()
            left, right = socket.socketpair()
            with left, right, path.open("rb") as file:
                assert left.fileno() == number
                with pytest.raises(OSError, match="Bad file descriptor"):
                    await loop.sendfile(transport, file)
                right.setblocking(False)
                with pytest.raises(BlockingIOError):
                    right.recv(1)
                transport.abort()
                await pair.server.lost

    @pytest.mark.parametrize("how", ["close", "detach"])
    @pytest.mark.parametrize("end", ["client", "server"])
    async def test_the_number_is_left_to_whoever_has_it_next(self, loop, backend, end, how):
        if backend.name == "uvloop":
            pytest.skip("its descriptors cannot be closed")
        async with connected(loop) as pair:
            mine = getattr(pair, end)
            sock = mine.transport.get_extra_info("socket")._sock
            number = sock.fileno()
            if how == "close":
                sock.close()
                left, right = socket.socketpair()
                assert left.fileno() == number, "the lowest number that is free"
            else:
                left, right = socket.socket(fileno=sock.detach()), None
            with left:
                mine.transport.write(b"for the peer of before")
                assert isinstance(await mine.lost, OSError)
                assert os.fstat(number), "still open"
                if right is not None:
                    with right:
                        right.setblocking(False)
                        with pytest.raises(BlockingIOError):
                            right.recv(1)


def client_hello() -> bytes:
    """The first message of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = contexts()[0].wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()
