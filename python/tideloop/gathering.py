"""gather() with a limit and a say in what happens to errors; race() and first_ok()."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from tideloop import accelerated
from tideloop._tideloop import function
from tideloop.groups import Acquirable, Group, Limit, OnError, TaskHandle, limit_of
from tideloop.outcome import Outcome

__all__ = ["first_ok", "gather", "race"]

_T = TypeVar("_T")
_T1 = TypeVar("_T1")
_T2 = TypeVar("_T2")
_T3 = TypeVar("_T3")
_T4 = TypeVar("_T4")


async def race(*awaitables: Awaitable[_T]) -> _T:
    """What the first of these to end returns, or raises; the others are cancelled and awaited.

    A loser that fails while it is cancelled is reported to the loop's exception handler. Cancelling race() cancels
    all of them. Raises ValueError without awaitables.
    """
    async with _Attempts("race", awaitables) as attempts:
        winner: TaskHandle[_T] = await anext(attempts.group.completed())
        attempts.decided()
    return winner.result()


async def first_ok(*awaitables: Awaitable[_T]) -> _T:
    """What the first of these to succeed returns; the others are then cancelled and awaited.

    When all have failed: an ExceptionGroup of their exceptions, in the order of the arguments. Losers that fail
    after the first success are reported to the loop's exception handler. Cancelling first_ok() cancels all of them.
    Raises ValueError without awaitables.
    """
    async with _Attempts("first_ok", awaitables) as attempts:
        async for handle in attempts.group.completed():
            if handle.outcome.ok:
                attempts.decided()
                value: _T = handle.result()
                return value
    failures = [outcome.exception for outcome in attempts.group.results if outcome.failed]
    if not failures:
        raise asyncio.CancelledError("every attempt was cancelled")
    raise BaseExceptionGroup("no attempt succeeded", [error for error in failures if error is not None])


class _Attempts:
    """Awaitables that compete in a group."""

    def __init__(self, what: str, awaitables: Sequence[Awaitable[Any]]) -> None:
        _check(what, awaitables)
        if not awaitables:
            raise ValueError(f"{what}() needs at least one awaitable")
        self._what = what
        self._awaitables = awaitables
        self._known: frozenset[Any] = frozenset()
        self.group = Group("collect")

    async def __aenter__(self) -> _Attempts:
        await self.group.__aenter__()
        for awaitable in self._awaitables:
            self.group.spawn(_giver(awaitable))
        return self

    def decided(self) -> None:
        """There is a winner: all others are cancelled."""
        self._known = frozenset(id(handle) for handle in self.group.handles if handle.done())
        self.group.cancel()

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            await self.group.__aexit__(kind, error, traceback)
        finally:
            _close(self._awaitables)
            # A future that was handed in is waited for by a task of ours; one that never began has not cancelled it.
            for awaitable in self._awaitables:
                if asyncio.isfuture(awaitable) and not awaitable.done():
                    awaitable.cancel()
            error = None
        if not self._known:
            return
        for handle in self.group.handles:
            if id(handle) not in self._known and handle.outcome.failed:
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"{self._what}(): a loser failed", "exception": handle.outcome.exception}
                )


def _giver(awaitable: Awaitable[_T]) -> Callable[[], Awaitable[_T]]:
    return lambda: awaitable


def _check(what: str, awaitables: Sequence[object]) -> None:
    for awaitable in awaitables:
        if not inspect.isawaitable(awaitable):
            _close(awaitables)
            raise TypeError(f"{what}() takes awaitables, not {awaitable!r}")


def _close(awaitables: Sequence[object]) -> None:
    """Ends coroutines that were never started; the others have ended."""
    for awaitable in awaitables:
        if asyncio.iscoroutine(awaitable):
            awaitable.close()


def _gather(
    *coros_or_futures: Any,
    return_exceptions: bool = False,
    limit: Limit = None,
    on_error: OnError | None = None,
) -> Any:
    """As asyncio.gather(); with `limit`, only so many of the coroutines run at once, in their order.

    `limit` is a number or a Limiter. Futures and tasks run already and are not counted.

    `on_error` makes it structured: it then ends when all have ended, and cancelling it cancels and awaits all.
    "cancel": the first failure cancels the others; an ExceptionGroup of all failures is raised. "collect": the result
    is a list of Outcomes, none of which raises. None is asyncio's way, the first failure is raised as it is and the
    others run on, or, with `return_exceptions`, everything is awaited and exceptions are among the results.

    Raises ValueError for `on_error` together with `return_exceptions`.
    """
    if limit is None and on_error is None:
        return accelerated.gather(*coros_or_futures, return_exceptions=return_exceptions)
    try:
        if on_error not in (None, "cancel", "collect"):
            raise ValueError(f"on_error must be 'cancel', 'collect' or None, not {on_error!r}")
        if on_error is not None and return_exceptions:
            raise ValueError("return_exceptions is asyncio's way; give either that or on_error")
        number, limiter = limit_of(limit)
        loop = asyncio.get_running_loop()
        _check("gather", coros_or_futures)
    except BaseException:
        _close(coros_or_futures)
        raise
    if on_error is None:
        permits = limiter if number is None else accelerated.Semaphore(number)
        assert permits is not None
        children = [_permitted(loop, permits, item) if asyncio.iscoroutine(item) else item for item in coros_or_futures]
        return accelerated.gather(*children, return_exceptions=return_exceptions)
    task = loop.create_task(_structured(coros_or_futures, limit, on_error))
    task.add_done_callback(lambda _: _close(coros_or_futures))
    return task


def _permitted(
    loop: asyncio.AbstractEventLoop, permits: Acquirable, coro: Coroutine[Any, Any, Any]
) -> asyncio.Task[Any]:
    async def run() -> Any:
        await permits.acquire()
        try:
            return await coro
        finally:
            permits.release()

    task = loop.create_task(run())
    task.add_done_callback(lambda _: coro.close())
    return task


async def _structured(items: Sequence[Awaitable[Any]], limit: Limit, on_error: OnError) -> list[Any]:
    async with Group(on_error, limit) as g:
        handles = {id(item): g.spawn(_giver(item)) for item in dict.fromkeys(items)}
    ended = [handles[id(item)] for item in items]
    return [handle.outcome if on_error == "collect" else handle.result() for handle in ended]


if TYPE_CHECKING:

    @overload
    def gather(
        a: Awaitable[_T1],
        b: Awaitable[_T2],
        /,
        *,
        return_exceptions: Literal[False] = False,
        limit: Limit = None,
        on_error: Literal["cancel"] | None = None,
    ) -> asyncio.Future[tuple[_T1, _T2]]: ...
    @overload
    def gather(
        a: Awaitable[_T1],
        b: Awaitable[_T2],
        c: Awaitable[_T3],
        /,
        *,
        return_exceptions: Literal[False] = False,
        limit: Limit = None,
        on_error: Literal["cancel"] | None = None,
    ) -> asyncio.Future[tuple[_T1, _T2, _T3]]: ...
    @overload
    def gather(
        a: Awaitable[_T1],
        b: Awaitable[_T2],
        c: Awaitable[_T3],
        d: Awaitable[_T4],
        /,
        *,
        return_exceptions: Literal[False] = False,
        limit: Limit = None,
        on_error: Literal["cancel"] | None = None,
    ) -> asyncio.Future[tuple[_T1, _T2, _T3, _T4]]: ...
    @overload
    def gather(
        *coros_or_futures: Awaitable[_T],
        return_exceptions: Literal[False] = False,
        limit: Limit = None,
        on_error: Literal["cancel"] | None = None,
    ) -> asyncio.Future[list[_T]]: ...
    @overload
    def gather(
        *coros_or_futures: Awaitable[_T],
        limit: Limit = None,
        on_error: Literal["collect"],
    ) -> asyncio.Future[list[Outcome[_T]]]: ...
    @overload
    def gather(
        *coros_or_futures: Awaitable[_T],
        return_exceptions: Literal[True],
        limit: Limit = None,
    ) -> asyncio.Future[list[_T | BaseException]]: ...
    def gather(*coros_or_futures: Any, **keywords: Any) -> Any: ...

else:
    _gather.__name__ = _gather.__qualname__ = "gather"
    # The native function as long as the new keywords are not used; the template serves these.
    gather = function("gather", _gather)
