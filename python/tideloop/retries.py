"""Retries: Retry. How a failed call is tried again, and how often that may be."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Literal

from tideloop.breakers import BreakerOpen, Failures, matches
from tideloop.durations import seconds

__all__ = ["Retry"]


class Retry:
    """How a failed call is tried again.

    `on` says what may be: exception classes, or a function that is asked with the exception. There are `attempts` in
    all; before the n-th again a pause of ``first * factor ** (n - 1)`` seconds, `longest` at most. With `jitter`
    "full" it is drawn between 0 and that (Brooker, "Exponential Backoff And Jitter", AWS 2015), a number is the part
    that it varies by. `retry_after` is asked with the exception for the seconds that the server wants us to wait, by
    default its attribute of that name, or the Retry-After header among its `headers` or those of its `response`; a
    longer pause than `longest` that it wants is not waited for: the failure is final.

    `budget` is how many retries there may be per call, over many calls: with 0.1 a tenth, besides `reserve` that may
    be used up first. So that an outage does not multiply the load on what is out (as gRPC's retry throttling and
    Finagle's retry budget). The budget is the Retry's: policies that share it share that.

    A BreakerOpen is never tried again, nor is what is no Exception.
    """

    __slots__ = (
        "_tokens",
        "attempts",
        "budget",
        "factor",
        "first",
        "jitter",
        "longest",
        "on",
        "reserve",
        "retry_after",
    )

    def __init__(
        self,
        on: Failures = Exception,
        *,
        attempts: int | None = 4,
        first: float = 0.1,
        factor: float = 2.0,
        longest: float = 5.0,
        jitter: Literal["full"] | float = "full",
        budget: float | None = None,
        reserve: float = 10.0,
        retry_after: Callable[[Exception], float | None] | None = None,
    ) -> None:
        if attempts is not None and (not isinstance(attempts, int) or attempts < 1):
            raise ValueError(f"attempts must be a number of at least 1, or None, not {attempts!r}")
        if jitter != "full" and not (isinstance(jitter, int | float) and 0 <= jitter <= 1):
            raise ValueError(f"jitter must be 'full' or a part between 0 and 1, not {jitter!r}")
        if not isinstance(factor, int | float) or factor < 1:
            raise ValueError(f"factor must be a number of at least 1, not {factor!r}")
        if budget is not None and not (isinstance(budget, int | float) and budget >= 0):
            raise ValueError(f"budget must be a number of retries per call, at least 0, or None, not {budget!r}")
        self.on = on
        self.attempts = attempts
        self.first = seconds("first", first)
        self.factor = factor
        self.longest = seconds("longest", longest)
        self.jitter = jitter
        self.budget = budget
        self.reserve = seconds("reserve", reserve)
        self.retry_after = retry_after or _retry_after
        self._tokens = self.reserve

    def called(self) -> None:
        """A call was made, which earns a part of a retry."""
        if self.budget is not None:
            self._tokens = min(self._tokens + self.budget, max(self.reserve, self.budget, 1.0))

    def covers(self, error: Exception) -> bool:
        """Whether a failure is one of those that may be tried again."""
        return not isinstance(error, BreakerOpen) and matches(self.on, error)

    def pause(self, error: Exception, failures: int, left: float = math.inf) -> float | None:
        """Seconds until the next attempt after so many failures, with so many seconds left for all.

        None if there is none. Takes it from the budget.
        """
        if (self.attempts is not None and failures >= self.attempts) or not self.covers(error):
            return None
        asked = self.retry_after(error)
        if asked is not None and asked > self.longest:
            return None
        if self.budget is not None and self._tokens < 1:
            return None
        pause = min(self.first * self.factor ** min(failures - 1, 64), self.longest)
        if self.jitter == "full":
            pause *= random.random()  # spreads, hides nothing
        else:
            pause *= 1 + self.jitter * (2 * random.random() - 1)
        if asked is not None:
            pause = max(pause, asked)
        if pause >= left:
            return None
        if self.budget is not None:
            self._tokens -= 1
        return pause


def _retry_after(error: Exception) -> float | None:
    """What an exception says itself, or the Retry-After header (RFC 9110, 10.2.3) of the response that it has."""
    found = getattr(error, "retry_after", None)
    for holder in (error, getattr(error, "response", None)):
        # A mapping, or urllib's message; most know no case.
        look_up = getattr(getattr(holder, "headers", None), "get", None)
        if found is None and callable(look_up):
            found = look_up("Retry-After") or look_up("retry-after")
    if isinstance(found, str):
        found = _seconds_of(found.strip())
    return found if isinstance(found, int | float) and found >= 0 else None


def _seconds_of(header: str) -> float | None:
    """A Retry-After header is a whole number of seconds, or a date of the wall clock."""
    if header.isascii() and header.isdecimal():
        return float(header)
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None
