"""What the plugin asks of a test, and how the test's coroutine is run so that it is asked."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from tideloop.testing import leaks
from tideloop.testing.attacks import Attack
from tideloop.testing.blocking import Watch
from tideloop.testing.clock import is_virtual
from tideloop.testing.steps import ended

__all__ = ["Checks", "checked"]

Test = Callable[..., Coroutine[Any, Any, Any]]


@dataclass(frozen=True)
class Checks:
    """What is asked of one run of a test. blocking: seconds that a step may take, or None."""

    virtual: bool = False
    leaks: bool = False
    blocking: float | None = None
    attack: Attack | None = None
    runs: list[Test] = field(default_factory=list)
    """The tests that were run with these: none if whoever runs the test has a copy of the function of his own."""


def checked(test: Test, checks: Checks) -> Test:
    """An async function like `test` that raises as well if what is asked of it does not hold.

    What the test raises itself comes first: who fails in the middle leaves tasks behind, and that is not the news.
    """

    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        checks.runs.append(test)
        loop = _loop()
        if checks.virtual and not is_virtual(loop):
            raise RuntimeError(
                f"virtual_clock: this test runs on {loop!r}, which has no virtual clock; a fixture of another plugin "
                "may have made that loop before the test"
            )
        before = asyncio.all_tasks()
        watch = None if checks.blocking is None else Watch(checks.blocking)
        with nullcontext() if watch is None else watch.on():
            work = test(*args, **kwargs)
            if checks.attack is not None:
                await checks.attack.run(work)
            elif watch is not None:
                # In a task that the watch sees made.
                await _in_a_task(loop, work)
            else:
                await work
        left = await leaks.left_over(before) if checks.leaks else []
        leak = await leaks.end(left) if left else None
        if watch is not None and (blocked := watch.verdict()) is not None:
            raise blocked from leak
        if leak is not None:
            raise leak

    return run


async def _in_a_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> None:
    __tracebackhide__ = True
    task = loop.create_task(work)
    await ended(task)
    task.result()


def _loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("the checks of tideloop's plugin are for tests that run on asyncio") from None
