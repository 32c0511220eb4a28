"""Streams: amap() and what goes with it, batched, merge, throttle, flat_map, paginate.

A stream is an async iterator that can be closed. Nothing happens before the first item is asked for; from then on
tasks may work ahead, as far as `buffer` allows, and no further: what nobody takes is not pulled from the source.

**Leaving early.** A stream that is exhausted, has raised, or whose consumer is cancelled while it waits for an item has
cancelled and awaited its tasks and closed its source by the time the consumer goes on. Whoever stops before (`break`,
an exception in the loop's body) says ``async with stream:`` or awaits ``stream.aclose()`` for the same; a stream that
is merely dropped is wound down in the background, as asyncio does with asynchronous generators.

**Whose error.** An error of the source ends the stream, behind the results of what was pulled before, and is never
subject to `on_error`; it carries a note that says so. Errors of the function are `on_error`'s. The consumer's own never
enter the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, TypeVar, overload, runtime_checkable

from tideloop import accelerated
from tideloop.flows import Counts, Flow
from tideloop.groups import Acquirable, limit_of
from tideloop.mapping import Mapping, StreamStats
from tideloop.outcome import Outcome
from tideloop.pumps import Pumps, closing

__all__ = ["Stream", "StreamStats", "amap", "batched", "flat_map", "merge", "paginate", "throttle"]

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
_R = TypeVar("_R")
_C = TypeVar("_C")
_P = TypeVar("_P")

Source = AsyncIterable[_T] | Iterable[_T]


@runtime_checkable
class Paced(Protocol):
    """What a rate is, if it is no number: a RateLimiter, or whatever admits without being told of an end."""

    def acquire(self) -> Awaitable[object]: ...


Rate = float | Paced


class _Items(Protocol[_T_co]):
    def __anext__(self) -> Awaitable[_T_co]: ...
    def aclose(self) -> Awaitable[None]: ...
    def stats(self) -> StreamStats: ...


class Stream(Generic[_T]):
    """An async iterator of this module: iterate it once, close it, or chain another step to it.

    It belongs to the loop on which the first item is asked for; on another one it raises RuntimeError.
    """

    __slots__ = ("__weakref__", "_items", "name")

    def __init__(self, items: _Items[_T], name: str) -> None:
        self._items = items
        self.name = name

    def __aiter__(self) -> Stream[_T]:
        return self

    def __anext__(self) -> Awaitable[_T]:
        return self._items.__anext__()

    async def aclose(self) -> None:
        """End the stream: cancel and await its tasks, close its source. Again does nothing.

        If it is cancelled itself it still waits for the tasks, and raises CancelledError then.
        """
        await self._items.aclose()

    async def __aenter__(self) -> Stream[_T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def to_list(self) -> list[_T]:
        """All items. Closes the stream when it is cancelled."""
        async with self:
            return [item async for item in self]

    @overload
    def amap(
        self,
        fn: Callable[[_T], Awaitable[_R]],
        *,
        limit: int | Acquirable,
        ordered: bool = False,
        buffer: int | None = None,
        rate: Rate | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        name: str = "amap",
    ) -> Stream[_R]: ...
    @overload
    def amap(
        self,
        fn: Callable[[_T], Awaitable[_R]],
        *,
        limit: int | Acquirable,
        ordered: bool = False,
        buffer: int | None = None,
        rate: Rate | None = None,
        on_error: Literal["collect"],
        name: str = "amap",
    ) -> Stream[Outcome[_R]]: ...
    def amap(self, fn: Callable[[Any], Awaitable[Any]], **options: Any) -> Stream[Any]:
        """tideloop.amap() over this stream."""
        return amap(fn, self, **options)

    def batched(self, n: int, within: float | None = None, *, name: str = "batched") -> Stream[list[_T]]:
        """tideloop.batched() of this stream."""
        return batched(self, n, within, name=name)

    def throttle(self, rate: Rate, per: float = 1.0, *, name: str = "throttle") -> Stream[_T]:
        """tideloop.throttle() of this stream."""
        return throttle(self, rate, per, name=name)

    def flat_map(
        self, fn: Callable[[_T], Source[_R]], *, limit: int = 1, buffer: int | None = None, name: str = "flat_map"
    ) -> Stream[_R]:
        """tideloop.flat_map() over this stream."""
        return flat_map(fn, self, limit=limit, buffer=buffer, name=name)

    def stats(self) -> StreamStats:
        """How far it is, in items of its source; of flat_map() and paginate() in items of what they open."""
        return self._items.stats()

    def __repr__(self) -> str:
        counts = " ".join(f"{what}={count}" for what, count in self._items.stats()._asdict().items())
        return f"<tideloop.Stream {self.name} {counts}>"

    def __del__(self) -> None:
        abandon = getattr(self._items, "abandon", None)
        if abandon is not None:
            abandon()


@overload
def amap(
    fn: Callable[[_T], Awaitable[_R]],
    source: Source[_T],
    *,
    limit: int | Acquirable,
    ordered: bool = False,
    buffer: int | None = None,
    rate: Rate | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    name: str = "amap",
) -> Stream[_R]: ...
@overload
def amap(
    fn: Callable[[_T], Awaitable[_R]],
    source: Source[_T],
    *,
    limit: int | Acquirable,
    ordered: bool = False,
    buffer: int | None = None,
    rate: Rate | None = None,
    on_error: Literal["collect"],
    name: str = "amap",
) -> Stream[Outcome[_R]]: ...
def amap(
    fn: Callable[[Any], Awaitable[Any]],
    source: Source[Any],
    *,
    limit: int | Acquirable,
    ordered: bool = False,
    buffer: int | None = None,
    rate: Rate | None = None,
    on_error: Literal["raise", "collect", "skip"] = "raise",
    name: str = "amap",
) -> Stream[Any]:
    """``await fn(item)`` for the items of a source, several at once; a stream of what is returned.

    `source` is an iterable or an async iterable, also an endless one: it is pulled when somebody can work on the
    item. An async one is iterated by a single task. `limit` is how many calls are under way at once, or a Limiter,
    which is acquired for each call. At most `limit` + `buffer` items are pulled that the consumer has not got (with a
    Limiter: those under way and `buffer`); `buffer` is `limit` by default, 16 with a Limiter. A Limiter that refuses
    (LimiterFull) is asked again whenever one of the stream's own calls has ended; if none is under way, the refusal is
    what the item has failed with.

    Results come as they are ready or, `ordered`, in the source's order, which does not keep later items from being
    worked on. `rate` is calls per second, evenly spaced, or a limiter to acquire before each call.

    on_error: "raise" raises the first failure of `fn` in its place among the results and calls `fn` no more; "collect"
    gives an Outcome for every item; "skip" leaves failures out. CancelledError out of `fn` is such a failure.

    Tasks are used again for many items, so what `fn` sets in a context variable may be seen by later items.
    """
    number, limiter = limit_of(limit)
    if number is None and limiter is None:
        raise TypeError("limit must be a number of tasks or a Limiter, not None: a map without one keeps no bound")
    if on_error not in ("raise", "collect", "skip"):
        raise ValueError(f"on_error must be 'raise', 'collect' or 'skip', not {on_error!r}")
    if not callable(fn):
        raise TypeError(f"amap() maps a coroutine function, not {fn!r}")
    if buffer is not None and buffer < 0:
        raise ValueError(f"buffer must be at least 0, not {buffer}")
    mapping = Mapping(
        fn,
        iterator_of("amap", source),
        slots=number,
        limiter=limiter,
        ordered=ordered,
        buffer=buffer if buffer is not None else number or 16,
        pace=_pace(rate, 1.0),
        on_error=on_error,
        name=name,
    )
    return Stream(mapping, name)


def iterator_of(what: str, source: Source[_T]) -> AsyncIterator[_T] | Iterator[_T]:
    """The iterator of a source, of whichever kind."""
    if isinstance(source, AsyncIterable):
        return aiter(source)
    try:
        return iter(source)
    except TypeError:
        raise TypeError(f"{what}() takes an iterable or an async iterable, not {source!r}") from None


async def _items_of(name: str, source: Source[_T], counts: Counts) -> AsyncGenerator[_T, None]:
    """The items of a source, which is closed with this. Its errors get a note."""
    iterator = iterator_of(name, source)
    async with closing(iterator):
        try:
            if isinstance(iterator, AsyncIterator):
                async for item in iterator:
                    counts.pulled += 1
                    yield item
            else:
                for item in iterator:
                    counts.pulled += 1
                    yield item
        except Exception as error:
            error.add_note(f"raised by a source of tideloop.{name}()")
            raise


def batched(source: Source[_T], n: int, within: float | None = None, *, name: str = "batched") -> Stream[list[_T]]:
    """Lists of `n` items of a source; the last one may be shorter, also before an error of the source.

    With `within`, a batch is given as well when so many seconds have passed since its first item came. A task then
    pulls the source, at most `n` items ahead.
    """
    if n < 1:
        raise ValueError(f"a batch has at least 1 item, not {n}")
    if within is not None and not within > 0:
        raise ValueError(f"within must be more than 0 seconds, not {within!r}")
    iterator_of(name, source)
    counts = Counts()
    if within is None:
        return Stream(Flow(_batches(source, n, counts, name), counts, name, source), name)
    return Stream(Flow(_timed_batches(source, n, within, counts, name), counts, name, source), name)


async def _batches(source: Source[_T], n: int, counts: Counts, name: str) -> AsyncGenerator[list[_T], None]:
    async with contextlib.aclosing(_items_of(name, source, counts)) as items:
        batch: list[_T] = []
        failure: Exception | None = None
        try:
            try:
                async for item in items:
                    batch.append(item)
                    if len(batch) == n:
                        counts.given += n
                        yield batch
                        batch = []
            except Exception as error:
                failure = error
            if batch:
                counts.given += len(batch)
                yield batch
            if failure is not None:
                raise failure
        finally:
            failure = None


async def _timed_batches(
    source: Source[_T], n: int, within: float, counts: Counts, name: str
) -> AsyncGenerator[list[_T], None]:
    loop = asyncio.get_running_loop()
    async with Pumps[_T](n, name) as pumps:
        counts.ready = pumps.ready
        pumps.add(_items_of(name, source, counts))
        failure: Exception | None = None
        try:
            while failure is None and (first := await pumps.take()) is not Pumps.END:
                batch = [first]
                deadline = loop.time() + within
                while len(batch) < n:
                    try:
                        item = await pumps.take(deadline)
                    except Exception as error:
                        failure = error
                        break
                    if item is Pumps.END or item is Pumps.LATE:
                        break
                    batch.append(item)
                counts.given += len(batch)
                yield batch
            if failure is not None:
                raise failure
        finally:
            failure = None


def throttle(source: Source[_T], rate: Rate, per: float = 1.0, *, name: str = "throttle") -> Stream[_T]:
    """The items of a source, `rate` of them per `per` seconds at most, evenly spaced; the source is not pulled ahead.

    `rate` may also be a limiter, which is acquired for each item.
    """
    iterator_of(name, source)
    pace = _pace(rate, per)
    if pace is None:
        raise TypeError("rate must be a number or a limiter, not None")
    counts = Counts()
    return Stream(Flow(_throttled(source, pace, counts, name), counts, name, source), name)


async def _throttled(
    source: Source[_T], pace: Callable[[], Awaitable[object]], counts: Counts, name: str
) -> AsyncGenerator[_T, None]:
    async with contextlib.aclosing(_items_of(name, source, counts)) as items:
        async for item in items:
            await pace()
            counts.given += 1
            yield item


def merge(*sources: Source[_T], buffer: int | None = None, name: str = "merge") -> Stream[_T]:
    """The items of several sources as they come; each source's own order is kept.

    A task per source, at most `buffer` items ahead in all (by default one per source). The first source that fails
    ends the stream, behind the items that were ready; the others are closed.
    """
    for source in sources:
        iterator_of(name, source)
    counts = Counts()
    ahead = max(_ahead(buffer, len(sources)), len(sources))
    return Stream(Flow(_merged(sources, ahead, counts, name), counts, name, *sources), name)


async def _merged(sources: tuple[Source[_T], ...], ahead: int, counts: Counts, name: str) -> AsyncGenerator[_T, None]:
    async with Pumps[_T](ahead, name) as pumps:
        counts.ready = pumps.ready
        for source in sources:
            pumps.add(_items_of(name, source, counts))
        while (item := await pumps.take()) is not Pumps.END:
            counts.given += 1
            yield item


def flat_map(
    fn: Callable[[_T], Source[_R]],
    source: Source[_T],
    *,
    limit: int = 1,
    buffer: int | None = None,
    name: str = "flat_map",
) -> Stream[_R]:
    """The items of the iterables, of whichever kind, that `fn` returns for each item of a source.

    `limit` of them are iterated at once, in tasks of their own, at most `buffer` items ahead in all (by default
    `limit`). With a limit of 1 they come one after the other, without tasks, and nothing is pulled ahead. What `fn`
    raises ends the stream.
    """
    number, _ = limit_of(limit)
    if number is None:
        raise TypeError(f"limit must be a number, not {limit!r}")
    iterator_of(name, source)
    counts = Counts()
    if number == 1 and not buffer:
        return Stream(Flow(_flattened(fn, source, counts, name), counts, name, source), name)
    ahead = max(_ahead(buffer, number), number) + 1
    return Stream(Flow(_flattened_at_once(fn, source, number, ahead, counts, name), counts, name, source), name)


async def _flattened(
    fn: Callable[[_T], Source[_R]], source: Source[_T], counts: Counts, name: str
) -> AsyncGenerator[_R, None]:
    async with contextlib.aclosing(_items_of(name, source, Counts())) as items:
        async for item in items:
            async with contextlib.aclosing(_items_of(name, fn(item), counts)) as inner:
                async for result in inner:
                    counts.given += 1
                    yield result


async def _flattened_at_once(
    fn: Callable[[_T], Source[_R]], source: Source[_T], limit: int, ahead: int, counts: Counts, name: str
) -> AsyncGenerator[_R, None]:
    free = accelerated.Semaphore(limit)

    async def inner(item: _T) -> AsyncGenerator[_R, None]:
        try:
            async with contextlib.aclosing(_items_of(name, fn(item), counts)) as results:
                async for result in results:
                    yield result
        finally:
            free.release()

    async def outer() -> AsyncGenerator[_R, None]:
        async with contextlib.aclosing(_items_of(name, source, Counts())) as items:
            await free.acquire()
            async for item in items:
                pumps.add(inner(item))
                await free.acquire()
        return
        yield  # a generator of nothing: what it does is to start the others

    async with Pumps[_R](ahead, name) as pumps:
        counts.ready = pumps.ready
        pumps.add(outer())
        while (item := await pumps.take()) is not Pumps.END:
            counts.given += 1
            yield item


@overload
def paginate(
    fetch: Callable[[int], Awaitable[Iterable[_T]]], start: int = 1, *, ahead: int = 0, name: str = "paginate"
) -> Stream[_T]: ...
@overload
def paginate(
    fetch: Callable[[_C], Awaitable[_P]],
    start: _C,
    *,
    next: Callable[[_P], _C | None],
    items: Callable[[_P], Iterable[_T]],
    ahead: int = 0,
    name: str = "paginate",
) -> Stream[_T]: ...
def paginate(
    fetch: Callable[[Any], Awaitable[Any]],
    start: Any = 1,
    *,
    next: Callable[[Any], Any] | None = None,
    items: Callable[[Any], Iterable[Any]] | None = None,
    ahead: int = 0,
    name: str = "paginate",
) -> Stream[Any]:
    """The items of a resource that comes in pages, one page after the other.

    ``fetch(cursor)`` returns a page. By default cursors are the numbers from `start` on, and the first empty page is
    the end; otherwise `next` finds the following cursor in a page, None being the end. `items` finds the items in a
    page, which by default is an iterable of them. Up to `ahead` pages are fetched while the consumer is busy with
    others; with 0 a page is fetched when it is needed.
    """
    if not callable(fetch):
        raise TypeError(f"paginate() fetches with a coroutine function, not {fetch!r}")
    if next is None and (isinstance(start, bool) or not isinstance(start, int)):
        raise TypeError(f"pages are numbered unless next= is given; start must be a number, not {start!r}")
    if ahead < 0:
        raise ValueError(f"ahead must be at least 0 pages, not {ahead}")
    counts = Counts()
    return Stream(Flow(_paged(_pages(fetch, start, next, items), ahead, counts, name), counts, name), name)


async def _pages(
    fetch: Callable[[Any], Awaitable[Any]],
    cursor: Any,
    following: Callable[[Any], Any] | None,
    items: Callable[[Any], Iterable[Any]] | None,
) -> AsyncGenerator[Iterable[Any], None]:
    while True:
        page = await fetch(cursor)
        found = page if items is None else items(page)
        if following is None:
            if not found:
                return
            cursor += 1
            yield found
        else:
            yield found
            cursor = following(page)
            if cursor is None:
                return


async def _paged(
    pages: AsyncGenerator[Iterable[_T], None], ahead: int, counts: Counts, name: str
) -> AsyncGenerator[_T, None]:
    if ahead == 0:
        async with contextlib.aclosing(pages):
            async for page in pages:
                for item in page:
                    counts.pulled += 1
                    counts.given += 1
                    yield item
        return
    async with Pumps[Iterable[_T]](ahead, name) as pumps:
        pumps.add(pages)
        while (page := await pumps.take()) is not Pumps.END:
            for item in page:
                counts.pulled += 1
                counts.given += 1
                yield item


def _ahead(buffer: int | None, default: int) -> int:
    if buffer is not None and buffer < 1:
        raise ValueError(f"buffer must be at least 1, not {buffer}")
    return max(default, 1) if buffer is None else buffer


def _pace(rate: Rate | None, per: float) -> Callable[[], Awaitable[object]] | None:
    """What to await before each item."""
    if rate is None:
        return None
    if isinstance(rate, Acquirable):
        raise TypeError(f"{rate!r} wants its permits back; rate must be a number or a RateLimiter")
    if isinstance(rate, Paced):
        return rate.acquire
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"rate must be a number or a RateLimiter, not {rate!r}")
    if not 0 < rate < math.inf or not 0 < per < math.inf:
        raise ValueError(f"rate must be a positive number of items per positive seconds, not {rate!r} per {per!r}")
    return _Pace(per / rate).wait


class _Pace:
    """Evenly spaced moments, none of which is made up for."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._next = -math.inf

    async def wait(self) -> None:
        now = asyncio.get_running_loop().time()
        mine = max(now, self._next)
        self._next = mine + self._interval
        if mine > now:
            await accelerated.sleep(mine - now)
