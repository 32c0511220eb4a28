"""Call policies: policy(), Policy.

What every caller of something unreliable needs, in the one order in which it works: a *deadline* over all of it;
in that, *attempts* with growing pauses; each attempt may be *hedged* by a second one where the first is late; each of
those waits for its place in a *limit*, asks the *breaker* whether it is worth it, and has a *time limit* of its own,
which begins then. What is not asked for costs nothing.

Three different things end a call that takes too long, and they are told apart: AttemptTimeout is one attempt's and
may be tried again; DeadlineExceeded is the whole call's and is final; a TimeoutError, or a deadline, of the function
itself is its error like any other. CancelledError is never an error: it is not tried again, and no breaker counts it.

Works on every asyncio loop. A policy may be used by many tasks at once; it belongs to one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

from tideloop import accelerated
from tideloop._tideloop import Enlisted, enlist
from tideloop.breakers import Breaker
from tideloop.cancellation import Request, outlast
from tideloop.deadlines import Deadline, remaining
from tideloop.durations import seconds
from tideloop.hedges import Hedge
from tideloop.retries import Retry

__all__ = ["AttemptTimeout", "Policy", "PolicyStats", "policy"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class AttemptTimeout(TimeoutError):
    """One attempt took longer than the policy's `timeout`."""


class Acquirable(Protocol):
    """What a limit is: a Limiter, or whatever has these two."""

    def acquire(self) -> Awaitable[Any]: ...
    def release(self) -> Any: ...


class PolicyStats(NamedTuple):
    """A Policy in numbers."""

    retries: int
    exhausted: int
    """Calls that failed although they were tried again, or might have been."""
    hedged: int
    timeouts: int
    """Of attempts."""


class Policy(Enlisted):
    """How something unreliable is called: ``@tideloop.policy(timeout=2, deadline=10, retry=tideloop.Retry())``.

    `deadline` is for all of a call, in seconds; `timeout` for one attempt, from when it has its place in `limit`. Use
    it as a decorator, by ``await policy.call(fn, ...)``, or, without `retry` and `hedge`, as ``async with policy:``.
    """

    __slots__ = (
        "__weakref__",
        "_blocks",
        "_exhausted",
        "_hedged",
        "_plain",
        "_retries",
        "_timeouts",
        "breaker",
        "deadline",
        "hedge",
        "limit",
        "name",
        "retry",
        "timeout",
    )

    def __init__(
        self,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        retry: Retry | None = None,
        breaker: Breaker | None = None,
        hedge: Hedge | None = None,
        limit: Acquirable | None = None,
        name: str | None = None,
    ) -> None:
        for what, value, kind in (("retry", retry, Retry), ("breaker", breaker, Breaker), ("hedge", hedge, Hedge)):
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{what} must be a {kind.__name__} or None, not {value!r}")
        if limit is not None and not (hasattr(limit, "acquire") and hasattr(limit, "release")):
            raise TypeError(f"limit must have acquire() and release(), as a Limiter has, not {limit!r}")
        self.timeout = None if timeout is None else seconds("timeout", timeout)
        self.deadline = None if deadline is None else seconds("deadline", deadline)
        self.retry = retry
        self.breaker = breaker
        self.hedge = hedge
        self.limit = limit
        self.name = name
        # Whether an attempt is nothing but the call.
        self._plain = self.timeout is None and breaker is None and hedge is None and limit is None
        self._retries = self._exhausted = self._hedged = self._timeouts = 0
        self._blocks: dict[asyncio.Task[Any], list[tuple[_Block, Deadline | None]]] = {}
        enlist(self)

    def __call__(self, fn: Callable[_P, Awaitable[_T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
        """Decorate a function so that every call of it goes by this policy."""
        if not callable(fn):
            raise TypeError(f"a policy decorates a function, not {fn!r}")
        if self._plain and self.deadline is None and self.retry is not None:
            retry = self.retry

            async def retried(*args: _P.args, **kwargs: _P.kwargs) -> _T:
                # What almost always happens, at the cost of a try.
                if retry.budget is not None:
                    retry.called()
                try:
                    return await fn(*args, **kwargs)
                except Exception as error:
                    failure = error
                return await self._again(failure, fn, args, kwargs)

            return cast("Callable[_P, Coroutine[Any, Any, _T]]", functools.wraps(fn)(retried))

        async def called(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            return await self._call(fn, args, kwargs)

        return cast("Callable[_P, Coroutine[Any, Any, _T]]", functools.wraps(fn)(called))

    async def call(self, fn: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function by this policy.

        Raises what the last attempt has raised, with a note on how many there were; AttemptTimeout, DeadlineExceeded,
        BreakerOpen. Cancelled, whatever is under way is cancelled and awaited.
        """
        return await self._call(fn, args, kwargs)

    def stats(self) -> PolicyStats:
        """The policy in numbers."""
        return PolicyStats(self._retries, self._exhausted, self._hedged, self._timeouts)

    def __repr__(self) -> str:
        given = ", ".join(
            f"{what}={value!r}" if isinstance(value, float | int) else what
            for what in ("timeout", "deadline", "retry", "breaker", "hedge", "limit")
            if (value := getattr(self, what)) is not None
        )
        return f"<tideloop.Policy {f'{self.name!r} ' if self.name else ''}{given}>"

    # --- a block ----------------------------------------------------------------------------

    async def __aenter__(self) -> Policy:
        """A block can be limited, and refused, but not be repeated: TypeError with `retry` or `hedge`."""
        if self.retry is not None or self.hedge is not None:
            raise TypeError(f"{self!r} cannot guard a block, which runs once; decorate a function, or use call()")
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError(f"{self!r} guards a block of a task; none is running")
        block = _Block(self)
        limit = None if self.deadline is None else Deadline(self.deadline)
        if limit is not None:
            limit.__enter__()
        try:
            await block.enter()
        except BaseException as error:
            if limit is not None:
                limit.__exit__(type(error), error, error.__traceback__)
            raise
        self._blocks.setdefault(task, []).append((block, limit))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        blocks = self._blocks[task]
        block, limit = blocks.pop()
        if not blocks:
            del self._blocks[task]
        with contextlib.ExitStack() as stack:
            if limit is not None:
                stack.push(lambda *raised: limit.__exit__(*(raised if raised[1] else (kind, error, traceback))))
            block.leave(error)

    # --- a call -----------------------------------------------------------------------------

    async def _call(self, fn: Callable[..., Awaitable[_T]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _T:
        if self.retry is not None:
            self.retry.called()
        if self.deadline is None:
            return await self._tries(fn, args, kwargs)
        with Deadline(self.deadline):
            return await self._tries(fn, args, kwargs)

    async def _tries(self, fn: Callable[..., Awaitable[_T]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _T:
        if self.retry is None:
            return await self._attempt(fn, args, kwargs)
        try:
            return await self._attempt(fn, args, kwargs)
        except Exception as error:
            failure = error
        return await self._again(failure, fn, args, kwargs)

    async def _again(
        self, error: Exception, fn: Callable[..., Awaitable[_T]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _T:
        """Try again after a failure, as long as the policy says."""
        assert self.retry is not None
        failures = 1
        try:
            while True:
                pause = self.retry.pause(error, failures, remaining())
                if pause is None:
                    self._exhausted += failures > 1 or self.retry.covers(error)
                    if failures > 1:
                        error.add_note(f"the last of {failures} attempts by {self!r}")
                    raise error
                await accelerated.sleep(pause)
                self._retries += 1
                try:
                    return await self._attempt(fn, args, kwargs)
                except Exception as failure:
                    error = failure
                    failures += 1
        finally:
            # Else the exception's traceback refers to this frame, and this frame to the exception.
            del error

    async def _attempt(self, fn: Callable[..., Awaitable[_T]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _T:
        if self._plain:
            return await fn(*args, **kwargs)
        if self.hedge is not None:
            return await self._hedge(self.hedge, fn, args, kwargs)
        return await self._guarded(fn, args, kwargs)

    async def _guarded(self, fn: Callable[..., Awaitable[_T]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _T:
        block = _Block(self)
        await block.enter()
        try:
            value = await fn(*args, **kwargs)
        except BaseException as error:
            block.leave(error)
            raise
        block.leave(None)
        return value

    async def _hedge(
        self, hedge: Hedge, fn: Callable[..., Awaitable[_T]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _T:
        loop = asyncio.get_running_loop()
        began = loop.time()
        delay = hedge.delay()
        if delay == math.inf:
            value = await self._guarded(fn, args, kwargs)
            hedge.took(loop.time() - began)
            return value
        attempts = [loop.create_task(self._guarded(fn, args, kwargs))]
        try:
            done, running = await asyncio.wait(attempts, timeout=delay)
            if running and hedge.take():
                self._hedged += 1
                attempts.append(loop.create_task(self._guarded(fn, args, kwargs)))
            running = set(attempts) - done
            while running:
                if any(not task.cancelled() and task.exception() is None for task in done):
                    break
                if done and len(attempts) == 1:
                    break
                finished, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                done |= finished
        finally:
            took = loop.time() - began
            for task in attempts:
                task.cancel()
            cancelled = await outlast(attempts)
            for task in attempts:
                if not task.cancelled():
                    task.exception()
            if cancelled is not None:
                raise cancelled
        for task in attempts:
            if task in done and not task.cancelled() and task.exception() is None:
                hedge.took(took)
                return task.result()
        return attempts[0].result()


class _Block:
    """The breaker, the limit and the time limit around one attempt."""

    __slots__ = ("_entered", "_policy", "_request", "_timer")

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._entered = 0
        self._request: Request | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self) -> None:
        policy = self._policy
        if policy.limit is not None:
            await policy.limit.acquire()
        if policy.breaker is not None:
            try:
                self._entered = policy.breaker.enter()
            except BaseException:
                if policy.limit is not None:
                    policy.limit.release()
                raise
        if policy.timeout is not None:
            task = asyncio.current_task()
            assert task is not None
            self._request = Request(task)
            self._timer = task.get_loop().call_later(policy.timeout, self._request.make, "timeout")

    def leave(self, error: BaseException | None) -> None:
        policy = self._policy
        late = False
        if self._timer is not None:
            assert self._request is not None
            self._timer.cancel()
            late = self._request.made and self._request.take_back() and isinstance(error, asyncio.CancelledError)
        raised: BaseException | None = error
        if late:
            policy._timeouts += 1
            raised = AttemptTimeout(f"an attempt by {policy!r} was not done in {policy.timeout:g} s")
        try:
            if policy.breaker is not None:
                policy.breaker.leave(self._entered, raised)
            if late:
                assert raised is not None
                raise raised from error
        finally:
            # A limit that learns sees the exception that is under way.
            if policy.limit is not None:
                policy.limit.release()


policy = Policy
