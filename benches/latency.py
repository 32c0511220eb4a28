"""How long a request waits for a loop that is never idle.

    python benches/latency.py [--backends asyncio,uvloop,...] [--requests 1000] [--rounds 5] [--json]

A server process echoes single bytes on loopback TCP while a ring of callbacks (``callbacks``) or of tasks that
``sleep(0)`` (``tasks``) spins on its loop: there is work in every turn. A client in this process sends a byte,
waits for it, and waits half a millisecond before the next one. A loop that polls in every turn answers within a
turn or two; one that skips polls while it has work lets requests wait. The table shows the median and the 99th
percentile of the round trips in microseconds over all rounds, and in brackets the least and the greatest 99th
percentile of a round. Each round has fresh processes; backends are interleaved A B C ... C B A. The ring turns
on one processor and the client needs another, so on a single one the figures mean little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from micro import BACKENDS, Missing, load, versions

RINGS = {"callbacks": 10, "tasks": 10}
"""Kinds of rings, and how many turn in each."""

PAUSE = 0.0005
WARM_UP = 100


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def serve(ring: str) -> None:
    """Echo until the standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = loop.run_in_executor(None, sys.stdin.read)

    def spin() -> None:
        if not ended.done():
            loop.call_soon(spin)

    async def spinner() -> None:
        while not ended.done():  # noqa: ASYNC110  being busy is the point
            await asyncio.sleep(0)

    tasks = []
    for _ in range(RINGS[ring]):
        if ring == "callbacks":
            loop.call_soon(spin)
        else:
            tasks.append(loop.create_task(spinner()))
    await ended
    server.close()


def round_trips(backend: str, ring: str, requests: int) -> list[float]:
    """Seconds that each request of one round took."""
    command = [sys.executable, __file__, "--backends", backend, "--serve", ring]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        port = server.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"{backend}: the server ended with exit code {server.wait()}")
        found = []
        with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(WARM_UP + requests):
                started = time.perf_counter()
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                found.append(time.perf_counter() - started)
                time.sleep(PAUSE)
        server.stdin.close()
    return found[WARM_UP:]


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def measure(backends: list[str], requests: int, rounds: int) -> dict[str, dict[str, list[list[float]]]]:
    """Microseconds by ring, backend and round."""
    found: dict[str, dict[str, list[list[float]]]] = {ring: {name: [] for name in backends} for ring in RINGS}
    order = list(backends)
    for number in range(rounds):
        for ring in RINGS:
            for name in order:
                found[ring][name].append([seconds * 1e6 for seconds in round_trips(name, ring, requests)])
        order.reverse()
        print(f"\r{number + 1}/{rounds} rounds", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def show(found: dict[str, dict[str, list[list[float]]]]) -> None:
    print(f"{'round trip in µs':<22}" + "".join(f"{ring + ', p50':>16}{'p99':>10}{'of rounds':>18}" for ring in found))
    for name in next(iter(found.values())):
        cells = []
        for row in found.values():
            together = [value for values in row[name] for value in values]
            worst = [percentile(values, 0.99) for values in row[name]]
            span = f"({min(worst):.0f} to {max(worst):.0f})"
            cells.append(f"{statistics.median(together):>16.0f}{percentile(together, 0.99):>10.0f}{span:>18}")
        print(f"{name:<22}" + "".join(cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="all round trips, in microseconds")
    parser.add_argument("--serve", choices=RINGS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.backends.split(",")
    if unknown := [name for name in names if name not in BACKENDS]:
        parser.error(f"unknown backends: {', '.join(unknown)}; there are {', '.join(BACKENDS)}")
    if options.serve:
        backend = load(names[0])
        factory: Callable[[], asyncio.AbstractEventLoop] = backend.new_event_loop
        with backend.in_force(), asyncio.Runner(loop_factory=factory) as runner:
            runner.run(serve(options.serve))
        return 0
    backends: dict[str, Any] = {}
    for name in names:
        try:
            backends[name] = load(name)
        except Missing as why:
            print(f"{name}: left out ({why})", file=sys.stderr)
    found = measure(list(backends), options.requests, options.rounds)
    if options.json:
        json.dump({"versions": versions(backends), "microseconds": found}, sys.stdout)
    else:
        print(f"{versions(backends)} on {platform.machine()}")
        show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
