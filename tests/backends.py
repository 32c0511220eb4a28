"""The event loops that a test body runs on, and where one of them is known to differ.

A test that asks for `backend`, `loop` or `runner` (fixtures of conftest.py) runs once for each backend. stock
asyncio is the reference; a known difference of another loop is declared beside the test:

    @deviates("uvloop", "rounds delays to milliseconds")
    def test_timer_is_never_early(loop): ...

It becomes a strict xfail: the day the difference goes, the test fails until the mark is removed.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest

NAMES = ("asyncio", "uvloop", "tideloop")


@dataclass(frozen=True)
class Backend:
    """A module with `new_event_loop`."""

    name: str
    new_event_loop: Callable[[], asyncio.AbstractEventLoop]

    def __str__(self) -> str:
        return self.name


def load(name: str) -> Backend:
    """Import a backend. Raises ImportError when it has no loop here."""
    module = importlib.import_module(name)
    try:
        return Backend(name, module.new_event_loop)
    except AttributeError:
        raise ImportError(f"{name} has no new_event_loop") from None


def params(only: list[str] | None = None) -> list:
    """One pytest parameter per backend; one that cannot be imported is skipped, with the reason."""
    found = []
    for name in only or NAMES:
        try:
            load(name)
        except ImportError as exc:
            found.append(pytest.param(name, id=name, marks=pytest.mark.skip(reason=f"no {name}: {exc}")))
        else:
            found.append(pytest.param(name, id=name))
    return found


def deviates(backend: str, reason: str, *, when: bool = True) -> pytest.MarkDecorator:
    """Mark that `backend` is known to fail this test, and why; `when` limits it to some Python versions."""
    if backend not in NAMES:
        raise ValueError(f"{backend!r} is not one of {NAMES}")
    return pytest.mark.deviates(backend, reason, when)


def expect_deviation(item: pytest.Item) -> None:
    """Turn the `deviates` marks that concern this item into a strict xfail."""
    callspec = getattr(item, "callspec", None)
    name = callspec.params.get("backend") if callspec else None
    for mark in item.iter_markers("deviates"):
        backend, reason, when = mark.args
        if backend == name and when:
            item.add_marker(pytest.mark.xfail(reason=f"{backend}: {reason}", strict=True))
