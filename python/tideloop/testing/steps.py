"""Driving a coroutine step by step, and saying where it waits.

A task runs its coroutine from one suspension to the next: that is a step. `driven()` stands between a task and the
work that it does, changes nothing of what happens, and tells an observer when each step begins, and when it ends and
for what the work waits then.
"""

from __future__ import annotations

import asyncio
import gc
import linecache
import os
import types
from collections.abc import Awaitable, Coroutine, Generator
from traceback import FrameSummary
from typing import Any, TypeVar

__all__ = ["Observer", "described", "driven", "ended", "is_ours", "where"]

_T = TypeVar("_T")

_DEEPEST = 50
"""Coroutines that `where` follows: who awaits deeper than this is shown as far as this."""


class Observer:
    """Who is told of the steps of a coroutine; this one does nothing."""

    def begins(self) -> None:
        """A step begins."""

    def ended(self) -> None:
        """A step has ended, in whatever way."""

    def suspended(self, future: Any) -> None:
        """The step has ended by waiting for a future, or for the next turn of the loop (None)."""

    def intercepted(self, error: BaseException) -> BaseException | None:
        """What is about to be thrown into the work. Whoever returns another exception ends the work with it."""
        return None


class _Driven:
    """Awaits what an awaitable does; see the head of the module."""

    def __init__(self, work: Awaitable[Any], observer: Observer) -> None:
        self._work = work
        self._observer = observer

    def __await__(self) -> Generator[Any, Any, Any]:
        __tracebackhide__ = True
        steps: Any = self._work.__await__()
        observer = self._observer
        error: BaseException | None = None
        while True:
            observer.begins()
            try:
                future = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            finally:
                observer.ended()
            error = None
            # While it is ours nobody else can wait for it: a future's own flag is for the task that gets it.
            observer.suspended(future)
            try:
                yield future
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as thrown:
                instead = observer.intercepted(thrown)
                if instead is not None:
                    steps.close()
                    raise instead from None
                error = thrown


def driven(work: Awaitable[_T], observer: Observer) -> Coroutine[Any, Any, _T]:
    """A coroutine that does `work` under its name, and tells `observer` of each step."""

    async def stepped() -> _T:
        __tracebackhide__ = True
        result: _T = await _Driven(work, observer)
        return result

    coroutine: Any = stepped()
    # What a task's repr shows.
    coroutine.__name__ = getattr(work, "__name__", "stepped")
    coroutine.__qualname__ = getattr(work, "__qualname__", "stepped")
    found: Coroutine[Any, Any, _T] = coroutine
    return found


async def ended(task: asyncio.Task[Any]) -> None:
    """Wait for the end of a task, however it ends; who is cancelled meanwhile cancels it, and waits all the same."""
    try:
        await asyncio.wait([task])
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


def is_ours(filename: str) -> bool:
    """Whether a frame is the driver's, and not the program's."""
    return filename == _Driven.__await__.__code__.co_filename


def where(work: Any) -> list[FrameSummary]:
    """The lines at which a suspended coroutine waits: its own first, then those of what it awaits, and so on."""
    lines: list[FrameSummary] = []
    for _ in range(_DEEPEST):
        frame, awaited = _look(work)
        if frame is not None and not is_ours(frame.f_code.co_filename):
            code = frame.f_code
            lines.append(FrameSummary(code.co_filename, frame.f_lineno, code.co_qualname, lookup_line=False))
        if awaited is None:
            break
        work = awaited
    return lines


def _look(work: Any) -> tuple[types.FrameType | None, Any]:
    """The frame of a coroutine or generator, and what it awaits."""
    for frame, awaited in (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await")):
        if hasattr(work, frame):
            return getattr(work, frame), getattr(work, awaited, None)
    # The step of an asynchronous generator tells nobody whose step it is, but the collector.
    if type(work).__name__ in ("async_generator_asend", "async_generator_athrow"):
        return None, next((o for o in gc.get_referents(work) if isinstance(o, types.AsyncGeneratorType)), None)
    return None, None


def described(lines: list[FrameSummary], indent: str = "    ") -> str:
    """Frames as one line each: file, line, function, and what stands there."""
    return "\n".join(f"{indent}{_short(line.filename)}:{line.lineno} in {line.name}: {_source(line)}" for line in lines)


def _source(line: FrameSummary) -> str:
    return linecache.getline(line.filename, line.lineno or 0).strip() or "?"


def _short(filename: str) -> str:
    try:
        relative = os.path.relpath(filename) if os.path.isabs(filename) else filename
    except ValueError:  # on another drive
        return filename
    return filename if relative.startswith("..") else relative
