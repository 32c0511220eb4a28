"""cancel_everywhere, inside of the loop: a test that is cancelled at one of its awaits.

The test's coroutine runs in a task of its own, driven step by step (`steps.py`). When it suspends for the n-th time,
its task is cancelled, in one of two moments:

* ``"waiting"``: while it waits, as by a timeout or a client who hung up;
* ``"woken"``: when what it waited for is there, but before it goes on. That is where permits and items are lost.

Right is a test that ends with CancelledError, and leaves all as it was. Wrong is one that raises anything else, that
goes on as if nothing had been, or that does not end.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from dataclasses import dataclass, field
from traceback import FrameSummary
from typing import Any

from tideloop.testing.clock import is_virtual
from tideloop.testing.findings import Uncancelled, Unending
from tideloop.testing.steps import Observer, described, driven, ended, where

__all__ = ["MOMENTS", "Attack"]

MOMENTS = {"waiting": "while it waited", "woken": "when it was woken, before it went on"}

_VIRTUAL_PATIENCE = 1e6
"""Seconds on a virtual clock after which a cancelled test is said to hang; they take no time."""


@dataclass
class Attack(Observer):
    """Cancels the test at its `at`-th suspension, counted from 0; at none, and only counts, with None.

    patience: real seconds for which a cancelled test may go on. may_swallow: whether it may end as if nothing had been.
    """

    at: int | None = None
    moment: str = "waiting"
    patience: float = 10.0
    may_swallow: bool = False
    awaits: int = 0
    place: list[FrameSummary] = field(default_factory=list)
    fired: bool = False
    _hangs: list[FrameSummary] | None = None
    _work: Any = None
    _task: asyncio.Task[Any] | None = None
    _context: contextvars.Context | None = None

    async def run(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run the test's coroutine, and raise what is wrong with its end."""
        __tracebackhide__ = True
        loop = asyncio.get_running_loop()
        self._work = work
        # Outside of what the test enters: a shield lets through what comes from inside of it.
        self._context = contextvars.copy_context()
        task = self._task = loop.create_task(driven(work, self))
        await ended(task)
        if self._hangs is not None:
            task.cancelled() or task.exception()  # ours, and told below
            at = described(self._hangs) or "    (a place that is not Python)"
            raise Unending(f"cancelled, the test does not end; it waits at\n{at}") from None
        if task.cancelled() and self.fired:
            return
        task.result()
        if self.fired and task.cancelling() and not self.may_swallow:
            raise Uncancelled("cancelled, the test went on to its end as if nothing had been: something swallowed it")

    # --- as the observer of the test's steps ----------------------------------------------------

    def suspended(self, future: Any) -> None:
        self.awaits += 1
        if self.awaits - 1 != self.at:
            return
        self.place = where(self._work)
        if self.moment == "waiting":
            asyncio.get_running_loop().call_soon(self._fire, context=self._context)
        elif future is not None:
            # In front of the task itself, which is told of its end in the order of who asked.
            future.add_done_callback(self._fire, context=self._context)

    def intercepted(self, error: BaseException) -> BaseException | None:
        return None if self._hangs is None else Unending()

    def _fire(self, _: Any = None) -> None:
        assert self._task is not None
        self.fired = self._task.cancel()
        if self.fired:
            loop = asyncio.get_running_loop()
            patience = _VIRTUAL_PATIENCE if is_virtual(loop) else self.patience
            timer = loop.call_later(patience, self._give_up)
            self._task.add_done_callback(lambda _: timer.cancel())

    def _give_up(self) -> None:
        assert self._task is not None
        self._hangs = where(self._work)
        # Past a shield that the test may be in.
        type(self._task).cancel(self._task)
