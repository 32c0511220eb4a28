"""Echo over real loopback sockets, measured as `tideloop.lab.serving` says.

asyncio's loops run a Protocol or what the parameter `how` says; with `unix`, over a UNIX socket, with `tls`, encrypted.
The limit is the load client's own server: a selector, a receive and a send.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, cast

from tideloop.lab.backends import Family
from tideloop.lab.bodies import WrongResult
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params
from tideloop.lab.serving import HOST, Client, Meter, figures, require_load_client, sessions, until_over


def measure(kit: Kit, params: Params) -> dict[str, float]:
    meter = Meter(params["connections"] * sessions(params))
    tls = params.get("tls", False)
    client = Client(params, ("--size", str(params["size"]), *(("--tls",) if tls else ())))
    context = _server_context() if tls else None
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket" if params.get("unix") else None
        if kit.family == "native":
            asking = ("--unix", path) if path else ()
            return figures(run_limit(meter, client, asking, path), client)
        if kit.family == "asyncio":
            how = params["how"]
            if how in ASYNCIO_SERVERS:
                kit.run(lambda: ASYNCIO_SERVERS[how](meter, client, context))
            else:
                kit.run(lambda: _asyncio_server(meter, client, PROTOCOLS[how], path, context))
        else:
            kit.run(lambda: SERVERS[kit.family](meter, client))
    return figures(meter.seconds(), client)


def _server_context() -> ssl.SSLContext:
    """TLS 1.3 with a certificate that is made for this run."""
    import trustme

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    trustme.CA().issue_cert("localhost").configure_cert(context)
    return context


def run_limit(meter: Meter, client: Client, asking: Sequence[str] = (), path: str | None = None) -> float:
    """Seconds of CPU that the load client's own server has used.

    asking: the arguments that say what it serves, and where. path: of its UNIX socket, if it has one.
    """
    command = [require_load_client(), "--serve", str(meter.starts_at), *asking]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        where = server.stdout.readline().strip()
        client.start(path or int(where))
        used = server.stdout.readline().strip()
    if not used:
        raise WrongResult(f"the native server ended with code {server.returncode}")
    return float(used)


class Served:
    """Tells the meter of a connection's beginning and end."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every loop's transport is registered as an asyncio.Transport.
        self.transport = cast(asyncio.Transport, transport)
        self.meter.opened()

    def connection_lost(self, exc: Exception | None) -> None:
        self.meter.closed()


class Echo(Served, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(Served, asyncio.BufferedProtocol):
    def __init__(self, meter: Meter) -> None:
        super().__init__(meter)
        self.buffer = memoryview(bytearray(256 * 1024))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        # A copy: the transport may keep what it is given until the socket takes it.
        self.transport.write(bytes(self.buffer[:nbytes]))


PROTOCOLS: dict[str, type[Echo | BufferedEcho]] = {"usual": Echo, "buffered": BufferedEcho}


async def _asyncio_server(
    meter: Meter,
    client: Client,
    protocol: type[Echo | BufferedEcho],
    path: str | None,
    context: ssl.SSLContext | None,
) -> None:
    loop = asyncio.get_running_loop()
    if path is None:
        server = await loop.create_server(lambda: protocol(meter), HOST, 0, backlog=1024, ssl=context)
    else:
        server = await loop.create_unix_server(lambda: protocol(meter), path, backlog=1024)
    async with server:
        client.start(path or server.sockets[0].getsockname()[1])
        await until_over(meter, client, asyncio.sleep)


async def _streams_server(meter: Meter, client: Client, context: ssl.SSLContext | None) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        meter.opened()
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        meter.closed()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(echo, HOST, 0, backlog=1024, ssl=context)
    async with server:
        client.start(server.sockets[0].getsockname()[1])
        await until_over(meter, client, asyncio.sleep)


async def _sock_server(meter: Meter, client: Client, _: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()

    async def echo(sock: socket.socket) -> None:
        meter.opened()
        with sock:
            while data := await loop.sock_recv(sock, 1 << 16):
                await loop.sock_sendall(sock, data)
        meter.closed()

    async def serve(listener: socket.socket) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                sock, _ = await loop.sock_accept(listener)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                group.create_task(echo(sock))

    with socket.create_server((HOST, 0), backlog=1024) as listener:
        listener.setblocking(False)
        client.start(listener.getsockname()[1])
        serving = loop.create_task(serve(listener))
        await until_over(meter, client, asyncio.sleep)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def _trio_server(meter: Meter, client: Client) -> None:
    import trio

    async def echo(stream: trio.SocketStream) -> None:
        meter.opened()
        while data := await stream.receive_some():
            await stream.send_all(data)
        meter.closed()

    listeners = await trio.open_tcp_listeners(0, host=HOST, backlog=1024)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        client.start(listeners[0].socket.getsockname()[1])
        await until_over(meter, client, trio.sleep)
        nursery.cancel_scope.cancel()


async def _anyio_server(meter: Meter, client: Client) -> None:
    import anyio
    from anyio.abc import SocketAttribute, SocketStream

    async def echo(stream: SocketStream) -> None:
        meter.opened()
        async with stream:
            async for data in stream:
                await stream.send(data)
        meter.closed()

    listener = await anyio.create_tcp_listener(local_host=HOST, backlog=1024)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, echo)
        client.start(listener.extra(SocketAttribute.local_port))
        await until_over(meter, client, anyio.sleep)
        group.cancel_scope.cancel()


# Other ways to write it on asyncio's loops.
ASYNCIO_SERVERS: dict[str, Callable[[Meter, Client, ssl.SSLContext | None], Any]] = {
    "streams": _streams_server,
    "sock": _sock_server,
}

SERVERS: dict[Family, Callable[[Meter, Client], Any]] = {
    "trio": _trio_server,
    "anyio": _anyio_server,
}
