"""Datagram endpoints: the native transport, with what the interpreter wants in Python, and its maker."""

from __future__ import annotations

import asyncio
import socket
import sys
import warnings
from asyncio import transports, trsock
from typing import Any

from tideloop._tideloop import DatagramTransport
from tideloop.loop.bases import LoopBase

__all__ = ["DatagramLoop", "SocketDatagramTransport"]

# Since 3.13 an empty datagram is sent, and a queued one counts eight bytes besides its own.
_SENDS_EMPTY = sys.version_info >= (3, 13)
_HEADER = 8 if _SENDS_EMPTY else 0

_FAMILIES = {socket.AF_INET: "inet", socket.AF_INET6: "inet6"}
if hasattr(socket, "AF_UNIX"):
    _FAMILIES[socket.AF_UNIX] = "unix"


class _Shown(transports._FlowControlMixin, asyncio.DatagramTransport):
    """What a datagram transport answers to in ``isinstance``, as asyncio's does."""


class SocketDatagramTransport(DatagramTransport):
    """A UDP or UNIX datagram endpoint. ``isinstance(t, asyncio.DatagramTransport)`` holds."""

    __slots__ = ()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return _Shown

    def __repr__(self) -> str:
        fd, closing, reads, writes, queued = self._describe()
        parts = ["SocketDatagramTransport"]
        if fd is None:
            parts.append("closed")
        elif closing:
            parts.append("closing")
        if fd is not None:
            parts.append(f"fd={fd}")
            parts.append(f"read={'polling' if reads else 'idle'}")
            parts.append(f"write=<{'polling' if writes else 'idle'}, bufsize={queued}>")
        return f"<{' '.join(parts)}>"

    def __del__(self, _warn: object = warnings.warn) -> None:
        description = repr(self)
        if self._abandon():
            _warn(f"unclosed transport {description}", ResourceWarning, source=self)  # type: ignore[operator]


class DatagramLoop(LoopBase):
    """The part of the loop that makes datagram endpoints."""

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.DatagramProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.DatagramTransport:
        family = _FAMILIES.get(sock.family)
        if family is None or sock.type != socket.SOCK_DGRAM:
            # Raw sockets and rarer families (CAN, netlink): asyncio's own transport.
            inherited: asyncio.DatagramTransport = super()._make_datagram_transport(
                sock, protocol, address, waiter, extra
            )
            return inherited
        self._ensure_fd_no_transport(sock)
        extra = dict(extra or {})
        extra["socket"] = trsock.TransportSocket(sock)
        extra["sockname"] = _name(sock.getsockname)
        if "peername" not in extra:
            extra["peername"] = _name(sock.getpeername)
        transport = SocketDatagramTransport(
            self, protocol, extra, family=family, address=address, header=_HEADER, sends_empty=_SENDS_EMPTY
        )
        transport._adopt(sock, waiter)
        return transport


def _name(ask: Any) -> Any:
    """An end's address, or None where there is none."""
    try:
        return ask()
    except OSError:
        return None
