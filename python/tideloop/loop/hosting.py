"""A tideloop loop as the guest of another event loop: guest(), Guest, Outcome.

Two event loops in one thread cannot both block. The one that does is the host (Qt, Tk, a game engine,
another asyncio loop); ours is its guest and never blocks:

1. A *step* is a function that the host calls on its own thread. It polls without waiting, delivers what is
   there, and runs turns of our loop while callbacks are ready: as many as may pass without a poll (61 turns and
   50 µs). So the host is asked as often as the selector, and a chain of short tasks does not pay for the host's
   own loop at each link.
2. Then something is *armed* to call the next step: at once if callbacks are ready, otherwise as soon as
   a descriptor is ready, a timer is due, or somebody has scheduled something. By default that is a thread
   which waits on our selector without delivering anything and then calls `host_call_soon_threadsafe(step)`;
   `tideloop.qt` lets Qt itself watch the selector's descriptor instead, without a thread.

So at any moment there is either a step that the host was asked for, or one wait under way, never both.

**The running loop** is ours inside a step and the host's (or none) outside of it, and so are the hooks for
asynchronous generators: the host may itself be an asyncio loop. What the host's own code schedules between
two steps (`guest.loop.create_task(...)` in a button's slot) ends the wait: the native half knows that it is
between two steps and wakes its selector for everything that is scheduled. `loop.is_running()` is True in a step
only: an eager task that the host starts waits for a step, too.

**A step never begins inside a step.** A task that runs the host's loop again (a modal dialog's `exec()`)
therefore stops our loop until that returns. Open the dialog without blocking and await its end instead; the
host's own code may run what it likes, our steps go on under it.

**The end** is asyncio.run()'s: once main is done (or stop() was called, or SystemExit has left a callback)
what is left is cancelled and awaited, then asynchronous generators and the executor are shut down, all of it
in further steps; then the loop is closed and done(outcome) called. Until then the host must keep going.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import enum
import signal
import sys
import threading
from asyncio import constants, events
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, Protocol, TypeVar

from tideloop._tideloop import guest_begin, guest_end, guest_timeout, guest_turns, guest_wait
from tideloop.loop.event_loop import EventLoop, new_event_loop
from tideloop.outcome import Outcome

__all__ = ["Guest", "Outcome", "guest", "start"]

_T = TypeVar("_T")

_JOIN = 5.0
"""Seconds that an exiting interpreter waits for a waiting thread whose host does not answer."""


_alive: set[Guest[Any]] = set()
"""Guests that have not ended. A host may know them by weak references only (Qt's signals do), and what a loop has
scheduled in a turn is not visible to the garbage collector, because a loop that runs is reachable."""


class Wait(Protocol):
    """What calls the next step, on the host's thread."""

    def arm(self, timeout: float | None) -> None:
        """Call the next step in so many seconds, or when the loop has something to do; 0: at once."""

    def close(self) -> None:
        """Call nothing any more. On the host's thread, with nothing armed."""


class _Stage(enum.Enum):
    RUNNING = enum.auto()
    WINDING_DOWN = enum.auto()
    ENDED = enum.auto()


class Guest(Generic[_T]):
    """A loop that runs as a guest. Made by guest(); its methods belong to the host's thread."""

    loop: EventLoop
    """The loop, to schedule on: between two steps it is nobody's running loop."""

    def __init__(self, loop: EventLoop, done: Callable[[Outcome[_T]], object]) -> None:
        self.loop = loop
        self._done = done
        self._main: asyncio.Task[_T] | None = None
        self._stage = _Stage.RUNNING
        self._outcome: Outcome[_T] = Outcome()
        self._thread = threading.get_ident()
        self._wait: Wait | None = None
        self._winding: asyncio.Task[None] | None = None
        self._held = contextlib.ExitStack()
        self._interrupted = False
        self._interrupt_due = False
        self.in_step = False
        """Whether a step is under way: True when asked by our own callbacks and tasks."""

    @property
    def ended(self) -> bool:
        """Whether the loop is closed and done() was called, or is about to be."""
        return self._stage is _Stage.ENDED

    def cancel(self) -> None:
        """Ask the guest to end: cancel main, or, without a main, stop. It ends some steps later.

        Once main is done this does nothing. From another thread:
        ``guest.loop.call_soon_threadsafe(guest.cancel)``, which raises RuntimeError once it has ended.
        """
        if self._stage is not _Stage.RUNNING:
            return
        if self._main is None:
            self.loop.call_soon(self.loop.stop)
        else:
            self._main.cancel()

    def __repr__(self) -> str:
        return f"<Guest {self._stage.name.lower().replace('_', ' ')} {self.loop!r}>"

    # --- for who drives it --------------------------------------------------------------------------

    def begin(self, main: Coroutine[Any, Any, _T] | None, wait: Wait) -> None:
        """Become a guest, and arm the first step. If this raises, nothing has happened."""
        loop = self.loop
        with contextlib.ExitStack() as held:
            held.callback(wait.close)
            loop._start_watchdog()
            guest_begin(loop)
            held.callback(guest_end, loop)
            loop._hosted = True
            held.callback(setattr, loop, "_hosted", False)
            loop._take_wakeup_fd()
            held.callback(loop._leave_wakeup_fd)
            # Before main's task is made: a host that refuses leaves nothing behind.
            wait.arm(0.0)
            if main is not None:
                self._main = loop.create_task(main)
                self._main.add_done_callback(self._main_done)
                held.enter_context(self._interrupts_cancel_main())
            self._wait = wait
            _alive.add(self)
            held.callback(_alive.discard, self)
            self._held = held.pop_all()

    def step(self) -> None:
        """Run what is ready and arm the next step; what the host is asked to call."""
        if self.in_step or self._wait is None:
            return
        if threading.get_ident() != self._thread:
            raise RuntimeError("a guest's step was called in another thread than guest()")
        self.in_step = True
        try:
            if self._interrupt_due:
                self._interrupt_due = False
                raise KeyboardInterrupt
            if self._turn():
                self._stopped()
        except BaseException as error:
            self._torn(error)
        finally:
            self.in_step = False
        if self._stage is _Stage.ENDED:
            self._end()
        else:
            self.loop._take_wakeup_fd()
            self._wait.arm(guest_timeout(self.loop))

    def _turn(self) -> bool:
        loop = self.loop
        host_loop, host_hooks = events._get_running_loop(), sys.get_asyncgen_hooks()
        loop._set_coroutine_origin_tracking(loop._debug)
        sys.set_asyncgen_hooks(firstiter=loop._asyncgen_firstiter_hook, finalizer=loop._asyncgen_finalizer_hook)
        loop._thread_id = self._thread
        events._set_running_loop(loop)
        try:
            return guest_turns(loop)
        finally:
            events._set_running_loop(host_loop)
            loop._thread_id = None
            sys.set_asyncgen_hooks(*host_hooks)
            loop._set_coroutine_origin_tracking(False)

    # --- the end ------------------------------------------------------------------------------------

    def _main_done(self, main: asyncio.Task[_T]) -> None:
        failure = _failure_of(main)
        if self._stage is not _Stage.RUNNING:
            return
        if self._interrupted and main.cancelled() and main.uncancel() == 0:
            failure = KeyboardInterrupt()
        self._wind_down(Outcome(main.result()) if failure is None else Outcome(exception=failure))

    def _stopped(self) -> None:
        """The loop was told to stop."""
        if self._stage is _Stage.RUNNING:
            if self._main is None:
                self._wind_down(Outcome())
            else:
                self._wind_down(Outcome(exception=RuntimeError("Event loop stopped before main completed.")))
        elif self._winding is not None and self._winding.done():
            if self._outcome.exception is None and (failure := self._winding.exception()) is not None:
                self._outcome = Outcome(exception=failure)
            self._stage = _Stage.ENDED

    def _torn(self, error: BaseException) -> None:
        """SystemExit, KeyboardInterrupt or a fault of ours has left a turn; the second one ends all at once."""
        if self._stage is _Stage.RUNNING:
            self._wind_down(Outcome(exception=error))
        elif self._outcome.exception is not error:
            # Not the exception that main has left with, on its way out of the turn.
            self._outcome = Outcome(exception=error)
            self._stage = _Stage.ENDED

    def _wind_down(self, outcome: Outcome[_T]) -> None:
        self._stage, self._outcome = _Stage.WINDING_DOWN, outcome
        self._winding = self.loop.create_task(_end_all(self.loop))
        self._winding.add_done_callback(lambda _: self.loop.stop())

    def _end(self) -> None:
        outcome, self._outcome = self._outcome, Outcome()
        held, self._held = self._held, contextlib.ExitStack()
        self._wait = self._main = self._winding = None
        try:
            held.close()
            self.loop.close()
        finally:
            self._done(outcome)

    @contextlib.contextmanager
    def _interrupts_cancel_main(self) -> Iterator[None]:
        """While this lasts, Ctrl-C cancels main and a second one ends the guest; as asyncio.Runner has it."""
        ours = self._interrupt
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ):
            yield
            return
        signal.signal(signal.SIGINT, ours)
        try:
            yield
        finally:
            if signal.getsignal(signal.SIGINT) == ours:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, signum: int, frame: object) -> None:
        if not self._interrupted and self._main is not None and not self._main.done():
            self._interrupted = True
            self._main.cancel()
        elif self.in_step:
            raise KeyboardInterrupt
        else:
            # The host's code is running, or nothing is: the next step raises it, where it cannot hit the host.
            self._interrupt_due = True
        self.loop.call_soon_threadsafe(lambda: None)


def _failure_of(task: asyncio.Task[Any]) -> BaseException | None:
    """The exception that a task has ended with, its cancellation included."""
    try:
        return task.exception()
    except asyncio.CancelledError as cancellation:
        return cancellation.with_traceback(None)


async def _end_all(loop: asyncio.AbstractEventLoop) -> None:
    """What asyncio.Runner.close() does before it closes its loop."""
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and task.exception() is not None:
            loop.call_exception_handler(
                {
                    "message": "unhandled exception while a guest was ending",
                    "exception": task.exception(),
                    "task": task,
                }
            )
    await loop.shutdown_asyncgens()
    if sys.version_info >= (3, 12):
        await loop.shutdown_default_executor(constants.THREAD_JOIN_TIMEOUT)
    else:
        await loop.shutdown_default_executor()


class ThreadWait:
    """Waits in a thread: works with every host that can be asked, from a thread, to call something."""

    def __init__(
        self,
        loop: EventLoop,
        host_call_soon_threadsafe: Callable[[Callable[[], None]], object],
        step: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._call_soon_threadsafe = host_call_soon_threadsafe
        self._step = step
        self._timeout: float | None = None
        self._closed = False
        self._go = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._serve, name="tideloop guest", daemon=True)
        self._thread.start()
        # A daemon, so that a forgotten guest does not keep the process; but no thread may come back from the
        # system call into an interpreter that is going, so it is ended before that.
        atexit.register(self.close)

    def arm(self, timeout: float | None) -> None:
        if timeout == 0:
            self._call_soon_threadsafe(self._step)
            return
        self._timeout = timeout
        self._go.release()

    def close(self) -> None:
        atexit.unregister(self.close)
        self._closed = True
        if not self._loop.is_closed():
            self._loop._wake_up()
        self._go.release()
        self._thread.join(_JOIN)

    def _serve(self) -> None:
        while True:
            self._go.acquire()
            if not self._closed:
                guest_wait(self._loop, self._timeout)
            if self._closed:
                return
            self._call_soon_threadsafe(self._step)


def start(
    main: Coroutine[Any, Any, _T] | Callable[[], Coroutine[Any, Any, _T]] | None,
    done: Callable[[Outcome[_T]], object],
    waiting: Callable[[Guest[_T]], Wait],
    *,
    debug: bool | None = None,
    loop_factory: Callable[[], EventLoop] = new_event_loop,
) -> Guest[_T]:
    """Start a guest whose steps are called by what `waiting` makes."""
    coroutine = main() if callable(main) else main
    if coroutine is not None and not asyncio.iscoroutine(coroutine):
        raise ValueError(f"main is {main!r}; expected a coroutine, or a function that returns one")
    with contextlib.ExitStack() as stack:
        if coroutine is not None:
            stack.callback(coroutine.close)
        loop = loop_factory()
        stack.callback(loop.close)
        if not isinstance(loop, EventLoop):
            raise TypeError(f"loop_factory made {loop!r}; only a tideloop.EventLoop can be a guest")
        if debug is not None:
            loop.set_debug(debug)
        started = Guest(loop, done)
        started.begin(coroutine, waiting(started))
        stack.pop_all()
    return started


def guest(
    host_call_soon_threadsafe: Callable[[Callable[[], None]], object],
    done: Callable[[Outcome[_T]], object],
    main: Coroutine[Any, Any, _T] | Callable[[], Coroutine[Any, Any, _T]] | None = None,
    *,
    debug: bool | None = None,
    loop_factory: Callable[[], EventLoop] = new_event_loop,
) -> Guest[_T]:
    """Run a tideloop loop inside of another event loop, on the calling thread, and return at once.

    host_call_soon_threadsafe: how the host is asked, from any thread, to call a function without arguments
    on this thread, soon and once; calls in order. done: called on this thread with the Outcome once the guest
    has ended and its loop is closed; until then the host must keep running what it is asked to run. main: a
    coroutine, or a function that returns one; the guest ends with it. Without a main it ends at
    `Guest.cancel()` or `loop.stop()`. debug and loop_factory: as for tideloop.Runner, with tideloop's loops.

    A callback's SystemExit or KeyboardInterrupt ends the guest and arrives in the outcome. In the main thread
    Ctrl-C cancels main, as in asyncio.run(), unless the host handles SIGINT itself.

    Raises ValueError if main is not a coroutine, TypeError if loop_factory makes another loop; whatever
    host_call_soon_threadsafe raises comes out of here too, and then nothing was started.
    """
    return start(
        main,
        done,
        lambda started: ThreadWait(started.loop, host_call_soon_threadsafe, started.step),
        debug=debug,
        loop_factory=loop_factory,
    )
