"""TCP echo over real loopback sockets: this process is the server, ``tideloop-load`` is the client.

The figure that ranks is the server's CPU time for each request: it says what a machine can serve, and the client's
speed does not enter it. The client promises (crates/load/src/drive.rs) that all its connections are made and answered
once before the first counted request, and that the first connection closes after the last answer; so the window begins
when the last connection is made and ends when the first one is lost. Its warm-up session connects and disconnects
before that: glibc's allocator gets faster for good when the first large buffer is freed, and a server that has never
lost a client measures that instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import process_time
from typing import Any, cast

from tideloop.lab.backends import Family
from tideloop.lab.bodies import WrongResult
from tideloop.lab.kit import Kit
from tideloop.lab.load import find_load_client
from tideloop.lab.scenarios import Params

HOST = "127.0.0.1"
# How often the server looks whether the client has ended, in seconds: too seldom to show in the figures.
LOOK_EVERY = 0.05
LOOKS_AFTER = 40


@dataclass
class Meter:
    """The server's CPU time between the last connection made and the first one lost."""

    starts_at: int
    made: int = 0
    began: float | None = None
    ended: float | None = None

    def opened(self) -> None:
        self.made += 1
        if self.made == self.starts_at:
            self.began = process_time()

    def closed(self) -> None:
        if self.began is not None and self.ended is None:
            self.ended = process_time()

    def seconds(self) -> float:
        if self.began is None or self.ended is None:
            lost = "none" if self.ended is None else "some"
            raise WrongResult(f"the server saw {self.made} of {self.starts_at} connections made and {lost} lost")
        return self.ended - self.began


class Client:
    """The load client as a child process."""

    def __init__(self, params: Params) -> None:
        binary = find_load_client()
        if binary is None:
            raise WrongResult("tideloop-load is not built; run `make build`")
        self._command = [
            *(binary, "--json", "--host", HOST),
            *("--connections", str(params["connections"]), "--size", str(params["size"])),
            *("--duration", str(params["seconds"]), "--warmup", str(params["warmup_s"])),
        ]
        self._process: subprocess.Popen[str] | None = None

    def start(self, port: int) -> None:
        command = [*self._command, "--port", str(port)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def result(self) -> dict[str, Any]:
        assert self._process is not None
        out, err = self._process.communicate()
        if self._process.returncode:
            lines = err.strip().splitlines() or [f"tideloop-load ended with code {self._process.returncode}"]
            raise WrongResult(lines[-1])
        report: dict[str, Any] = json.loads(out)
        return report


def measure(kit: Kit, params: Params) -> dict[str, float]:
    sessions = 2 if params["warmup_s"] else 1
    meter = Meter(params["connections"] * sessions)
    client = Client(params)
    server = SERVERS[kit.family] if params["how"] == "usual" else ASYNCIO_SERVERS[params["how"]]
    kit.run(lambda: server(meter, client))
    report = client.result()
    requests = report["requests"]
    if not requests:
        raise WrongResult("the server answered no request")
    cpu = meter.seconds()
    return {
        "requests": requests,
        "duration_s": report["seconds"],
        "server_cpu_s": cpu,
        "server_cpu_us_per_request": cpu / requests * 1e6,
        "requests_per_sec": report["requests_per_sec"],
        "latency_p50_us": report["latency_p50_us"],
        "latency_p99_us": report["latency_p99_us"],
        "latency_p99_9_us": report["latency_p99_9_us"],
        "latency_max_us": report["latency_max_us"],
    }


async def _until_over(meter: Meter, client: Client, sleep: Callable[[float], Awaitable[None]]) -> None:
    """Until the client has ended and the server has noticed that its connections are closed."""
    while client.running():
        await sleep(LOOK_EVERY)
    for _ in range(LOOKS_AFTER):
        if meter.ended is not None:
            return
        await sleep(LOOK_EVERY)


class EchoProtocol(asyncio.Protocol):
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every loop's transport is registered as an asyncio.Transport.
        self.transport = cast(asyncio.Transport, transport)
        self.meter.opened()

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.meter.closed()


async def _asyncio_server(meter: Meter, client: Client) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: EchoProtocol(meter), HOST, 0, backlog=1024)
    async with server:
        client.start(server.sockets[0].getsockname()[1])
        await _until_over(meter, client, asyncio.sleep)


async def _streams_server(meter: Meter, client: Client) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        meter.opened()
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        meter.closed()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(echo, HOST, 0, backlog=1024)
    async with server:
        client.start(server.sockets[0].getsockname()[1])
        await _until_over(meter, client, asyncio.sleep)


async def _sock_server(meter: Meter, client: Client) -> None:
    loop = asyncio.get_running_loop()

    async def echo(sock: socket.socket) -> None:
        meter.opened()
        with sock:
            while data := await loop.sock_recv(sock, 1 << 16):
                await loop.sock_sendall(sock, data)
        meter.closed()

    async def serve(listener: socket.socket) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                sock, _ = await loop.sock_accept(listener)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                group.create_task(echo(sock))

    with socket.create_server((HOST, 0), backlog=1024) as listener:
        listener.setblocking(False)
        client.start(listener.getsockname()[1])
        serving = loop.create_task(serve(listener))
        await _until_over(meter, client, asyncio.sleep)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def _trio_server(meter: Meter, client: Client) -> None:
    import trio

    async def echo(stream: trio.SocketStream) -> None:
        meter.opened()
        while data := await stream.receive_some():
            await stream.send_all(data)
        meter.closed()

    listeners = await trio.open_tcp_listeners(0, host=HOST, backlog=1024)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        client.start(listeners[0].socket.getsockname()[1])
        await _until_over(meter, client, trio.sleep)
        nursery.cancel_scope.cancel()


async def _anyio_server(meter: Meter, client: Client) -> None:
    import anyio
    from anyio.abc import SocketAttribute, SocketStream

    async def echo(stream: SocketStream) -> None:
        meter.opened()
        async with stream:
            async for data in stream:
                await stream.send(data)
        meter.closed()

    listener = await anyio.create_tcp_listener(local_host=HOST, backlog=1024)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, echo)
        client.start(listener.extra(SocketAttribute.local_port))
        await _until_over(meter, client, anyio.sleep)
        group.cancel_scope.cancel()


# Other ways to write it on asyncio's loops.
ASYNCIO_SERVERS: dict[str, Callable[[Meter, Client], Any]] = {"streams": _streams_server, "sock": _sock_server}

SERVERS: dict[Family, Callable[[Meter, Client], Any]] = {
    "asyncio": _asyncio_server,
    "trio": _trio_server,
    "anyio": _anyio_server,
}
