"""Caches for what is awaited: cached(), Cache.

    @tideloop.cached(maxsize=10_000, ttl=60, stale=300)
    async def user(user_id: int) -> User: ...

    cache = tideloop.Cache(maxsize=10_000, ttl=60)
    user = await cache.get(user_id, fetch_user)
    users = await cache.get_many(user_ids, fetch_users)

* **One load for all who ask at once** (`tideloop.SingleFlight`), in a task that no caller's cancellation reaches.
* **Fresh, then stale, then gone.** An entry is fresh for `ttl` seconds, less up to the part `jitter` of them, so that
  what was stored together does not go together. For `stale` seconds after that it is handed out at once while one
  refresh is under way. One that nobody has asked for in `idle` seconds is gone, too.
* **What is invalidated while it is being loaded is not stored**, and who asks after the invalidation gets a new load.
* **Errors are not kept**, unless `negative_ttl` says for how long.
* **What is driven out** when the weights exceed `maxsize` is decided by S3-FIFO (Yang, Zhang, Qiu, Yue and Rashmi,
  "FIFO queues are all you need for cache eviction", SOSP 2023): a scan over many keys drives nothing out that is in
  use.

Nothing is kept for a key but its entry. Time is the loop's, and no timer is set: what is gone leaves when somebody
comes across it, at the latest as others are stored. A cache may be used by several loops and threads at once; loads are
shared within each loop (see SingleFlight), entries among all of them.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
import sys
import types
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar, overload

from tideloop._tideloop import CacheCore, CachedCore, Warrant, function
from tideloop.answers import hand_out
from tideloop.deadlines import without_deadline
from tideloop.durations import seconds
from tideloop.failures import own_copy
from tideloop.flights import Flight, SingleFlight

__all__ = ["Cache", "CacheStats", "Cached", "cached"]

_F = TypeVar("_F", bound=Callable[..., Any])
_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")
_D = TypeVar("_D")
_P = ParamSpec("_P")


_HEAVIEST = 2**40
"""What one entry may weigh: so little that no sum of weights is ever more than 64 bits hold."""


class CacheStats(NamedTuple):
    """What ``Cache.stats()`` tells."""

    name: str | None
    entries: int
    """Those included whose time is over and that nobody has come across yet."""
    weight: int
    maxsize: int | None
    hits: int
    """Answers out of the cache, stale ones included."""
    stale_hits: int
    negative_hits: int
    """Errors that were raised again."""
    misses: int
    loads: int
    joined: int
    """Misses that found a load under way."""
    failed: int
    """Loads that have failed."""
    loading: int
    """Loads that are under way."""
    evicted: int
    """Entries that were driven out."""
    expired: int
    """Entries whose time was over."""
    refused: int
    """Values that were not stored: too heavy, or invalidated while they were loaded."""


class _Absent(KeyError):
    """A load of many keys did not answer this one."""


class _Reference(weakref.ref[Any]):
    """A weak reference that knows the key of what it refers to."""

    __slots__ = ("key",)

    key: Any


class _Load(Flight[Any]):
    """A load under way, which stores what it brings."""

    __slots__ = ()

    _owner: _Loads

    def brought(self, result: Any) -> None:
        self._owner.cache._keep(self.key, result, self.warrant)

    def failed(self, error: BaseException) -> None:
        if isinstance(error, Exception):
            self._owner.cache._remember(self.key, error, self.warrant)

    def answer(self, value: Any) -> None:
        """End a load that others do, by a value, an Exception or a CancelledError."""
        if self.task.done():
            return
        if isinstance(value, asyncio.CancelledError):
            self.task.cancel()
        elif isinstance(value, Exception):
            self.task.set_exception(own_copy(value))
        else:
            self.task.set_result(value)


class _Loads(SingleFlight[Any, Any]):
    __slots__ = ("cache",)

    _kind = _Load
    # The cache is one.
    _is_gauge = False

    def __init__(self, cache: Cache[Any, Any], *, cancel_abandoned: bool) -> None:
        super().__init__(cancel_abandoned=cancel_abandoned, name=cache.name)
        self.cache = cache

    def new(self, key: Any) -> _Load:
        flight = super().new(key)
        assert isinstance(flight, _Load)
        return flight

    def __repr__(self) -> str:
        return repr(self.cache)


def _native(name: str) -> Callable[[_F], _F]:
    """The native function of this name, with the signature and the documentation of what it decorates."""
    return lambda template: function(name, template)


class Cache(CacheCore, Generic[_K, _V]):
    """A cache of what is awaited; see the head of this module.

    maxsize: how much the entries may weigh together; by default each weighs 1. None is no limit.
    ttl, stale, idle, negative_ttl: seconds. ttl and idle are by default for ever; stale and negative_ttl: not at all.
    jitter: the part of the ttl, at least 0 and below 1, by which it is shortened at random.
    weight: what an entry weighs, an int of at least 0, of its key and its value. What weighs more than maxsize is not
    stored. weak: values are kept only while somebody else has them; those that cannot be referred to weakly (str, int,
        tuples, …) are kept like any.
    cancel_abandoned: whether a load is cancelled when nobody waits for it any more. By default it is finished, and
    stored.

    Raises TypeError or ValueError that names the argument.
    """

    def __new__(cls, *args: Any, **options: Any) -> Cache[_K, _V]:
        return CacheCore.__new__(cls, None)  # __init__ says how large, which a subclass may call with what it likes

    def __init__(
        self,
        maxsize: int | None = 128,
        *,
        ttl: float | None = None,
        jitter: float = 0.0,
        stale: float | None = None,
        idle: float | None = None,
        negative_ttl: float | None = None,
        weight: Callable[[_K, _V], int] | None = None,
        weak: bool = False,
        cancel_abandoned: bool = False,
        name: str | None = None,
    ) -> None:
        if not isinstance(jitter, int | float) or not 0 <= jitter < 1:
            raise ValueError(f"jitter must be a part of at least 0, below 1, not {jitter!r}")
        if stale is not None and ttl is None:
            raise ValueError(f"stale={stale!r} needs a ttl: what is fresh for ever is never stale")
        if weight is not None and not callable(weight):
            raise TypeError(f"weight must be a function of a key and a value, not {weight!r}")
        self.name = name
        self.resize(maxsize)
        self._ttl = None if ttl is None else seconds("ttl", ttl)
        self._jitter = jitter
        self._stale = None if stale is None else seconds("stale", stale)
        self._idle = None if idle is None else seconds("idle", idle)
        self._negative_ttl = None if negative_ttl is None else seconds("negative_ttl", negative_ttl)
        self._weight = weight
        self._died = _remover(self) if weak else None
        self._loads = _Loads(self, cancel_abandoned=cancel_abandoned)
        self._misses = self._stale_hits = self._negative_hits = self._refused = 0
        self._enlist()

    # --- asking ---------------------------------------------------------------------------------

    @_native("Cache.get")
    async def get(self, key: _K, load: Callable[[_K], Awaitable[_V]]) -> _V:
        """The value of a key; if there is none, what ``await load(key)`` comes to, which is stored.

        Raises what the load raises, LoadCancelled if it was cancelled by others. Cancelled, it leaves the load to the
        others, and to the cache.
        """
        raise TypeError(f"{self!r} is not a Cache")

    def _fetch(self, key: _K, load: Callable[[_K], Awaitable[_V]]) -> Coroutine[Any, Any, Any]:
        """get() of what was not at hand."""
        return self._find(key, load, key)

    async def _find(self, key: _K, load: Callable[..., Awaitable[_V]], *args: Any) -> Any:
        state, found = self._look_up(key)
        if state == "fresh":
            return found
        if state == "failed":
            own = own_copy(found)
            # One that is not to be copied would keep the frames of all who have got it.
            raise own if own is not found else own.with_traceback(None)
        if state == "stale":
            if self._loads.flying(key) is None:
                self._loads.flight(key, load, *args)
            return found
        return await self._loads.flight(key, load, *args).wait()

    def _look_up(self, key: _K) -> tuple[str, Any]:
        """What there is under a key, counted."""
        try:
            state, found = self._ask(key)
        except TypeError as error:
            self._refuse(key, error)
            raise
        if state == "gone":
            self._misses += 1
        elif state == "stale":
            self._stale_hits += 1
        elif state == "failed":
            self._negative_hits += 1
        return state, found

    def _refuse(self, key: Any, error: TypeError) -> None:
        """Raise what is to be said of a key that cannot be one, if it cannot."""
        if not _is_hashable(key):
            raise TypeError(f"{self!r}: the key {key!r} is not hashable; key= can make one that is") from error

    async def get_many(self, keys: Iterable[_K], load: Callable[[list[_K]], Any]) -> dict[_K, _V]:
        """The values of several keys, in their order; those that are missing come from one call of ``load(missing)``.

        `load` may return a list with a value for each key, a mapping, or yield pairs of key and value, as the function
        of a Batcher does. Keys that it does not answer are not in the result; who waits for one of them in get() gets
        KeyError. A key that is being loaded already is waited for instead. Raises the first key's failure; the others
        are stored.
        """
        found: dict[_K, _V] = {}
        seats: dict[_K, tuple[Flight[_V], asyncio.Future[_V]]] = {}
        wanted: dict[_K, _Load] = {}
        failures: dict[_K, BaseException] = {}
        asked = list(keys)
        try:
            asked = list(dict.fromkeys(asked))
        except TypeError as error:
            for key in asked:
                self._refuse(key, error)
            raise
        try:
            for key in asked:
                state, value = self._look_up(key)
                flight = None if state == "fresh" else self._loads.flying(key)
                if state in ("fresh", "stale"):
                    found[key] = value
                elif state == "failed":
                    if not isinstance(value, _Absent):
                        failures[key] = own_copy(value)
                    continue
                if state != "fresh" and flight is None:
                    flight = wanted[key] = self._loads.new(key)
                    flight.begin(asyncio.get_running_loop().create_future())
                if state == "gone" and flight is not None:
                    seats[key] = (flight, flight.board())
            if wanted:
                self._start_many(load, wanted)
        except BaseException:
            # Nobody would end them: a key of a load that asks, one whose __eq__ raises, a task factory.
            for flight in wanted.values():
                flight.forget()
                flight.task.cancel()
            for flight, seat in seats.values():
                flight.leave(seat)
            raise
        try:
            for key in asked:
                if key in failures:
                    raise failures[key]
                if key not in seats:
                    continue
                try:
                    found[key] = await seats[key][1]
                except _Absent:
                    continue
        finally:
            for flight, seat in seats.values():
                flight.leave(seat)
        return {key: found[key] for key in asked if key in found}

    def _start_many(self, load: Callable[[list[_K]], Any], wanted: dict[_K, _Load]) -> None:
        loading = _load_many(load, wanted, repr(self))
        try:
            task = asyncio.get_running_loop().create_task(loading, context=without_deadline())
        except BaseException:
            loading.close()
            raise
        flights = list(wanted.values())
        task.add_done_callback(functools.partial(_end_all, flights))
        for flight in flights:
            # That keeps the task, too.
            flight.task.add_done_callback(functools.partial(_end_if_unwanted, task, flights))

    @overload
    def peek(self, key: _K) -> _V | None: ...
    @overload
    def peek(self, key: _K, default: _D) -> _V | _D: ...
    def peek(self, key: _K, default: Any = None) -> Any:
        """The value of a key, fresh or stale, without loading it; that is no use of it."""
        found = self._peek(key)
        return default if found is None else found[0]

    def __contains__(self, key: _K) -> bool:
        return self._peek(key) is not None

    def keys(self) -> list[_K]:
        """The keys of all entries, those included whose time is over and that nobody has come across yet."""
        return self._keys()

    # --- changing -------------------------------------------------------------------------------

    def put(self, key: _K, value: _V, *, ttl: float | None = None) -> bool:
        """Store a value, for `ttl` seconds if that is given. Whether it was stored: what is too heavy is not.

        What is being loaded for the key is not stored any more.
        """
        self._loads.forget(key)
        return self._keep(key, value, None, None if ttl is None else seconds("ttl", ttl))

    async def refresh(self, key: _K, load: Callable[[_K], Awaitable[_V]]) -> _V:
        """Load a key anew, or wait for the load that is under way; until it is there the old value is handed out."""
        value: _V = await self._loads.flight(key, load, key).wait()
        return value

    def invalidate(self, key: _K) -> bool:
        """Remove the entry of a key; whether there was one. From any thread.

        What is being loaded for it goes to those who wait for it already, and is not stored.
        """
        self._loads.forget(key)
        return self._drop(key)

    def clear(self) -> int:
        """invalidate() all keys; how many entries there were."""
        self._loads.forget_all()
        return self._clear()

    def resize(self, maxsize: int | None) -> None:
        """Change how much the entries may weigh together; what is too much goes at once."""
        self._resize(_size(maxsize))
        self.maxsize = maxsize

    def _keep(self, key: _K, value: _V, warrant: Warrant | None, ttl: float | None = None) -> bool:
        if ttl is None and self._ttl is not None:
            ttl = self._ttl * (1 - self._jitter * random.random()) if self._jitter else self._ttl
        weight = 1 if self._weight is None else self._weigh(key, value)
        held: Any = value
        kind = "value"
        if self._died is not None:
            try:
                held = _Reference(value, self._died)
            except TypeError:
                pass  # such as a str: kept like any
            else:
                held.key = key
                kind = "weak"
        stored = self._store(key, held, kind, weight, ttl, self._stale, self._idle, warrant)
        self._refused += not stored
        return stored

    def _remember(self, key: _K, error: Exception, warrant: Warrant) -> None:
        """Keep a failure for a while, if that is wanted and there is no value, though a stale one."""
        if self._negative_ttl is None or self._peek(key) is not None:
            return
        # Its traceback would keep alive whatever the load has worked with.
        kept = own_copy(error)
        if kept is not error:
            kept = kept.with_traceback(None)
        self._store(key, kept, "failure", 1, self._negative_ttl, None, None, warrant)

    def _weigh(self, key: _K, value: _V) -> int:
        assert self._weight is not None
        weight = self._weight(key, value)
        if not isinstance(weight, int) or not 0 <= weight <= _HEAVIEST:
            raise ValueError(f"{self!r}: weight of {key!r} must be an int from 0 to {_HEAVIEST}, not {weight!r}")
        return weight

    # --- telling --------------------------------------------------------------------------------

    def stats(self) -> CacheStats:
        """What it has done, and holds."""
        entries, weight, hits, evicted, expired = self._look()
        loads = self._loads.stats()
        return CacheStats(
            self.name,
            entries,
            weight,
            self.maxsize,
            hits,
            self._stale_hits,
            self._negative_hits,
            self._misses,
            loads.flights,
            loads.joined,
            loads.failed,
            loads.flying,
            evicted,
            expired,
            self._refused,
        )

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        _, weight, *_ = self._look()
        limit = "" if self.maxsize is None else f" of {self.maxsize}"
        return f"<tideloop.Cache{name} {weight}{limit}>"


def _size(maxsize: int | None) -> int | None:
    if maxsize is None:
        return None
    if not isinstance(maxsize, int) or isinstance(maxsize, bool):
        raise TypeError(f"maxsize must be an int >= 0 or None, not {maxsize!r}")
    if not 0 <= maxsize < 2**63:
        raise ValueError(f"maxsize must be an int >= 0 or None, not {maxsize!r}")
    return maxsize


def _is_hashable(key: object) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _remover(cache: Cache[Any, Any]) -> Callable[[weakref.ref[Any]], None]:
    """What takes an entry out whose value is no more. It does not keep the cache alive."""
    of = weakref.ref(cache)

    def remove(reference: weakref.ref[Any]) -> None:
        cache = of()
        if cache is not None and isinstance(reference, _Reference):
            cache._drop(reference.key, reference)

    return remove


async def _load_many(load: Callable[[list[Any]], Any], wanted: dict[Any, _Load], who: str) -> None:
    """Load several keys at once; each of their flights ends, whatever happens."""
    flights = list(wanted.values())
    keys = list(wanted)
    for flight in flights:
        flight.worker = asyncio.current_task()

    def tell(answers: Iterable[tuple[int, Any]]) -> None:
        for number, value in answers:
            flights[number].answer(value)

    try:
        await hand_out(load(keys), keys, tell, who)
    except asyncio.CancelledError:
        # LoadCancelled to those who wait, and no failure to be remembered.
        _end_all(flights)
        raise
    except Exception as error:
        for flight in flights:
            flight.answer(error)
    finally:
        for flight in flights:
            flight.answer(_Absent(flight.key))


def _end_all(flights: list[_Load], _: object = None) -> None:
    """Called when their task has ended, too, which may have been cancelled before it began."""
    for flight in flights:
        flight.task.cancel()


def _end_if_unwanted(task: asyncio.Task[None], flights: list[_Load], ended: asyncio.Future[Any]) -> None:
    """Cancel the load of many once the last key of it was given up."""
    if ended.cancelled() and not (task.done() or task.cancelling()) and all(flight.task.done() for flight in flights):
        task.cancel()


# --- functions ----------------------------------------------------------------------------------


async def _call(self: Any, key: Any, arguments: Any) -> Any:
    """What the native call of each function stands for, under that function's name."""
    raise TypeError(f"{self!r} is not a cached function")


class Cached(CachedCore, Generic[_P, _V]):
    """What ``@tideloop.cached`` makes of a function: called like it, and the same call is answered from a cache.

    `cache` is the Cache. On a method, the instance is the first argument of all of these and part of the key, which
    keeps it alive while it is in the cache, unless `key` leaves it out.
    """

    cache: Cache[Any, _V]
    __wrapped__: Callable[_P, Awaitable[_V]]

    def __new__(
        cls, fn: Callable[_P, Awaitable[_V]], cache: Cache[Any, _V], key: Callable[_P, Hashable] | None
    ) -> Cached[_P, _V]:
        name = getattr(fn, "__name__", type(fn).__name__)
        template = types.FunctionType(_call.__code__, _call.__globals__, name)
        template.__qualname__ = getattr(fn, "__qualname__", name)
        self = CachedCore.__new__(cls, cache, fn, function("Cached.__call__", template), key)
        functools.update_wrapper(self, fn)
        self.cache = cache  # after that: fn may have a `cache`, too
        _mark_as_coroutine_function(self)
        return self

    if TYPE_CHECKING:

        def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> Coroutine[Any, Any, _V]: ...

        def key(self, *args: _P.args, **kwargs: _P.kwargs) -> Hashable: ...

    def _fetch(self, key: Hashable, arguments: Any) -> Coroutine[Any, Any, _V]:
        """The call of what was not at hand. The arguments are a tuple, or bound to the function already."""
        if type(arguments) is tuple:
            return self.cache._find(key, self.__wrapped__, *arguments)
        return self.cache._find(key, arguments)

    def peek(self, *args: _P.args, **kwargs: _P.kwargs) -> _V | None:
        """The value for these arguments if it is there, else None."""
        return self.cache.peek(self.key(*args, **kwargs))

    def invalidate(self, *args: _P.args, **kwargs: _P.kwargs) -> bool:
        """Cache.invalidate() for these arguments."""
        return self.cache.invalidate(self.key(*args, **kwargs))

    async def refresh(self, *args: _P.args, **kwargs: _P.kwargs) -> _V:
        """Cache.refresh() for these arguments."""
        load = functools.partial(self.__wrapped__, *args, **kwargs)
        return await self.cache.refresh(self.key(*args, **kwargs), lambda _: load())

    def clear(self) -> int:
        """Cache.clear()."""
        return self.cache.clear()

    def stats(self) -> CacheStats:
        """Cache.stats()."""
        return self.cache.stats()

    def __repr__(self) -> str:
        return f"<tideloop.cached {getattr(self, '__qualname__', self.__wrapped__)} in {self.cache!r}>"

    def __reduce__(self) -> str:
        """By name, as functions are."""
        return str(getattr(self, "__qualname__", ""))


def _mark_as_coroutine_function(fn: Any) -> None:
    """Frameworks ask whether they have to await what they call."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(fn)
    if sys.version_info < (3, 14):
        fn._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]


@overload
def cached(fn: Callable[_P, Awaitable[_V]], /) -> Cached[_P, _V]: ...
@overload
def cached(
    *,
    maxsize: int | None = 128,
    ttl: float | None = None,
    jitter: float = 0.0,
    stale: float | None = None,
    idle: float | None = None,
    negative_ttl: float | None = None,
    weight: Callable[[Any, Any], int] | None = None,
    weak: bool = False,
    key: Callable[..., Hashable] | None = None,
    cancel_abandoned: bool = False,
    name: str | None = None,
) -> Callable[[Callable[_P, Awaitable[_V]]], Cached[_P, _V]]: ...
def cached(
    fn: Any = None, /, *, key: Callable[..., Hashable] | None = None, name: str | None = None, **options: Any
) -> Any:
    """Answer calls of a coroutine function from a cache: ``@cached`` or ``@cached(maxsize=..., ttl=..., ...)``.

    Calls are the same if their arguments are equal, positional ones and keywords each for themselves, as with
    functools.lru_cache; `key` makes something else of the arguments that tells calls apart. The other options are those
    of Cache, whose name is the function's if it is not given. Values are handed out as they are, not copied.

    Raises TypeError for what is no function; TypeError or ValueError that names an option.
    """
    if key is not None and not callable(key):
        raise TypeError(f"key must be a function of the arguments, not {key!r}")

    def decorate(fn: Callable[..., Awaitable[Any]]) -> Cached[..., Any]:
        if not callable(fn):
            raise TypeError(f"cached() decorates a coroutine function, not {fn!r}")
        title = name if name is not None else getattr(fn, "__qualname__", None)
        return Cached(fn, Cache(**options, name=title), key)

    return decorate if fn is None else decorate(fn)
