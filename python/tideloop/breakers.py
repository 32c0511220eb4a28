"""Circuit breakers: Breaker. What fails anyway is not called."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

from tideloop._tideloop import Enlisted, enlist
from tideloop.durations import seconds

__all__ = ["Breaker", "BreakerOpen", "BreakerStats", "Failures", "matches"]

Failures = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
"""Which exceptions are meant: by their classes, or by a function that is asked with each."""


class BreakerOpen(Exception):
    """The call was not made, since so many before it have failed. `retry_in` is in seconds."""

    def __init__(self, message: str, retry_in: float) -> None:
        super().__init__(message, retry_in)
        self.retry_in = retry_in

    def __str__(self) -> str:
        return str(self.args[0])


class BreakerStats(NamedTuple):
    """A Breaker in numbers."""

    state: Literal["closed", "open", "half-open"]
    failure_rate: float
    """Of the calls that it remembers."""
    refused: int
    opened: int


class Breaker(Enlisted):
    """Stops calling what fails anyway, and asks carefully whether it is back.

    Closed, it remembers the last `window` calls; when at least `rate` of a full window have failed, it opens: calls
    raise BreakerOpen at once. After `pause` seconds it is half open and lets `probes` calls through, no more at a
    time; when all of them have succeeded it closes, when one fails it opens again. (Nygard, "Release It!", 2007; the
    window by count as in resilience4j.)

    `on` says what is a failure: exception classes, or a function that is asked with the exception. Cancelled calls are
    not counted. One breaker may be shared by policies of one thread.
    """

    __slots__ = (
        "__weakref__",
        "_failures",
        "_opened",
        "_outcomes",
        "_probing",
        "_refused",
        "_succeeded",
        "_until",
        "name",
        "on",
        "pause",
        "probes",
        "rate",
        "window",
    )

    def __init__(
        self,
        *,
        rate: float = 0.5,
        window: int = 20,
        pause: float = 30.0,
        probes: int = 3,
        on: Failures = Exception,
        name: str | None = None,
    ) -> None:
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise ValueError(f"rate must be a part above 0, at most 1, not {rate!r}")
        for what, value in (("window", window), ("probes", probes)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{what} must be a number of calls of at least 1, not {value!r}")
        self.rate = rate
        self.window = window
        self.pause = seconds("pause", pause)
        self.probes = probes
        self.on = on
        self.name = name
        self._outcomes: deque[bool] = deque(maxlen=window)
        self._failures = 0
        # Open until then, half open after that; closed if None.
        self._until: float | None = None
        self._probing = self._succeeded = 0
        self._refused = self._opened = 0
        enlist(self)

    def enter(self) -> int:
        """Ask whether a call may be made. Returns what leave() wants to know. Raises BreakerOpen."""
        if self._until is None:
            # Below 0: not a probe, but of this time of being closed.
            return -1 - self._opened
        left = self._until - asyncio.get_running_loop().time()
        if left > 0 or self._probing + self._succeeded >= self.probes:
            self._refused += 1
            raise BreakerOpen(f"{self!r} lets no call through", max(left, 0.0))
        self._probing += 1
        return self._opened

    def leave(self, entered: int, error: BaseException | None) -> None:
        """Tell how the call has ended; not as an Exception is cancelled."""
        counts = error is None or isinstance(error, Exception)
        try:
            failed = isinstance(error, Exception) and matches(self.on, error)
        except BaseException:
            if entered == self._opened and self._until is not None:
                self._probing -= 1
            raise
        if entered > 0:
            if entered != self._opened or self._until is None:
                return
            self._probing -= 1
            if failed:
                self._open()
            elif counts:
                self._succeeded += 1
                if self._succeeded >= self.probes:
                    self._until = None
                    self._outcomes.clear()
                    self._failures = 0
        elif counts and self._until is None and entered == -1 - self._opened:
            outcomes = self._outcomes
            if len(outcomes) == self.window:
                self._failures -= outcomes[0]
            outcomes.append(failed)
            self._failures += failed
            if failed and len(outcomes) == self.window and self._failures >= self.rate * self.window:
                self._open()

    def _open(self) -> None:
        self._until = asyncio.get_running_loop().time() + self.pause
        self._probing = self._succeeded = 0
        self._opened += 1

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        """Inside of a loop, whose clock it goes by."""
        if self._until is None:
            return "closed"
        return "open" if asyncio.get_running_loop().time() < self._until else "half-open"

    def stats(self) -> BreakerStats:
        """The breaker in numbers."""
        known = len(self._outcomes)
        return BreakerStats(self.state, self._failures / known if known else 0.0, self._refused, self._opened)

    def __repr__(self) -> str:
        state = "closed" if self._until is None else "opened"
        return f"<tideloop.Breaker {f'{self.name!r} ' if self.name else ''}{state} {self._failures} failures>"


def matches(on: Failures, error: Exception) -> bool:
    """Whether an exception is one of those."""
    return isinstance(error, on) if isinstance(on, type | tuple) else bool(on(error))
