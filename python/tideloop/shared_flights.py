"""A SingleFlight that processes and machines share: SharedSingleFlight, which ``SingleFlight(store=...)`` makes.

    flights = tideloop.SingleFlight(store=store, name="reports")
    report = await flights.do(("report", "2031-05-01"), build_report, "2031-05-01")

**Inside of a process nothing changes.** The first who asks for a key starts a flight, a task of his loop that no
caller's cancellation reaches, and others join it. But its task asks the store (``lua/flight.lua``) before it works:

* *The lock is free*: it is taken for a lease, by the server's clock, with the number of the flight. The work is done,
  while the lease is refreshed every third of it, and what it comes to is told to the server before it is told here.
* *Another has it*: this one waits, and is told when there is something to ask for: a result, a failure, or a lock that
  was given back. It asks unasked only when the lease that it was told of ends. So a holder that was killed is
  succeeded when its lease ends, by one of those who wait.
* *A holder is cancelled* (its loop ends, the store is closed, nobody waits for it there and ``cancel_abandoned``): it
  gives the lock back in last words, and another works. Nobody elsewhere is told of a cancellation.

**Waiting costs one call at the beginning, one at the end, and one per lease between them.** Who waits is told by
pub/sub, on the channel that the loop's `Link` listens to anyway: no further connection and no subscription for a key.
A blocking pop would take a connection for each who waits, would have to be fed as often as there are waiters, and would
have to be cancelled when a caller goes, which redis-py loses now and then (see ``Link.run``). A word that is lost
costs time, a lease at most, and nothing else: the result is kept for two.

**What is sent.** Results by a codec, an object with `dumps` and `loads` such as a module. The default is JSON, which
can only ever make data. A pickle runs whatever the one who wrote it wanted: with ``codec=pickle`` everybody who may
write to the Redis server may run programs in every process that reads there. JSON refuses what it would change on the
way (a tuple, keys that are numbers), or the answer would depend on which process has worked. A failure is sent by the
codec if that brings back the same; else its type's name and text, as WorkFailed.

**What is not promised.** A process that lives on without its lease (suspended, cut off, its loop blocked for longer)
goes on working while another one begins; so do two when the server loses its memory. What must not happen twice checks
`fence()`: the number of the flight, larger than those before, which whatever is written to can compare.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Hashable
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from tideloop.deadlines import without_deadline
from tideloop.failures import WorkFailed
from tideloop.flights import Flight, SingleFlight, SingleFlightStats
from tideloop.per_loop import PerLoop
from tideloop.redis_store import Link, RedisStore, StoreUnavailable

__all__ = ["Codec", "SharedSingleFlight"]

_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")

_log = logging.getLogger("tideloop.redis")

_ASK_AGAIN = 1.0
"""Seconds for which a store that is away is not asked."""

_LAST_WORDS = 1.0
"""Seconds that one who is cancelled may take to give the lock back."""

_MARGIN = 0.005
"""Seconds after a lease's end at which it is asked for."""

_inherited: list[object] = []
"""What a child has of its parent's: kept from being closed, and never touched."""

_fence: ContextVar[int | None] = ContextVar("tideloop.flight.fence", default=None)


class Codec(Protocol):
    """How results become bytes and values again; a module such as ``pickle`` is one."""

    def dumps(self, value: Any, /) -> bytes | str: ...
    def loads(self, data: bytes, /) -> Any: ...


def _bytes(data: object) -> bytes:
    """What a codec has made."""
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise TypeError(f"the codec's dumps() returned {type(data).__name__}; expected bytes or a str")


class _Json:
    """JSON, which makes of data again what it was."""

    def dumps(self, value: Any, /) -> bytes:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
        if not _is_same(json.loads(text), value):
            raise TypeError("JSON makes something else of it, as of a tuple or of a key that is no str")
        return text.encode()

    def loads(self, data: bytes, /) -> Any:
        return json.loads(data)


def _is_same(made: Any, value: Any) -> bool:
    if type(made) is not type(value):
        return False
    if type(made) is list:
        return len(made) == len(value) and all(map(_is_same, made, value))
    if type(made) is dict:
        return made.keys() == value.keys() and all(_is_same(made[key], value[key]) for key in value)
    return bool(made == value)


def _digest(key: object, who: str) -> str:
    """What a key is called at the server: the same in each process, and for no other key."""
    return hashlib.sha256(_spelled(key, who).encode("utf-8", "surrogatepass")).hexdigest()[:40]


def _spelled(key: object, who: str) -> str:
    if type(key) is tuple:
        return "(" + "".join(_spelled(part, who) + "," for part in key) + ")"
    if key is None or type(key) in (str, bytes, int, float, bool):
        return repr(key)
    raise TypeError(
        f"{who}: the key is {key!r}; other processes know it if it is a str, bytes, int, float, bool, None or a tuple"
        " of such"
    )


class _Line:
    """What the flights of one loop have in common: the link, and whether the store is away. Belongs to that loop.

    A task tends it: it ends, and the connections with it, when there were no flights for a third of a lease, and when
    the loop ends in order, after the last words of those that are cancelled with it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, store: RedisStore, title: str) -> None:
        self.loop = loop
        self._store = store
        self._title = title
        self._word = uuid4().hex
        self._link: Link | None = None
        self._tending: asyncio.Task[None] | None = None
        self._bell = asyncio.Event()
        self._uses = 0
        self.turns: dict[_Turn, asyncio.Task[Any]] = {}
        self.calls = 0
        self.away: BaseException | None = None
        self._good_until: float | None = None
        self._ask_at = 0.0
        self._tries = 0

    def enter(self, turn: _Turn) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.turns[turn] = task
        self._uses += 1

    def leave(self, turn: _Turn) -> None:
        if self._link is not None:
            self._link.mute(turn.word)
        del self.turns[turn]
        self._bell.set()

    def opened(self) -> Link:
        """The link; from now on somebody sees to its end."""
        if self._link is None:
            link = self._store.link()
            link.attach(self._word, lambda: None)
            self._link = link
            # It outlives whoever came first, and that one's deadline.
            self._tending = asyncio.create_task(
                self._tend(link), name=f"line of {self._title}", context=without_deadline()
            )
        return self._link

    @property
    def is_open(self) -> bool:
        return self._link is not None

    async def _tend(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._bell.clear()
                seen = self._uses
                timer = None if self.turns else loop.call_later(self._store.lease / 3, self._bell.set)
                await self._bell.wait()
                if timer is not None:
                    timer.cancel()
                    if not self.turns and self._uses == seen:
                        break
        finally:
            try:
                if self.turns:
                    # They are cancelled as well, and may have something to give back.
                    await asyncio.wait(list(self.turns.values()), timeout=_LAST_WORDS)
            finally:  # also if it is cancelled again
                for turn in self.turns:
                    link.mute(turn.word)
                # Before anything else is awaited: who comes from now on opens another.
                self._link = self._tending = None
                await self._store.leave(link, self._word)

    async def close(self) -> None:
        """Cancel what is under way, and let go of the server."""
        for task in self.turns.values():
            task.cancel()
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.wait([self._tending])

    async def call(self, turn: _Turn, step: str, *arguments: str | int | bytes) -> Any:
        link = self.opened()
        self.calls += 1
        asked = asyncio.get_running_loop().time()
        about: list[Any] = [step, turn.word, int(self._store.lease * 1000), *arguments]
        said = await link.run("flight", turn.keys, about)
        if self.away is not None:
            _log.info("%s: %s answers again", self._title, self._store.place)
        self.away = None
        self._tries = 0
        self._good_until = max(self._good_until or 0.0, asked + self._store.lease)
        return said

    def is_worth_asking(self) -> bool:
        """Whether the store is not away, or it is time to see whether it is still; asked by one at a time."""
        now = asyncio.get_running_loop().time()
        if self.away is not None:
            if now < self._ask_at:
                return False
            self._ask_at = now + _ASK_AGAIN
        return True

    def trouble(self, error: BaseException) -> float | None:
        """A call has failed. Seconds until it is to be tried again; None: the store is away."""
        now = asyncio.get_running_loop().time()
        self._tries += 1
        if self._good_until is None and isinstance(error, TimeoutError):
            # It took the call as it was: it is slow, and has a lease to answer, of which a third is over.
            self._good_until = now + self._store.lease * 2 / 3
        if self._good_until is not None and now < self._good_until:
            pause: float = min(0.05 * 2 ** min(self._tries, 10), _ASK_AGAIN)
            return min(pause, self._good_until - now + 0.001)
        if self.away is None:
            policy = self._store.on_outage
            _log.warning("%s: %s is away (%s): %s", self._title, self._store.place, type(error).__name__, policy)
        self.away = error
        self._ask_at = now + _ASK_AGAIN
        return None


class _Turn:
    """What one flight of this process has to do with the store."""

    def __init__(self, flights: SharedSingleFlight[Any, Any], line: _Line, flight: _SharedFlight[Any]) -> None:
        self._flights = flights
        self._store = flights._store
        self._line = line
        self._anew = flight.anew
        self._told = asyncio.Event()
        self._asking: asyncio.Task[Any] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answered = 0.0
        self._is_lost = False
        self.word = uuid4().hex
        base = f"{self._store.prefix}:{{{flights.name}:{flight.digest}}}:flight"
        self.keys = [f"{base}:lock", f"{base}:ears", f"{base}:result"]

    async def fly(self, work: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> Any:
        """What it comes to, here or elsewhere."""
        _fence.set(None)
        try:
            said = await self._lock_or_result()
            if said is None:
                return await work(*args)  # without the store
            if said[0] == 2:
                self._flights._elsewhere += 1
                return self._read(*said[1:])
            return await self._work(int(said[1]), work, args)
        except asyncio.CancelledError:
            await self._part()
            raise

    # --- asking -------------------------------------------------------------------------------

    async def _lock_or_result(self) -> list[Any] | None:
        """The store's answer, once it is not to wait; None: do without."""
        loop = asyncio.get_running_loop()
        awaited = 0
        while self._line.is_worth_asking():
            self._told.clear()
            try:
                said = await self._ask(awaited)
            except Exception as error:  # whatever it is, nobody must wait for what does not come
                pause = self._line.trouble(error)
                if pause is None:
                    break
                await asyncio.sleep(pause)
                continue
            if said[0] != 0:
                return said
            awaited = int(said[1])
            timer = loop.call_later(max(0, int(said[2])) / 1000 + _MARGIN, self._told.set)
            try:
                await self._told.wait()
            finally:
                timer.cancel()
        if self._store.on_outage == "local":
            return None
        why = self._line.away
        raise StoreUnavailable(
            f"{self._flights._title}: {self._store.place} does not answer ({type(why).__name__})"
        ) from why

    async def _ask(self, awaited: int) -> list[Any]:
        link = self._line.opened()
        link.attach(self.word, self._told.set)
        # A task: who is cancelled has to wait until the server has, perhaps, given him the lock; see _part().
        asking = self._line.call(self, "ask", awaited, link.channel, int(self._anew))
        self._answered = asyncio.get_running_loop().time()
        self._asking = asyncio.create_task(asking)
        await asyncio.wait([self._asking])
        said: list[Any] = self._asking.result()
        self._anew = False
        return said

    async def _part(self) -> None:
        """Last words: whoever waits elsewhere need not wait for the lease's end."""
        if self._asking is None or not self._line.is_open:
            return
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_LAST_WORDS):
                if not self._asking.done():
                    await asyncio.wait([self._asking])
                if not self._asking.cancelled():
                    self._asking.exception()  # looked at
                await self._line.call(self, "part")

    def _read(self, kind: bytes | str, data: bytes | str) -> Any:
        kind = kind if isinstance(kind, str) else kind.decode()
        data = data if isinstance(data, bytes) else data.encode()
        kind, _, form = kind.partition(":")
        if form:
            data = base64.b64decode(data)
        if kind == "failure":
            raise WorkFailed(*map(str, json.loads(data)))
        try:
            result = self._flights._codec.loads(data)
        except Exception as error:
            error.add_note(f"{self._flights._title}: that is what the codec says of what another process has sent")
            raise
        if kind == "error":
            result.add_note(f"raised in another process, which did the work of {self._flights._title}")
            raise result
        return result

    # --- working ------------------------------------------------------------------------------

    async def _work(self, number: int, work: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> Any:
        _fence.set(number)
        self._beat_later(number, self._store.lease / 3)
        try:
            result = await work(*args)
            data = self._flights._encoded(result)
        except Exception as error:
            await self._land(number, *self._flights._told_of(error))
            raise
        finally:
            self._stop_beating()
        await self._land(number, "value", data)
        return result

    async def _land(self, number: int, kind: str, data: bytes) -> None:
        """Tell the server. If it cannot be told, those who wait elsewhere do it again when the lease has ended."""
        self._stop_beating()
        if not data.isascii():
            # A client of the user's may make text of all that it is told.
            kind, data = f"{kind}:base64", base64.b64encode(data)
        try:
            if not await self._line.call(self, "land", number, kind, data):
                self._lost()
        except Exception as error:
            self._line.trouble(error)

    def _beat_later(self, number: int, pause: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(pause, self._beat, number)

    def _beat(self, number: int) -> None:
        self._beating = asyncio.create_task(self._keep(number))

    async def _keep(self, number: int) -> None:
        """Refresh the lease."""
        now = asyncio.get_running_loop().time()
        # If it has not ended and the lock is gone, the server has lost its memory.
        mine = now < self._answered + self._store.lease
        try:
            kept = await self._line.call(self, "keep", number, int(mine))
        except Exception:  # the server is away; whoever wants something of it tells
            return self._beat_later(number, self._store.lease / 10)
        if not kept:
            return self._lost()
        self._answered = now
        self._beat_later(number, self._store.lease / 3)

    def _lost(self) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._flights._lost += 1

    def _stop_beating(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._beating is not None:
            self._beating.cancel()


class _SharedFlight(Flight[_T]):
    __slots__ = ("anew", "digest")

    _owner: SharedSingleFlight[Any, Any]

    def __init__(self, owner: SharedSingleFlight[Any, Any], table: dict[Any, Flight[Any]], key: Any) -> None:
        self.digest = _digest(key, owner._title)
        super().__init__(owner, table, key)
        # What was forgotten here while it was under way is not to be joined elsewhere.
        self.anew = owner._forgotten.pop(key, None) is not None

    def start(self, work: Callable[..., Awaitable[_T]], args: tuple[Any, ...]) -> None:
        super().start(self._owner._fly, (self, work, args))

    def forget(self) -> None:
        self._owner._forgotten[self.key] = self
        super().forget()

    def _land(self, task: asyncio.Future[_T]) -> None:
        super()._land(task)
        if self._owner._forgotten.get(self.key) is self:
            self._owner._forgotten.pop(self.key, None)


class SharedSingleFlight(SingleFlight[_K, _T]):
    """``SingleFlight(store=..., name=...)``: of all processes that ask for a key at once, one does the work.

    See the head of the module. Keys are what is the same in each process: str, bytes, int, float, bool, None, and
    tuples of such. codec: how results become bytes; JSON if it is not given. Who asks gets StoreUnavailable when the
    server is away and the store says "fail"; with "local" each process works for itself. A failure elsewhere is
    WorkFailed, or with a codec that can send it what it was.

    forget() concerns what is under way in this process, be it done here or elsewhere: who asks here from now on starts
    another, and who asks elsewhere after that joins that one.
    """

    _kind = _SharedFlight

    def __init__(
        self,
        *,
        store: RedisStore | None = None,
        name: str | None = None,
        codec: Codec | None = None,
        cancel_abandoned: bool = False,
    ) -> None:
        if not isinstance(store, RedisStore):
            raise TypeError(f"store is {store!r}; expected a RedisStore")
        if not isinstance(name, str) or not name or set(name) & set("{}"):
            raise ValueError(
                "a shared SingleFlight needs a name without braces, by which processes mean the same one; it is"
                f" {name!r}"
            )
        for method in ("dumps", "loads"):
            if codec is not None and not callable(getattr(codec, method, None)):
                raise TypeError(f"codec is {codec!r}; expected something with dumps() and loads(), such as json")
        super().__init__(cancel_abandoned=cancel_abandoned, name=name)
        self._title = f"shared SingleFlight {name!r}"
        self._store = store
        self._codec: Codec = _Json() if codec is None else codec
        self._reset()
        store.join(self)

    def _reset(self) -> None:
        self._tables = PerLoop(lambda _: {})
        self._lines: PerLoop[_Line] = PerLoop(lambda loop: _Line(loop, self._store, self._title))
        self._forgotten: dict[_K, _SharedFlight[_T]] = {}
        self._elsewhere = self._lost = 0

    def _forked(self) -> None:
        _inherited.append((self._tables, self._lines))
        self._flights = self._joined = self._failed = self._abandoned = 0
        self._reset()

    def fence(self) -> int | None:
        """Inside of the work: the number of its flight, larger than those of all that began before it for the key.

        None where the work is done without the store, and outside of any.
        """
        return _fence.get()

    async def aclose(self) -> None:
        """Cancel what is under way, and let go of the server. It may be used again afterwards.

        Callers get LoadCancelled; those who wait in other processes do the work.
        """
        running = asyncio.get_running_loop()
        for line in self._lines.all():
            if line.loop is running:
                await line.close()
            elif line.loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(line.close(), line.loop))

    async def _fly(self, flight: _SharedFlight[_T], work: Callable[..., Awaitable[_T]], args: tuple[Any, ...]) -> _T:
        if self._store.home(asyncio.get_running_loop()) is not asyncio.get_running_loop():
            raise RuntimeError(
                f"{self._title}: the client that its store was given is used in another loop; give the store a URL"
            )
        line = self._lines.here()
        turn = _Turn(self, line, flight)
        line.enter(turn)
        try:
            result: _T = await turn.fly(work, args)
            return result
        finally:
            line.leave(turn)

    def _encoded(self, result: Any) -> bytes:
        try:
            return _bytes(self._codec.dumps(result))
        except Exception as error:
            error.add_note(f"{self._title}: that is what the codec says of the result, {type(result).__name__}")
            raise

    def _told_of(self, error: Exception) -> tuple[str, bytes]:
        """What others get: the same if the codec brings it back, else what it is called and says."""
        with contextlib.suppress(Exception):
            data = _bytes(self._codec.dumps(error))
            if type(self._codec.loads(data)) is type(error):
                return "error", data
        kind = type(error)
        try:
            text = str(error)
        except Exception:
            text = "(its text cannot be had)"
        return "failure", json.dumps([f"{kind.__module__}.{kind.__qualname__}", text]).encode()

    def stats(self) -> SingleFlightStats:
        """What it has done, and is doing, in this process."""
        lines = self._lines.all()
        return (
            super()
            .stats()
            ._replace(
                elsewhere=self._elsewhere,
                lost=self._lost,
                calls=sum(line.calls for line in lines),
                away=any(line.away is not None for line in lines),
            )
        )

    def __repr__(self) -> str:
        away = ", store away" if any(line.away is not None for line in self._lines.all()) else ""
        return f"<tideloop.SharedSingleFlight {self.name!r} {sum(map(len, self._tables.all()))} flying{away}>"
