"""The end of a program: on_shutdown(), stopping(), request_shutdown(), and what run() does with signals.

A service ends in an order: it stops taking work, finishes what it has, closes what that needed. The parts of it that
know what they have to do register a function each, with an order; ``tideloop.run(main(), signals=("INT", "TERM"))``
calls them at the first signal and then cancels main, or, if main waits for stopping(), lets it end by itself as long as
the grace lasts; it cancels everything at the second signal, and leaves the process at the third. Without a signal the
functions are called when main has ended.

Everything here belongs to the running loop, and works on any loop that has signal handlers; only run() itself is
tideloop's.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from tideloop.cancellation import outlast
from tideloop.changes import Changes

__all__ = [
    "Ending",
    "attend",
    "finish",
    "grace_left",
    "has_plan",
    "on_shutdown",
    "request_shutdown",
    "signal_numbers",
    "stopping",
]

_T = TypeVar("_T")

SIGINT = signal.SIGINT

_log = logging.getLogger("tideloop.shutdown")


class _Hook(NamedTuple):
    order: float
    serial: int
    fn: Callable[[], Any]


class _Plan:
    """What one loop's program has to do at its end."""

    def __init__(self) -> None:
        self.hooks: list[_Hook] = []
        self.serials = itertools.count()
        self.requested = False
        # Whether somebody asks about the end: then main is not cancelled as soon as everything else is done.
        self.heeded = False
        self.announced = Changes()
        # Main, once it was cancelled because of the first signal, and until when it may take its time.
        self.cancelled: asyncio.Task[Any] | None = None
        self.deadline = -math.inf
        self.request: Callable[[], None] | None = None

    def announce(self) -> None:
        self.requested = True
        self.announced.tell()


_plans: WeakKeyDictionary[asyncio.AbstractEventLoop, _Plan] = WeakKeyDictionary()


def _plan() -> _Plan:
    loop = asyncio.get_running_loop()
    plan = _plans.get(loop)
    if plan is None:
        plan = _plans[loop] = _Plan()
    return plan


def on_shutdown(fn: Callable[[], Any], *, order: float = 0) -> Callable[[], None]:
    """Have `fn` called at the end of the running loop's program; returns a function that takes that back.

    `fn` takes nothing; what it returns is awaited if it can be. The lower its `order`, the earlier it is called;
    those of the same order one after the other, the last one registered first. One that raises is logged, and the
    others are called; one that goes on when its time is over, though it was cancelled, holds up what comes after it.
    Raises RuntimeError outside of a loop.
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function without arguments, not {fn!r}")
    if not isinstance(order, int | float) or order != order:
        raise TypeError(f"order must be a number, not {order!r}")
    plan = _plan()
    hook = _Hook(order, -next(plan.serials), fn)
    plan.hooks.append(hook)

    def take_back() -> None:
        if hook in plan.hooks:
            plan.hooks.remove(hook)

    return take_back


async def stopping() -> None:
    """Wait until the program is to end: the first signal, or request_shutdown()."""
    plan = _plan()
    plan.heeded = True
    if not plan.requested:
        await plan.announced.wait()


def request_shutdown() -> None:
    """Do what the first signal does. Again does nothing. On the loop.

    Where it is this that main was cancelled by, tideloop.run() returns None: no signal is to blame.
    Under another runner than tideloop.run(), and without its `signals`, it wakes those that wait for stopping(), and no
    more.
    """
    plan = _plan()
    if not plan.requested:
        plan.announce()
        if plan.request is not None:
            plan.request()


def grace_left(task: asyncio.Task[Any]) -> float:
    """Seconds that a task which is cancelled has to come to its end, since the first signal is why; otherwise 0."""
    loop = task.get_loop()
    plan = _plans.get(loop)
    return max(plan.deadline - loop.time(), 0.0) if plan is not None and plan.cancelled is task else 0.0


class Ending(NamedTuple, Generic[_T]):
    """How attend() has ended: what main has returned, or the signal that ended it."""

    value: _T | None
    signal: int | None


def signal_numbers(signals: Sequence[str | int]) -> list[signal.Signals]:
    """The signals that were named: "INT", "SIGINT" or a number. ValueError for one that is none."""
    if isinstance(signals, str):
        raise TypeError(f"signals must be a sequence of names like ('INT', 'TERM'), not {signals!r}")
    numbers = []
    for given in signals:
        try:
            if isinstance(given, str):
                number = signal.Signals["SIG" + given.removeprefix("SIG")]
            else:
                number = signal.Signals(given)
        except (KeyError, ValueError):
            raise ValueError(f"signals must be names or numbers of signals, but {given!r} is none") from None
        numbers.append(number)
    return numbers


async def attend(main: Coroutine[Any, Any, _T], signals: Sequence[signal.Signals], grace: float) -> Ending[_T]:
    """Run main to its end, and what was registered for it."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    plan = _plan()
    ending: asyncio.Task[None] | None = None
    received: list[int] = []
    ended = False

    def give_up() -> None:
        if not ended:
            plan.cancelled = task
            task.cancel("the program is to end")

    async def end(cancel: bool) -> None:
        plan.deadline = loop.time() + grace
        await _call_all(plan, plan.deadline)
        if cancel and plan.heeded:
            # Main knows of it, and has the rest of the time.
            loop.call_at(plan.deadline, give_up)
        elif cancel:
            give_up()

    def begin() -> None:
        nonlocal ending
        if ending is None:
            ending = loop.create_task(end(True), name="shutdown")

    def on_signal(number: int) -> None:
        received.append(number)
        if len(received) == 1:
            plan.announce()
            begin()
        elif len(received) == 2:
            plan.deadline = -math.inf
            if ending is not None:
                ending.cancel()
            if not ended:
                task.cancel(f"a second signal ({signal.Signals(number).name})")
        else:
            os._exit(128 + number)

    plan.request = begin
    handled: dict[signal.Signals, Any] = {}
    try:
        try:
            for number in signals:
                before = signal.getsignal(number)
                _handle(loop, number, on_signal)
                handled.setdefault(number, before)
        except BaseException:
            main.close()
            raise
        try:
            value: _T | None = await main
        except asyncio.CancelledError:
            if not received and plan.cancelled is not task:
                raise
            value = None
            interrupted: int | None = received[0] if received else None
        else:
            interrupted = None
        finally:
            ended = True
            plan.announce()
            if ending is None:
                ending = loop.create_task(end(False), name="shutdown")
            # What cancels main ends it at once; the second signal cancels it itself.
            if (cancelled := await outlast([ending], ending.cancel)) is not None:
                raise cancelled
        return Ending(value, interrupted)
    finally:
        plan.request = None
        _plans.pop(loop, None)
        for number, before in handled.items():
            _unhandle(loop, number, before)


def has_plan(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether anything was registered with a loop."""
    return loop in _plans


async def finish(grace: float) -> None:
    """Call what was registered: main has ended."""
    plan = _plan()
    plan.announce()
    try:
        await _call_all(plan, asyncio.get_running_loop().time() + grace)
    finally:
        _plans.pop(asyncio.get_running_loop(), None)


async def _call_all(plan: _Plan, deadline: float) -> None:
    """Call what was registered, in order, also what is registered meanwhile."""
    loop = asyncio.get_running_loop()
    while plan.hooks:
        hook = min(plan.hooks)
        plan.hooks.remove(hook)
        try:
            async with asyncio.timeout_at(deadline):
                made = hook.fn()
                if inspect.isawaitable(made):
                    await made
        except TimeoutError as error:
            if loop.time() < deadline:
                _log.error("%r failed in the shutdown", hook.fn, exc_info=error)
            else:
                _log.error("%r was not done when the grace of the shutdown was over", hook.fn)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            _log.error("%r failed in the shutdown", hook.fn, exc_info=error)
        except Exception as error:
            _log.error("%r failed in the shutdown", hook.fn, exc_info=error)


def _handle(loop: asyncio.AbstractEventLoop, number: signal.Signals, handler: Callable[[int], None]) -> None:
    if sys.platform != "win32":
        loop.add_signal_handler(number, handler, number)
    else:
        signal.signal(number, lambda number, frame: loop.call_soon_threadsafe(handler, number))


def _unhandle(loop: asyncio.AbstractEventLoop, number: signal.Signals, before: Any) -> None:
    """Have a signal handled as it was before; one that was not set from Python has the system's default."""
    if sys.platform != "win32":
        loop.remove_signal_handler(number)
    if before is not None:
        signal.signal(number, before)
    elif sys.platform == "win32":
        signal.signal(number, signal.SIG_DFL)
