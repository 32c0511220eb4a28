"""What of ``toolkit_rows.py`` needs a Redis server: one of its own, begun when it is first asked for.

It is gone at the end.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import importlib
import itertools
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import tideloop

_names = (f"bench {number}" for number in itertools.count())


@functools.cache
def server() -> str:
    """The path of its socket. Raises ImportError if there is no server, or no package for it."""
    importlib.import_module("redis")
    program = shutil.which("redis-server")
    if program is None:
        raise ImportError("no redis-server on the PATH")
    folder = tempfile.TemporaryDirectory(prefix="tide-")
    path = f"{folder.name}/redis.sock"
    command = [program, "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder.name]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end() -> None:
        running.terminate()
        running.wait()
        folder.cleanup()

    atexit.register(end)
    for _ in range(500):
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                return path
        time.sleep(0.01)
    raise ImportError("redis-server does not answer")


def store(batch: int) -> tideloop.RedisStore:
    return tideloop.RedisStore(f"unix://{server()}", batch=batch)


def limiter(capacity: int, batch: int) -> Callable[[], Any]:
    return lambda: tideloop.Limiter(capacity, store=store(batch), name=next(_names))


def rate_limiter(batch: int) -> Callable[[], Any]:
    return lambda: tideloop.RateLimiter(tideloop.rate(1e6, burst=1_000_000), store=store(batch), name=next(_names))


class Asking:
    """What is written by hand mostly: a counter at the server, asked for every permit. A dead process keeps its own."""

    TAKE = "if redis.call('INCR', KEYS[1]) <= tonumber(ARGV[1]) then return 1 end redis.call('DECR', KEYS[1]) return 0"

    def __init__(self, capacity: int) -> None:
        asynchronous = importlib.import_module("redis.asyncio")
        self.client = asynchronous.Redis(unix_socket_path=server())
        self.take = self.client.register_script(self.TAKE)
        self.capacity = capacity
        self.name = next(_names)

    async def __aenter__(self) -> None:
        while not await self.take(keys=[self.name], args=[self.capacity]):  # noqa: ASYNC110 - it is the usual way
            await asyncio.sleep(0.01)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.client.decr(self.name)

    async def aclose(self) -> None:
        await self.client.aclose()


def asking(capacity: int) -> Callable[[], Any]:
    return lambda: Asking(capacity)
