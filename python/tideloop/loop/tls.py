"""TLS: asyncio's SSLProtocol, and so the user's own ssl.SSLContext, above the native stream transport.

Some things are ours. The bytes of an established connection take a native path (``crates/py/src/tls``): by the methods
of the ``SSLObject`` and its buffers, or, where it can be verified that this is the same, by the functions of OpenSSL
behind them. ``TIDELOOP_TLS=python`` forces the former. Who wants to know that a
connection was cut off, instead of ended by its peer, sets ``loop.tls_truncation_is_error``. A BufferedProtocol
may bring any buffer; asyncio reads into copies of some. A peer that does not read what the TLS library answers by
itself (a refused renegotiation, a new key) is not read from, either: nobody else limits those answers. And two later
repairs of asyncio hold in every version: what a stream reader has read ahead goes into the upgrade, and the shutdown
timeout lasts until the connection is lost.
"""

from __future__ import annotations

import asyncio
import os
from asyncio import constants, sslproto
from typing import TYPE_CHECKING, Any, Literal, cast

from tideloop._tideloop import TlsCore, function, tls_not_direct
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

        max_size: int
        _app_protocol_buffer_updated: Callable[[int], None]
        _app_protocol_get_buffer: Callable[[int], Any]
        _app_transport: asyncio.Transport | None
        _app_transport_created: bool
        _call_eof_received: Callable[[], None]
        _check_shutdown_timeout: Callable[[], None]
        _do_flush: Callable[[], None]
        _do_handshake: Callable[[], None]
        _do_read: Callable[[], None]
        _do_shutdown: Callable[[], None]
        _eof_received: bool
        _get_read_buffer_size: Callable[[], int]
        _incoming_high_water: int
        _loop: TlsLoop
        _outgoing_high_water: int
        _server_side: bool
        _ssl_buffer: bytearray
        _ssl_buffer_view: memoryview
        _sslcontext: ssl.SSLContext
        _shutdown_timeout_handle: asyncio.TimerHandle | None
        _ssl_shutdown_timeout: float
        _start_shutdown: Callable[[], None]

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def _control_ssl_reading(self) -> None: ...
        def _get_extra_info(self, name: str, default: Any = None) -> Any: ...
        def _on_handshake_complete(self, handshake_exc: BaseException | None) -> None: ...
        def _set_read_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
        def _set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
        def _on_shutdown_complete(self, shutdown_exc: BaseException | None) -> None: ...

    class SSLTransport(asyncio.Transport):
        def __init__(self, loop: asyncio.AbstractEventLoop, ssl_protocol: SSLProtocol) -> None: ...

else:
    SSLProtocol = sslproto.SSLProtocol
    SSLTransport = sslproto._SSLProtocolTransport

__all__ = ["TlsLoop", "TlsProtocol", "tls_driver"]

_ROOM = 256 * 1024
"""Bytes that are asked for at once from a transport below that is not native."""

_ANSWERS = 64 * 1024
"""Bytes of the TLS library's own answers that wait for a peer before it is no longer read from."""


def _methods(session: Any) -> Any:
    """What has the methods of a session: the object inside of an ssl.SSLObject that nobody has changed."""
    inner = getattr(session, "_sslobj", None)
    stock = type(session) is ssl.SSLObject and type(session).read is _READ and type(session).write is _WRITE
    return inner if stock and inner is not None else session


if ssl is not None:
    _READ, _WRITE = ssl.SSLObject.read, ssl.SSLObject.write


def tls_driver() -> Literal["openssl", "python"]:
    """What may drive the TLS connections of a loop that is made now.

    Raises ValueError if TIDELOOP_TLS is something else than "python" or empty.
    """
    forced = os.environ.get("TIDELOOP_TLS", "")
    if forced not in ("", "python"):
        raise ValueError(f"TIDELOOP_TLS is {forced!r}; expected 'python' or nothing")
    return "python" if forced or ssl is None or tls_not_direct() else "openssl"


class SslTransport(SSLTransport):
    """What the application writes to: asyncio's but for how it writes. Programs look for "ssl" in its name."""

    if not TYPE_CHECKING:
        write = function("SslTransport.write", SSLTransport.write)
        writelines = function("SslTransport.writelines", SSLTransport.writelines)


class TlsProtocol(TlsCore, SSLProtocol):
    """One TLS connection: between the application's protocol and a transport that carries bytes."""

    # The native transport brings its own buffers, and other ones get theirs when they ask for it.
    max_size = 0

    # asyncio sets one mark before there is the other.
    _outgoing_high_water = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._drive(_methods(self._sslobj), False)

    def _get_app_transport(self) -> asyncio.Transport:
        if self._app_transport is None:
            if self._app_transport_created:
                raise RuntimeError("a TLS connection has one transport, and it is gone")
            self._app_transport = SslTransport(self._loop, self)
            self._app_transport_created = True
        return self._app_transport

    def _on_handshake_complete(self, handshake_exc: BaseException | None) -> None:
        if handshake_exc is None and self._may_go_direct():
            self._drive(_methods(self._sslobj), True)
        try:
            super()._on_handshake_complete(handshake_exc)
        finally:
            # Its traceback comes to know this frame.
            del handshake_exc

    def _may_go_direct(self) -> bool:
        """Whether no code but the loop's has the session, now that it is established."""
        context = self._sslcontext
        return (
            self._loop.tls_driver == "openssl"
            and type(self._sslobj) is ssl.SSLObject
            and getattr(context, "_msg_callback", None) is None
            and not (self._server_side and context.sni_callback is not None)
        )

    def _get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            # Its methods may be called by any thread from now on, and by ours while they are.
            self._drive_no_longer()
        return super()._get_extra_info(name, default)

    def get_buffer(self, n: int) -> memoryview:
        """For a transport that is not native, such as the TLS connection that this one is inside of."""
        if not self._ssl_buffer:
            self._ssl_buffer = bytearray(_ROOM)
            self._ssl_buffer_view = memoryview(self._ssl_buffer)
        return self._ssl_buffer_view

    def _go_on(self) -> None:
        """What has come is in the session's buffer: do what the state asks for."""
        if self._state is sslproto.SSLProtocolState.DO_HANDSHAKE:
            self._do_handshake()
        elif self._state is sslproto.SSLProtocolState.WRAPPED:
            self._do_read()
        elif self._state is sslproto.SSLProtocolState.FLUSHING:
            self._do_flush()
        elif self._state is sslproto.SSLProtocolState.SHUTDOWN:
            self._do_shutdown()

    def _set_read_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        super()._set_read_buffer_limits(high, low)
        self._heed_marks()

    def _set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        super()._set_write_buffer_limits(high, low)
        self._heed_marks()

    def _heed_marks(self) -> None:
        self._heedful = self._incoming_high_water <= 0 or self._outgoing_high_water <= 0

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

    tls_driver: Literal["openssl", "python"]
    """What drives established TLS 1.3 connections whose ``ssl_object`` nobody has asked for: OpenSSL's functions, where
    they could be verified, or the methods of Python's ssl objects, as in all other connections."""

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
        return cast(asyncio.Transport, tls._app_transport)

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
        return cast(asyncio.Transport, tls._app_transport)


def _taken_ahead(protocol: asyncio.BaseProtocol) -> bytes:
    """What a client sent behind its request to upgrade, and a stream reader took before the upgrade."""
    reader = getattr(protocol, "_stream_reader", None) if isinstance(protocol, asyncio.StreamReaderProtocol) else None
    if reader is None:
        return b""
    taken = bytes(reader._buffer)
    reader._buffer.clear()
    return taken
