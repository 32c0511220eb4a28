"""run(): a program from its first coroutine to its orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from tideloop import shutdown
from tideloop.durations import seconds
from tideloop.loop import Runner

__all__ = ["run"]

_T = TypeVar("_T")


def run(
    main: Coroutine[Any, Any, _T],
    *,
    debug: bool | None = None,
    signals: Sequence[str | int] = (),
    grace: float = 30.0,
    observe_web: bool | int = False,
) -> _T:
    """Run a coroutine to its end on a new tideloop EventLoop, and return its result.

    Like asyncio.run(): it cancels what is left, closes asynchronous generators and the executor, and turns Ctrl-C
    into a cancellation of main. What was registered by on_shutdown() is called when main has ended.

    `signals` are those that end the program in an orderly way, like ("INT", "TERM"). The first one calls what was
    registered by on_shutdown(), for `grace` seconds at most, and then cancels main; if main has asked for stopping(),
    it may end by itself until the grace is over. The second one cancels everything that is under way. The third leaves
    the process. Where main was cancelled by that, run() raises KeyboardInterrupt for SIGINT, for others SystemExit with
    128 and the signal's number; where it was by request_shutdown(), it returns None.

    `observe_web` opens the web page that shows what goes on (tideloop.observe.serve()) on this port of 127.0.0.1, True
    on any that is free, and writes its address, with the token that opens it, to stderr.

    Raises RuntimeError if a loop runs in this thread; ValueError if main is not a coroutine, for a signal that
    is none, or a port; what the system says of a signal that cannot be handled, or not in this thread, or of the port.
    """
    if asyncio._get_running_loop() is not None:
        main.close() if asyncio.iscoroutine(main) else None
        raise RuntimeError("tideloop.run() cannot be called from a running event loop")
    try:
        numbers = shutdown.signal_numbers(signals)
        limit = seconds("grace", grace)
        if observe_web is not False:
            from tideloop.observe.serving import announce, serve

            announce(serve(socket=False, web=observe_web))
    except BaseException:
        main.close() if asyncio.iscoroutine(main) else None
        raise
    with Runner(debug=debug) as runner:
        if not numbers or not asyncio.iscoroutine(main):
            try:
                return runner.run(main)
            finally:
                if shutdown.has_plan(runner.get_loop()):
                    runner.run(shutdown.finish(limit))
        ending = runner.run(shutdown.attend(main, numbers, limit))
    if ending.signal is None:
        return ending.value  # type: ignore[return-value]  # None if main or request_shutdown() says so
    if ending.signal == shutdown.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + ending.signal)
