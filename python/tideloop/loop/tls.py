"""TLS: asyncio's SSLProtocol, and so the user's own ssl.SSLContext, above the native stream transport.

Some things are ours. The bytes below TLS are moved by the native transport. Who wants to know that a
connection was cut off, instead of ended by its peer, sets ``loop.tls_truncation_is_error``. A BufferedProtocol
may bring any buffer; asyncio reads into copies of some. A peer that does not read what the TLS library answers by
itself (a refused renegotiation, a new key) is not read from, either: nobody else limits those answers. And two later
repairs of asyncio hold in every version: what a stream reader has read ahead goes into the upgrade, and the shutdown
timeout lasts until the connection is lost.
"""

from __future__ import annotations

import asyncio
from asyncio import constants, sslproto
from typing import TYPE_CHECKING, Any, cast

from tideloop.loop.bases import LoopBase
from tideloop.loop.streams import attach

try:
    import ssl
except ImportError:  # a Python that was built without it
    ssl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    class SSLProtocol(asyncio.BufferedProtocol):
        """What we know of asyncio's."""

        _app_protocol: asyncio.Protocol
        _app_protocol_buffer_updated: Callable[[int], None]
        _app_protocol_get_buffer: Callable[[int], Any]
        _app_transport: asyncio.Transport
        _call_eof_received: Callable[[], None]
        _check_shutdown_timeout: Callable[[], None]
        _do_read: Callable[[], None]
        _eof_received: bool
        _get_read_buffer_size: Callable[[], int]
        _incoming: ssl.MemoryBIO
        _loop: TlsLoop
        _outgoing: ssl.MemoryBIO
        _shutdown_timeout_handle: asyncio.TimerHandle | None
        _ssl_shutdown_timeout: float
        _ssl_writing_paused: bool
        _ssl_reading_paused: bool
        _sslobj: Any
        _start_shutdown: Callable[[], None]
        _state: object
        _transport: asyncio.Transport | None

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def _control_ssl_reading(self) -> None: ...
        def _on_shutdown_complete(self, shutdown_exc: BaseException | None) -> None: ...

else:
    SSLProtocol = sslproto.SSLProtocol

__all__ = ["TlsLoop", "TlsProtocol"]

_RECORD = 16 * 1024
"""Bytes of data in the largest record of TLS."""

_ANSWERS = 64 * 1024
"""Bytes of the TLS library's own answers that wait for a peer before it is no longer read from."""


class TlsProtocol(SSLProtocol):
    """One TLS connection: between the application's protocol and a transport that carries bytes."""

    _answers: int = 0
    """Bytes that the TLS library has answered by itself since the transport below takes no more."""

    def eof_received(self) -> bool | None:
        """The stream below has ended before this side has closed: maybe cut off by whoever can."""
        strict = self._loop.tls_truncation_is_error
        if not strict or self._state is not sslproto.SSLProtocolState.WRAPPED:
            return super().eof_received()
        # Now the TLS library can tell: reading what is left ends with close_notify, or fails. A paused
        # application learns it when it resumes, behind the data that came before.
        self._eof_received = True
        self._incoming.write_eof()
        self._do_read()
        return True

    def resume_writing(self) -> None:
        """The transport below takes more. Before an upgrade it may have told the application to pause."""
        if self._ssl_writing_paused:
            super().resume_writing()
            if self._answers:
                self._answers = 0
                self._control_ssl_reading()
        else:
            self._app_protocol.resume_writing()

    def _control_ssl_reading(self) -> None:
        """Whether to read from the peer depends on what waits to be decrypted, and on what it leaves unread."""
        if self._answers < _ANSWERS:
            super()._control_ssl_reading()
        elif not self._ssl_reading_paused and self._transport is not None:
            self._ssl_reading_paused = True
            self._transport.pause_reading()

    def _do_read__copied(self) -> None:
        """Decrypt all that has come. What comes before an error is delivered before it is raised."""
        records: list[bytes] = []
        ended = False
        failed: ssl.SSLError | None = None
        waiting = self._outgoing.pending
        try:
            while not ended:
                record: bytes = self._sslobj.read(_RECORD)
                records.append(record)
                ended = not record
        except sslproto.SSLAgainErrors:
            pass
        except ssl.SSLError as error:
            failed = error
        if self._ssl_writing_paused:
            self._answers += self._outgoing.pending - waiting
        if data := records[0] if len(records) == 1 else b"".join(records):
            self._app_protocol.data_received(data)
        self._finish_read(ended, failed)

    def _do_read__buffered(self) -> None:
        """Decrypt into the application's buffer, as much as there is room for; the rest in the next turn."""
        filled = 0
        room = True
        ended = False
        failed: ssl.SSLError | None = None
        waiting = self._outgoing.pending
        # Released before the protocol is told: it may resize its buffer then.
        with memoryview(self._app_protocol_get_buffer(self._get_read_buffer_size())) as given, given.cast("B") as view:
            if not view:
                raise RuntimeError("get_buffer() returned an empty buffer")
            try:
                while room and not ended:
                    count = self._sslobj.read(len(view) - filled, view[filled:])
                    filled += count
                    room = filled < len(view)
                    ended = count == 0
            except sslproto.SSLAgainErrors:
                pass
            except ssl.SSLError as error:
                failed = error
        if self._ssl_writing_paused:
            self._answers += self._outgoing.pending - waiting
        if not room:
            self._loop.call_soon(self._do_read)
        if filled:
            self._app_protocol_buffer_updated(filled)
        self._finish_read(ended, failed)

    def _finish_read(self, ended: bool, failed: ssl.SSLError | None) -> None:
        if failed is not None:
            raise failed
        if ended:
            self._call_eof_received()
            self._start_shutdown()

    def _on_shutdown_complete(self, shutdown_exc: BaseException | None) -> None:
        super()._on_shutdown_complete(shutdown_exc)
        # What is buffered below is still to be sent, and a peer that does not read delays that for ever.
        if shutdown_exc is None and self._transport is not None and self._shutdown_timeout_handle is None:
            self._shutdown_timeout_handle = self._loop.call_later(
                self._ssl_shutdown_timeout, self._check_shutdown_timeout
            )


class TlsLoop(LoopBase):
    """The part of the loop that encrypts."""

    tls_truncation_is_error: bool = False
    """Whether a TLS connection whose peer closes it without TLS's own farewell (close_notify) is lost with
    ssl.SSLEOFError. False, as in asyncio: it then looks as if the peer had closed it properly, which an attacker
    can forge, and which programs must bear that talk with peers that never say farewell. A context with
    ssl.OP_IGNORE_UNEXPECTED_EOF is exempt. May be set at any time.
    """

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext | None,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
        context: Any = None,
    ) -> asyncio.Transport:
        attach(protocol)
        tls = TlsProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        try:
            self._make_socket_transport(rawsock, tls, extra=extra, server=server, context=context)
        except BaseException:
            # There was no connection; its transport need not warn that nobody closed it.
            tls.connection_lost(None)
            raise
        return tls._app_transport

    async def start_tls(
        self,
        transport: asyncio.BaseTransport,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport:
        """Encrypt a connection from here on; the returned transport replaces the given one.

        Timeouts are seconds. Raises TypeError for a transport or context that cannot be used, ssl.SSLError if
        the handshake fails, ConnectionResetError if the peer leaves meanwhile, ConnectionAbortedError if it
        takes too long. After an error or a cancellation the connection is closed.
        """
        if ssl is None:
            raise RuntimeError("Python ssl module is not available")
        if not isinstance(sslcontext, ssl.SSLContext):
            raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}")
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        below = cast(asyncio.Transport, transport)
        waiter = self.create_future()
        tls = TlsProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            call_connection_made=False,
        )
        # Nothing may arrive before the protocol knows its transport.
        below.pause_reading()
        if server_side:
            tls._incoming.write(_taken_ahead(protocol))
        below.set_protocol(tls)
        scheduled = (
            self.call_soon(tls.connection_made, below),
            self.call_soon(below.resume_reading),
        )
        try:
            await waiter
        except BaseException:
            below.close()
            for handle in scheduled:
                handle.cancel()
            # Its exception's traceback knows this frame.
            del waiter
            raise
        return tls._app_transport


def _taken_ahead(protocol: asyncio.BaseProtocol) -> bytes:
    """What a client sent behind its request to upgrade, and a stream reader took before the upgrade."""
    reader = getattr(protocol, "_stream_reader", None) if isinstance(protocol, asyncio.StreamReaderProtocol) else None
    if reader is None:
        return b""
    taken = bytes(reader._buffer)
    reader._buffer.clear()
    return taken
