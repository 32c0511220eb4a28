"""A resource in pages: fetched one page ahead, each entry looked up, at most eight look-ups at once.

    python examples/paginated_fetch.py
    python examples/paginated_fetch.py --loop asyncio --until 25

The server is a small one in this program, on loopback. `paginate` follows its pages, `amap` looks entries up in the
order of the pages, and leaving the loop early (`--until`) closes all of it: no page is fetched that nobody reads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from typing import Any

import tideloop

PAGES = 12
ENTRIES = 10


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One line with a request, one line of JSON back: ``page 3`` or ``entry 31``."""
    with contextlib.suppress(ConnectionError), contextlib.closing(writer):  # a client may leave in the middle
        while line := await reader.readline():
            what, number = line.split()
            value: Any
            if what == b"page":
                first = (int(number) - 1) * ENTRIES
                value = list(range(first, first + ENTRIES)) if int(number) <= PAGES else []
            else:
                value = {"entry": int(number), "square": int(number) ** 2}
            writer.write(json.dumps(value).encode() + b"\n")
            await writer.drain()


class Client:
    """Asks the server, over a connection per question; counts the questions."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.pages = 0

    async def page(self, number: int) -> list[int]:
        self.pages += 1
        found: list[int] = await self._ask(f"page {number}")
        return found

    async def entry(self, number: int) -> dict[str, int]:
        found: dict[str, int] = await self._ask(f"entry {number}")
        return found

    async def _ask(self, question: str) -> Any:
        with tideloop.fail_after(10, name=question):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(question.encode() + b"\n")
                return json.loads(await reader.readline())
            finally:
                writer.close()
                with tideloop.shield(), contextlib.suppress(ConnectionError):
                    await writer.wait_closed()


async def main(until: int | None) -> tuple[int, int, int]:
    """How many entries were read, the sum of their squares, and how many pages were asked for."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        client = Client(server.sockets[0].getsockname()[1])
        count = total = 0
        entries = tideloop.paginate(client.page, ahead=1).amap(client.entry, limit=8, ordered=True)
        async with entries:
            async for entry in entries:
                assert entry["entry"] == count
                count += 1
                total += entry["square"]
                if count == until:
                    break
        return count, total, client.pages


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=("asyncio", "tideloop"), default="tideloop")
    parser.add_argument("--until", type=int, metavar="N", help="stop after N entries")
    given = parser.parse_args()
    run = tideloop.run if given.loop == "tideloop" else asyncio.run
    count, total, pages = run(main(given.until))
    print(f"{count} entries, the sum of their squares is {total}, {pages} pages asked for")
