"""The kinds of tasks that the task tests compare: whose class, on whose loop.

`asyncio`            stock tasks on asyncio's loop: the reference
`tideloop`           what `tideloop.EventLoop()` makes
`tideloop-stock`     stock C tasks on tideloop's loop: `EventLoop(tasks="stock")`
`native-on-asyncio`  tideloop's Task and Future on asyncio's loop
`accelerated`        what `tideloop.EventLoop()` makes, with `tideloop.accelerate()` in force

A build without native tasks or without `accelerate()` has fewer of them; `missing()` says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import tideloop
from tideloop import _tideloop

NATIVE_TASK: Any = getattr(_tideloop, "Task", None)
"""tideloop's own Task; None in a build without it."""

NATIVE_FUTURE: Any = getattr(_tideloop, "Future", None)
"""tideloop's own Future; None in a build without it."""

STOCK_BY_ENVIRONMENT = os.environ.get("TIDELOOP_TASKS") == "stock"


@dataclass(frozen=True)
class Variant:
    """A loop and the classes of the tasks and futures that it makes."""

    name: str
    new_event_loop: Callable[[], asyncio.AbstractEventLoop]
    task: Any = asyncio.Task
    future: Any = asyncio.Future
    accelerated: bool = False

    def __str__(self) -> str:
        return self.name

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Where a loop of this variant runs."""
        if not self.accelerated:
            yield
            return
        with tideloop.accelerate():  # type: ignore[attr-defined]
            yield


def stock_tasks_loop() -> asyncio.AbstractEventLoop:
    """A tideloop loop that makes stock C tasks."""
    if NATIVE_TASK is None:
        return tideloop.EventLoop()
    return tideloop.EventLoop(tasks="stock")  # type: ignore[call-arg]


def native_on_asyncio() -> asyncio.AbstractEventLoop:
    """asyncio's loop, making tideloop's tasks and futures."""

    class Loop(asyncio.SelectorEventLoop):
        def create_future(self) -> asyncio.Future[Any]:
            return NATIVE_FUTURE(loop=self)  # type: ignore[no-any-return]

        # Not by a task factory, to whose tasks some releases give the name "None".
        def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
            if self.get_task_factory() is not None:
                return super().create_task(coro, **options)
            task: Any = NATIVE_TASK(coro, loop=self, **options)
            if task._source_traceback:
                del task._source_traceback[-1]
            try:
                return task  # type: ignore[no-any-return]
            finally:
                # A traceback of the task may keep this frame; with the task in it, that would be a cycle.
                del task

    return Loop()


_MADE = {} if NATIVE_TASK is None or STOCK_BY_ENVIRONMENT else {"task": NATIVE_TASK, "future": NATIVE_FUTURE}

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("asyncio", asyncio.SelectorEventLoop),
        Variant("tideloop", tideloop.new_event_loop, **_MADE),
        Variant("tideloop-stock", stock_tasks_loop),
        Variant("native-on-asyncio", native_on_asyncio, NATIVE_TASK, NATIVE_FUTURE),
        Variant("accelerated", tideloop.new_event_loop, **_MADE, accelerated=True),
    )
}


def missing(name: str) -> str | None:
    """Why this build does not have a variant; None when it does. Raises KeyError for an unknown one."""
    variant = VARIANTS[name]
    if variant.task is None:
        return "this build has no native tasks"
    if variant.accelerated and not hasattr(tideloop, "accelerate"):
        return "this build has no tideloop.accelerate()"
    return None


def available() -> list[Variant]:
    """The variants of this build, the reference first."""
    return [variant for name, variant in VARIANTS.items() if missing(name) is None]


def params(*names: str) -> list[Any]:
    """One pytest parameter per variant (all of them by default); a missing one is skipped, with the reason."""
    return [
        pytest.param(VARIANTS[name], id=name, marks=[pytest.mark.skip(reason=why)] if (why := missing(name)) else [])
        for name in names or VARIANTS
    ]
