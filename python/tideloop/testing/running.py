"""Whose test is it, and on which loop does it run.

pytest knows nothing of `async def`. Where pytest-asyncio or anyio's plugin runs a test, they go on doing so and are
only told which loop to make, by the means that they offer for that. The tests that nobody claims are ours, with their
async fixtures.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["anyio_backend", "is_claimed", "loop_factory", "make_synchronous", "run"]

RUNNER = "_tideloop_runner"
"""The fixture whose value is the runner of a test of ours and of its fixtures."""


def is_claimed(item: pytest.Item) -> bool:
    """Whether another plugin runs this test."""
    if "anyio_backend" in getattr(item, "fixturenames", ()):
        return True
    return item.config.pluginmanager.has_plugin("asyncio") and item.get_closest_marker("asyncio") is not None


def loop_factory(tideloop: bool, virtual: bool, start: float) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the loop of a test: tideloop's or asyncio's, on a virtual clock or not."""
    if virtual:
        from tideloop.testing.virtual_time import new_virtual_loop

        return functools.partial(new_virtual_loop, "tideloop" if tideloop else "asyncio", start=start)
    if tideloop:
        from tideloop.loop import new_event_loop

        return new_event_loop
    return asyncio.new_event_loop


def anyio_backend(backend: Any, factory: Callable[[], asyncio.AbstractEventLoop], force: bool = False) -> Any:
    """What anyio is told in place of `backend`: on asyncio, to use our loop, unless the test names one itself."""
    name, options = (backend, {}) if isinstance(backend, str) else backend
    if name != "asyncio" or (not force and ("loop_factory" in options or options.get("use_uvloop"))):
        return backend
    return name, {**{key: value for key, value in options.items() if key != "use_uvloop"}, "loop_factory": factory}


def run(item: pytest.Function, runner: asyncio.Runner) -> None:
    """Run a test of ours."""
    __tracebackhide__ = True
    arguments = {name: item.funcargs[name] for name in item._fixtureinfo.argnames}
    runner.run(item.obj(**arguments))


def make_synchronous(function: Callable[..., Any], request: pytest.FixtureRequest) -> Callable[..., Any]:
    """An async fixture of function scope as a plain one, which runs on the loop of its test.

    Asked for from within a running test (``request.getfixturevalue``) it fails: its loop is busy.
    """
    runner: asyncio.Runner = request.getfixturevalue(RUNNER)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        def made(*args: Any, **kwargs: Any) -> Any:
            return runner.run(function(*args, **kwargs))

        return made

    @functools.wraps(function)
    def lent(*args: Any, **kwargs: Any) -> Any:
        steps = function(*args, **kwargs)

        async def finish() -> None:
            try:
                await anext(steps)
            except StopAsyncIteration:
                return
            await steps.aclose()
            raise RuntimeError(f"the fixture {function.__qualname__} yields more than once")

        yield runner.run(_next(steps))
        runner.run(finish())

    return lent


async def _next(steps: Any) -> Any:
    return await anext(steps)
