"""The watchdog: it looks at what blocks a loop while it does, and tells when that has ended.

The thread is native and never takes the GIL (``crates/py/src/observe/watchdog.rs`` explains it). What Python has to do
with it is here: choosing a signal, forks, the end of the interpreter, and who is told.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import faulthandler
import gc
import logging
import math
import os
import signal
import sys
from collections.abc import Callable
from contextvars import Context
from typing import Any, NamedTuple, TypeVar

from tideloop._tideloop import (
    signal_handler,
    watchdog_asks,
    watchdog_collects,
    watchdog_forked,
    watchdog_resume,
    watchdog_stop,
    watchdog_threshold,
)

__all__ = ["Block", "Frame", "block_threshold", "off_block", "on_block", "set_block_threshold"]

_logger = logging.getLogger("tideloop")

_NANO = 1e-9


class Frame(NamedTuple):
    """One line of a stack."""

    file: str
    line: int
    """0: not known."""
    function: str


class Block(NamedTuple):
    """A step that has blocked its loop."""

    duration: float
    """Seconds."""
    cause: str
    """``python``: it ran Python. ``c``: it ran C code that did not come back to Python. ``cpu``: one of these, not
    known which. ``gil_wait``: it waited for the GIL. ``syscall``: it waited for the system, or for a lock. ``gc``:
    the garbage collector ran. ``cpu_starved``: it was ready and got no processor. ``unknown``: it was over too soon
    to tell, or this system does not say."""
    stack: tuple[Frame, ...]
    """Where it was when it had blocked for the threshold, the innermost frame first; empty: not known."""
    stacks: tuple[tuple[Frame, ...], ...]
    """That, and again every 50 ms, up to some twenty."""
    task: asyncio.Task[Any] | None
    """Whose step it was, if it was a task's."""
    context: Context | None
    """The task's, from Python 3.12 on. Hooks run in it."""
    what: str
    """The qualified name of the coroutine, callback or class of the protocol; empty: not known."""
    file: str
    line: int
    """Where the step ended, or where the function begins; 0: not known."""
    captured: float | None = None
    """Seconds from its beginning to when ``stack`` was there; None: it was not. A thread that gets no processor writes
    its stack when it gets one, and has not moved meanwhile."""

    def __str__(self) -> str:
        place = f"{self.what or 'a callback'}" + (f" ({self.file}:{self.line})" if self.file else "")
        whose = f" in task {self.task.get_name()!r}" if self.task is not None else ""
        stack = "".join(f'\n  File "{file}", line {line}, in {function}' for file, line, function in self.stack)
        return f"the loop was blocked for {self.duration:.3f} s ({self.cause}) by {place}{whose}{stack}"


_Hook = TypeVar("_Hook", bound=Callable[[Block], object])

_hooks: list[Callable[[Block], object]] = []
_threshold = 0.1
_started = False


def on_block(hook: _Hook) -> _Hook:
    """Call ``hook(block)`` whenever a step has blocked its loop for the threshold; a decorator.

    It is called by the loop itself, as its next callback, in the context of the task. What it raises goes to the
    loop's exception handler. Every block is logged as well, as a warning of the logger ``tideloop``.
    """
    if not callable(hook):
        raise TypeError(f"hook is {hook!r}; expected a callable")
    _hooks.append(hook)
    return hook


def off_block(hook: Callable[[Block], object]) -> None:
    """Call the hook no more. Raises ValueError if it is none."""
    if hook not in _hooks:
        raise ValueError(f"{hook!r} was not given to on_block()")
    _hooks.remove(hook)


def block_threshold() -> float | None:
    """From how many seconds on a step blocks its loop; None: nobody watches."""
    return _threshold or None


def set_block_threshold(seconds: float | None) -> None:
    """Set from how many seconds on a step blocks its loop: 0.1 unless ``TIDELOOP_BLOCK_THRESHOLD`` says otherwise.

    None turns the watchdog off. Loops that run already are watched from their next run on if it was off.
    Raises ValueError for less than a millisecond, which would only measure the watchdog.
    """
    global _threshold
    if seconds is not None and not (0.001 <= seconds < math.inf):
        raise ValueError(f"seconds is {seconds!r}; expected at least 0.001, or None")
    _threshold = seconds or 0.0
    if _started:
        watchdog_threshold(int(_threshold / _NANO))


def _from_environment() -> None:
    asked = os.environ.get("TIDELOOP_BLOCK_THRESHOLD")
    if not asked:
        return
    try:
        set_block_threshold(None if asked == "off" else float(asked))
    except ValueError:
        raise ValueError(f"TIDELOOP_BLOCK_THRESHOLD is {asked!r}; expected seconds, at least 0.001, or 'off'") from None


_from_environment()


def watch(traced: bool = False) -> None:
    """An observed loop is about to run: start the watchdog with the first one.

    A loop that is traced wants to be told of the garbage collector, too.
    """
    global _started
    if (_threshold or traced) and watchdog_collects not in gc.callbacks:
        gc.callbacks.append(watchdog_collects)
    if _asked_in != os.getpid() and _threshold:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            _ask_by_signal()
    if _started or not _threshold:
        return
    _started = True
    if hasattr(os, "register_at_fork"):
        # It is started again by the loop that runs on, or by the next one that runs.
        os.register_at_fork(before=_before_fork, after_in_parent=watchdog_resume, after_in_child=watchdog_forked)
    atexit.register(watchdog_stop, True)
    watchdog_threshold(int(_threshold / _NANO))


def _before_fork() -> None:
    watchdog_stop(False)


_asked_in = 0
"""The process whose threads can be asked for their stacks; a forked one needs a file of its own."""
_asked_by: tuple[int, int | None, int] | None = None
"""The signal for that, its handler, and the file that is written to."""


def _free_signal() -> int | None:
    """A signal that nobody handles. The first choice does nothing where it is not handled."""
    choices: list[int] = []
    if sys.platform != "win32":
        choices.append(signal.SIGURG)
    if sys.platform == "linux":
        choices += range(signal.SIGRTMAX - 1, signal.SIGRTMIN, -1)
    for number in choices:
        if signal.getsignal(number) is signal.SIG_DFL and signal_handler(number) == 0:
            return number
    return None


def _ask_by_signal() -> None:
    global _asked_in, _asked_by
    _asked_in = os.getpid()
    before = _asked_by
    if before is not None and signal_handler(before[0]) == before[1]:
        # In a forked child: its parent's choice.
        number: int | None = before[0]
    else:
        number = _free_signal()
    if number is None or not hasattr(faulthandler, "register"):
        return
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("tideloop-stack", os.MFD_CLOEXEC)
    else:
        import tempfile

        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    if sys.platform != "win32":
        import fcntl

        # Each stack begins where the file ends, which is its start: it is emptied before.
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)
    faulthandler.register(number, file=file, all_threads=False, chain=False)
    watchdog_asks(number, file)
    _asked_by = number, signal_handler(number), file
    if before is not None:
        os.close(before[2])


def tell(
    loop: asyncio.AbstractEventLoop,
    took: int,
    cause: str,
    task: asyncio.Task[Any] | None,
    place: tuple[str, str, int],
    stacks: list[list[tuple[str, int, str]]],
    captured: int | None = None,
) -> None:
    """A step has blocked the loop: schedules what is told of that."""
    get_context = getattr(task, "get_context", None)
    context = get_context() if get_context is not None else None
    found = tuple(tuple(Frame(*frame) for frame in frames) for frames in stacks)
    block = Block(
        duration=took * _NANO,
        cause=cause,
        stack=found[0] if found else (),
        stacks=found,
        task=task,
        context=context,
        what=place[0],
        file=place[1],
        line=place[2],
        captured=None if captured is None else captured * _NANO,
    )
    loop.call_soon(_log, block, context=context)
    for hook in tuple(_hooks):
        loop.call_soon(hook, block, context=context)


def _log(block: Block) -> None:
    _logger.warning("%s", block)
