"""What a worker process measures: one module for each kind of scenario.

Each has ``measure(kit, params) -> dict[str, float]`` and raises `WrongResult` when the program under test did not do
what it was asked: a benchmark is a test, and a fast wrong answer is no figure.
"""

from __future__ import annotations


class WrongResult(Exception):
    """The run finished, but its result is not the right one; the message says what differs."""


def expect(what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise WrongResult(f"{what}: {got!r}, expected {wanted!r}")
