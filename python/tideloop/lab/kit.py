"""One way to write a scenario for asyncio, trio and anyio: run, sleep, and start many jobs at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from tideloop.lab.backends import Backend, Family
from tideloop.lab.bodies import WrongResult

T = TypeVar("T")
Main = Callable[[], Coroutine[Any, Any, T]]
Job = Callable[[int], Coroutine[Any, Any, None]]


class Kit(Protocol):
    backend: Backend

    @property
    def family(self) -> Family: ...

    @property
    def sleep(self) -> Callable[[float], Awaitable[Any]]:
        """The library's own sleep function, with nothing around it."""

    def run(self, main: Main[T]) -> T: ...

    async def start_all(self, job: Job, count: int) -> None:
        """Starts job(0) to job(count - 1), all before the first one runs, and waits for them."""


class AsyncioKit:
    family: Family = "asyncio"
    sleep = staticmethod(asyncio.sleep)

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def run(self, main: Main[T]) -> T:
        reported: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=self.backend.loop_factory()) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: reported.append(context))
            result = runner.run(main())
        if reported:
            # What a loop would only log is a wrong result here.
            first = reported[0]
            raise WrongResult(f"{first['message']}: {first.get('exception')!r}")
        return result

    async def start_all(self, job: Job, count: int) -> None:
        await asyncio.gather(*[asyncio.create_task(job(index)) for index in range(count)])


class TrioKit:
    family: Family = "trio"

    def __init__(self, backend: Backend) -> None:
        import trio

        self.backend = backend
        self.sleep = trio.sleep

    def run(self, main: Main[T]) -> T:
        import trio

        return trio.run(main)

    async def start_all(self, job: Job, count: int) -> None:
        import trio

        async with trio.open_nursery() as nursery:
            for index in range(count):
                nursery.start_soon(job, index)


class AnyioKit:
    family: Family = "anyio"

    def __init__(self, backend: Backend) -> None:
        import anyio

        self.backend = backend
        self.sleep = anyio.sleep

    def run(self, main: Main[T]) -> T:
        import anyio

        return anyio.run(main, backend=self.backend.module)

    async def start_all(self, job: Job, count: int) -> None:
        import anyio

        async with anyio.create_task_group() as group:
            for index in range(count):
                group.start_soon(job, index)


class BlockingKit:
    """For the approaches without an event loop of Python's."""

    family: Family = "blocking"

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @property
    def sleep(self) -> Callable[[float], Awaitable[Any]]:
        raise NotImplementedError(f"{self.backend.name} has no event loop")

    def run(self, main: Main[T]) -> T:
        raise NotImplementedError(f"{self.backend.name} has no event loop")

    async def start_all(self, job: Job, count: int) -> None:
        raise NotImplementedError(f"{self.backend.name} has no event loop")


class NativeKit(BlockingKit):
    family: Family = "native"


KITS: dict[Family, Callable[[Backend], Kit]] = {
    "asyncio": AsyncioKit,
    "trio": TrioKit,
    "anyio": AnyioKit,
    "blocking": BlockingKit,
    "native": NativeKit,
}
