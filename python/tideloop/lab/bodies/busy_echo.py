"""How long a request waits for a loop that is never idle.

The server echoes single bytes while a ring of callbacks, or of tasks that ``sleep(0)``, turns on its loop: there is
work in every turn. The client (``tideloop-load --pause``) waits a while between two requests. A loop that polls in
every turn answers within a turn or two; one that skips polls while it has work lets requests wait.
"""

from __future__ import annotations

import asyncio

from tideloop.lab.bodies.tcp_echo import Echo
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params
from tideloop.lab.serving import HOST, Client, Meter, figures, sessions, until_over


def measure(kit: Kit, params: Params) -> dict[str, float]:
    meter = Meter(params["connections"] * sessions(params))
    client = Client(params, ("--size", "1", "--pause", str(params["pause_s"])))
    kit.run(lambda: _serve(meter, client, params["how"], params["ring"]))
    return figures(meter.seconds(), client)


async def _serve(meter: Meter, client: Client, how: str, ring: int) -> None:
    loop = asyncio.get_running_loop()
    over = False

    def turn() -> None:
        if not over:
            loop.call_soon(turn)

    async def turns() -> None:
        while not over:  # noqa: ASYNC110  being busy is the point
            await asyncio.sleep(0)

    server = await loop.create_server(lambda: Echo(meter), HOST, 0)
    async with server, asyncio.TaskGroup() as group:
        for _ in range(ring):
            if how == "callbacks":
                loop.call_soon(turn)
            else:
                group.create_task(turns())
        client.start(server.sockets[0].getsockname()[1])
        await until_over(meter, client, asyncio.sleep)
        over = True
