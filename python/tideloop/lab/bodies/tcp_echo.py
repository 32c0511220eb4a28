"""TCP echo over real loopback sockets, measured as `tideloop.lab.serving` says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from tideloop.lab.backends import Family
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params
from tideloop.lab.serving import HOST, Client, Meter, figures, sessions, until_over


def measure(kit: Kit, params: Params) -> dict[str, float]:
    meter = Meter(params["connections"] * sessions(params))
    client = Client(params, ("--size", str(params["size"])))
    kit.run(lambda: SERVERS[kit.family](meter, client))
    return figures(meter, client)


class EchoProtocol(asyncio.Protocol):
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every loop's transport is registered as an asyncio.Transport.
        self.transport = cast(asyncio.Transport, transport)
        self.meter.opened()

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.meter.closed()


async def _asyncio_server(meter: Meter, client: Client) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: EchoProtocol(meter), HOST, 0, backlog=1024)
    async with server:
        client.start(server.sockets[0].getsockname()[1])
        await until_over(meter, client, asyncio.sleep)


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


SERVERS: dict[Family, Callable[[Meter, Client], Any]] = {
    "asyncio": _asyncio_server,
    "trio": _trio_server,
    "anyio": _anyio_server,
}
