"""Echo of datagrams over a real loopback socket, measured as `tideloop.lab.serving` says.

One endpoint serves all of the client's sockets. The limit is the load client's own server: a selector, a receive and
a send.
"""

from __future__ import annotations

import asyncio
from typing import cast

from tideloop.lab.bodies.tcp_echo import run_limit
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params
from tideloop.lab.serving import HOST, MARK, Client, Meter, figures, until_over


def measure(kit: Kit, params: Params) -> dict[str, float]:
    meter = Meter(1)
    client = Client(params, ("--udp", "--size", str(params["size"])))
    if kit.family == "native":
        return figures(run_limit(meter, client, ("--udp",)), client)
    kit.run(lambda: _serve(meter, client))
    return figures(meter.seconds(), client)


class Echo(asyncio.DatagramProtocol):
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every loop's transport is registered as an asyncio.DatagramTransport.
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)
        if len(data) == MARK:
            self.meter.marked()

    def error_received(self, exc: Exception) -> None:
        raise exc


async def _serve(meter: Meter, client: Client) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Echo(meter), local_addr=(HOST, 0))
    client.start(transport.get_extra_info("sockname")[1])
    await until_over(meter, client, asyncio.sleep)
    transport.close()
