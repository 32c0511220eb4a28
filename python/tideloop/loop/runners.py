"""Running a coroutine on tideloop: run(), Runner, install()."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tideloop.loop.event_loop import EventLoop, new_event_loop

__all__ = ["Runner", "install", "run", "use_everywhere"]

_T = TypeVar("_T")


class Runner(asyncio.Runner):  # type: ignore[misc]  # final for checkers, not at run time
    """asyncio.Runner on a tideloop EventLoop.

    debug: None takes PYTHONASYNCIODEBUG and -X dev into account. loop_factory: another factory, for
    an EventLoop with arguments.
    """

    def __init__(
        self, *, debug: bool | None = None, loop_factory: Callable[[], asyncio.AbstractEventLoop] = new_event_loop
    ) -> None:
        super().__init__(debug=debug, loop_factory=loop_factory)


def run(main: Coroutine[Any, Any, _T], *, debug: bool | None = None) -> _T:
    """Run a coroutine to its end on a new tideloop EventLoop, and return its result.

    Like asyncio.run(): it cancels what is left, closes asynchronous generators and the executor, and
    turns Ctrl-C into a cancellation of main. Raises RuntimeError if a loop runs in this thread,
    ValueError if main is not a coroutine.
    """
    if asyncio._get_running_loop() is not None:
        main.close() if asyncio.iscoroutine(main) else None
        raise RuntimeError("tideloop.run() cannot be called from a running event loop")
    with Runner(debug=debug) as runner:
        return runner.run(main)


def install() -> None:
    """Make tideloop the default loop of this process, by way of asyncio's event loop policy.

    Policies are deprecated from Python 3.14 on and gone in 3.16: there this warns with a
    DeprecationWarning; pass ``loop_factory=tideloop.new_event_loop`` to asyncio.run() or
    asyncio.Runner() instead, or start the program with ``tideloop run``.
    """
    if sys.version_info >= (3, 14):
        warnings.warn(
            "tideloop.install() sets an event loop policy, which Python 3.14 deprecates; "
            "use asyncio.run(..., loop_factory=tideloop.new_event_loop)",
            DeprecationWarning,
            stacklevel=2,
        )
    use_everywhere()


def use_everywhere() -> None:
    """Do what install() does, without its advice: for those who cannot pass a loop_factory."""
    if not hasattr(asyncio, "set_event_loop_policy"):
        asyncio.EventLoop = EventLoop  # type: ignore[attr-defined]
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(_policy_class()())


def _policy_class() -> type[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        base: Any = asyncio.DefaultEventLoopPolicy

    class EventLoopPolicy(base):  # type: ignore[misc]
        """asyncio's default policy, making tideloop loops."""

        def _loop_factory(self) -> EventLoop:
            return new_event_loop()

    return EventLoopPolicy
