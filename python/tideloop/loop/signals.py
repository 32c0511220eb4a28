"""Signals: handlers that run in the loop, and a loop that a signal wakes.

A signal's C handler may run at any instant, also between the loop's last look at its queue and its
system call to sleep. CPython writes the signal's number to a descriptor of our choice when that
happens (``signal.set_wakeup_fd``), so the loop watches such a descriptor whenever it runs in the main
thread. If the application has set one of its own, that one stays, until ``add_signal_handler`` needs
ours, as in asyncio. Whatever was set before is set again when the loop stops.

SIGCHLD is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["SignalMixin"]

_ABSENT = -1


def _ignore(_signum: int, _frame: object) -> None:
    """Makes CPython write to the wake-up descriptor; the loop does the rest."""


class SignalMixin:
    """The part of the loop that deals with signals."""

    _wakeup: tuple[socket.socket, socket.socket] | None = None
    _old_wakeup_fd: int | None = None

    @contextlib.contextmanager
    def _signals_wake_us(self) -> Iterator[None]:
        """While this lasts, a signal wakes the loop; main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ours = self._wakeup_fd()
        before = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
        if before not in (_ABSENT, ours) and not self._has_signal_handlers():
            signal.set_wakeup_fd(before)
        try:
            yield
        finally:
            if signal.set_wakeup_fd(before) != ours and before == _ABSENT:
                # Somebody set another one while we ran: it is theirs to keep.
                pass

    def _wakeup_fd(self: Any) -> int:
        """The descriptor for CPython to write to; made and watched on first use."""
        if self._wakeup is None:
            reader, writer = socket.socketpair()
            reader.setblocking(False)
            writer.setblocking(False)
            self._wakeup = reader, writer
            self._add_reader(reader.fileno(), self._signals_arrived)
        fd: int = self._wakeup[1].fileno()
        return fd

    def _signals_arrived(self: Any) -> None:
        """Reads the numbers of the signals that have arrived, and schedules their handlers."""
        while True:
            try:
                numbers = self._wakeup[0].recv(4096)
            except InterruptedError:
                continue
            except BlockingIOError:
                return
            if not numbers:
                return
            for number in numbers:
                if number in self._signal_handlers:
                    self._handle_signal(number)

    def _has_signal_handlers(self) -> bool:
        return bool(getattr(self, "_signal_handlers", None))

    def add_signal_handler(self: Any, sig: int, callback: Callable[..., object], *args: Any) -> None:
        """Run callback(*args) in the loop whenever the signal arrives.

        Raises ValueError if the number is not a signal that can be caught, RuntimeError if this is
        not the main thread, TypeError for a coroutine, NotImplementedError where there are no UNIX
        signals.
        """
        if not hasattr(self, "_signal_handlers"):
            raise NotImplementedError("add_signal_handler: this system has no UNIX signals")
        if asyncio.iscoroutine(callback) or asyncio.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        self._check_signal(sig)
        self._check_closed()
        try:
            signal.set_wakeup_fd(self._wakeup_fd(), warn_on_full_buffer=False)
        except (ValueError, OSError) as error:
            raise RuntimeError(str(error)) from None
        handle = asyncio.Handle(callback, args, self, None)
        self._signal_handlers[sig] = handle
        try:
            signal.signal(sig, _ignore)
            signal.siginterrupt(sig, False)
        except OSError as error:
            del self._signal_handlers[sig]
            if not self._signal_handlers:
                with contextlib.suppress(ValueError, OSError):
                    signal.set_wakeup_fd(-1)
            if error.errno == 22:
                raise RuntimeError(f"sig {sig} cannot be caught") from error
            raise

    def _close_signals(self) -> None:
        """Close the wake-up descriptors."""
        if self._wakeup is not None:
            for end in self._wakeup:
                end.close()
            self._wakeup = None
