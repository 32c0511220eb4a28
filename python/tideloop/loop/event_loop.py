"""EventLoop: asyncio's selector loop on tideloop's engine.

The class inherits from two loops. ``LoopCore`` (native) comes first and replaces asyncio's engine: the
ready ring, the timers, the selector, the clock. ``asyncio.SelectorEventLoop`` supplies the rest of the
interface. What it needs from an engine it reaches through a dozen methods with a leading underscore,
which are the same in every supported Python and are all defined here or in ``LoopCore``.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import selectors
import sys
import threading
from asyncio import base_events, events, format_helpers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from tideloop import observed
from tideloop._tideloop import function
from tideloop.loop.absent import AbsentLoop
from tideloop.loop.datagrams import DatagramLoop
from tideloop.loop.files import FileLoop
from tideloop.loop.handles import describe_call, describe_source
from tideloop.loop.processes import ProcessLoop
from tideloop.loop.serve import ServingLoop
from tideloop.loop.signals import SignalLoop
from tideloop.loop.tasks import Task, is_stock, list_tasks_of
from tideloop.loop.tls import TlsLoop, tls_driver
from tideloop.loop.transports import SocketTransport

if TYPE_CHECKING:
    from tideloop.observe.metrics import LoopMetrics
    from tideloop.observe.tasks import TasksSeen

__all__ = ["EventLoop", "new_event_loop"]


def _logger() -> logging.Logger:
    # Looked up each time: it is asyncio's, and programs replace it there.
    logger: logging.Logger = base_events.logger  # type: ignore[attr-defined]
    return logger


# What is observed, by its name; more includes less.
_LEVELS: dict[bool | str, int] = {False: 0, True: 1, "counts": 1, "tasks": 2, "trace": 3}


def level_by_default() -> int:
    """What ``TIDELOOP_OBSERVE`` says: 1 (also if it is not set), 0, or a level's name.

    Raises ValueError for anything else.
    """
    asked = os.environ.get("TIDELOOP_OBSERVE") or "1"
    level = {"0": 0, "1": 1}.get(asked, _LEVELS.get(asked))
    if level is None:
        raise ValueError(f"TIDELOOP_OBSERVE is {asked!r}; expected '0', '1', 'counts', 'tasks' or 'trace'")
    return level


def level_of(observe: bool | str | None) -> int:
    """The level of ``EventLoop(observe=...)``. Raises ValueError for anything that is none."""
    if observe is None:
        return level_by_default()
    level = _LEVELS.get(observe)
    if level is None:
        raise ValueError(f"observe is {observe!r}; expected True, False, 'counts', 'tasks' or 'trace'")
    return level


class _Engine:
    """Stands where asyncio's loop keeps its selector; the real one is native."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop

    def get_key(self, fd: int) -> selectors.SelectorKey:
        """What is watched on a descriptor; asyncio's transports show it in their repr()."""
        reads, writes = self._loop._interest(fd)
        if not (reads or writes):
            raise KeyError(f"{fd} is not registered")
        events = selectors.EVENT_READ * reads | selectors.EVENT_WRITE * writes
        return selectors.SelectorKey(fd, fd, events, None)

    def close(self) -> None:
        """Nothing: the loop closes its native selector itself."""

    def __repr__(self) -> str:
        return f"<tideloop engine selector={self._loop.selector_name}>"


class EventLoop(AbsentLoop, SignalLoop, ServingLoop, TlsLoop, DatagramLoop, FileLoop, ProcessLoop):
    """An asyncio event loop with a native core.

    selector: ``"default"`` for the best one of this system, ``"polling"`` for the portable one;
    ``None`` takes the environment variable ``TIDELOOP_SELECTOR``, or else the default.
    tasks: ``"native"`` for tideloop's tasks and futures, ``"stock"`` for asyncio's own; ``None`` takes the
    environment variable ``TIDELOOP_TASKS``, or else native ones where this Python allows them.
    ``TIDELOOP_TLS=python`` in the environment has TLS connections call Python's ssl module only.

    observe: what the loop counts of itself: True or ``"counts"`` for what ``metrics()`` tells, ``"tasks"`` for what
    ``tasks()`` tells as well, ``"trace"`` for what ``trace()`` tells besides, False for nothing; ``None`` takes the
    environment variable ``TIDELOOP_OBSERVE`` (``0``, ``1``, ``counts``, ``tasks`` or ``trace``), or else True.

    Raises ValueError for another value, RuntimeError for native tasks where there are none. Like every
    asyncio loop it belongs to one thread at a time; only ``call_soon_threadsafe`` (and what is built on it)
    may be called from others.
    """

    def __new__(
        cls, selector: str | None = None, tasks: str | None = None, observe: bool | str | None = None
    ) -> EventLoop:
        selector = selector or os.environ.get("TIDELOOP_SELECTOR") or None
        tasks = tasks or os.environ.get("TIDELOOP_TASKS") or None
        level = level_of(observe)
        if level > 1:
            # Now, and not in the step that makes the first task.
            importlib.import_module("tideloop.observe.tasks")
        driver = tls_driver()
        loop = cast(EventLoop, super().__new__(cls, selector=selector, tasks=tasks, observe=level))
        loop.tls_driver = driver
        return loop

    def __init__(
        self, selector: str | None = None, tasks: str | None = None, observe: bool | str | None = None
    ) -> None:
        super().__init__(_Engine(self))  # type: ignore[arg-type]
        list_tasks_of(self)

    # --- running -------------------------------------------------------------------------------

    def run_forever(self) -> None:
        """Run until stop() is called.

        Raises RuntimeError if the loop is closed or running, or another loop runs in this thread.
        SystemExit and KeyboardInterrupt raised by a callback come out of here; the loop can be run
        again afterwards.
        """
        self._check_closed()
        self._check_running()
        self._start_watchdog()
        self._set_coroutine_origin_tracking(self._debug)
        old_hooks = sys.get_asyncgen_hooks()
        try:
            self._thread_id = threading.get_ident()
            sys.set_asyncgen_hooks(firstiter=self._asyncgen_firstiter_hook, finalizer=self._asyncgen_finalizer_hook)
            events._set_running_loop(self)
            with self._signals_wake_us():
                self._run()
        finally:
            self._thread_id = None
            events._set_running_loop(None)
            self._set_coroutine_origin_tracking(False)
            sys.set_asyncgen_hooks(*old_hooks)

    _hosted = False
    """Whether the loop is a guest (tideloop.loop.hosting), in a step or between two."""

    def _check_running(self) -> None:
        if self._hosted:
            raise RuntimeError(
                "This event loop runs as a guest of another one, which must not be blocked; "
                "await what is needed, or schedule it with create_task()"
            )
        super()._check_running()

    def close(self) -> None:
        """Close the loop and let go of everything that is scheduled or watched.

        Raises RuntimeError if it is running. Closing twice does nothing.
        """
        if self.is_running() or self._hosted:
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        self._forget_children()
        super().close()
        self._shutdown()

    def set_debug(self, enabled: bool) -> None:
        """Turn debug mode on or off: checks of threads and callbacks, slow-callback warnings."""
        super().set_debug(enabled)
        self._set_debug(bool(enabled))

    @property
    def _debug(self) -> bool:
        return self.get_debug()

    @_debug.setter
    def _debug(self, enabled: bool) -> None:
        self._set_debug(bool(enabled))

    @property
    def _closed(self) -> bool:
        return self.is_closed()

    @_closed.setter
    def _closed(self, closed: bool) -> None:
        """asyncio's own bookkeeping; the native half knows."""

    def __repr__(self) -> str:
        return (
            f"<{self.__class__.__name__} running={self.is_running()} "
            f"closed={self.is_closed()} debug={self.get_debug()}>"
        )

    # --- what it does with its time -------------------------------------------------------------------

    def metrics(self) -> LoopMetrics:
        """Tell what the loop has done with its time since it was made, and what it has to do now.

        From any thread. Raises RuntimeError if the loop was made with ``observe=False``.
        """
        from tideloop.observe.metrics import metrics_of

        counted = self._metrics()
        if counted is None:
            raise RuntimeError(f"{self!r} is not observed: it was made with observe=False, or TIDELOOP_OBSERVE is 0")
        executor = self._default_executor
        queue = getattr(executor, "_work_queue", None)
        return metrics_of(counted, self._counts(), queue.qsize() if queue is not None else 0)

    def trace(self, seconds: float | None = None) -> bytes:
        """Tell what the loop did of late, event by event, as Chrome trace JSON, which Perfetto opens.

        seconds: how far back, at least 0; None for all that is kept, which is the last 65,536 events. From any thread,
        also while the loop is blocked. Raises RuntimeError if the loop was not made with ``observe="trace"``, and
        ValueError for a negative number.
        """
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"seconds is {seconds!r}; expected a number of at least 0, or None")
        trace = self._trace(seconds)
        if trace is None:
            raise RuntimeError(f"{self!r} is not traced: it was not made with observe='trace', nor is TIDELOOP_OBSERVE")
        return trace

    def tasks(self) -> TasksSeen:
        """Tell what there is of tasks: each that is not done, and each coroutine function that tasks were made of.

        From any thread. Times are known to a loop that was made with ``observe="tasks"``, and None otherwise.
        """
        from tideloop.observe.tasks import tasks_of

        return tasks_of(self)

    def _task_failed(self, task: asyncio.Task[Any]) -> None:
        """A task has ended with an exception that nobody has asked for yet: see whether somebody does."""
        from tideloop.observe.unretrieved import expect

        expect(self, task)

    def _start_watchdog(self) -> None:
        """The loop is about to run: with the first one that is observed the watchdog starts."""
        if not self._is_observed():
            return
        from tideloop.watchdog import watch

        watch(self._is_traced())
        if self._known_in != (thread := threading.get_ident()):
            self._known_in = thread
            self._make_known()

    _known_in: int | None = None
    """The thread that whoever looks from outside is told the loop runs in."""

    def _make_known(self) -> None:
        observed.join(self)
        self._runs_in(observed.name_of_thread())
        if self._is_traced():
            from tideloop.observe.dumps import dump_if_asked

            dump_if_asked()
        observed.serve_if_asked()

    def _blocked(
        self,
        took: int,
        cause: str,
        task: asyncio.Task[Any] | None,
        place: tuple[str, str, int],
        stacks: list[list[tuple[str, int, str]]],
        captured: int | None,
    ) -> None:
        """A step has blocked the loop, as the native half has seen."""
        from tideloop.watchdog import tell

        tell(self, took, cause, task, place, stacks, captured)

    # --- sockets of the application ------------------------------------------------------------------

    if not TYPE_CHECKING:
        sock_recv = function("EventLoop.sock_recv", asyncio.SelectorEventLoop.sock_recv)
        sock_recv_into = function("EventLoop.sock_recv_into", asyncio.SelectorEventLoop.sock_recv_into)
        sock_recvfrom = function("EventLoop.sock_recvfrom", asyncio.SelectorEventLoop.sock_recvfrom)
        sock_sendall = function("EventLoop.sock_sendall", asyncio.SelectorEventLoop.sock_sendall)
        sock_recvfrom_into = function("EventLoop.sock_recvfrom_into", asyncio.SelectorEventLoop.sock_recvfrom_into)
        sock_sendto = function("EventLoop.sock_sendto", asyncio.SelectorEventLoop.sock_sendto)
        sock_connect = function("EventLoop.sock_connect", asyncio.SelectorEventLoop.sock_connect)
        sock_accept = function("EventLoop.sock_accept", asyncio.SelectorEventLoop.sock_accept)

    # --- what the native half calls ----------------------------------------------------------------

    _create_stock_task = asyncio.SelectorEventLoop.create_task

    def _create_task(self, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        """create_task() where it is not simple: with a factory, in debug mode, with other keywords."""
        self._check_closed()
        if self._task_factory is not None or not is_stock(asyncio.tasks.Task) or self.task_kind == "stock":
            made = self._create_stock_task(coro, **kwargs)
            if self._counts_tasks() and self._task_begins(made, coro):
                self._task_failed(made)
            return made
        task = Task(coro, loop=self, **kwargs)
        if task._source_traceback:  # type: ignore[attr-defined]
            del task._source_traceback[-1]  # type: ignore[attr-defined]
        try:
            return task
        finally:
            # A traceback of the task may keep this frame; with the task in it, that would be a cycle.
            del task

    def _check_scheduling(self, callback: object, method: str, thread_safe: bool) -> Any:
        """Debug mode: refuse what asyncio refuses; say where the call came from."""
        if not thread_safe:
            self._check_thread()
        self._check_callback(callback, method)
        return format_helpers.extract_stack(sys._getframe(1))

    def _run_in_debug(self, handle: asyncio.Handle) -> None:
        """Debug mode: run a handle and warn if it took long."""
        started = self.time()
        # A handle that has run has forgotten what it ran.
        callback, args = handle._callback, handle._args  # type: ignore[attr-defined]
        handle._run()
        took = self.time() - started
        if took >= self.slow_callback_duration:
            described = describe_call(handle, callback, args)
            _logger().warning("Executing %s took %.3f seconds", described, took)
        # A traceback of the task may keep this frame; with the task in it, that would be a cycle.
        del handle, callback, args

    def _step_failed(self, task: asyncio.Task[Any], exception: BaseException) -> None:
        """A step of a task has failed outside of its coroutine: to the exception handler with it."""
        self.call_exception_handler(
            {"message": f"Exception in a step of {task!r}", "exception": exception, "task": task}
        )

    def _told_failed(
        self, callback: Callable[..., object], future: asyncio.Future[Any], exception: BaseException
    ) -> None:
        """A callback of a future that needs no handle has raised: to the exception handler with it."""
        called = describe_source(callback, (future,), self.get_debug())
        self.call_exception_handler(
            {"message": f"Exception in callback {called}", "exception": exception, "future": future}
        )

    def _callback_failed(self, handle: asyncio.Handle, exception: BaseException) -> None:
        """A callback has raised: to the exception handler with it."""
        callback, args = handle._callback, handle._args  # type: ignore[attr-defined]
        called = describe_source(callback, args, self.get_debug())
        context: dict[str, Any] = {
            "message": f"Exception in callback {called}",
            "exception": exception,
            "handle": handle,
        }
        if handle._source_traceback:  # type: ignore[attr-defined]
            context["source_traceback"] = handle._source_traceback  # type: ignore[attr-defined]
        self.call_exception_handler(context)

    # --- what asyncio's half calls -----------------------------------------------------------------

    def _make_socket_transport(
        self,
        sock: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        context: Any = None,
    ) -> SocketTransport:
        transport = SocketTransport(self, protocol, extra, server)
        if server is None:
            transport._adopt(sock, waiter)
            return transport
        try:
            self._attach_to_server(server, transport)
        except ConnectionAbortedError:
            sock.close()
            raise
        try:
            transport._adopt(sock, waiter)
        except BaseException:
            self._detach_from_server(server, transport)
            raise
        return transport

    def _transport_failed(self, transport: object, protocol: object, message: str, exception: BaseException) -> None:
        if isinstance(exception, OSError) and message.startswith("Fatal"):
            _logger().debug("%r: %s", transport, message, exc_info=exception)
            return
        self.call_exception_handler(
            {"message": message, "exception": exception, "transport": transport, "protocol": protocol}
        )

    def _warn_dropped_write(self) -> None:
        _logger().warning("socket.send() raised exception.")

    def _add_callback(self, handle: asyncio.Handle) -> None:
        """Schedule a handle that somebody else has made."""
        if not handle._cancelled:
            self.call_soon(handle._run)

    def _add_callback_signalsafe(self, handle: asyncio.Handle) -> None:
        if not handle._cancelled:
            self.call_soon_threadsafe(handle._run)

    def _write_to_self(self) -> None:
        """Wake the loop up, from any thread."""
        self._wake_up()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing: native timers tell the native half themselves."""


def new_event_loop() -> EventLoop:
    """Make a new event loop, as ``asyncio.Runner(loop_factory=...)`` wants it."""
    return EventLoop()
