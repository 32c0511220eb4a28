"""SingleFlight: however many ask for the same thing at once, it is fetched once.

    flights = SingleFlight()
    user = await flights.do(user_id, fetch_user, user_id)

The first to ask for a key starts a *flight*: a task of the running loop that does the work. Whoever asks before
it has landed gets what it brings. So

* the work survives each of those who wait for it; cancelling one of them ends his wait and nothing else. If
  all have gone it is finished all the same, or with ``cancel_abandoned=True`` cancelled.
* it is nobody's in particular: it runs in a copy of the context of the one who started it, but his deadline() does not
  bind it. Each caller's own limit ends his own wait.
* if it fails, each gets an exception of his own with the traceback of the work; if it is cancelled, LoadCancelled.

A flight belongs to the loop that started it, since a task and what it uses (connections, locks) do. Several loops
may use one SingleFlight: each has its flights, so at most as many of a key are under way as there are loops.

With ``store=`` the work is shared beyond the process, by a lease in a store (``shared_flights``): `Flight.start` is the
only place that has the work done, so there it is asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from tideloop._tideloop import Enlisted, Warrant, enlist
from tideloop.deadlines import without_deadline
from tideloop.failures import LoadCancelled, own_copy
from tideloop.per_loop import PerLoop

if TYPE_CHECKING:
    from tideloop.redis_store import RedisStore
    from tideloop.shared_flights import Codec

__all__ = ["Flight", "LoadCancelled", "SingleFlight", "SingleFlightStats"]

_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")

_log = logging.getLogger("tideloop.flights")


class SingleFlightStats(NamedTuple):
    """What ``SingleFlight.stats()`` tells."""

    name: str | None
    flying: int
    """Flights that are under way now."""
    waiting: int
    """Callers who wait now."""
    flights: int
    joined: int
    """Callers who found a flight under way."""
    failed: int
    abandoned: int
    """Flights that everybody who waited for has left."""
    elsewhere: int = 0
    """Flights whose work another process has done; this and what follows are of those with a store."""
    lost: int = 0
    """Flights that have lost their lease while they worked."""
    calls: int = 0
    """Calls of the server so far, by the loops that are open."""
    away: bool = False
    """Whether the server is away."""


class Flight(Generic[_T]):
    """Work that is under way, and who waits for it."""

    __slots__ = ("_owner", "_seats", "_table", "key", "task", "warrant", "worker")

    def __init__(self, owner: SingleFlight[Any, Any], table: dict[Any, Flight[Any]], key: Any) -> None:
        self._owner = owner
        self._table = table
        self._seats: dict[asyncio.Future[_T], None] = {}
        self.key = key
        self.warrant = Warrant()
        self.task: asyncio.Future[_T]
        # The task that does it for others as well, where `task` is but a future.
        self.worker: asyncio.Task[Any] | None = None

    def start(self, work: Callable[..., Awaitable[_T]], args: tuple[Any, ...]) -> None:
        """Have the work done: by a task of its own, unless it is a future, which somebody sees to already."""
        loop = asyncio.get_running_loop()
        context = without_deadline()
        # Before the work begins: whoever forgets the key from now on, in whichever thread, finds it under way.
        self._table[self.key] = self
        try:
            doing = context.run(work, *args)
        except Exception as error:
            failed: asyncio.Future[_T] = loop.create_future()
            failed.set_exception(own_copy(error))
            return self.begin(failed)
        except BaseException:
            self._depart()
            raise
        if asyncio.isfuture(doing) and doing.get_loop() is loop:
            return self.begin(doing)
        working = doing if asyncio.iscoroutine(doing) else _awaited(doing)
        flown = self._flown(working) if loop.get_task_factory() is not None else working
        try:
            task = loop.create_task(flown, context=context)
        except BaseException:  # a task factory's
            self._depart()
            flown.close()
            working.close()  # which it has not come to
            raise
        return self.begin(task)

    async def _flown(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        # An eager task asks for things before start() knows of it.
        if (task := asyncio.current_task()) is not None:
            self.task = task
        return await coroutine

    def begin(self, task: asyncio.Future[_T]) -> None:
        """Have the work done by somebody else, who ends `task`, whatever happens."""
        self.task = task
        if not self.warrant.withdrawn:
            self._table[self.key] = self
        task.add_done_callback(self._land)

    def brought(self, result: _T) -> None:
        """Told before those who wait; what it raises is what they get."""

    def failed(self, error: BaseException) -> None:
        """Told before those who wait."""

    async def wait(self) -> _T:
        """What the work comes to, for one more caller."""
        seat = self.board()
        try:
            return await seat
        finally:
            self.leave(seat)

    def board(self) -> asyncio.Future[_T]:
        """A seat for one more caller: what the work comes to. To be left by leave(), however it ended."""
        me = asyncio.current_task()
        if me is not None and (me is self.task or me is self.worker):
            raise RuntimeError(
                f"{self._owner!r}: the work for {self.key!r} asks for {self.key!r}, so it would wait for itself"
            )
        seat: asyncio.Future[_T] = self.task.get_loop().create_future()
        self._seats[seat] = None
        return seat

    def leave(self, seat: asyncio.Future[_T]) -> None:
        """A caller does not wait any more."""
        if seat not in self._seats:
            if seat.done() and not seat.cancelled():
                seat.exception()  # It has been told; nobody else will ask.
            return
        del self._seats[seat]
        if not self._seats and not self.task.done():
            self._owner._abandoned += 1
            if self._owner._cancel_abandoned and not self.task.get_loop().is_closed():
                # Not by forget(): what others, elsewhere, do for the key is as good as it was.
                self.warrant.withdraw()
                self._depart()
                self.task.cancel()

    @property
    def waiting(self) -> int:
        """How many callers wait for it."""
        return len(self._seats)

    def forget(self) -> None:
        """Whoever asks from now on starts another."""
        self.warrant.withdraw()
        self._depart()

    def _depart(self) -> None:
        if self._table.get(self.key) is self:
            self._table.pop(self.key, None)

    def _land(self, task: asyncio.Future[_T]) -> None:
        # It is under way until what it brought is where it belongs, or who forgets it meanwhile would not find it.
        error: BaseException | None = None
        try:
            if task.cancelled():
                error = LoadCancelled(f"{self._owner!r}: the work for {self.key!r} was cancelled")
            elif (error := task.exception()) is None:
                self.brought(task.result())
            else:
                self._owner._failed += 1
                self.failed(error)
        except Exception as wrong:  # the key's __eq__ and __repr__ may raise, too
            error = error or wrong
        self._depart()
        seats = [seat for seat in self._seats if not seat.done()]
        self._seats = {}
        if error is None:
            result = task.result()
            for seat in seats:
                seat.set_result(result)
            return
        if not seats and not task.cancelled():
            _log.warning("%r: the work for %r failed, and nobody waits for it", self._owner, self.key, exc_info=error)
        for seat in seats:
            seat.set_exception(own_copy(error))


async def _awaited(awaitable: Awaitable[_T]) -> _T:
    return await awaitable


class SingleFlight(Enlisted, Generic[_K, _T]):
    """Does work that several ask for at once only once; see the head of this module.

    cancel_abandoned: whether work is cancelled when nobody waits for it any more. By default it is finished.

    With a ``store`` it is a SharedSingleFlight: of all processes that use that `name` there, one does the work. codec:
    how results get to the others, an object with dumps() and loads(), such as a module; JSON if it is not given.
    """

    __slots__ = ("__weakref__", "_abandoned", "_cancel_abandoned", "_failed", "_flights", "_joined", "_tables", "name")

    _kind: type[Flight[Any]] = Flight
    _is_gauge = True

    def __new__(cls, *_: Any, store: RedisStore | None = None, **options: Any) -> SingleFlight[_K, _T]:
        if cls is SingleFlight and store is not None:
            from tideloop.shared_flights import SharedSingleFlight

            return super().__new__(SharedSingleFlight)
        return super().__new__(cls)

    def __init__(
        self,
        *,
        cancel_abandoned: bool = False,
        name: str | None = None,
        store: RedisStore | None = None,
        codec: Codec | None = None,
    ) -> None:
        if store is not None or codec is not None:
            raise TypeError(f"{type(self).__name__}: a codec is for a store, and a store for a SharedSingleFlight")
        self.name = name
        self._cancel_abandoned = cancel_abandoned
        self._tables: PerLoop[dict[_K, Flight[_T]]] = PerLoop(lambda _: {})
        self._flights = self._joined = self._failed = self._abandoned = 0
        if self._is_gauge:
            enlist(self)

    async def do(self, key: _K, work: Callable[..., Awaitable[_T]], *args: Any) -> _T:
        """``await work(*args)``, or what the same comes to that is under way for `key` on this loop.

        Raises what the work raises, LoadCancelled if it is cancelled by others. Cancelled, it leaves the work to the
        others. RuntimeError if the work for a key asks for that key itself.
        """
        return await self.flight(key, work, *args).wait()

    def flight(self, key: _K, work: Callable[..., Awaitable[_T]], *args: Any) -> Flight[_T]:
        """The flight for a key that is under way on this loop, or a new one."""
        flight = self._tables.here().get(key)
        if flight is not None:
            self._joined += 1
            return flight
        flight = self.new(key)
        flight.start(work, args)
        return flight

    def new(self, key: _K) -> Flight[_T]:
        """A flight that is yet to be started, or begun."""
        self._flights += 1
        return self._kind(self, self._tables.here(), key)

    def flying(self, key: _K) -> Flight[_T] | None:
        """The flight for a key that is under way on this loop, if there is one."""
        return self._tables.here().get(key)

    def forget(self, key: _K) -> None:
        """What is under way for a key, on any loop, is only for those who wait for it already: who asks from now on
        starts anew. From any thread.
        """
        for table in self._tables.all():
            if (flight := table.get(key)) is not None:
                flight.forget()

    def forget_all(self) -> None:
        """forget() of all keys."""
        for table in self._tables.all():
            for flight in list(table.values()):
                flight.forget()

    def fence(self) -> int | None:
        """With a store, inside of the work: the number of its flight; see SharedSingleFlight."""
        return None

    def stats(self) -> SingleFlightStats:
        """What it has done, and is doing."""
        flying = [flight for table in self._tables.all() for flight in list(table.values())]
        return SingleFlightStats(
            self.name,
            len(flying),
            sum(flight.waiting for flight in flying),
            self._flights,
            self._joined,
            self._failed,
            self._abandoned,
        )

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        return f"<tideloop.SingleFlight{name} {sum(map(len, self._tables.all()))} flying>"
