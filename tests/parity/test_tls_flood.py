"""A peer whose requests the TLS library answers by itself, and who never reads the answers.

In TLS 1.2 each record that begins a renegotiation is refused with an alert as long as itself. No limit of the
application's covers these answers: it has written nothing. The client here keeps its TLS 1.2 session without
encryption (NULL-SHA256), so that a request is four bytes and a MAC that one can compute.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket
import ssl
import struct

import pytest
import trustme

from tests.backends import deviates
from tests.peers import LOOPBACK, Recorder, dropped, settled
from tests.tls import NAME, alone

CIPHER = "NULL-SHA256:@SECLEVEL=0"
VERSION = b"\x03\x03"
HANDSHAKE = b"\x16"
CLIENT_HELLO = b"\x01\x00\x00\x00"
"""Type and length of a message without a body: already refused by its type."""
RECORDS = 50_000
SMALL = 16_384
"""Bytes of the kernel's buffers that are asked for, so that what we hold ourselves is what counts."""


def key(master: bytes, client_random: bytes, server_random: bytes) -> bytes:
    """The client's key for MACs: the first 32 bytes of the key block (RFC 5246, 5 and 6.3)."""
    seed = b"key expansion" + server_random + client_random
    first = hmac.digest(master, seed, "sha256")
    return hmac.digest(master, first + seed, "sha256")


class Renegotiator:
    """A client that has made its handshake on `sock`."""

    def __init__(self, loop, sock: socket.socket, context: ssl.SSLContext, keylog) -> None:
        self.loop = loop
        self.sock = sock
        self.keylog = keylog
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self.incoming, self.outgoing, server_hostname=NAME)
        self.sent = 1
        """Records under the keys: Finished has been one."""

    async def shake_hands(self) -> None:
        received = b""
        while True:
            try:
                self.session.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.loop.sock_sendall(self.sock, self.outgoing.read())
                data = await self.loop.sock_recv(self.sock, 65_536)
                received += data
                self.incoming.write(data)
        await self.loop.sock_sendall(self.sock, self.outgoing.read())
        # A record's header is 5 bytes, a message's 4, a version's 2: ServerHello's random number follows.
        server_random = received[11:43]
        words = self.keylog.read_text().split()
        at = words.index("CLIENT_RANDOM")
        self.key = key(bytes.fromhex(words[at + 2]), bytes.fromhex(words[at + 1]), server_random)

    def requests(self, count: int) -> bytes:
        """The next `count` records that ask for a renegotiation."""
        records = []
        for number in range(self.sent, self.sent + count):
            head = struct.pack("!Q", number) + HANDSHAKE + VERSION + struct.pack("!H", len(CLIENT_HELLO))
            mac = hmac.digest(self.key, head + CLIENT_HELLO, hashlib.sha256)
            records.append(HANDSHAKE + VERSION + struct.pack("!H", len(CLIENT_HELLO) + len(mac)) + CLIENT_HELLO + mac)
        self.sent += count
        return b"".join(records)


@pytest.fixture
def contexts(tmp_path):
    """A server's and a client's context for TLS 1.2 without encryption, and the client's file of secrets."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME, key_type=trustme.KeyType.RSA).configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    for context in (server, client):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.set_ciphers(CIPHER)
        except ssl.SSLError:
            pytest.skip("this OpenSSL has no cipher without encryption")
    client.keylog_filename = str(tmp_path / "keys")
    return server, client, tmp_path / "keys"


@contextlib.asynccontextmanager
async def connected(loop, contexts):
    """A client and the protocol of a server that listens with small buffers."""
    server_context, client_context, keylog = contexts
    accepted = loop.create_future()

    def accept():
        accepted.set_result(Recorder(loop))
        return accepted.result()

    listener = socket.create_server((LOOPBACK, 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    server = await loop.create_server(accept, sock=listener, ssl=server_context)
    try:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            sock.setblocking(False)
            await loop.sock_connect(sock, listener.getsockname())
            client = Renegotiator(loop, sock, client_context, keylog)
            await client.shake_hands()
            protocol = await accepted
            await protocol.made
            yield client, protocol
    finally:
        server.close()
        protocol.transport.abort()
        await dropped(protocol)
        await server.wait_closed()
        await alone(loop)


async def send_until_it_stands(loop, sock: socket.socket, data: bytes) -> int:
    """How much of `data` is taken before the other side has stopped reading."""
    taken = idle = 0
    view = memoryview(data)
    while taken < len(data) and idle < 50:
        try:
            taken += sock.send(view[taken:])
            idle = 0
        except BlockingIOError:
            idle += 1
            await settled(loop, 1)
    return taken


@deviates("asyncio", "reads on, and holds the answers without a limit")
@deviates("uvloop", "reads on, and holds the answers without a limit")
async def test_answers_that_nobody_reads_stop_the_reading(contexts, loop):
    async with connected(loop, contexts) as (client, _):
        data = client.requests(RECORDS)
        assert await send_until_it_stands(loop, client.sock, data) < len(data) / 4


async def test_a_peer_that_reads_its_answers_is_served(contexts, loop):
    async with connected(loop, contexts) as (client, server):
        data = client.requests(RECORDS)
        sent = received = 0
        # A warning of two bytes in a record: 5 bytes of header, 32 of MAC.
        while received < RECORDS * 39:
            moved = 0
            with contextlib.suppress(BlockingIOError):
                moved += client.sock.send(data[sent : sent + 65_536])
                sent += moved
            with contextlib.suppress(BlockingIOError):
                moved += (taken := len(client.sock.recv(65_536)))
                received += taken
            if not moved:
                await settled(loop, 1)
        assert sent == len(data)
        assert received == RECORDS * 39
        assert server.events == ["made"]
