"""Batching: many calls, each for one thing, become few calls for many. batched(), Batcher.

    @tideloop.batched(max_size=100)
    async def user(ids: list[int]) -> list[User]:
        return await database.fetch_users(ids)

    await asyncio.gather(user(1), user(2), user(1))     # one call: fetch_users([1, 2])

The first call opens a batch; it is sent off when it has `max_size` keys, or when its `window` is over:

* ``"tick"``: in the loop's next turn, so with all that the tasks that are running now ask for. Costs no time.
* a number of seconds after its first call.
* ``"auto"``: at once, as with "tick", if no batch is under way; else when that one is back. So batches are as large as
  the load makes them, as with a group commit, and nothing waits without need.

Of `max_inflight` batches at most, the next is sent off when one is back, and until then takes more keys.

**Each caller has a future of his own**, made when he calls, not when he awaits. Cancelling it harms nobody else; a key
that nobody waits for any more when the batch is sent off is left out, and a batch without keys is not sent. Equal keys
within a batch are asked for once. Errors are told to those whom they concern: all of a batch if the function raises,
each with an exception of his own; one key's callers if the function answers with an exception; KeyError to those of a
key that has no answer.

A batch is a task of the loop that asked, in a copy of the context of its first caller, without his deadline(). Several
loops may use one Batcher; each has batches of its own, and `max_inflight` of them.

**Two meanings, one name.** ``tideloop.batched(source, n)`` makes lists of a stream's items, as itertools.batched does;
``@tideloop.batched(...)`` makes lists of calls. It is one idea, the field has one word for it, and no call can mean
both: a source comes with `n`, a function does not. Both are declared, so type checkers know which it is;
`Stream.batched` is the first one as a method.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, overload

from tideloop._tideloop import Enlisted, enlist
from tideloop.answers import hand_out
from tideloop.deadlines import without_deadline
from tideloop.durations import seconds
from tideloop.failures import LoadCancelled, own_copy
from tideloop.per_loop import PerLoop

if TYPE_CHECKING:
    from tideloop.streams import Source, Stream

__all__ = ["Batcher", "BatcherStats", "batched"]

_T = TypeVar("_T")
_R = TypeVar("_R")

Window = Literal["tick", "auto"] | float

Answers = (
    Awaitable[Sequence[_R]] | Awaitable[Mapping[Any, _R]] | AsyncIterable[tuple[Any, _R]] | Iterable[tuple[Any, _R]]
)
"""What a batch function answers with. Any value may be an Exception instead."""

# As gather(..., return_exceptions=True) tells them.
_FAILURES = (Exception, asyncio.CancelledError)

_running_loop = asyncio.get_running_loop


class BatcherStats(NamedTuple):
    """What ``Batcher.stats()`` tells."""

    name: str | None
    calls: int
    shared: int
    """Calls for a key that was in the batch already."""
    batches: int
    """Batches that were sent off."""
    keys: int
    """Keys in them."""
    largest: int
    cancelled: int
    """Keys that were left out, since nobody waited for them any more."""
    failed: int
    """Batches whose function raised."""
    waiting: int
    """Keys that are not sent off yet."""
    inflight: int
    """Batches that are under way."""


class _Batch:
    """Keys that are to be asked for together, and whose callers wait for each."""

    __slots__ = ("context", "due", "futures", "items", "keys", "places", "timer")

    def __init__(self) -> None:
        self.context: Context = without_deadline()
        self.items: list[Any] = []
        self.keys: list[Any] = []
        self.futures: list[asyncio.Future[Any] | list[asyncio.Future[Any]]] = []
        # Key to its number, of those that may be joined.
        self.places: dict[Any, int] = {}
        self.timer: asyncio.Handle | None = None
        # Whether it waits for nothing but one under way.
        self.due = False


class _Lane:
    """The batches of one loop."""

    __slots__ = ("create_future", "full", "inflight", "loop", "open", "tasks")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.create_future = loop.create_future
        self.open: _Batch | None = None
        self.full: deque[_Batch] = deque()
        self.inflight = 0
        self.tasks: set[asyncio.Task[None]] = set()


class Batcher(Enlisted, Generic[_T, _R]):
    """Collects calls and makes one of them; see the head of this module.

    fn: is called with a list of items, none twice unless `dedupe` is off; a coroutine function, or an (asynchronous)
        generator function. It answers with a list, one value for each item in order; a mapping of keys to values; or
        it yields pairs of a key and its value. A value that is an Exception is raised by that key's callers.
    max_size: keys of a batch at most. window: "tick", "auto" or seconds. max_inflight: batches under way at once, on
        each loop; None is no limit. key: makes the key of an item, by which equal ones are known and answers are found;
        by default it is the item. dedupe: whether equal keys share a place in a batch.

    Used as the decorator of a method, each instance has a Batcher of its own.

    Raises TypeError or ValueError that names the argument.
    """

    def __init__(
        self,
        fn: Callable[[list[_T]], Answers[_R]],
        *,
        max_size: int = 100,
        window: Window = "tick",
        max_inflight: int | None = None,
        key: Callable[[_T], Hashable] | None = None,
        dedupe: bool = True,
        name: str | None = None,
    ) -> None:
        for what, given in (("fn", fn), ("key", key)):
            if not callable(given) and (given is not None or what == "fn"):
                raise TypeError(f"{what} must be a function, not {given!r}")
        if window not in ("tick", "auto"):
            window = seconds("window", window)  # type: ignore[arg-type]
        # First: what it copies of fn's attributes must not replace ours.
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.name = name
        self._max_size = _count("max_size", max_size)
        self._window = window
        self._max_inflight = None if max_inflight is None else _count("max_inflight", max_inflight)
        self._key = key
        self._dedupe = dedupe
        self._lanes: PerLoop[_Lane] = PerLoop(_Lane)
        self._lane: _Lane | None = None
        self._attribute: str | None = None
        self._instance: object = None
        self._shared = self._batches = self._keys = self._largest = self._cancelled = self._failed = 0
        enlist(self)

    def __call__(self, item: _T) -> asyncio.Future[_R]:
        """Ask for one item: a future, which may be cancelled. RuntimeError without a running loop."""
        lane = self._lane
        if lane is None or lane.loop is not _running_loop():
            lane = self._lane = self._lanes.here()
        key: Any = item if self._key is None else self._key(item)
        batch = lane.open
        if batch is None:
            batch = self._begin(lane)
        items = batch.items
        place = len(items)
        if self._dedupe:
            try:
                there = batch.places.setdefault(key, place)
            except TypeError as error:
                raise TypeError(f"{self!r}: the key {key!r} is not hashable; pass key=, or dedupe=False") from error
            if there != place:
                return self._join(lane, batch, there)
        if self._key is not None:
            batch.keys.append(key)
        future: asyncio.Future[_R] = lane.create_future()
        items.append(item)
        batch.futures.append(future)
        if place + 1 >= self._max_size:
            self._close(lane, batch)
        return future

    def _join(self, lane: _Lane, batch: _Batch, place: int) -> asyncio.Future[_R]:
        """One more caller for a key that is in the batch."""
        self._shared += 1
        future: asyncio.Future[_R] = lane.create_future()
        there = batch.futures[place]
        if isinstance(there, list):
            there.append(future)
        else:
            batch.futures[place] = [there, future]
        return future

    async def load_many(self, items: Iterable[_T]) -> list[_R]:
        """``asyncio.gather`` of all of these: their values, or the first failure."""
        return await asyncio.gather(*map(self, items))

    def flush(self) -> None:
        """Send off what this loop's callers have asked for by now, if `max_inflight` allows it."""
        lane = self._lanes.here()
        if lane.open is not None:
            self._close(lane, lane.open)

    def stats(self) -> BatcherStats:
        """What it has done, and is doing."""
        lanes = self._lanes.all()
        batches = (batch for lane in lanes for batch in (lane.open, *lane.full))
        waiting = sum(len(batch.items) for batch in batches if batch is not None)
        return BatcherStats(
            self.name,
            # Each is one of these.
            self._shared + self._keys + self._cancelled + waiting,
            self._shared,
            self._batches,
            self._keys,
            self._largest,
            self._cancelled,
            self._failed,
            waiting,
            sum(lane.inflight for lane in lanes),
        )

    def __repr__(self) -> str:
        name = self.name if self.name is not None else getattr(self, "__qualname__", None)
        waiting, inflight = self.stats()[-2:]
        return f"<tideloop.Batcher {f'{name!r} ' if name else ''}{waiting} waiting, {inflight} in flight>"

    # --- as a method ----------------------------------------------------------------------------

    def __set_name__(self, owner: type, name: str) -> None:
        # Not the name itself: super() finds another Batcher of that name, and copies of an instance have its __dict__.
        self._attribute = f"{owner.__qualname__}.{name}"

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Batcher[_T, _R]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Batcher[Any, _R]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Batcher[Any, _R]:
        if instance is None:
            return self
        if self._attribute is None or not hasattr(instance, "__dict__"):
            raise TypeError(f"{self!r} needs a __dict__ in {instance!r} to keep that instance's batches in")
        there = instance.__dict__.get(self._attribute)
        if there is not None and there._instance is instance:
            return there  # type: ignore[no-any-return]
        mine: Batcher[Any, _R] = Batcher(
            self.fn.__get__(instance, owner),
            max_size=self._max_size,
            window=self._window,
            max_inflight=self._max_inflight,
            key=self._key,
            dedupe=self._dedupe,
            name=self.name,
        )
        mine._instance = instance
        instance.__dict__[self._attribute] = mine
        return mine

    # --- batches --------------------------------------------------------------------------------

    def _begin(self, lane: _Lane) -> _Batch:
        batch = lane.open = _Batch()
        loop = lane.loop
        if isinstance(self._window, str):
            batch.timer = loop.call_soon(self._ring, lane, batch)
        else:
            batch.timer = loop.call_later(self._window, self._ring, lane, batch)
        return batch

    def _ring(self, lane: _Lane, batch: _Batch) -> None:
        """The window of a batch is over."""
        batch.timer = None
        if lane.inflight and (self._window == "auto" or not self._may_send(lane)):
            batch.due = True
            return
        lane.open = None
        self._send(lane, batch)

    def _close(self, lane: _Lane, batch: _Batch) -> None:
        """A batch takes no more keys."""
        lane.open = None
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None
        if self._may_send(lane):
            self._send(lane, batch)
        else:
            lane.full.append(batch)

    def _may_send(self, lane: _Lane) -> bool:
        return self._max_inflight is None or lane.inflight < self._max_inflight

    def _send(self, lane: _Lane, batch: _Batch) -> None:
        keys = batch.keys if self._key is not None else batch.items
        batch.places = {}
        wanted = [
            place
            for place, there in enumerate(batch.futures)
            if (_is_wanted(there) if type(there) is list else not there.done())  # type: ignore[union-attr]
        ]
        self._cancelled += len(keys) - len(wanted)
        if not wanted:
            return
        if len(wanted) < len(keys):
            batch.items = [batch.items[place] for place in wanted]
            batch.futures = [batch.futures[place] for place in wanted]
            batch.keys = keys = batch.items if self._key is None else [keys[place] for place in wanted]
        self._batches += 1
        self._keys += len(wanted)
        self._largest = max(self._largest, len(wanted))
        lane.inflight += 1
        asking = self._ask(batch, keys)
        try:
            task = lane.loop.create_task(asking, context=batch.context)
        except Exception as error:  # a task factory's
            asking.close()
            lane.inflight -= 1
            for there in batch.futures:
                for future in there if isinstance(there, list) else (there,):
                    _end(future, error)
            return
        lane.tasks.add(task)
        task.add_done_callback(functools.partial(self._back, lane, batch))

    async def _ask(self, batch: _Batch, keys: list[Any]) -> None:
        futures = batch.futures

        # Whether all were told by one sequence of answers; of anything else some may be missing.
        complete = False

        def tell(answers: Iterable[tuple[int, Any]]) -> None:
            nonlocal complete
            complete = isinstance(answers, enumerate)
            for place, value in answers:
                there = futures[place]
                if type(there) is list:
                    for future in there:
                        _end(future, value)
                elif isinstance(value, _FAILURES):
                    _end(there, value)  # type: ignore[arg-type]
                else:
                    try:
                        there.set_result(value)  # type: ignore[union-attr]
                    except asyncio.InvalidStateError:
                        continue  # cancelled

        try:
            await hand_out(self.fn(batch.items), keys, tell, repr(self))
        except asyncio.CancelledError:
            raise  # told by _back(), which is called if it was cancelled before it began, too
        except BaseException as error:
            self._failed += 1
            failure = error if isinstance(error, Exception) else RuntimeError(f"{self!r} was ended by {error!r}")
            tell((place, failure) for place in range(len(keys)))
            if failure is not error:
                raise
        if not complete:
            tell((place, KeyError(key)) for place, key in enumerate(keys) if _is_wanted(futures[place]))

    def _back(self, lane: _Lane, batch: _Batch, task: asyncio.Task[None]) -> None:
        lane.tasks.discard(task)
        lane.inflight -= 1
        for there in batch.futures if task.cancelled() else ():
            for future in there if isinstance(there, list) else (there,):
                if not future.done():
                    future.set_exception(LoadCancelled(f"{self!r}: the batch was cancelled"))
        while self._may_send(lane) and lane.full:
            self._send(lane, lane.full.popleft())
        opened = lane.open
        if (
            opened is not None
            and opened.due
            and not (lane.inflight and self._window == "auto")
            and self._may_send(lane)
        ):
            self._close(lane, opened)


def _is_wanted(futures: asyncio.Future[Any] | list[asyncio.Future[Any]]) -> bool:
    """Whether anybody still waits for a key."""
    if isinstance(futures, list):
        return any(not future.done() for future in futures)
    return not futures.done()


def _end(future: asyncio.Future[Any], value: Any) -> None:
    """Tell one caller, who may have gone."""
    if not future.done():
        if isinstance(value, asyncio.CancelledError):
            # What was done for this key was; the caller was not.
            cancelled = LoadCancelled("what was asked for was cancelled")
            cancelled.__cause__ = value
            future.set_exception(cancelled)
        elif isinstance(value, Exception):
            future.set_exception(own_copy(value))
        else:
            future.set_result(value)


def _count(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int >= 1, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be an int >= 1, not {value!r}")
    return value


@overload
def batched(fn: Callable[[list[_T]], Answers[_R]], /) -> Batcher[_T, _R]: ...
@overload
def batched(source: Source[_T], n: int, within: float | None = None, *, name: str = "batched") -> Stream[list[_T]]: ...
@overload
def batched(
    *,
    max_size: int = 100,
    window: Window = "tick",
    max_inflight: int | None = None,
    key: Callable[[Any], Hashable] | None = None,
    dedupe: bool = True,
    name: str | None = None,
) -> Callable[[Callable[[list[_T]], Answers[_R]]], Batcher[_T, _R]]: ...
def batched(source: Any = None, n: int | None = None, within: float | None = None, **options: Any) -> Any:
    """Batches of calls, or of a stream's items; which of the two is told by `n`.

    ``@tideloop.batched`` or ``@tideloop.batched(max_size=..., window=..., ...)`` over a function of a list: a Batcher,
    which is called with one item and returns a future; its options are that class's.

    ``batched(source, n, within=)``: lists of `n` items of an iterable or async iterable, see
    tideloop.streams.batched().
    """
    if n is not None:
        from tideloop import streams  # most users of either need not the other

        return streams.batched(source, n, within, **options)
    if within is not None:
        raise TypeError("batched() of a source takes n, the number of items of a batch")
    if source is None:
        return functools.partial(Batcher, **options)
    if not callable(source):
        raise TypeError(f"batched() takes a function to batch, or a source and n; {source!r} came without n")
    return Batcher(source, **options)
