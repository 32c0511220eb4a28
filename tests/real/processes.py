"""What the children of test_multiprocessing do; importable by a spawned interpreter."""

from __future__ import annotations

import asyncio
import os

import tideloop


async def _echo_once(number: int) -> tuple[int, bytes, int]:
    async def answer(reader, writer):
        writer.write((await reader.read())[::-1])
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"child %d" % number)
        writer.write_eof()
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
    threaded = await asyncio.to_thread(sum, range(number))
    await asyncio.sleep(0.001)
    return number, received, threaded


def work(number: int) -> tuple[int, bytes, int]:
    """A loop of its own, with sockets, a thread and a timer."""
    return tideloop.run(_echo_once(number))


def work_and_send(number: int, connection) -> None:
    connection.send(work(number))
    connection.close()


def pid() -> int:
    return os.getpid()
