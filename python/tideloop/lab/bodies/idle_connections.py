"""What a connection that does nothing costs in memory: many are made, answered once and kept.

The figure is what the server's resident memory grows by, over the number of connections, from before the first one
until each has been answered once. A connection that was made, answered and closed before that has brought in what is
needed once. What the system holds for a socket is not the process's memory and not counted; it is the same for all.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import cast

from tideloop.lab.bodies import WrongResult
from tideloop.lab.bodies.tcp_echo import Echo
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params
from tideloop.lab.serving import HOST, Client, Meter, until_ended

# Descriptors that a process needs beside those of its connections.
OTHERS = 64


def measure(kit: Kit, params: Params) -> dict[str, float]:
    connections = params["connections"]
    _allow(connections + OTHERS)
    # A request beyond the one that proves each connection: the client makes no measurement without.
    client = Client(params, ("--size", "1"))
    grown = kit.run(lambda: _serve(client, connections))
    client.result()
    return {"connections": connections, "bytes_per_connection": grown / connections}


def resident() -> int:
    """Bytes of memory that this process holds at present; Linux only."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _allow(descriptors: int) -> None:
    """Raises what this process and its children may open to the most that the system lets it."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < descriptors:
        raise WrongResult(f"{descriptors} descriptors are needed and the system allows {hard}; raise `ulimit -Hn`")
    if soft != resource.RLIM_INFINITY and soft < descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))


class Counted(Echo):
    """Notes the resident memory when as many requests were answered as there are to be connections."""

    answered = 0
    until = 0
    seen: int | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        Counted.answered += 1
        if Counted.answered == Counted.until:
            Counted.seen = resident()


async def _serve(client: Client, connections: int) -> int:
    """Bytes that the resident memory has grown by."""
    loop = asyncio.get_running_loop()
    meter = Meter(0)
    server = await loop.create_server(lambda: Counted(meter), HOST, 0, backlog=1024)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await _call_once(port)
        Counted.answered, Counted.until, Counted.seen = 0, connections, None
        before = resident()
        client.start(port)
        await until_ended(client, asyncio.sleep)
    if Counted.seen is None:
        raise WrongResult(f"{Counted.answered} of {connections} connections were answered")
    return Counted.seen - before


class Caller(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every loop's transport is registered as an asyncio.Transport.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(b"x")

    def data_received(self, data: bytes) -> None:
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


async def _call_once(port: int) -> None:
    _, caller = await asyncio.get_running_loop().create_connection(Caller, HOST, port)
    await caller.lost
