"""What parity tests talk with: recording protocols, connected pairs, child interpreters."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

LOOPBACK = "127.0.0.1"


class Recorder(asyncio.Protocol):
    """Writes down, in order, what happens to it.

    `events` holds names ("made", "data", "eof", "pause", "resume", "lost"); `data` every byte received.
    `made`, `ended` (eof) and `lost` are futures; `lost` is done with connection_lost's argument.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, keep_open: bool = False) -> None:
        self.loop = loop
        self.keep_open = keep_open
        self.events: list[str] = []
        self.data = bytearray()
        self.transport: asyncio.Transport | None = None
        self.made = loop.create_future()
        self.ended = loop.create_future()
        self.lost = loop.create_future()
        self._wanted = 0
        self._arrived: asyncio.Future | None = None

    def connection_made(self, transport):
        self.transport = transport
        self.events.append("made")
        self.made.set_result(transport)

    def data_received(self, data):
        self.events.append("data")
        self.data += data
        if self._arrived and not self._arrived.done() and len(self.data) >= self._wanted:
            self._arrived.set_result(None)

    def eof_received(self):
        self.events.append("eof")
        self.ended.set_result(None)
        return self.keep_open

    def pause_writing(self):
        self.events.append("pause")

    def resume_writing(self):
        self.events.append("resume")

    def connection_lost(self, exc):
        self.events.append("lost")
        self.lost.set_result(exc)

    async def received(self, count: int) -> bytes:
        """Wait until `count` bytes have come in all, and return what has."""
        if len(self.data) < count:
            self._wanted = count
            self._arrived = self.loop.create_future()
            await self._arrived
        return bytes(self.data)


class Pair(NamedTuple):
    """Two protocols, connected to each other."""

    client: Recorder
    server: Recorder


@contextlib.asynccontextmanager
async def connected(
    loop: asyncio.AbstractEventLoop,
    *,
    client: Callable[[], asyncio.BaseProtocol] | None = None,
    server: Callable[[], asyncio.BaseProtocol] | None = None,
    unix: str | None = None,
) -> AsyncIterator[Pair]:
    """A client and a server protocol over TCP (or the UNIX socket at path `unix`); closed at the end."""
    accepted = loop.create_future()

    def accept():
        protocol = (server or (lambda: Recorder(loop)))()
        accepted.set_result(protocol)
        return protocol

    client = client or (lambda: Recorder(loop))
    if unix:
        listener = await loop.create_unix_server(accept, unix)
    else:
        listener = await loop.create_server(accept, LOOPBACK, 0)
    made = []
    try:
        if unix:
            _, protocol = await loop.create_unix_connection(client, unix)
        else:
            _, protocol = await loop.create_connection(client, *listener.sockets[0].getsockname())
        made.append(protocol)
        made.append(await accepted)
        await made[1].made
        yield Pair(*made)
    finally:
        listener.close()
        await dropped(*made)
        await listener.wait_closed()


@contextlib.asynccontextmanager
async def facing_socket(
    loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.BaseProtocol] | None = None
) -> AsyncIterator[tuple[Recorder, socket.socket]]:
    """A protocol whose peer is a plain non-blocking TCP socket."""
    with listening_socket() as listener:
        listener.setblocking(True)
        _, mine = await loop.create_connection(protocol or (lambda: Recorder(loop)), *listener.getsockname())
        peer, _ = listener.accept()
    peer.setblocking(False)
    with peer:
        yield mine, peer
        await dropped(mine)


async def dropped(*protocols: Recorder) -> None:
    """Abort the connections that are still there, and wait for their ends."""
    for protocol in protocols:
        if not protocol.lost.done():
            protocol.transport.abort()
    for protocol in protocols:
        await protocol.lost


def listening_socket() -> socket.socket:
    """A listening, non-blocking TCP socket on a free port of the loopback address."""
    listener = socket.create_server((LOOPBACK, 0))
    listener.setblocking(False)
    return listener


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected non-blocking sockets."""
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    return left, right


async def turns(count: int = 5) -> None:
    """Let the loop make a few turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def settled(loop: asyncio.AbstractEventLoop, rounds: int = 5) -> None:
    """Let the loop poll a few times: what was ready before has been delivered after.

    Turns alone do not say so: a loop that has callbacks to run need not ask the system in each turn.
    """
    left, right = socket_pair()

    def seen(future: asyncio.Future) -> None:
        loop.remove_reader(left)
        left.recv(1)
        future.set_result(None)

    with left, right:
        for _ in range(rounds):
            future = loop.create_future()
            loop.add_reader(left, seen, future)
            right.send(b"x")
            await future


PRELUDE = "import asyncio, importlib, os, signal, sys, threading\nbackend = importlib.import_module(sys.argv[1])\n"


def run_child(backend, source: str, *, timeout: float = 20, **environment: str) -> subprocess.CompletedProcess:
    """Run `source` in an interpreter of its own, where `backend` is the backend's module."""
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + source, backend.name],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment,
        check=False,
    )
