"""SocketTransport: the native stream transport, with what the interpreter wants in Python."""

from __future__ import annotations

import socket
import warnings
from typing import Any

from tideloop._tideloop import StreamTransport

__all__ = ["SocketTransport"]


class SocketTransport(StreamTransport):
    """A TCP or UNIX-socket connection. ``isinstance(t, asyncio.Transport)`` holds."""

    _put_in_its_place: Any = None

    @property
    def _sock(self) -> socket.socket | None:
        """asyncio's name for its socket, which programs and CPython's tests know.

        What is assigned to it is shown, but not sent through: a native transport has its descriptor.
        """
        if self._put_in_its_place is not None:
            replaced: socket.socket = self._put_in_its_place
            return replaced
        shown = self.get_extra_info("socket")
        return None if shown is None else shown._sock

    @_sock.setter
    def _sock(self, sock: Any) -> None:
        self._put_in_its_place = sock

    @property
    def _read_ready_cb(self) -> Any:
        """asyncio's name for what reads; None once the connection is lost."""
        return None if self._describe()[0] is None else self.resume_reading

    @property
    def _paused(self) -> bool:
        """asyncio's name for what is_reading() tells of an open transport."""
        return not (self.is_reading() or self.is_closing())

    def __repr__(self) -> str:
        fd, closing, reads, writes, queued = self._describe()
        parts = ["SocketTransport"]
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
        if self._describe()[0] is None:
            return  # the rule, which should not cost a repr
        description = repr(self)
        if self._abandon():
            _warn(f"unclosed transport {description}", ResourceWarning, source=self)  # type: ignore[operator]
