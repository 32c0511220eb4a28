"""ShownSocket: what get_extra_info("socket") of a stream transport shows."""

from __future__ import annotations

import socket
from asyncio.trsock import TransportSocket
from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    from tideloop._tideloop import StreamTransport

__all__ = ["ShownSocket"]


class ShownSocket(TransportSocket):
    """asyncio's view of a transport's socket, which a program may keep.

    What a callback has written to the transport is held until it returns. Whatever is done to the connection by way
    of this socket, or of its descriptor, comes behind it, as if each write had been sent at once.
    """

    __slots__ = ("_transport",)

    def __init__(self, sock: socket.socket, transport: ref[StreamTransport]) -> None:
        super().__init__(sock)
        self._transport = transport

    def _let_go(self) -> None:
        transport = self._transport()
        if transport is not None:
            transport.get_extra_info("socket")

    def fileno(self) -> int:
        self._let_go()
        return super().fileno()

    def dup(self) -> socket.socket:
        self._let_go()
        return super().dup()

    def shutdown(self, how: int) -> None:
        self._let_go()
        super().shutdown(how)

    def getsockopt(self, *args: Any) -> Any:
        self._let_go()
        return super().getsockopt(*args)

    def setsockopt(self, *args: Any) -> None:
        self._let_go()
        super().setsockopt(*args)
