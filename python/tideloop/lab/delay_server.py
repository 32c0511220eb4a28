"""A small HTTP/1.1 server that answers every GET after a delay: ``python -m tideloop.lab.delay_server SECONDS``.

It runs on stock asyncio, so that the client is all that differs between two runs. It prints its port, and ends when
its standard input closes, hence with its parent.
"""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import parse_qs, urlsplit


async def serve(delay: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                target = head.split(b" ", 2)[1].decode("ascii", "replace")
                number = parse_qs(urlsplit(target).query).get("id", ["?"])[0]
                await asyncio.sleep(delay)
                body = f"answer {number}".encode()
                fields = f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
                writer.write(f"HTTP/1.1 200 OK\r\n{fields}\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is done with this connection
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
