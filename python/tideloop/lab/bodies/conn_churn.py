"""Connections that live for one byte: what making a connection and ending it costs a server.

The client (``tideloop-load --reconnect``) sends a byte, gets it back, hangs up and calls again. The window is the whole
time in which it runs; a request is a connection.
"""

from __future__ import annotations

import asyncio
from time import process_time

from tideloop.lab.bodies import WrongResult
from tideloop.lab.bodies.tcp_echo import Echo
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params
from tideloop.lab.serving import HOST, Client, Meter, figures, until_ended


def measure(kit: Kit, params: Params) -> dict[str, float]:
    client = Client(params, ("--size", "1", "--reconnect"))
    meter = Meter(0)
    cpu = kit.run(lambda: _serve(meter, client))
    measured = figures(cpu, client)
    # Those of the warm-up, too: the server does not know them apart.
    if meter.made < measured["requests"]:
        raise WrongResult(f"the server saw {meter.made} connections, the client {measured['requests']:.0f}")
    return measured | {"server_cpu_us_per_request": cpu / meter.made * 1e6}


async def _serve(meter: Meter, client: Client) -> float:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Echo(meter), HOST, 0, backlog=1024)
    async with server:
        client.start(server.sockets[0].getsockname()[1])
        began = process_time()
        await until_ended(client, asyncio.sleep)
        return process_time() - began
