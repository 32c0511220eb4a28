"""Interpreters that work for run_blocking(kind="interpreter"): each belongs to a thread of the pool. Python 3.14 on.

An interpreter has a lock of its own, so what computes there runs beside this one, in the same process. It shares
nothing: functions are found by their names, arguments and results go through pickle. Modules that do not know of
interpreters, tideloop's own among them, cannot be imported there.

The child of a process that has a second interpreter crashes in CPython 3.14, before it runs anything. So those that are
idle end before a fork. About one that works nothing can be done.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from concurrent import interpreters  # type: ignore[attr-defined, unused-ignore]
from typing import Any, cast

from tideloop.worker_processes import RemoteTraceback
from tideloop.worker_threads import Worker, WorkerPool

__all__ = ["InterpreterCall"]

_pools: set[WorkerPool] = set()


def _dismiss_idle() -> None:
    for pool in _pools:
        pool.dismiss()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_dismiss_idle)


class InterpreterCall:
    """One call, to be made in the interpreter of the thread that runs it."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._fn = fn
        self._args = args

    def run(self) -> Any:
        """Make it. Raises what it raises; TypeError for what cannot go there."""
        worker = cast("Worker", threading.current_thread())
        tool = cast("_WorkerInterpreter | None", worker.tool)
        if tool is None:
            _pools.add(worker.pool)
            tool = worker.tool = _WorkerInterpreter()
        try:
            reply = tool.interpreter.call(_call, self._fn, self._args)
        except interpreters.NotShareableError as error:
            raise TypeError(
                f"{self._fn!r} and its arguments go to another interpreter, so pickle has to take them: {error}"
            ) from error
        except interpreters.ExecutionFailed as error:
            raise RuntimeError(f"{self._fn!r} cannot be called in another interpreter: {error}") from error
        done, value, text = pickle.loads(reply)
        if done:
            return value
        value.__cause__ = RemoteTraceback(text)
        raise value

    def kill(self) -> None:
        """Nothing can end it."""


class _WorkerInterpreter:
    """An interpreter that is closed by its thread."""

    def __init__(self) -> None:
        self.interpreter = interpreters.create()

    def close(self) -> None:
        """The thread ends."""
        self.interpreter.close()

    def kill(self) -> None:
        """The process ends, and it with it."""

    def forget(self) -> None:
        """A forked child has it no more."""


def _call(fn: Any, args: Any) -> bytes:
    """Runs over there, where nothing of this module is known."""
    import pickle  # noqa: PLC0415, F811, RUF100
    import traceback

    try:
        done, value, text = True, fn(*args), ""
    except BaseException as error:
        done, value, text = False, error, traceback.format_exc()
    try:
        reply = pickle.dumps((done, value, text))
        if not done:
            pickle.loads(reply)
    except Exception as error:
        told = RuntimeError(f"the result or exception cannot be pickled: {value!r} ({error})")
        reply = pickle.dumps((False, told, text or traceback.format_exc()))
    return reply
