"""Processes that work for run_blocking(kind="process"): each belongs to a thread of the pool, which waits for it.

So there is one mechanism for permits, cancellation and idle times, that of the threads, and no pool that can break: if
a process ends, the one call that it was doing fails, and its thread starts another process for the next. It also makes
killing simple: the process of a call is known, and nobody else's work is in it.

A process is started anew ("spawn"), not forked: a copy of a process that has threads may hold their locks for ever. It
ends when its end of the pipe says that the parent is gone. It does not hear Ctrl-C, which is for the program to decide.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import pickle
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import connection, get_context, process
from typing import Any, cast

from tideloop.worker_threads import Worker, close_all

__all__ = ["ProcessCall", "RemoteTraceback", "WorkerDied", "serve"]

# Seconds in which an idle process has to end once its pipe is closed.
_PATIENCE = 1.0


# Once more, since multiprocessing, which was imported after that module, would first wait for each process that works.
atexit.register(close_all)


class WorkerDied(RuntimeError):
    """A worker process has ended in the middle of a call."""


class RemoteTraceback(Exception):
    """The cause of an exception that comes from a worker: its traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


class ProcessCall:
    """One call, to be made in the process of the thread that runs it."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.title = fn
        self._work = (_portable(fn), args)
        self._tool: _WorkerProcess | None = None
        self._killed = False

    def run(self) -> Any:
        """Make it. Raises what it raises, what pickle says, and WorkerDied."""
        worker = cast("Worker", threading.current_thread())
        try:
            work = pickle.dumps(self._work, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            error.add_note(f"{self.title!r} and its arguments go to another process, so pickle has to take them")
            raise
        tool = cast("_WorkerProcess | None", worker.tool)
        if tool is None or not tool.is_alive():
            if tool is not None:
                worker.tool = None
                tool.close()
            tool = worker.tool = _WorkerProcess(worker.name)
        # First this, then the look: kill() does it the other way round, so that one of them sees the other.
        self._tool = tool
        tool.begin(self)
        try:
            if self._killed:
                raise asyncio.CancelledError
            reply = tool.ask(work)
        except (EOFError, OSError) as error:
            worker.tool = None
            killed = tool.killed  # reap() may have to kill it, too
            code = tool.reap()
            if killed:
                raise asyncio.CancelledError from None
            raise WorkerDied(f"process {tool.pid}, which did {self.title!r}, {_ending(code)}") from error
        finally:
            # From here on kill() leaves it alone: it may work for another call.
            tool.begin(None)
            if tool.killed and worker.tool is not None:
                # In the moment in which it was done.
                worker.tool = None
                tool.reap()
        try:
            done, value, text = pickle.loads(reply)
        except Exception as error:
            error.add_note(f"what {self.title!r} has returned or raised in process {tool.pid} cannot be unpickled")
            raise
        if done:
            return value
        value.__cause__ = RemoteTraceback(text)
        raise value

    def kill(self) -> None:
        """Kill the process, if it works for this call, or prevent it."""
        self._killed = True
        if self._tool is not None:
            self._tool.kill(self)


class _WorkerProcess:
    """A process that calls what comes through its pipe. Used by one thread, but for kill()."""

    def __init__(self, name: str) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._lock = threading.Lock()
        self._pidfd: int | None = None
        self._poll: Any = None
        self._call: ProcessCall | None = None
        # By us: then nobody has to be told.
        self.killed = False
        try:
            self._process = context.Process(target=serve, args=(theirs,), name=name)
            self._process.start()
        except BaseException:
            self._pipe.close()
            raise
        finally:
            theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        if sys.platform != "win32":
            # A child that it has forked may keep its pipe open, so the process is watched as well.
            with contextlib.suppress(AttributeError, OSError):
                self._pidfd = os.pidfd_open(self.pid)
            self._poll = select.poll()
            self._poll.register(self._pipe.fileno(), select.POLLIN)
            self._poll.register(self._process.sentinel if self._pidfd is None else self._pidfd, select.POLLIN)

    def begin(self, call: ProcessCall | None) -> None:
        """It works for this call from now on, or for none."""
        with self._lock:
            self._call = call

    def is_alive(self) -> bool:
        """Whether it waits for work."""
        return not self._pipe.poll() and self._process.is_alive()

    def ask(self, work: bytes) -> bytes:
        """Have it do something, and wait for that. EOFError or OSError if it dies."""
        self._pipe.send_bytes(work)
        if self._poll is not None:
            self._poll.poll()
        else:
            connection.wait([self._pipe, self._process.sentinel])
        if not self._pipe.poll():
            raise EOFError
        return self._pipe.recv_bytes()

    def reap(self) -> int | None:
        """The exit code of one that has died, or whose pipe is closed."""
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self.kill()
            self._process.join()
        code = self._process.exitcode
        self._release()
        return code

    def kill(self, call: ProcessCall | None = None) -> None:
        """End it at once, if it works for this call, or in any case. From any thread."""
        with self._lock:
            if self._pipe.closed or (call is not None and self._call is not call):
                return
            self.killed = True
            if self._pidfd is not None:
                # Its number may be another process's if its thread has just seen it end; the descriptor never is.
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            else:
                self._process.kill()

    def close(self) -> None:
        """Let it end: it has nothing to do."""
        self._pipe.close()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._release()

    def forget(self) -> None:
        """This is a forked child, and the process is its parent's."""
        # Or multiprocessing tries to wait for it when the child exits, and complains that it cannot.
        getattr(process, "_children", set()).discard(self._process)
        self._pipe.close()
        if self._pidfd is not None:
            os.close(self._pidfd)

    def _release(self) -> None:
        with self._lock:
            self._pipe.close()
            if self._pidfd is not None:
                os.close(self._pidfd)
                self._pidfd = None
            with contextlib.suppress(ValueError):  # somebody else has its exit status, or SIGCHLD is ignored
                self._process.close()


def serve(pipe: connection.Connection) -> None:
    """What a worker process does: call what comes through the pipe, until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            work = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            fn, args = pickle.loads(work)
            outcome = (True, fn(*args), "")
        except BaseException as error:
            outcome = (False, error, traceback.format_exc())
        try:
            reply = pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL)
            if not outcome[0]:
                pickle.loads(reply)
        except Exception as error:
            # What cannot be told as it is, is told in words.
            what = "has returned" if outcome[0] else "has raised"
            told = RuntimeError(f"what the function {what} cannot be pickled: {outcome[1]!r} ({error})")
            reply = pickle.dumps((False, told, outcome[2] or traceback.format_exc()))
        del outcome
        try:
            pipe.send_bytes(reply)
        except OSError:
            return


class _Undecorated:
    """Stands for a function whose name is now that of what @blocking has made of it."""

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found: Any = sys.modules.get(self.module) or __import__(self.module, fromlist=["*"])
        for part in self.name.split("."):
            found = getattr(found, part)
        return found.__wrapped__(*args, **kwargs)


def _portable(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, or what pickle takes in its place."""
    if isinstance(fn, functools.partial):
        return functools.partial(_portable(fn.func), *fn.args, **fn.keywords)
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if module is None or name is None or "<" in name:
        return fn
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return _Undecorated(module, name) if getattr(found, "__wrapped__", None) is fn else fn


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"has ended with exit status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
