"""TLS for the parity tests: a certificate authority of their own, contexts, and encrypted pairs.

The keys are made anew in each run and are never written but to the run's temporary folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncIterator, Callable

import trustme

from tests.peers import LOOPBACK, Pair, Recorder, dropped, settled

NAME = "localhost"
CIPHER_1_2 = "ECDHE-ECDSA-AES128-GCM-SHA256"


class Authority:
    """Issues certificates, and makes contexts that trust them."""

    def __init__(self) -> None:
        self.authority = trustme.CA()
        self._certificates: dict[tuple[str, ...], trustme.LeafCert] = {}

    def certificate(self, *names: str) -> trustme.LeafCert:
        if names not in self._certificates:
            self._certificates[names] = self.authority.issue_cert(*names)
        return self._certificates[names]

    def server(self, *names: str) -> ssl.SSLContext:
        """The context of a server with these names, `localhost` if none is given."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.certificate(*(names or (NAME,))).configure_cert(context)
        return context

    def client(self, *names: str) -> ssl.SSLContext:
        """The context of a client that trusts the authority, and has a certificate if names are given."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.authority.configure_trust(context)
        if names:
            self.certificate(*names).configure_cert(context)
        return context


@functools.cache
def authority() -> Authority:
    """The authority of this run."""
    return Authority()


def stranger() -> Authority:
    """An authority that nobody trusts."""
    return Authority()


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """The context, limited to one version of the protocol."""
    context.minimum_version = context.maximum_version = version
    return context


async def alone(loop: asyncio.AbstractEventLoop) -> None:
    """Wait until no other task is left: servers make each TLS connection in a task of its own."""
    await settled(loop, 10)
    while len(asyncio.all_tasks(loop)) > 1:
        await settled(loop, 1)


@contextlib.asynccontextmanager
async def encrypted(
    loop: asyncio.AbstractEventLoop,
    *,
    client: Callable[[], asyncio.BaseProtocol] | None = None,
    server: Callable[[], asyncio.BaseProtocol] | None = None,
    client_context: ssl.SSLContext | None = None,
    server_context: ssl.SSLContext | None = None,
    unix: str | None = None,
    options: dict[str, object] | None = None,
    server_options: dict[str, object] | None = None,
) -> AsyncIterator[Pair]:
    """A client and a server protocol that talk TLS over TCP (or the UNIX socket at path `unix`)."""
    accepted = loop.create_future()

    def accept():
        protocol = (server or (lambda: Recorder(loop)))()
        accepted.set_result(protocol)
        return protocol

    client = client or (lambda: Recorder(loop))
    listen = {"ssl": server_context or authority().server(), **(server_options or {})}
    reach = {"ssl": client_context or authority().client(), "server_hostname": NAME, **(options or {})}
    if unix:
        listener = await loop.create_unix_server(accept, unix, **listen)
    else:
        listener = await loop.create_server(accept, LOOPBACK, 0, **listen)
    made = []
    try:
        if unix:
            _, protocol = await loop.create_unix_connection(client, unix, **reach)
        else:
            _, protocol = await loop.create_connection(client, *listener.sockets[0].getsockname(), **reach)
        made.append(protocol)
        made.append(await accepted)
        await made[1].made
        yield Pair(*made)
    finally:
        listener.close()
        await dropped(*made)
        await listener.wait_closed()
