"""What observing costs: the same work on loops that are observed more and less, in turns, in one process.

A difference of one percent is far below what two processes differ by (memory layout, a neighbour on the machine), so
the levels are compared within a process: each has a loop that lives as long as the comparison, and round for round each
does the same work for a few milliseconds, in one order and then in the opposite one. A figure is the median over the
rounds of the CPU time of a level over that of `off` in that very round. A second loop that is not observed takes part
like a level; what it differs by is the noise.

The time is that of the loop's thread. What other threads have used, which is the watchdog, is a figure of its own.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import socket
from collections.abc import Callable, Coroutine
from statistics import median
from time import perf_counter, process_time, thread_time
from typing import Any, cast

from tideloop.lab.backends import Backend
from tideloop.lab.bodies import WrongResult, expect
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params

# What `EventLoop(observe=)` is given, by the name in the figures. Those that this build does not know are left out.
LEVELS: dict[str, Any] = {"noise": False, "counts": True, "tasks": "tasks", "trace": "trace"}


def measure(kit: Kit, params: Params) -> dict[str, float]:
    work, operations = WORK[params["work"]], params["operations"]
    loops = {"off": _loop(kit.backend, False)}
    for name, observe in LEVELS.items():
        if _knows(kit.backend, observe):
            loops[name] = _loop(kit.backend, observe)
    expect("levels that this build knows", {"noise", "counts"} <= loops.keys(), True)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    gc.disable()
    try:
        for number in range(params["rounds"] + 1):
            order = list(loops.items())
            gc.collect()
            for name, loop in order if number % 2 else reversed(order):
                spent = loop.run_until_complete(work(operations))
                # The first round warms the caches.
                if number:
                    seconds[name].append(spent)
        watchdog = _others(loops["counts"], work, params)
    finally:
        gc.enable()
        for loop in loops.values():
            loop.close()
    figures = {f"{name}_percent": percent(seconds[name], seconds["off"]) for name in loops if name != "off"}
    return figures | {
        "off_ns": median(seconds["off"]) / operations * 1e9,
        "watchdog_percent": watchdog * 100,
    }


def _others(
    loop: asyncio.AbstractEventLoop, work: Callable[[int], Coroutine[Any, Any, float]], params: Params
) -> float:
    """What the other threads use of a core while a loop runs, all rounds in one run: each would wake the watchdog."""

    async def main() -> None:
        for _ in range(params["rounds"]):
            await work(params["operations"])

    started, process, thread = perf_counter(), process_time(), thread_time()
    loop.run_until_complete(main())
    used = process_time() - process - (thread_time() - thread)
    return max(used, 0.0) / (perf_counter() - started)


def percent(level: list[float], off: list[float]) -> float:
    """What a level adds, from seconds of the same rounds."""
    return (median(more / less for more, less in zip(level, off, strict=True)) - 1) * 100


def _loop(backend: Backend, observe: Any) -> asyncio.AbstractEventLoop:
    event_loop: Any = importlib.import_module(backend.module).EventLoop
    return cast(asyncio.AbstractEventLoop, event_loop(observe=observe))


def _knows(backend: Backend, observe: Any) -> bool:
    try:
        _loop(backend, observe).close()
    except (TypeError, ValueError):
        return False
    return True


async def _nothing() -> None:
    pass


async def _yields(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _sleeps() -> None:
    await asyncio.sleep(0)


async def _churn(count: int) -> None:
    """Tasks that each sleep for 0 s, all created before the first one runs: `task_spawn` of the profile `quick`."""
    await asyncio.gather(*[asyncio.create_task(_sleeps()) for _ in range(count)])


async def _spawn(count: int) -> None:
    """Tasks that do nothing, a hundred at a time."""
    for _ in range(count // 100):
        for _ in range(100):
            asyncio.create_task(_nothing())  # noqa: RUF006  all have ended after the sleep
        await asyncio.sleep(0)


async def _many(count: int) -> None:
    """A hundred tasks that take turns."""
    await asyncio.gather(*[_yields(count // 100) for _ in range(100)])


async def _wakes(count: int) -> None:
    """A future that the next callback sets, one at a time."""
    loop = asyncio.get_running_loop()
    for _ in range(count):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future


def _timed(work: Callable[[int], Coroutine[Any, Any, None]]) -> Callable[[int], Coroutine[Any, Any, float]]:
    async def main(operations: int) -> float:
        started = thread_time()
        await work(operations)
        return thread_time() - started

    return main


class _Echo(asyncio.Protocol):
    """Sends back what it gets, and counts it."""

    def __init__(self, round_: _Round) -> None:
        self.round = round_

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        self.round.arrived()


class _Round:
    """How many answers are due before the task goes on."""

    def __init__(self) -> None:
        self.left = 0
        self.done: asyncio.Future[None] | None = None

    def arrived(self) -> None:
        self.left -= 1
        if self.left == 0 and self.done is not None:
            self.done.set_result(None)


async def _echo(operations: int) -> float:
    """Requests of 1 KiB on ten connections over loopback; the client's own system calls are not timed."""
    loop = asyncio.get_running_loop()
    round_ = _Round()
    request = bytes(1024)
    spent = 0.0
    server = await loop.create_server(lambda: _Echo(round_), "127.0.0.1", 0)
    clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(CONNECTIONS)]
    try:
        for _ in range(operations // CONNECTIONS):
            for client in clients:
                client.sendall(request)
            round_.left, round_.done = CONNECTIONS, loop.create_future()
            started = thread_time()
            await round_.done
            # What the last one has written leaves before anything else runs.
            spent += thread_time() - started
            for client in clients:
                if len(client.recv(2048)) != len(request):
                    raise WrongResult("an answer that is not the request")
    finally:
        for client in clients:
            client.close()
        server.close()
        await server.wait_closed()
    return spent


CONNECTIONS = 10

TASKS: dict[str, Callable[[int], Coroutine[Any, Any, None]]] = {
    "churn": _churn,
    "single": _yields,
    "many": _many,
    "spawn": _spawn,
    "wakes": _wakes,
}
WORK: dict[str, Callable[[int], Coroutine[Any, Any, float]]] = {
    **{name: _timed(work) for name, work in TASKS.items()},
    "echo": _echo,
}
