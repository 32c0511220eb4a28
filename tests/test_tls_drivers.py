"""What drives a TLS connection: OpenSSL's functions or Python's methods, and when one gives way to the other.

All other tests of TLS run on both as well: `make test` runs them once more with TIDELOOP_TLS=python.
"""

from __future__ import annotations

import gc
import platform
import ssl
import sys
import sysconfig
import threading
import weakref

import pytest
import tideloop
from tideloop._tideloop import tls_not_direct

from tests.peers import Recorder, settled
from tests.tls import authority, encrypted, only

DATA = bytes(range(256)) * 20_000

pytestmark = pytest.mark.skipif(tls_not_direct() is not None, reason=f"only Python's methods: {tls_not_direct()}")


@pytest.fixture
def loop(monkeypatch):
    """A tideloop with the driver that it takes by itself."""
    monkeypatch.delenv("TIDELOOP_TLS", raising=False)
    with tideloop.Runner() as runner:
        yield runner.get_loop()


def below(protocol):
    return protocol.transport._ssl_protocol


async def is_alive(client, server):
    """Data still goes both ways, large and small."""
    for data in (b"small", DATA):
        for here, there in ((client, server), (server, client)):
            there.data = bytearray()
            here.transport.write(data)
            assert await there.received(len(data)) == data


async def test_a_new_connection_is_driven_directly(loop):
    async with encrypted(loop) as (client, server):
        assert below(client)._is_direct
        assert below(server)._is_direct
        await is_alive(client, server)


async def test_whoever_asks_for_the_session_gets_python_to_drive(loop):
    async with encrypted(loop) as (client, server):
        await is_alive(client, server)
        session = server.transport.get_extra_info("ssl_object")
        assert not below(server)._is_direct
        assert below(client)._is_direct
        assert session.version() == "TLSv1.3"
        assert session.cipher() == client.transport.get_extra_info("cipher")
        await is_alive(client, server)


async def test_other_questions_change_nothing(loop):
    async with encrypted(loop) as (client, _):
        for name in ("cipher", "compression", "peercert", "sslcontext", "peername", "socket"):
            client.transport.get_extra_info(name)
        assert below(client)._is_direct
        assert client.transport.get_extra_info("cipher")[1] == "TLSv1.3"


async def test_the_session_is_asked_for_within_data_received(loop):
    class Curious(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.get_extra_info("ssl_object")

    async with encrypted(loop, server=lambda: Curious(loop)) as (client, server):
        client.transport.writelines([b"one", b"two"])
        assert await server.received(6) == b"onetwo"
        await is_alive(client, server)


async def test_older_versions_are_driven_by_python(loop):
    context = only(authority().client(), ssl.TLSVersion.TLSv1_2)
    async with encrypted(loop, client_context=context) as (client, server):
        assert not below(client)._is_direct
        assert not below(server)._is_direct
        await is_alive(client, server)


async def test_callbacks_that_get_the_session_leave_it_to_python(loop):
    seen = []
    context = authority().server()
    context.sni_callback = lambda session, name, context: seen.append(name)
    async with encrypted(loop, server_context=context) as (client, server):
        assert not below(server)._is_direct
        assert seen == ["localhost"]
        await is_alive(client, server)


async def test_a_class_of_sessions_of_its_own_is_driven_by_its_methods(loop):
    read = []

    class Session(ssl.SSLObject):
        def read(self, *args):
            read.append(args)
            return super().read(*args)

    context = authority().client()
    context.sslobject_class = Session
    async with encrypted(loop, client_context=context) as (client, server):
        assert not below(client)._is_direct
        await is_alive(client, server)
        assert read


async def test_a_broken_record_says_what_python_says(loop):
    """The transport below is given a record that does not decrypt, first and after data."""
    for before in (b"", b"data"):
        reported = []
        loop.set_exception_handler(lambda _, context, reported=reported: reported.append(context["exception"]))
        async with encrypted(loop) as (client, server):
            assert below(server)._is_direct
            if before:
                client.transport.write(before)
            below(client)._transport.write(b"\x17\x03\x03\x00\x20" + bytes(32))
            error = await server.lost
            assert isinstance(error, ssl.SSLError)
            # OpenSSL 1.1, 3.0 and 3.5 in turn; the drivers do not differ.
            assert error.reason in {"DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "BAD_RECORD_MAC", "RECORD_LAYER_FAILURE"}
            assert server.data == before
        await settled(loop)
        loop.set_exception_handler(None)


async def test_sessions_die_with_their_connections(loop):
    async with encrypted(loop) as (client, server):
        await is_alive(client, server)
        left = [weakref.ref(below(client)._sslobj), weakref.ref(below(server)._sslobj)]
    await settled(loop, 10)
    del client, server
    gc.collect()
    assert [ref() for ref in left] == [None, None]


async def test_other_threads_change_keys_of_nothing(loop):
    """Python's methods in another thread, on a session that was shown, while the loop moves data."""
    async with encrypted(loop) as (client, server):
        session = client.transport.get_extra_info("ssl_object")
        stop, told = threading.Event(), set()

        def ask():
            # Not for what OpenSSL itself replaces while another thread reads, as it does the session's cipher.
            while not stop.is_set() or not told:
                told.add(session.version())

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            await is_alive(client, server)
        finally:
            stop.set()
            thread.join()
        # None: another thread has just read a message of the handshake, such as a ticket.
        assert told <= {"TLSv1.3", None}


def test_the_environment_forces_python(monkeypatch):
    monkeypatch.setenv("TIDELOOP_TLS", "python")
    with tideloop.Runner() as runner:
        loop = runner.get_loop()
        assert loop.tls_driver == "python"

        async def talk():
            async with encrypted(loop) as (client, server):
                assert not below(client)._is_direct
                await is_alive(client, server)

        runner.run(talk())


def test_another_value_is_refused(monkeypatch):
    monkeypatch.setenv("TIDELOOP_TLS", "fast")
    with pytest.raises(ValueError, match="TIDELOOP_TLS is 'fast'"):
        tideloop.new_event_loop()


@pytest.mark.skipif(
    sys.platform != "linux" or sysconfig.get_config_var("Py_GIL_DISABLED") == 1 or platform.libc_ver()[0] != "glibc",
    reason="elsewhere it is not written, or may not be found",
)
def test_where_ssl_is_a_shared_object_there_is_a_direct_way():
    import _ssl

    if getattr(_ssl, "__file__", None):
        assert tls_not_direct() is None
