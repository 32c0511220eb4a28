"""Accepting connections: asyncio's Server on native listeners."""

from __future__ import annotations

import asyncio
import inspect
from asyncio import base_events, constants, trsock
from typing import TYPE_CHECKING, Any

from tideloop._tideloop import Listener
from tideloop.loop.bases import LoopBase
from tideloop.loop.transports import SocketTransport

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = ["ServingLoop"]

# Since 3.12.1 a server keeps its transports, before that it counts them.
_SERVER_KEEPS_TRANSPORTS = "transport" in inspect.signature(base_events.Server._attach).parameters  # type: ignore[attr-defined]


class _ServerClosedError(ConnectionAbortedError):
    """Too late: nobody will wait for this connection."""


class ServingLoop(LoopBase):
    """The part of the loop that servers are made of."""

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if sslcontext is not None:
            # A TLS server wraps each connection in asyncio's SSLProtocol, above our transport.
            super()._start_serving(protocol_factory, sock, sslcontext, server, backlog, *args, **kwargs)
            return
        Listener(self, sock, backlog, protocol_factory, SocketTransport, server).start()

    def _attach_to_server(self, server: Any, transport: SocketTransport) -> None:
        if server._sockets is None:
            raise _ServerClosedError("the server was closed while this connection was made")
        if _SERVER_KEEPS_TRANSPORTS:
            server._attach(transport)
        else:
            server._attach()

    def _detach_from_server(self, server: Any, transport: SocketTransport) -> None:
        if _SERVER_KEEPS_TRANSPORTS:
            server._detach(transport)
        else:
            server._detach()

    def _accept_failed(self, message: str, exception: OSError, sock: socket.socket, paused: Listener | None) -> None:
        """Say that accept() has failed; let a listener that has stopped try again in a second, as asyncio does."""
        self.call_exception_handler(
            {"message": message, "exception": exception, "socket": trsock.TransportSocket(sock)}
        )
        if paused is not None:
            self.call_later(constants.ACCEPT_RETRY_DELAY, paused.resume)

    def _connection_refused(self, exception: BaseException) -> None:
        """No protocol for an accepted connection: it is closed, the server goes on."""
        if isinstance(exception, _ServerClosedError):
            return
        self.call_exception_handler(
            {"message": "Error on transport creation for incoming connection", "exception": exception}
        )
