"""One-way bulk transfer: what a loop adds to the copying of large data.

The client (``tideloop-load --times``) sends a block of ``size`` bytes and gets it back ``times`` times, one ``write()``
for each, and begins again. The server writes while its transport lets it and goes on when it is resumed, as a program
that sends a file does.
"""

from __future__ import annotations

import asyncio
from typing import cast

from tideloop.lab.bodies.tcp_echo import run_limit
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params
from tideloop.lab.serving import HOST, Client, Meter, figures, sessions, until_over

MIB = 1 << 20


def measure(kit: Kit, params: Params) -> dict[str, float]:
    meter = Meter(params["connections"] * sessions(params))
    asking = ("--size", str(params["size"]), "--times", str(params["times"]))
    client = Client(params, asking)
    if kit.family == "native":
        cpu = run_limit(meter, client, asking)
    else:
        kit.run(lambda: _serve(meter, client, params["size"], params["times"]))
        cpu = meter.seconds()
    measured = figures(cpu, client)
    mib = measured["requests"] * params["size"] * params["times"] / MIB
    return measured | {"server_cpu_us_per_mib": cpu / mib * 1e6, "mib_per_sec": mib / measured["duration_s"]}


class Repeating(asyncio.Protocol):
    """Sends each block that it gets back `times` times."""

    def __init__(self, meter: Meter, size: int, times: int) -> None:
        self.meter = meter
        self.size = size
        self.times = times
        self.received = bytearray()
        self.block = b""
        self.left = 0
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every loop's transport is registered as an asyncio.Transport.
        self.transport = cast(asyncio.Transport, transport)
        self.meter.opened()

    def data_received(self, data: bytes) -> None:
        self.received += data
        if len(self.received) == self.size:
            self.block = bytes(self.received)
            self.received.clear()
            self.left = self.times
            self.send()

    def send(self) -> None:
        while self.left and not self.paused:
            self.left -= 1
            self.transport.write(self.block)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.meter.closed()


async def _serve(meter: Meter, client: Client, size: int, times: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Repeating(meter, size, times), HOST, 0, backlog=1024)
    async with server:
        client.start(server.sockets[0].getsockname()[1])
        await until_over(meter, client, asyncio.sleep)
