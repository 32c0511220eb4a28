"""What observing costs: the same work on loops that are observed more and less, in turns, in one process.

A difference of one percent is far below what two processes differ by (memory layout, a neighbour on the machine), so
the levels are compared within a process: round for round each of them does the same work, in one order and then in the
opposite one, and a figure is the median over the rounds of the CPU time of a level over that of `off` in that very
round. A second loop that is not observed takes part like a level; what it differs by is the noise.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from statistics import median
from time import process_time
from typing import Any

from tideloop.lab.backends import Backend
from tideloop.lab.bodies import WrongResult, expect, tcp_echo
from tideloop.lab.kit import AsyncioKit, Kit
from tideloop.lab.scenarios import Params

# What `EventLoop(observe=)` is given, by the name in the figures. Those that this build does not know are left out.
LEVELS: dict[str, Any] = {"noise": False, "counts": True, "tasks": "tasks", "trace": "trace"}


@dataclass(frozen=True)
class Observed(Backend):
    """A loop that is observed as told."""

    observe: Any = False

    def loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop]:
        event_loop: Any = importlib.import_module(self.module).EventLoop
        return lambda: event_loop(observe=self.observe)


def measure(kit: Kit, params: Params) -> dict[str, float]:
    cost = WORK[params["work"]]
    off = _kit(kit.backend, False)
    levels = {name: _kit(kit.backend, observe) for name, observe in LEVELS.items() if _knows(kit.backend, observe)}
    expect("levels that this build knows", {"noise", "counts"} <= levels.keys(), True)
    seconds: dict[str, list[float]] = {name: [] for name in ("off", *levels)}
    for number in range(params["rounds"] + 1):
        order = [("off", off), *levels.items()]
        for name, each in order if number % 2 else reversed(order):
            gc.collect()
            spent = cost(each, params)
            # The first round warms the caches.
            if number:
                seconds[name].append(spent)
    figures = {f"{name}_percent": percent(seconds[name], seconds["off"]) for name in levels}
    return figures | {"off_ns": median(seconds["off"]) / params.get("operations", 1) * 1e9}


def percent(level: list[float], off: list[float]) -> float:
    """What a level adds, from seconds of the same rounds."""
    return (median(more / less for more, less in zip(level, off, strict=True)) - 1) * 100


def _kit(backend: Backend, observe: Any) -> AsyncioKit:
    return AsyncioKit(Observed(backend.name, backend.family, backend.module, backend.packages, observe=observe))


def _knows(backend: Backend, observe: Any) -> bool:
    try:
        _kit(backend, observe).backend.loop_factory()().close()
    except (TypeError, ValueError):
        return False
    return True


async def _nothing() -> None:
    pass


async def _yields(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


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


def _timed(work: Callable[[int], Coroutine[Any, Any, None]]) -> Callable[[AsyncioKit, Params], float]:
    async def main(operations: int) -> float:
        started = process_time()
        await work(operations)
        return process_time() - started

    return lambda kit, params: kit.run(lambda: main(params["operations"]))


def _echo(kit: AsyncioKit, params: Params) -> float:
    """Seconds of CPU for a request."""
    figures = tcp_echo.measure(kit, params)
    if not figures["server_cpu_s"]:
        raise WrongResult("the window is too short for the clock of CPU time")
    return figures["server_cpu_s"] / figures["requests"]


TASKS: dict[str, Callable[[int], Coroutine[Any, Any, None]]] = {
    "single": _yields,
    "many": _many,
    "spawn": _spawn,
    "wakes": _wakes,
}
WORK: dict[str, Callable[[AsyncioKit, Params], float]] = {
    **{name: _timed(work) for name, work in TASKS.items()},
    "echo": _echo,
}
