"""TLS handshakes: names, certificates, protocols, sessions, and what the transport tells afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import pytest

from tests.backends import deviates
from tests.peers import LOOPBACK, Recorder, dropped, turns
from tests.tls import CIPHER_1_2, NAME, alone, authority, encrypted, only, stranger

V1_2, V1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

BY_PEER = (ssl.SSLError, ConnectionResetError)
"""What a side gets that the other one refuses: asyncio closes the connection without saying why."""


async def refused_by(loop, context, error, *, to=None, server_hostname=NAME):
    """A client with this context is refused by its own side; the server stays, and is returned what it saw."""
    served = []

    def accept():
        served.append(Recorder(loop))
        return served[-1]

    server = await loop.create_server(accept, LOOPBACK, 0, ssl=to or authority().server())
    with pytest.raises(error) as raised:
        await loop.create_connection(
            lambda: Recorder(loop), *server.sockets[0].getsockname(), ssl=context, server_hostname=server_hostname
        )
    server.close()
    await server.wait_closed()
    await alone(loop)
    assert all(not protocol.events for protocol in served), "the server's protocol heard of it"
    return raised.value


class TestTold:
    async def test_what_the_transport_knows(self, loop):
        client_context = authority().client()
        async with encrypted(loop, client_context=client_context) as (client, server):
            told = client.transport.get_extra_info
            assert told("sslcontext") is client_context
            assert told("compression") is None
            assert told("cipher") == told("ssl_object").cipher()
            assert told("ssl_object").version() == "TLSv1.3"
            assert told("ssl_object").server_hostname == NAME
            assert told("peername") == server.transport.get_extra_info("sockname")
            assert told("socket").family == socket.AF_INET
            assert ("DNS", NAME) in told("peercert")["subjectAltName"]
            assert told("nothing", 5) == 5
            assert server.transport.get_extra_info("peercert") is None
            assert server.transport.get_extra_info("ssl_object").version() == "TLSv1.3"

    @deviates("uvloop", "its transports are types of their own")
    async def test_is_an_asyncio_transport(self, loop):
        async with encrypted(loop) as (client, server):
            assert isinstance(client.transport, asyncio.Transport)
            assert isinstance(server.transport, asyncio.Transport)

    @pytest.mark.parametrize("version", [V1_2, V1_3])
    async def test_versions(self, loop, version):
        async with encrypted(loop, server_context=only(authority().server(), version)) as (client, server):
            assert client.transport.get_extra_info("ssl_object").version() == version.name.replace("v1_", "v1.")
            client.transport.write(b"question")
            assert await server.received(8) == b"question"

    async def test_ciphers(self, loop):
        context = only(authority().server(), V1_2)
        context.set_ciphers(CIPHER_1_2)
        async with encrypted(loop, server_context=context) as (client, _):
            assert client.transport.get_extra_info("cipher")[0] == CIPHER_1_2

    async def test_no_common_version(self, loop):
        await refused_by(loop, only(authority().client(), V1_2), BY_PEER, to=only(authority().server(), V1_3))
        await refused_by(loop, only(authority().client(), V1_3), BY_PEER, to=only(authority().server(), V1_2))


class TestAlpn:
    @pytest.mark.parametrize(
        ("offered", "known", "chosen"),
        [
            (["h2", "http/1.1"], ["h2", "http/1.1"], "h2"),
            (["h2", "http/1.1"], ["http/1.1"], "http/1.1"),
            (["http/1.1", "h2"], ["h2", "http/1.1"], "h2"),
            (["h2"], ["http/1.1"], None),
            (["h2"], [], None),
            ([], ["h2"], None),
        ],
    )
    async def test_chosen_by_the_server(self, loop, offered, known, chosen):
        client_context, server_context = authority().client(), authority().server()
        if offered:
            client_context.set_alpn_protocols(offered)
        if known:
            server_context.set_alpn_protocols(known)
        async with encrypted(loop, client_context=client_context, server_context=server_context) as pair:
            for protocol in pair:
                assert protocol.transport.get_extra_info("ssl_object").selected_alpn_protocol() == chosen


class TestNames:
    async def test_the_callback_chooses_a_context(self, loop):
        contexts = {name: authority().server(name) for name in ("one.test", "two.test")}
        asked = []

        def choose(ssl_object, name, initial):
            asked.append(name)
            ssl_object.context = contexts[name]

        server_context = authority().server()
        server_context.sni_callback = choose
        for name in contexts:
            async with encrypted(loop, server_context=server_context, options={"server_hostname": name}) as (
                client,
                _,
            ):
                assert ("DNS", name) in client.transport.get_extra_info("peercert")["subjectAltName"]
        assert asked == ["one.test", "two.test"]

    async def test_the_callback_may_refuse(self, loop):
        server_context = authority().server()
        server_context.sni_callback = lambda *_: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        await refused_by(loop, authority().client(), BY_PEER, to=server_context)

    async def test_another_name_is_refused(self, loop):
        error = await refused_by(loop, authority().client(), ssl.SSLCertVerificationError, server_hostname="other.test")
        assert "other.test" in str(error)

    async def test_another_name_is_fine_unless_checked(self, loop):
        context = authority().client()
        context.check_hostname = False
        async with encrypted(loop, client_context=context, options={"server_hostname": "other.test"}) as (client, _):
            assert client.transport.get_extra_info("peercert")

    async def test_the_hosts_name_is_the_default(self, loop):
        server = await loop.create_server(lambda: Recorder(loop), LOOPBACK, 0, ssl=authority().server(LOOPBACK))
        _, client = await loop.create_connection(
            lambda: Recorder(loop), *server.sockets[0].getsockname(), ssl=authority().client()
        )
        assert client.transport.get_extra_info("peercert")["subjectAltName"] == (("IP Address", LOOPBACK),)
        await dropped(client)
        server.close()
        await server.wait_closed()

    async def test_a_socket_needs_a_name(self, loop):
        with socket.socket() as sock, pytest.raises(ValueError, match="server_hostname"):
            await loop.create_connection(lambda: Recorder(loop), sock=sock, ssl=authority().client())

    async def test_a_name_needs_tls(self, loop):
        with pytest.raises(ValueError, match="server_hostname is only meaningful with ssl"):
            await loop.create_connection(lambda: Recorder(loop), LOOPBACK, 1, server_hostname=NAME)


class TestCertificates:
    async def test_an_unknown_authority_is_refused(self, loop):
        error = await refused_by(loop, stranger().client(), ssl.SSLCertVerificationError)
        assert error.verify_message

    async def test_without_verification_any_is_taken(self, loop):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        async with encrypted(loop, client_context=context) as (client, server):
            assert client.transport.get_extra_info("peercert") == {}
            client.transport.write(b"question")
            assert await server.received(8) == b"question"

    async def test_a_clients_own(self, loop):
        server_context = authority().server()
        authority().authority.configure_trust(server_context)
        server_context.verify_mode = ssl.CERT_REQUIRED
        client_context = authority().client("alice@test.org")
        async with encrypted(loop, client_context=client_context, server_context=server_context) as (_, server):
            assert ("email", "alice@test.org") in server.transport.get_extra_info("peercert")["subjectAltName"]

    @pytest.mark.parametrize("version", [V1_2, V1_3])
    @pytest.mark.parametrize("given", ["none", "of a stranger"])
    async def test_a_client_without_the_required_one(self, loop, version, given):
        """In TLS 1.3 the client believes to be connected before the server has refused it."""
        server_context = only(authority().server(), version)
        authority().authority.configure_trust(server_context)
        server_context.verify_mode = ssl.CERT_REQUIRED
        client_context = authority().client()
        if given == "of a stranger":
            stranger().certificate("eve@test.org").configure_cert(client_context)
        served = []

        def accept():
            served.append(Recorder(loop))
            return served[-1]

        server = await loop.create_server(accept, LOOPBACK, 0, ssl=server_context)
        client = Recorder(loop)
        with contextlib.suppress(*BY_PEER):
            await loop.create_connection(
                lambda: client, *server.sockets[0].getsockname(), ssl=client_context, server_hostname=NAME
            )
            assert version is V1_3
            await client.lost
        assert [protocol.events for protocol in served] == [[]]
        server.close()
        await server.wait_closed()

    @pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # asyncio leaves the socket to the collector
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    async def test_a_context_of_the_wrong_side(self, loop):
        async def connect(context):
            _, client = await loop.create_connection(
                lambda: Recorder(loop), *server.sockets[0].getsockname(), ssl=context, server_hostname=NAME
            )
            await dropped(client)

        server = await loop.create_server(lambda: Recorder(loop), LOOPBACK, 0, ssl=authority().server())
        with pytest.raises(ssl.SSLError):
            await connect(authority().server())
        await connect(authority().client())
        server.close()
        await server.wait_closed()

    async def test_a_server_needs_a_context(self, loop):
        with pytest.raises(TypeError, match="ssl argument must be an SSLContext"):
            await loop.create_server(lambda: Recorder(loop), LOOPBACK, 0, ssl=True)

    async def test_true_is_the_default_context_of_a_client(self, loop):
        """Which trusts no authority of ours."""
        await refused_by(loop, True, ssl.SSLCertVerificationError)


class TestSessions:
    async def test_one_is_resumed(self, loop):
        """TLS 1.2, where the session is known when the handshake ends. asyncio passes none to its connections."""
        client_context = only(authority().client(), V1_2)
        server_context = authority().server()
        sessions = []
        async with encrypted(loop, client_context=client_context, server_context=server_context) as (client, _):
            sessions.append(client.transport.get_extra_info("ssl_object").session)
        assert sessions[0].has_ticket
        # What asyncio cannot be asked, its SSL object can.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        resumed = client_context.wrap_bio(incoming, outgoing, server_hostname=NAME, session=sessions[0])
        server = await loop.create_server(lambda: Recorder(loop), LOOPBACK, 0, ssl=server_context)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        while True:
            try:
                resumed.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await reader.read(65536))
        assert resumed.session_reused
        writer.write(outgoing.read())
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        await alone(loop)

    async def test_the_server_counts_its_handshakes(self, loop):
        server_context = authority().server()
        async with encrypted(loop, server_context=server_context):
            assert server_context.session_stats()["accept_good"] == 1

    async def test_key_log(self, loop, tmp_path):
        client_context = authority().client()
        client_context.keylog_filename = str(tmp_path / "keys")
        async with encrypted(loop, client_context=client_context):
            pass
        assert "CLIENT_HANDSHAKE_TRAFFIC_SECRET" in (tmp_path / "keys").read_text()

    async def test_message_callback(self, loop):
        client_context = authority().client()
        seen = []
        client_context._msg_callback = lambda connection, direction, *_: seen.append(direction)
        async with encrypted(loop, client_context=client_context):
            pass
        assert {"read", "write"} <= set(seen)


class TestTimeouts:
    async def test_a_silent_server(self, loop):
        with socket.create_server((LOOPBACK, 0)) as silent:
            with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking longer than"):
                await loop.create_connection(
                    lambda: Recorder(loop),
                    *silent.getsockname(),
                    ssl=authority().client(),
                    server_hostname=NAME,
                    ssl_handshake_timeout=0.01,
                )
            peer, _ = silent.accept()
            with peer:
                await closed(loop, peer)

    @pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "a byte", "a start"])
    async def test_a_silent_client(self, loop, sent):
        served = []

        def accept():
            served.append(Recorder(loop))
            return served[-1]

        server = await loop.create_server(accept, LOOPBACK, 0, ssl=authority().server(), ssl_handshake_timeout=0.01)
        with socket.create_connection(server.sockets[0].getsockname()) as peer:
            peer.sendall(sent)
            await closed(loop, peer)
        assert [protocol.events for protocol in served] == [[]]
        server.close()
        await server.wait_closed()

    @pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # asyncio leaves the socket to the collector
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
    @pytest.mark.parametrize("seconds", [0, -1])
    async def test_refused(self, loop, name, seconds):
        with socket.create_server((LOOPBACK, 0)) as silent, pytest.raises(ValueError, match=name):
            await loop.create_connection(
                lambda: Recorder(loop),
                *silent.getsockname(),
                ssl=authority().client(),
                server_hostname=NAME,
                **{name: seconds},
            )

    @pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
    async def test_need_tls(self, loop, name):
        with pytest.raises(ValueError, match=f"{name} is only meaningful with ssl"):
            await loop.create_connection(lambda: Recorder(loop), LOOPBACK, 1, **{name: 1})
        with pytest.raises(ValueError, match=f"{name} is only meaningful with ssl"):
            await loop.create_server(lambda: Recorder(loop), LOOPBACK, 0, **{name: 1})


class TestBroken:
    async def test_a_server_that_does_not_speak_tls(self, loop):
        async with answering(b"220 hello\r\n") as address:
            with pytest.raises(ssl.SSLError):
                await loop.create_connection(
                    lambda: Recorder(loop), *address, ssl=authority().client(), server_hostname=NAME
                )

    async def test_a_server_that_leaves(self, loop):
        async with answering(b"") as address:
            with pytest.raises(ConnectionResetError):
                await loop.create_connection(
                    lambda: Recorder(loop), *address, ssl=authority().client(), server_hostname=NAME
                )

    @pytest.mark.parametrize(
        "sent",
        [b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(300), b""],
        ids=["plain", "wrong", "nothing"],
    )
    async def test_a_client_that_does_not_speak_tls(self, loop, sent):
        server = await loop.create_server(lambda: Recorder(loop), LOOPBACK, 0, ssl=authority().server())
        with socket.create_connection(server.sockets[0].getsockname()) as peer:
            peer.sendall(sent)
            peer.shutdown(socket.SHUT_WR)
            await closed(loop, peer)
        server.close()
        await server.wait_closed()

    @pytest.mark.parametrize("after", range(8))
    async def test_a_cancelled_client(self, loop, after):
        server = await loop.create_server(lambda: Recorder(loop), LOOPBACK, 0, ssl=authority().server())
        task = loop.create_task(
            loop.create_connection(
                lambda: Recorder(loop), *server.sockets[0].getsockname(), ssl=authority().client(), server_hostname=NAME
            )
        )
        await turns(after)
        task.cancel()
        try:
            _, client = await task
            await dropped(client)  # it was done already
        except asyncio.CancelledError:
            pass
        await alone(loop)
        server.close()
        await server.wait_closed()


class TestSlow:
    async def test_100_slow_handshakes_leave_the_others_alone(self, loop):
        server = await loop.create_server(lambda: Echo(loop), LOOPBACK, 0, ssl=authority().server())
        address = server.sockets[0].getsockname()
        slow = [socket.create_connection(address) for _ in range(100)]
        try:
            for sock in slow:
                sock.sendall(b"\x16\x03\x01\x02\x00")  # the head of a message that never comes
            _, client = await loop.create_connection(
                lambda: Recorder(loop), *address, ssl=authority().client(), server_hostname=NAME
            )
            for count in range(1, 20):
                client.transport.write(b"question")
                await client.received(8 * count)
            await dropped(client)
        finally:
            for sock in slow:
                sock.close()
        server.close()
        await server.wait_closed()
        await alone(loop)


class Echo(asyncio.Protocol):
    """Sends back what it receives."""

    def __init__(self, loop):
        self.loop = loop

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


@contextlib.asynccontextmanager
async def answering(text):
    """A server that answers with something that is not TLS, and leaves; its address."""

    async def serve(reader, writer):
        writer.write(text)
        await reader.read(1)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    yield server.sockets[0].getsockname()
    server.close()
    await server.wait_closed()
    await alone(asyncio.get_running_loop())


async def closed(loop, peer):
    """Wait until the other side of a socket has closed it, whatever it said before."""
    peer.setblocking(False)
    with contextlib.suppress(ConnectionResetError):
        while await loop.sock_recv(peer, 65536):
            pass
