"""Outcome: how something has ended, as a value that can be kept, compared and passed on."""

from __future__ import annotations

import asyncio
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Outcome"]

_T = TypeVar("_T")


class Outcome(NamedTuple, Generic[_T]):
    """How a task, an item of a stream or a guest has ended: with a value, an exception, or cancelled.

    Immutable; two outcomes are equal if both fields are.
    """

    value: _T | None = None
    """What was returned; None as well where an exception ended it."""
    exception: BaseException | None = None
    """What was raised; a CancelledError for what was cancelled."""

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.exception is None

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled, which is no failure."""
        return isinstance(self.exception, asyncio.CancelledError)

    @property
    def failed(self) -> bool:
        """Whether an exception other than CancelledError has ended it."""
        return self.exception is not None and not self.cancelled

    def result(self) -> _T:
        """The value. Raises the exception if there is one, CancelledError included."""
        if self.exception is not None:
            raise self.exception
        return self.value  # type: ignore[return-value]  # None exactly if that was returned
