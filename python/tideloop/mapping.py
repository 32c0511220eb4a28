"""What amap() runs on: slots that take items and leave results, and the consumer who takes these.

A *slot* is a task that serves one item after the other. It pulls the item itself if the source is an ordinary
iterator; an async one is iterated by a task of its own, the *feeder*, which lays the items out for the slots.

**Room.** An item is ahead from when it is pulled until the consumer has got its result. Slots and feeder park when
too many are; the consumer lets one of them go on for each result it takes. So an endless source is as good as any.

**Turned away.** A limiter may refuse (LimiterFull) instead of letting wait. The stream can wait for itself: the
end of one of its own calls makes room, so whoever was refused stands in line until then, and later ones behind it. If
there is no such call under way, others hold all permits, nothing tells when they give them back, and the refusal
is the item's failure.

**The end.** The consumer notices that no task is left. Failures are entries in the place of a result: the
consumer who meets one closes everything and raises it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

from tideloop.groups import Acquirable
from tideloop.limits import LimiterFull
from tideloop.outcome import Outcome
from tideloop.pumps import cancel_and_wait, check_loop, close

__all__ = ["Mapping", "StreamStats"]


class StreamStats(NamedTuple):
    """How far a stream is, in items of its source; of flat_map() and paginate() in items of what they open."""

    pulled: int
    running: int
    """Pulled and not done: in a call of the function, waiting for their turn, or in a batch that is not full."""
    ready: int
    """Done, and the consumer has not got them."""
    failed: int
    """Calls of amap()'s function that failed; 0 for the other streams."""


class _Mark:
    __slots__ = ()


_PARK = _Mark()
_END = _Mark()
_SKIPPED = _Mark()


class _Failure:
    """An entry that the consumer raises."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Mapping:
    """An async iterator of results. Belongs to the loop on which the first item is asked for."""

    def __init__(
        self,
        fn: Callable[[Any], Awaitable[Any]],
        source: AsyncIterator[Any] | Iterator[Any],
        *,
        slots: int | None,
        limiter: Acquirable | None,
        ordered: bool,
        buffer: int,
        pace: Callable[[], Awaitable[object]] | None,
        on_error: str,
        name: str,
    ) -> None:
        self._fn = fn
        self._source = source
        self._slots = slots
        self._limiter = limiter
        self._ordered = ordered
        self._room = buffer + (slots or 1)
        self._pace = pace
        self._on_error = on_error
        self._name = name
        self._fed: deque[tuple[int, Any]] | None = deque() if isinstance(source, AsyncIterator) else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._feeder: asyncio.Task[None] | None = None
        self._parked: deque[asyncio.Future[None]] = deque()
        self._feeder_waits: asyncio.Future[None] | None = None
        self._consumer: asyncio.Future[None] | None = None
        self._out: deque[Any] = deque()
        self._early: dict[int, Any] = {}
        """Ordered: results that wait for an earlier one."""
        self._next_out = 0
        self._pulled = 0
        self._number = 0
        """The place in the source of the item that was pulled last."""
        self._gone = 0
        """Items whose results the consumer has got, or never will."""
        self._active = 0
        """With a limiter: calls that hold a permit."""
        self._waiting_permits = 0
        self._line: deque[asyncio.Future[None]] = deque()
        """Of these, who was turned away, and who came behind them."""
        self._failed = 0
        self._source_error: BaseException | None = None
        self._fatal: BaseException | None = None
        self._exhausted = False
        self._failed_at: int | None = None
        """Items from this one on are not begun any more."""
        self._closing = False

    # --- the consumer --------------------------------------------------------------------------

    async def __anext__(self) -> Any:
        if not self._out:
            await self._wait()
        if self._parked or self._feeder_waits is not None:
            check_loop(self._name, self._loop)
            self._gone += 1
            self._make_room()
        else:
            self._gone += 1
        entry = self._out.popleft()
        if type(entry) is _Failure:
            # Raised first: what closing raises has it as its context.
            try:
                raise entry.error
            finally:
                entry = None
                await self.aclose()
        return entry

    async def _wait(self) -> None:
        """Returns when there is an entry. Raises StopAsyncIteration, or what has ended the stream."""
        if self._consumer is not None:
            raise RuntimeError(f"tideloop.{self._name}(): two tasks wait for the next item; a stream has one consumer")
        if self._loop is None and not self._closing:
            self._begin()
        elif self._tasks:
            check_loop(self._name, self._loop)
        while not self._out:
            if self._closing or self._fatal is not None or not self._tasks:
                await self.aclose()
                error = self._fatal or self._source_error
                self._fatal = self._source_error = None
                try:
                    if error is not None:
                        raise error
                    raise StopAsyncIteration
                finally:
                    error = None
            self._consumer = asyncio.get_running_loop().create_future()
            try:
                await self._consumer
            except BaseException:
                await self.aclose()
                raise
            finally:
                self._consumer = None

    async def aclose(self) -> None:
        """Cancels and awaits the tasks, closes the source."""
        tasks = self._tasks.copy()
        if tasks:
            check_loop(self._name, self._loop)
        self._closing = True
        current = asyncio.current_task()
        if current in tasks:
            raise RuntimeError(f"tideloop.{self._name}(): fn cannot close the stream that calls it")
        try:
            if tasks:
                await cancel_and_wait(tasks)
        finally:
            self._out.clear()
            self._early.clear()
            if not self._exhausted:
                self._exhausted = True
                await close(self._source)

    def abandon(self) -> None:
        """The consumer is gone without closing. From any thread, since garbage is collected anywhere."""
        loop = self._loop
        if loop is None or self._closing or not self._tasks or loop.is_closed():
            return
        loop.call_soon_threadsafe(lambda: loop.create_task(self.aclose(), name=f"tideloop.{self._name}.aclose"))

    def stats(self) -> StreamStats:
        ready = len(self._out) + len(self._early)
        return StreamStats(self._pulled, self._pulled - self._gone - ready, ready, self._failed)

    # --- the source ----------------------------------------------------------------------------

    def _begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._fed is not None:
            self._feeder = self._loop.create_task(self._feed(), name=f"tideloop.{self._name}.source")
            self._watch(self._feeder)
            return
        # A slot begins with its first item, so that there are no more slots than items.
        for _ in range(self._slots or 1):
            item = self._pull()
            if item is _END:
                break
            self._add_slot(self._number, item)

    def _has_room(self) -> bool:
        # With a limiter there is no saying how many calls there will be: they do not count.
        return self._pulled - self._gone - self._active < self._room

    def _pull(self) -> Any:
        """The next item for a slot; _PARK if it has to wait for one, _END if there will be none."""
        if self._failed_at is not None or self._closing:
            return _END
        if self._fed is not None:
            if self._fed:
                self._number, item = self._fed.popleft()
                return item
            return _END if self._exhausted else _PARK
        if self._exhausted:
            return _END
        if self._pulled - self._gone - self._active >= self._room:
            return _PARK
        try:
            item = next(self._source)  # type: ignore[arg-type]
        except StopIteration:
            self._source_ended(None)
            return _END
        except BaseException as error:
            self._source_ended(error)
            return _END
        self._number = self._pulled
        self._pulled += 1
        return item

    def _source_ended(self, error: BaseException | None) -> None:
        self._exhausted = True
        if error is not None and self._source_error is None and not self._closing:
            error.add_note(f"raised by the source of tideloop.{self._name}()")
            self._source_error = error
        while self._parked:
            self._unpark()

    async def _feed(self) -> None:
        """Iterates an async source and closes it."""
        assert self._fed is not None
        assert self._loop is not None
        try:
            while self._failed_at is None and not self._closing:
                if not self._has_room():
                    self._feeder_waits = self._loop.create_future()
                    try:
                        await self._feeder_waits
                    finally:
                        self._feeder_waits = None
                    continue
                item = await anext(self._source)  # type: ignore[arg-type]
                number = self._pulled
                self._pulled += 1
                if self._parked:
                    self._fed.append((number, item))
                    self._unpark()
                elif len(self._tasks) <= (self._slots or 0) or (self._slots is None and not self._waiting_permits):
                    self._add_slot(number, item)
                else:
                    self._fed.append((number, item))
            await close(self._source)
            self._source_ended(None)
        except StopAsyncIteration:
            self._source_ended(None)
        except BaseException as error:
            try:
                if not self._exhausted:
                    await close(self._source)
            finally:
                if self._closing or _is_own_cancellation(error):
                    self._exhausted = True
                else:
                    self._source_ended(error)
            if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
                raise

    # --- the slots -----------------------------------------------------------------------------

    def _add_slot(self, number: int, item: Any) -> None:
        assert self._loop is not None
        self._watch(self._loop.create_task(self._slot(item, number), name=f"tideloop.{self._name}"))

    def _watch(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    async def _slot(self, item: Any, number: int) -> None:
        fn = self._fn
        free = self._limiter is None and self._pace is None
        while True:
            if free:
                try:
                    entry = await fn(item)
                except BaseException as error:
                    entry = self._failure(error, number)
                else:
                    if self._on_error == "collect":
                        entry = Outcome(entry)
            else:
                entry = await self._admitted(item, number)
                if entry is _END:
                    return
            if self._ordered:
                self._put_in_order(number, entry)
            elif entry is _SKIPPED:
                self._gone += 1
            else:
                self._out.append(entry)
                if self._consumer is not None and not self._consumer.done():
                    self._consumer.set_result(None)
            item = self._pull()
            while item is _PARK:
                entry = None
                await self._park()
                item = self._pull()
            if item is _END:
                return
            number = self._number

    async def _admitted(self, item: Any, number: int) -> Any:
        """An item's entry where its call must be let in first."""
        if self._limiter is not None:
            self._waiting_permits += 1
            try:
                refusal = await self._permit(self._limiter)
            finally:
                self._waiting_permits -= 1
            if refusal is not None:
                return self._failure(refusal, number)
            self._active += 1
            self._grow()
        held = self._limiter is not None
        try:
            if self._pace is not None:
                await self._pace()
                restart = getattr(self._limiter, "_restart", None)
                if restart is not None:
                    restart()
            if self._failed_at is not None and number > self._failed_at:
                return _END
            try:
                value = await self._fn(item)
            except BaseException as error:
                # While it is under way: an AdaptiveLimiter looks at it.
                if held:
                    held = False
                    self._let_go()
                return self._failure(error, number)
            return Outcome(value) if self._on_error == "collect" else value
        finally:
            if held:
                self._let_go()

    async def _permit(self, limiter: Acquirable) -> LimiterFull | None:
        """Takes a permit, or returns what the limiter said if nothing tells when to ask again."""
        assert self._loop is not None
        refused = False
        while True:
            if self._line or refused:
                turn = self._loop.create_future()
                if refused:
                    self._line.appendleft(turn)
                else:
                    self._line.append(turn)
                try:
                    await turn
                finally:
                    self._line.remove(turn)
            try:
                await limiter.acquire()
            except LimiterFull as error:
                # Those who wait and are not in line will have permits, and give them back.
                if not self._active and self._waiting_permits == len(self._line) + 1:
                    self._next_in_line()
                    return error
                refused = True
            else:
                self._next_in_line()
                return None

    def _next_in_line(self) -> None:
        if self._line and not self._line[0].done():
            self._line[0].set_result(None)

    def _let_go(self) -> None:
        assert self._limiter is not None
        self._active -= 1
        self._limiter.release()
        self._next_in_line()

    def _grow(self) -> None:
        """With a limiter: one slot more than there are permits waits for the next one."""
        if self._parked:
            self._unpark()
        elif self._feeder_waits is not None:
            self._make_room()
        elif not self._waiting_permits:
            item = self._pull()
            if item is not _PARK and item is not _END:
                self._add_slot(self._number, item)

    def _failure(self, error: BaseException, number: int) -> Any:
        """The entry of an item whose call has failed. Raises what ends the slot."""
        if self._closing or isinstance(error, KeyboardInterrupt | SystemExit) or _is_own_cancellation(error):
            raise error
        self._failed += 1
        if isinstance(error, StopAsyncIteration):
            # As a generator does: out of __anext__() it would pass for the end of the stream.
            wrong = RuntimeError(f"fn of tideloop.{self._name}() raised StopAsyncIteration")
            wrong.__cause__ = error
            error = wrong
        if self._on_error == "collect":
            return Outcome(None, error)
        if self._on_error == "skip":
            return _SKIPPED
        if self._failed_at is None or number < self._failed_at:
            self._failed_at = number if self._ordered else -1
        return _Failure(error)

    def _put_in_order(self, number: int, entry: Any) -> None:
        self._early[number] = entry
        if number != self._next_out:
            return
        while (entry := self._early.pop(self._next_out, _END)) is not _END:
            self._next_out += 1
            if entry is _SKIPPED:
                self._gone += 1
            else:
                self._out.append(entry)
        if self._out and self._consumer is not None and not self._consumer.done():
            self._consumer.set_result(None)
        if self._parked or self._feeder_waits is not None:
            self._make_room()

    # --- parking -------------------------------------------------------------------------------

    async def _park(self) -> None:
        assert self._loop is not None
        waiter = self._loop.create_future()
        self._parked.append(waiter)
        if self._feeder_waits is not None and not self._feeder_waits.done() and self._has_room():
            self._feeder_waits.set_result(None)
        await waiter

    def _unpark(self) -> None:
        while self._parked:
            waiter = self._parked.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _make_room(self) -> None:
        """One item more may be pulled."""
        if self._fed is None:
            self._unpark()
        elif self._feeder_waits is not None and not self._feeder_waits.done() and self._has_room():
            self._feeder_waits.set_result(None)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._closing:
            try:
                task.result()
            except BaseException as error:
                if self._fatal is None:
                    self._fatal = error
        elif not task.cancelled():
            task.exception()
        if self._consumer is not None and not self._consumer.done() and (not self._tasks or self._fatal is not None):
            self._consumer.set_result(None)


def _is_own_cancellation(error: BaseException) -> bool:
    """Whether the running task was cancelled, as opposed to what it awaits having raised CancelledError."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
