"""TLS connections leave neither objects nor descriptors behind, however they end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import weakref

import pytest

from tests.conftest import open_fds
from tests.peers import LOOPBACK, Recorder, connected, facing_socket, settled
from tests.tls import NAME, authority, encrypted, stranger

ROUNDS = 30


async def closed(loop, context):
    async with encrypted(loop, client_context=context) as (client, server):
        client.transport.write(bytes(100_000))
        await server.received(100_000)
        client.transport.close()
        await server.lost


async def aborted(loop, context):
    async with encrypted(loop, client_context=context) as (client, server):
        client.transport.write(bytes(1 << 20))
        client.transport.abort()
        await server.lost


async def refused(loop, context):
    server = await loop.create_server(lambda: Recorder(loop), LOOPBACK, 0, ssl=stranger().server())
    with pytest.raises(ssl.SSLCertVerificationError):
        await loop.create_connection(
            lambda: Recorder(loop), *server.sockets[0].getsockname(), ssl=context, server_hostname=NAME
        )
    server.close()
    await server.wait_closed()
    await settled(loop, 10)


async def cancelled(loop, context):
    async with facing_socket(loop) as (mine, _):
        upgrading = loop.create_task(loop.start_tls(mine.transport, mine, context, server_hostname=NAME))
        await settled(loop)
        upgrading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await upgrading
        await settled(loop)
        mine.lost.done() or mine.lost.set_result(None)


async def upgraded(loop, context):
    async with connected(loop) as (client, server):
        client.transport, server.transport = await asyncio.gather(
            loop.start_tls(client.transport, client, context, server_hostname=NAME),
            loop.start_tls(server.transport, server, authority().server(), server_side=True),
        )
        client.transport.close()
        await server.lost


@pytest.mark.parametrize("end", [closed, aborted, refused, cancelled, upgraded], ids=lambda end: end.__name__)
async def test_context_and_descriptors(loop, end):
    await end(loop, authority().client())
    gc.collect()
    before = open_fds()
    contexts = []
    for _ in range(ROUNDS):
        context = authority().client()
        contexts.append(weakref.ref(context))
        await end(loop, context)
        del context
    await settled(loop, 10)
    gc.collect()
    assert open_fds().keys() == before.keys()
    assert [context for context in contexts if context() is not None] == []
