"""How much a transport keeps for a peer that reads slowly.

A protocol writes until its transport tells it to pause, as one that minds flow control does, and the peer reads only
while it is paused. The figure is by how many writes the buffer was above the high-water mark at most: a transport that
says so in time is never above it by more than the one write that has passed it.
"""

from __future__ import annotations

import asyncio
import socket
from time import perf_counter
from typing import cast

from tideloop.lab.bodies import WrongResult
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params
from tideloop.lab.serving import HOST

ROOM = 1 << 16
PATTERN = bytes(range(256))


def measure(kit: Kit, params: Params) -> dict[str, float]:
    size = params["size"]
    if size % len(PATTERN):
        raise WrongResult(f"size is {size}; expected a multiple of {len(PATTERN)}")
    start = perf_counter()
    writer = kit.run(lambda: _serve(size, params["pauses"]))
    return {
        "over_high_water_writes": max(0, writer.most - writer.high) / size,
        "pauses": writer.pauses,
        "duration_s": perf_counter() - start,
    }


class Writer(asyncio.Protocol):
    """Writes pieces as long as it may."""

    def __init__(self, size: int) -> None:
        self.piece = PATTERN * (size // len(PATTERN))
        # It has begun to write with the connection.
        self.paused = False
        self.pauses = 0
        self.high = 0
        self.most = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every loop's transport is registered as an asyncio.Transport.
        self.transport = cast(asyncio.Transport, transport)
        self.high = self.transport.get_write_buffer_limits()[1]
        self.write()

    def write(self) -> None:
        while not self.paused:
            self.transport.write(self.piece)
        self.look()

    def look(self) -> None:
        self.most = max(self.most, self.transport.get_write_buffer_size())

    def pause_writing(self) -> None:
        self.paused = True
        self.pauses += 1
        self.look()

    def resume_writing(self) -> None:
        self.paused = False
        asyncio.get_running_loop().call_soon(self.write)

    def connection_lost(self, exc: Exception | None) -> None:
        self.paused = True


async def _serve(size: int, pauses: int) -> Writer:
    loop = asyncio.get_running_loop()
    writer = Writer(size)
    server = await loop.create_server(lambda: writer, HOST, 0)
    whole = PATTERN * (ROOM // len(PATTERN) + 1)
    received = 0
    async with server:
        with socket.socket() as peer:
            # A small window, so that most of what is written is the transport's to keep.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
            peer.setblocking(False)
            await loop.sock_connect(peer, server.sockets[0].getsockname())
            while writer.pauses < pauses:
                if not writer.paused:
                    await asyncio.sleep(0)
                    continue
                data = await loop.sock_recv(peer, ROOM)
                begin = received % len(PATTERN)
                if not data or data != whole[begin : begin + len(data)]:
                    raise WrongResult(f"other bytes than the ones written, behind {received:,}")
                received += len(data)
            writer.transport.abort()
    return writer
