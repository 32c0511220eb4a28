"""no_blocking(ms): a test fails if a step of its loop takes longer, and is told what blocked.

Two observers work together, since each sees what the other cannot:

* **A thread** looks at the loop's thread a few times per limit. What stands above the loop's own frames is the callback
  or the task that runs now; if it is the same one for longer than the limit, that is a block, and its stack is taken
  *while* it blocks. A function's frame lives for one call, so the same frame is the same callback.
* **A driver around each task** (`steps.py`, installed as the loop's task factory) counts steps, since a coroutine's
  frame lives for many, and measures each exactly. It also finds what the thread cannot see: C code that never lets go
  of the interpreter, of which only the place is known to which the task came afterwards.

Time is real time, also for a test on a virtual clock: what blocks takes real time there, too. A machine that gives the
process no processor for that long looks the same as a block; limits of a few milliseconds are for quiet machines.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import time
import traceback
from asyncio import base_events
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from tideloop.testing.findings import Blocked
from tideloop.testing.steps import Observer, described, driven, is_ours, where

__all__ = ["Watch"]

_LOOKS = 8
"""How often the thread looks during one limit."""

_SHORTEST = 0.0005
"""Seconds between two looks, at least."""

_SHOWN = 5
"""Blocks that a failure tells of."""

_COROUTINE = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
# What asyncio's loop has between itself and a callback; other loops have nothing there.
_BETWEEN = {asyncio.Handle._run.__code__, base_events.BaseEventLoop._run_once.__code__}  # type: ignore[attr-defined]


@dataclass
class _Block:
    step: int
    seconds: float
    stack: str


class Watch:
    """Watches the steps of the running loop: ``with watch.on():`` in a coroutine on it.

    limit: seconds that a step may take.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.blocks: list[_Block] = []
        self.step = 0
        self._began: list[tuple[int, float]] = []
        self._lock = threading.Lock()
        self._end = threading.Event()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watch while the block lasts. Tasks that are made meanwhile are watched exactly."""
        loop = asyncio.get_running_loop()
        factory = loop.get_task_factory()
        loop.set_task_factory(self._make_task)
        self._factory = factory
        base = _base(sys._getframe(1))
        thread = threading.Thread(
            target=self._look, args=(threading.get_ident(), base), name="no_blocking", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()
            if loop.get_task_factory() == self._make_task:
                loop.set_task_factory(factory)

    def verdict(self) -> Blocked | None:
        """What is wrong, if anything is."""
        if not self.blocks:
            return None
        worst = sorted(self.blocks, key=lambda block: -block.seconds)
        lines = [f"{len(worst)} step{'s' if len(worst) > 1 else ''} of the loop took longer than {_ms(self.limit)}:"]
        for block in worst[:_SHOWN]:
            lines += [f"  {_ms(block.seconds)}, here:", block.stack]
        if len(worst) > _SHOWN:
            lines.append(f"  and {len(worst) - _SHOWN} shorter ones")
        return Blocked("\n".join(lines))

    # --- exactly, around each task --------------------------------------------------------------

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
        plain = work
        if inspect.isawaitable(work):
            work = driven(work, _Stopwatch(self, work))
        # By whatever makes tasks otherwise: a loop's own tasks are made by its own create_task() only.
        loop.set_task_factory(self._factory)
        try:
            task = loop.create_task(work, **options)
            if inspect.iscoroutine(plain):
                # One that was cancelled before it began would warn that nobody has awaited it.
                task.add_done_callback(lambda _: plain.close())
            return task
        finally:
            loop.set_task_factory(self._make_task)

    def begins(self) -> None:
        with self._lock:
            self.step += 1
            self._began.append((self.step, time.perf_counter()))

    def ended(self) -> _Block | None:
        """The block that the step was, if the thread could not see it."""
        now = time.perf_counter()
        with self._lock:
            step, began = self._began.pop()
            if now - began < self.limit:
                return None
            for block in self.blocks:
                if block.step == step:
                    block.seconds = now - began
                    return None
            block = _Block(step, now - began, "")
            self.blocks.append(block)
            return block

    # --- while it happens, from a thread --------------------------------------------------------

    def _look(self, thread: int, base: FrameType) -> None:
        interval = max(self.limit / _LOOKS, _SHORTEST)
        last: tuple[FrameType, int] | None = None
        since = 0.0
        block: _Block | None = None
        while not self._end.wait(interval):
            frames = _above(sys._current_frames().get(thread), base)
            now = time.perf_counter()
            if not frames:
                last = block = None
                continue
            with self._lock:
                seen = (frames[0], self.step)
                if last is None or seen[0] is not last[0] or seen[1] != last[1]:
                    last, since, block = seen, now, None
                elif block is not None:
                    block.seconds = max(block.seconds, now - since)
                elif now - since >= self.limit and not any(known.step == self.step for known in self.blocks):
                    block = _Block(self.step, now - since, _stack(frames))
                    self.blocks.append(block)
            del frames


class _Stopwatch(Observer):
    """The observer of one task."""

    def __init__(self, watch: Watch, work: Any) -> None:
        self._watch = watch
        self._work = work
        self._unseen: _Block | None = None

    def begins(self) -> None:
        self._watch.begins()

    def ended(self) -> None:
        self._unseen = self._watch.ended()
        if self._unseen is not None:
            name = getattr(self._work, "__qualname__", self._work)
            self._unseen.stack = f"    a step of {name}(), which let nobody else run: its stack could not be taken"

    def suspended(self, future: Any) -> None:
        if self._unseen is not None:
            self._unseen.stack += f"; it came to\n{described(where(self._work))}"


def _base(frame: FrameType) -> FrameType:
    """The frame of the loop that runs the coroutine of this frame: what it does stands above it."""
    below: list[FrameType] = []
    current: FrameType | None = frame
    while current is not None:
        below.append(current)
        current = current.f_back
    for found in below:
        if found.f_code.co_name == "run_forever":
            return found
    return next(f for f in below if not f.f_code.co_flags & _COROUTINE and f.f_code not in _BETWEEN)


def _above(frame: FrameType | None, base: FrameType) -> list[FrameType]:
    """The frames of what the loop runs now, outermost first; none if it waits."""
    frames: list[FrameType] = []
    while frame is not None and frame is not base:
        frames.append(frame)
        frame = frame.f_back
    if frame is None:
        return []
    frames.reverse()
    between = 0
    while between < len(frames) and frames[between].f_code in _BETWEEN:
        between += 1
    if between and len(frames) > between and frames[between].f_code.co_name == "select":
        return []
    return frames[between:]


def _stack(frames: list[FrameType]) -> str:
    shown = [(frame, frame.f_lineno) for frame in frames if not is_ours(frame.f_code.co_filename)]
    return described(list(traceback.StackSummary.extract(iter(shown), lookup_lines=False)))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"
