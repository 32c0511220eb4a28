"""Whose context it is: subclasses of ssl.SSLContext, as trust-store packages bring them, and old protocols."""

from __future__ import annotations

import ssl

import pytest
import truststore

from tests.peers import LOOPBACK, Recorder
from tests.tls import NAME, alone, authority, encrypted


class Counting(ssl.SSLContext):
    """Counts the connections that are made of it."""

    wrapped = 0

    def wrap_bio(self, *args, **kwargs):
        self.wrapped += 1
        return super().wrap_bio(*args, **kwargs)


class Named(ssl.SSLObject):
    """What a context may make instead of an SSLObject."""


async def test_a_subclass_is_asked_for_each_connection(loop):
    context = Counting(ssl.PROTOCOL_TLS_CLIENT)
    authority().authority.configure_trust(context)
    for count in (1, 2):
        async with encrypted(loop, client_context=context) as (client, _):
            assert context.wrapped == count
            assert client.transport.get_extra_info("sslcontext") is context


async def test_its_own_objects_are_used(loop):
    context = authority().client()
    context.sslobject_class = Named
    async with encrypted(loop, client_context=context) as (client, server):
        assert isinstance(client.transport.get_extra_info("ssl_object"), Named)
        client.transport.write(b"question")
        assert await server.received(8) == b"question"


@pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLS is deprecated:DeprecationWarning")
async def test_the_protocol_for_both_sides(loop):
    client_context, server_context = ssl.SSLContext(ssl.PROTOCOL_TLS), ssl.SSLContext(ssl.PROTOCOL_TLS)
    authority().authority.configure_trust(client_context)
    client_context.verify_mode = ssl.CERT_REQUIRED
    authority().certificate(NAME).configure_cert(server_context)
    async with encrypted(loop, client_context=client_context, server_context=server_context) as (client, server):
        client.transport.write(b"question")
        assert await server.received(8) == b"question"


class TestSystemTrust:
    async def test_another_authority_may_be_added(self, loop, tmp_path):
        context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority().authority.cert_pem.write_to_path(str(tmp_path / "authority"))
        context.load_verify_locations(cafile=str(tmp_path / "authority"))
        async with encrypted(loop, client_context=context) as (client, server):
            client.transport.write(b"question")
            assert await server.received(8) == b"question"
            assert client.transport.get_extra_info("peercert")

    async def test_the_systems_authorities_do_not_know_ours(self, loop):
        server = await loop.create_server(lambda: Recorder(loop), LOOPBACK, 0, ssl=authority().server())
        with pytest.raises(ssl.SSLCertVerificationError):
            await loop.create_connection(
                lambda: Recorder(loop),
                *server.sockets[0].getsockname(),
                ssl=truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
                server_hostname=NAME,
            )
        server.close()
        await server.wait_closed()
        await alone(loop)
