"""tideloop as the guest of a Qt application: run(), and guest() where somebody else runs the application.

Qt's event loop stays the host and tideloop runs inside of it (`tideloop.loop.hosting` says how). Where the
loop's selector is a descriptor that can be watched itself (epoll), Qt watches it with a QSocketNotifier, and a
QTimer stands for the next deadline: no thread, no polling. Elsewhere a thread waits and posts an event to Qt.

Works with PySide6 and PyQt6, whichever the application object comes from. Importing this imports neither.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import math
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tideloop._tideloop import guest_descriptor
from tideloop.loop.event_loop import EventLoop, new_event_loop
from tideloop.loop.hosting import Guest, Outcome, ThreadWait, Wait, start

__all__ = ["guest", "run"]

_T = TypeVar("_T")

_BINDINGS = ("PySide6", "PyQt6")

_LONGEST_MS = 24 * 3600 * 1000
"""A QTimer counts milliseconds in 32 bits; a day is enough to look again."""


def run(
    main: Coroutine[Any, Any, _T] | Callable[[], Coroutine[Any, Any, _T]],
    app: Any = None,
    *,
    debug: bool | None = None,
    loop_factory: Callable[[], EventLoop] = new_event_loop,
) -> _T | int:
    """Run a Qt application with a coroutine on tideloop inside of it, until one of them ends.

    main: a coroutine, or a function that returns one. app: the QCoreApplication, QGuiApplication or
    QApplication, by default the one that exists. debug, loop_factory: as for tideloop.guest().

    If main ends first, the application is left with code 0, and this returns main's value or raises its
    exception. If the application quits first (its last window is closed, `app.quit()`, `app.exit(code)`), main
    is cancelled and awaited while Qt goes on serving widgets and timers, and this returns the application's
    exit code, or raises main's exception unless that is the cancellation. So both
    ``sys.exit(tideloop.qt.run(main, app))`` and ``result = tideloop.qt.run(main, app)`` do what they say.

    Ctrl-C cancels main, and raises KeyboardInterrupt here once it has ended.

    Raises TypeError if app is of no known Qt binding, RuntimeError if there is none, if this is not its
    thread, or if an event loop runs in this thread already, Qt's (then use guest()) or asyncio's.
    """
    try:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("tideloop.qt.run() cannot be called from a running event loop")
        core, app = _application(app)
        if core.QThread.currentThread().loopLevel() > 0:
            raise RuntimeError("Qt's event loop runs already; use tideloop.qt.guest() instead of tideloop.qt.run()")
        ended: list[Outcome[_T]] = []
        executing = True

        def done(outcome: Outcome[_T]) -> None:
            ended.append(outcome)
            if executing:
                app.exit(0)

        started = start(main, done, functools.partial(_wait, core), debug=debug, loop_factory=loop_factory)
    except BaseException:
        if asyncio.iscoroutine(main):
            main.close()
        raise
    try:
        code = int(app.exec())
    finally:
        executing = False
        quit_first = not ended
        started.cancel()
        # Not a second exec(): that would tell the application once more that it is about to quit.
        rest = core.QEventLoop()
        while not ended:
            rest.processEvents(core.QEventLoop.ProcessEventsFlag.WaitForMoreEvents)
    if not quit_first:
        return ended[0].result()
    if not isinstance(ended[0].exception, asyncio.CancelledError):
        ended[0].result()
    return code


def guest(
    done: Callable[[Outcome[_T]], object],
    main: Coroutine[Any, Any, _T] | Callable[[], Coroutine[Any, Any, _T]] | None = None,
    app: Any = None,
    *,
    debug: bool | None = None,
    loop_factory: Callable[[], EventLoop] = new_event_loop,
) -> Guest[_T]:
    """Start a guest of a Qt application that somebody else runs, and return at once.

    For a plug-in of a larger program, or from a slot. As tideloop.guest(), only that Qt does the waiting:
    done(outcome) is called in Qt's loop when all has ended. The application is neither left nor is its end
    noticed; connect ``app.aboutToQuit`` to ``guest.cancel`` or keep the application until done() was called.

    Raises what tideloop.guest() raises; TypeError if app is of no known Qt binding, RuntimeError if there is
    none or this is not its thread.
    """
    try:
        core, app = _application(app)
        return start(main, done, functools.partial(_wait, core), debug=debug, loop_factory=loop_factory)
    except BaseException:
        if asyncio.iscoroutine(main):
            main.close()
        raise


def _application(app: Any) -> tuple[Any, Any]:
    """The QtCore module of an application object, and the object; in its thread only."""
    core, app = _find_application(app)
    if core.QThread.currentThread() != app.thread():
        raise RuntimeError("a guest of Qt must be started in the thread of the application")
    return core, app


def _find_application(app: Any) -> tuple[Any, Any]:
    if app is None:
        for binding in _BINDINGS:
            core = _imported(binding)
            if core is not None and (app := core.QCoreApplication.instance()) is not None:
                return core, app
        raise RuntimeError("there is no Qt application; make one first, and pass it to tideloop.qt.run()")
    for base in type(app).__mro__:
        binding = base.__module__.partition(".")[0]
        if binding in _BINDINGS:
            core = importlib.import_module(f"{binding}.QtCore")
            if isinstance(app, core.QCoreApplication):
                return core, app
    raise TypeError(f"app is {app!r}; expected a QCoreApplication of {' or '.join(_BINDINGS)}")


def _imported(binding: str) -> Any:
    """A binding's QtCore if the program has imported it."""
    return sys.modules.get(f"{binding}.QtCore")


def _wait(core: Any, started: Guest[Any]) -> Wait:
    descriptor = guest_descriptor(started.loop)
    if descriptor is None:
        return _PostingWait(core, started)
    return _NotifierWait(core, started, descriptor)


class _NotifierWait:
    """Qt watches the selector's descriptor and the next deadline."""

    def __init__(self, core: Any, started: Guest[Any], descriptor: int) -> None:
        self._guest = started
        # Without a parent: they go when we go, not when the application does.
        self._notifier = core.QSocketNotifier(descriptor, core.QSocketNotifier.Type.Read)
        self._notifier.activated.connect(self._activated)
        self._timer = core.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setTimerType(core.Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._activated)

    def arm(self, timeout: float | None) -> None:
        if timeout is None:
            self._timer.stop()
        elif timeout > 0:
            self._timer.start(min(math.ceil(timeout * 1000), _LONGEST_MS))
        else:
            # Through the descriptor rather than a timer of 0 ms, so that Qt's own events take their turn.
            self._timer.stop()
            self._guest.loop._wake_up()
        if not self._notifier.isEnabled():
            self._notifier.setEnabled(True)

    def close(self) -> None:
        self._notifier.setEnabled(False)
        self._notifier.activated.disconnect(self._activated)
        self._timer.stop()
        self._timer.timeout.disconnect(self._activated)

    def _activated(self, *_: object) -> None:
        if self._guest.in_step:
            # Our own task runs Qt's loop. What is ready stays ready until the step ends, and the notifier would
            # tell of it without end.
            self._notifier.setEnabled(False)
            return
        self._guest.step()


class _PostingWait(ThreadWait):
    """A thread waits, and posts an event to an object in the application's thread."""

    def __init__(self, core: Any, started: Guest[Any]) -> None:
        self._receiver = _receiver_class(core)(started.step)
        post = functools.partial(_post, core, self._receiver)
        super().__init__(started.loop, post, started.step)

    def close(self) -> None:
        super().close()
        self._receiver.callback = None


def _post(core: Any, receiver: Any, step: Callable[[], None]) -> None:
    core.QCoreApplication.postEvent(receiver, core.QEvent(core.QEvent.Type.User))


@functools.cache
def _receiver_class(core: Any) -> Any:
    """A QObject that calls its callback for each event posted to it; one class per binding."""

    class Receiver(core.QObject):  # type: ignore[misc]
        def __init__(self, callback: Callable[[], None]) -> None:
            super().__init__()
            self.callback: Callable[[], None] | None = callback

        def event(self, event: Any) -> bool:
            if event.type() != core.QEvent.Type.User:
                return bool(super().event(event))
            if self.callback is not None:
                self.callback()
            return True

    return Receiver
