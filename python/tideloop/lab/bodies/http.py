"""HTTP/1.1 with keep-alive, by a protocol of a few lines: what the loop costs a web server, without the server.

The answer is a head and a body, which some servers write as one and most as two. Measured as
`tideloop.lab.serving` says; a request is one GET, also where the client sends several at once.
"""

from __future__ import annotations

import asyncio
from typing import cast

from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params
from tideloop.lab.serving import HOST, Client, Meter, figures, sessions, until_over

BODY = b"Hello, World!" * 10
HEAD = b"HTTP/1.1 200 OK\r\nServer: lab\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(
    BODY
)
END = b"\r\n\r\n"


def measure(kit: Kit, params: Params) -> dict[str, float]:
    # One connection more than those that talk: the client learns the answer from it.
    meter = Meter(params["connections"] * sessions(params) + 1)
    client = Client(params, ("--http", str(params["pipelined"])))
    kit.run(lambda: _serve(meter, client, (HEAD, BODY) if params["writes"] == 2 else (HEAD + BODY,)))
    return figures(meter.seconds(), client, each=params["pipelined"])


class Server(asyncio.Protocol):
    def __init__(self, meter: Meter, pieces: tuple[bytes, ...]) -> None:
        self.meter = meter
        self.pieces = pieces
        self.unfinished = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every loop's transport is registered as an asyncio.Transport.
        self.transport = cast(asyncio.Transport, transport)
        self.meter.opened()

    def data_received(self, data: bytes) -> None:
        *requests, self.unfinished = (self.unfinished + data).split(END)
        for _ in requests:
            for piece in self.pieces:
                self.transport.write(piece)

    def connection_lost(self, exc: Exception | None) -> None:
        self.meter.closed()


async def _serve(meter: Meter, client: Client, pieces: tuple[bytes, ...]) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Server(meter, pieces), HOST, 0, backlog=1024)
    async with server:
        client.start(server.sockets[0].getsockname()[1])
        await until_over(meter, client, asyncio.sleep)
