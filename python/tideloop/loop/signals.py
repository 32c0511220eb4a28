"""Signals: handlers that run in the loop, and a loop that a signal wakes.

A signal's C handler may run at any instant, also between the loop's last look at its queue and its
system call to sleep. CPython writes the signal's number to a descriptor of our choice when that
happens (``signal.set_wakeup_fd``), so the loop watches such a descriptor whenever it runs in the main
thread. If the application has set one of its own, that one stays, until ``add_signal_handler`` needs
ours, as in asyncio. Whatever was set before is set again when the loop stops.

The descriptor is one end of a socket pair under asyncio's names for it, so that asyncio's own code
installs the handlers and reads the numbers; it is only made when the loop first needs it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tideloop.loop.bases import LoopBase

__all__ = ["SignalLoop"]

_NONE_SET = -1


class SignalLoop(LoopBase):
    """The part of the loop that deals with signals."""

    _ssock: socket.socket | None = None
    _csock: socket.socket | None = None

    @contextlib.contextmanager
    def _signals_wake_us(self) -> Iterator[None]:
        """While this lasts, a signal wakes the loop; main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ours = self._wakeup_fd()
        before = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
        if before not in (_NONE_SET, ours) and not self._signal_handlers:
            signal.set_wakeup_fd(before)
        try:
            yield
        finally:
            now = signal.set_wakeup_fd(before)
            if now not in (ours, before, _NONE_SET):
                # Somebody set another one while we ran: it is theirs to keep.
                signal.set_wakeup_fd(now)

    def _take_wakeup_fd(self) -> None:
        """From now on a signal wakes us, unless it wakes somebody else already; main thread only.

        For guests, which overlap and end in any order: none may put back what it has found, and each asks
        again in every step, in case the one that was woken is gone.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        ours = self._wakeup_fd()
        before = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
        if before not in (_NONE_SET, ours) and not self._signal_handlers:
            # Fails if its owner has closed it; then it is free.
            with contextlib.suppress(OSError):
                signal.set_wakeup_fd(before)

    def _leave_wakeup_fd(self) -> None:
        """From now on a signal no longer wakes us; main thread only."""
        if self._csock is None or threading.current_thread() is not threading.main_thread():
            return
        now = signal.set_wakeup_fd(_NONE_SET)
        if now not in (_NONE_SET, self._csock.fileno()):
            with contextlib.suppress(OSError):
                signal.set_wakeup_fd(now)

    def _wakeup_fd(self) -> int:
        """The descriptor for CPython to write to; made and watched on first use."""
        if self._csock is None:
            self._ssock, self._csock = socket.socketpair()
            self._ssock.setblocking(False)
            self._csock.setblocking(False)
            self._add_reader(self._ssock.fileno(), self._read_from_self)
        return self._csock.fileno()

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:  # type: ignore[override]
        """Run callback(*args) in the loop whenever the signal arrives.

        Raises ValueError if the number is not a signal that can be caught, RuntimeError if this is
        not the main thread, TypeError for a coroutine, NotImplementedError where there are no UNIX
        signals.
        """
        if not self.is_closed():
            self._wakeup_fd()
        super().add_signal_handler(sig, callback, *args)

    def remove_signal_handler(self, sig: int) -> bool:
        """Remove a signal's handler. Returns whether there was one."""
        removed = super().remove_signal_handler(sig)
        if removed and not self._signal_handlers and self.is_running():
            # asyncio has just unset the descriptor; while we run, signals must still wake us.
            signal.set_wakeup_fd(self._wakeup_fd(), warn_on_full_buffer=False)
        return removed

    def _make_self_pipe(self) -> None:
        """The native selector has a waker of its own; asyncio only counts its descriptor."""
        self._internal_fds += 1
        if not hasattr(self, "_signal_handlers"):
            self._signal_handlers = {}

    def _close_self_pipe(self) -> None:
        self._internal_fds -= 1
        for end in (self._ssock, self._csock):
            if end is not None:
                # A loop that nobody has closed is garbage together with these, which may have ended first.
                if end.fileno() >= 0:
                    self._remove_reader(end)
                end.close()
        self._ssock = self._csock = None
