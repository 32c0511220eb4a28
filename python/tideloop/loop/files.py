"""Sending files: the kernel copies from the file to the socket, without the bytes passing through us."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from tideloop.loop.bases import LoopBase
from tideloop.loop.transports import SocketTransport

__all__ = ["FileLoop"]

# Whether asyncio also moves the file's position to the offset when nothing was left to send.
_ALWAYS_SEEKS = sys.version_info >= (3, 14)
_CANNOT = "the file or the socket cannot be used with os.sendfile()"


class FileLoop(LoopBase):
    """The part of the loop that sends files."""

    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        """What loop.sendfile() tries first. Raises SendfileNotAvailableError if it cannot be done.

        Cancelling leaves the file's position after what was sent. Other writes are refused meanwhile.
        """
        if not isinstance(transp, SocketTransport):
            sent: int = await super()._sendfile_native(transp, file, offset, count)
            return sent
        try:
            file_fd = file.fileno()
            size = os.fstat(file_fd).st_size
        except (AttributeError, OSError) as error:  # io.UnsupportedOperation is an OSError
            raise asyncio.SendfileNotAvailableError("not a regular file") from error
        if not hasattr(os, "sendfile"):
            raise asyncio.SendfileNotAvailableError("this system has no os.sendfile()")
        left = max(size - offset, 0) if count is None else count
        transp._hold_writes(True)
        total = 0
        seek = _ALWAYS_SEEKS
        try:
            await self._until_writable(transp)
            while left > 0:
                socket_fd = transp._sending_fd()
                try:
                    sent = os.sendfile(socket_fd, file_fd, offset + total, left)
                except (BlockingIOError, InterruptedError):
                    await self._until_writable(transp)
                    continue
                except OSError as error:
                    if total == 0 and not isinstance(error, ConnectionError):
                        seek = False
                        raise asyncio.SendfileNotAvailableError(_CANNOT) from error
                    raise
                if sent == 0:
                    break
                total += sent
                left -= sent
                if left > 0:
                    await self._until_writable(transp)
        finally:
            transp._hold_writes(False)
            if seek or total > 0:
                os.lseek(file_fd, offset + total, os.SEEK_SET)
        return total

    async def _until_writable(self, transp: SocketTransport) -> None:
        waiter = self.create_future()
        transp._when_writable(waiter)
        await waiter
