"""Hedges: Hedge. When a second attempt is made beside the first."""

from __future__ import annotations

import math
from collections import deque

from tideloop.durations import seconds

__all__ = ["Hedge"]


class Hedge:
    """A second attempt where the first is late; the first answer counts, the other attempt is cancelled and awaited.

    `after` is the seconds that the first one has, or "p95" and the like: that quantile of the last 200 calls (no
    hedges before 20 of them). Only so many hedges as `share` of the calls are made, so that a backend that is slow
    for everybody does not get twice the load. (Dean and Barroso, "The Tail at Scale", CACM 2013.) Only for calls that
    may be made twice.
    """

    __slots__ = ("_bounds", "_durations", "_tokens", "after", "quantile", "share")

    def __init__(self, after: float | str = "p95", *, share: float = 0.05) -> None:
        if not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"share must be a part of the calls above 0, at most 1, not {share!r}")
        self.quantile: float | None = None
        if isinstance(after, str):
            digits = after.removeprefix("p")
            if not after.startswith("p") or not digits.isdecimal() or not 0 < int(digits) < 100:
                raise ValueError(f"after must be a number of seconds or a quantile like 'p95', not {after!r}")
            self.quantile = int(digits) / 100
            self.after = math.inf
        else:
            self.after = seconds("after", after)
        self.share = share
        self._durations: deque[float] = deque(maxlen=200)
        self._bounds = 0
        self._tokens = 1.0

    def delay(self) -> float:
        """Seconds that the first attempt has from now on; infinite if there is to be no second."""
        self._tokens = min(self._tokens + self.share, 10.0)
        return self.after

    def take(self) -> bool:
        """Whether the share allows one now; it is used up by that."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def took(self, duration: float) -> None:
        """Tell how long a call took that was answered."""
        if self.quantile is not None:
            self._durations.append(duration)
            self._bounds += 1
            if self._bounds % 20 == 0:
                known = sorted(self._durations)
                self.after = known[min(int(self.quantile * len(known)), len(known) - 1)]
