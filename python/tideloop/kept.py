"""What is shared through a store has a keeper: the task that talks to the server, and where it lives.

A keeper belongs to one loop, the home: the one in which something was wanted first that was not there (with a client
of the user's: that client's loop). Other loops and threads ring it, by `call_soon_threadsafe`, and read what it has
written. It begins when it is rung and ends when there is nothing to keep, so what is not used needs no task, and
nobody has to close anything for a process to end.

* The home ends (``asyncio.run`` cancels what is left): the keeper says its last words, and the next who rings makes
  its loop the home.
* The home is closed or stopped without that: the same, without last words. The old keeper notices, if it ever runs
  again, that it is not the keeper any more.
* A fork: in the child all begins from nothing, under another name; connections are the parent's.
* The keeper fails, in whatever way: that is an outage, which those who wait are told of. Nobody waits for a keeper
  that is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import weakref
from uuid import uuid4

from tideloop.deadlines import without_deadline
from tideloop.redis_store import Link, OnOutage, RedisStore, StoreUnavailable

__all__ = ["ASK_AGAIN", "Kept"]

_log = logging.getLogger("tideloop.redis")

ASK_AGAIN = 1.0
"""Seconds after which a store is asked again that does not answer, or that has nothing to give yet."""

_LAST_WORDS = 1.0
"""Seconds that a keeper whose loop ends may take to give back what is idle."""


class Kept:
    """Base of what is shared by name; those that derive from it say what a keeper does in a step."""

    def __init__(self, noun: str, name: str | None, store: RedisStore) -> None:
        if not isinstance(store, RedisStore):
            raise TypeError(f"store is {store!r}; expected a RedisStore")
        if not isinstance(name, str) or not name:
            raise ValueError(f"a shared {noun} needs a name, by which processes mean the same one; it is {name!r}")
        if set(name) & set("{}"):
            raise ValueError(f"the name of a shared {noun} is {name!r}; expected one without braces")
        self._title = f"shared {noun} {name!r}"
        self._name = name
        self._store = store
        # With the name as the hash tag: all keys of a name are in one slot of a cluster.
        self._base = f"{store.prefix}:{{{name}}}:{noun.lower()}"

    def _reset(self) -> None:
        """Make this one that nobody knows."""
        self._holder = uuid4().hex
        self._home: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._keepers: weakref.WeakSet[asyncio.Task[None]] = weakref.WeakSet()
        self._bell = asyncio.Event()
        # Until when what the store has said is good; why it is taken to be away, and why what needs it is refused.
        self._good_until: float | None = None
        self._away: BaseException | None = None
        self._refusal: BaseException | None = None
        self._tries = 0
        # Of where the home is. Re-entrant: a collection inside of it may close coroutines that use this.
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """The name by which processes mean the same."""
        return self._name

    async def aclose(self) -> None:
        """Give back what is not in use, and let go of the server. It may be used again afterwards.

        What is in use stays lent until its lease ends, which is no longer refreshed.
        """
        running = asyncio.get_running_loop()
        with self._lock:
            home, keeper = self._home, self._keeper
            # Others have ended and still let go of their connections.
            keepers = [task for task in self._keepers if task.get_loop() is running and not task.done()]
        if keepers:
            if keeper in keepers:
                keeper.cancel()
            await asyncio.wait(keepers)
        if home not in (None, running) and home.is_running():
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.aclose(), home))

    def _check(self) -> None:
        if self._refusal is not None:
            why = type(self._refusal).__name__
            raise StoreUnavailable(f"{self._title}: {self._store.place} does not answer ({why})") from self._refusal

    # --- what those that derive from it say --------------------------------------------------------

    async def _step(self, link: Link, loop: asyncio.AbstractEventLoop) -> float | None:
        """Do what is to be done. Seconds until the next step, if nobody rings; None: there is nothing to keep."""
        raise NotImplementedError

    def _alone(self, policy: OnOutage) -> None:
        """The store is away, and what it has said is no longer good: with "fail" nothing is to be had any more."""
        raise NotImplementedError

    async def _part(self, link: Link) -> None:
        """Last words."""

    def _moved(self) -> None:
        """The home is lost, and there will be another. In any thread, under the lock."""

    def _ended(self) -> None:
        """The keeper ends."""

    # --- where the keeper lives ----------------------------------------------------------------------

    def _ring(self) -> None:
        """Have the keeper look, from any thread. Raises RuntimeError if there is no loop in which it could live."""
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        for _ in range(2):
            home = self._settle(running)
            if home is running:
                return self._rung()
            with contextlib.suppress(RuntimeError):  # closed since
                home.call_soon_threadsafe(self._rung)
                return None
        raise RuntimeError(f"{self._title}: the loop that keeps it was closed")

    def _try_ring(self) -> None:
        """The same, if there is such a loop."""
        with contextlib.suppress(RuntimeError):
            self._ring()

    def _settle(self, running: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
        """The home, after a removal if need be."""
        with self._lock:
            home = self._home
            if home is not None and (home is running or home.is_running()):
                return home
            if running is None:
                raise RuntimeError(
                    f"{self._title}: no running event loop keeps it; a thread alone cannot talk to the store"
                )
            if home is not None:
                self._keeper = None
                self._moved()
            self._home = home = self._store.home(running)
            return home

    def _rung(self) -> None:
        running = asyncio.get_running_loop()
        with self._lock:
            if self._home is None:
                # The keeper has ended since it was rung.
                self._home = running
        if self._home is not running:
            return self._try_ring()
        if self._keeper is None or self._keeper.done():
            self._bell = asyncio.Event()
            self._keeper = asyncio.create_task(
                self._keep(), name=f"keeper of {self._title}", context=without_deadline()
            )
            self._keepers.add(self._keeper)
        self._bell.set()

    def _trouble(self, error: BaseException, now: float) -> float:
        """A step has failed. Seconds until the next."""
        self._tries += 1
        pause: float = min(0.05 * 2 ** min(self._tries, 10), ASK_AGAIN)
        if self._good_until is None and isinstance(error, TimeoutError):
            # It took the call as it was: it is slow, and has a lease to answer, of which a third is over.
            self._good_until = now + self._store.lease * 2 / 3
        if self._good_until is not None and now < self._good_until:
            return min(pause, self._good_until - now + 0.001)
        if self._away is None:
            policy = self._store.on_outage
            _log.warning("%s: %s is away (%s): %s", self._title, self._store.place, type(error).__name__, policy)
            self._away = error
            self._refusal = error if policy == "fail" else None
            self._alone(policy)
        return pause

    def _answered(self, asked: float) -> None:
        """The store has answered what it was asked at that time of the loop."""
        if self._away is not None:
            _log.info("%s: %s answers again", self._title, self._store.place)
        self._away = self._refusal = None
        self._tries = 0
        self._good_until = asked + self._store.lease

    async def _keep(self) -> None:
        me = asyncio.current_task()
        loop = asyncio.get_running_loop()
        bell = self._bell
        link: Link | None = None
        try:
            while self._keeper is me:
                bell.clear()
                try:
                    if link is None:
                        link = self._store.link()
                        link.attach(self._holder, bell.set)
                    pause = await self._step(link, loop)
                except Exception as error:  # whatever it is, nobody must wait for what does not come
                    if self._keeper is not me:
                        break
                    await asyncio.sleep(self._trouble(error, loop.time()))
                    continue
                if pause is None:
                    if bell.is_set():
                        continue
                    break
                timer = loop.call_later(pause, bell.set)
                try:
                    await bell.wait()
                finally:
                    timer.cancel()
        except asyncio.CancelledError:
            if link is not None and self._keeper is me:
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(_LAST_WORDS):
                        await self._part(link)
            raise
        finally:
            # Before anything is awaited: whoever rings from now on gets another keeper.
            if self._keeper is me:
                self._keeper = self._home = None
                self._away = self._refusal = None
                self._ended()
            if link is not None:
                await self._store.leave(link, self._holder)
