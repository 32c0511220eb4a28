"""What the plugin's checks find wrong with a test."""

from __future__ import annotations

__all__ = ["Blocked", "Finding", "TaskLeak", "Uncancelled", "Unending"]


class Finding(AssertionError):
    """Something is wrong with a test; the message tells all of it, and where."""


class TaskLeak(Finding):
    """Tasks were left behind."""


class Blocked(Finding):
    """A step of the loop took too long."""


class Uncancelled(Finding):
    """A test was cancelled and went on to its end."""


class Unending(Finding):
    """A test was cancelled and does not end."""
