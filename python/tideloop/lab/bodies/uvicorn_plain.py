"""uvicorn with an application of two lines: how long the slowest requests of a real server take.

Figures are the client's, of a closed loop, and so of a saturated server. CPU time is that of the whole run over the
requests that the application has answered, the warm-up's included: the server does not know them apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from time import process_time
from typing import Any

from tideloop.lab.bodies import WrongResult
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params
from tideloop.lab.serving import HOST, Client, figures, until_ended

Message = MutableMapping[str, Any]

BODY = b"Hello, World!"
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", str(len(BODY)).encode())],
}


def measure(kit: Kit, params: Params) -> dict[str, float]:
    client = Client(params, ("--http", "1"))
    cpu, answered = kit.run(lambda: _serve(client))
    measured = figures(cpu, client)
    if answered < measured["requests"]:
        raise WrongResult(f"the server answered {answered} requests, the client saw {measured['requests']:.0f} answers")
    return measured | {"server_cpu_us_per_request": cpu / answered * 1e6}


async def _serve(client: Client) -> tuple[float, int]:
    """Seconds of CPU time, and requests answered."""
    import uvicorn

    answered = 0

    async def application(
        scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        nonlocal answered
        await send(START)
        await send({"type": "http.response.body", "body": BODY})
        answered += 1

    config = uvicorn.Config(
        application,
        host=HOST,
        port=0,
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        # It changes from second to second, and every byte of an answer is compared with the first one's.
        date_header=False,
    )
    server = uvicorn.Server(config)
    serving = asyncio.get_running_loop().create_task(server.serve())
    while not server.started and not serving.done():  # noqa: ASYNC110  there is nothing else to wait for
        await asyncio.sleep(0.01)
    client.start(server.servers[0].sockets[0].getsockname()[1])
    began = process_time()
    await until_ended(client, asyncio.sleep)
    cpu = process_time() - began
    server.should_exit = True
    await serving
    return cpu, answered
