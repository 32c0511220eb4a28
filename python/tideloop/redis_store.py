"""Limits that processes and machines share, kept by a Redis server: RedisStore.

    store = RedisStore("redis://cache.example/0")
    limiter = tideloop.Limiter(50, store=store, name="search")

What is shared and how is told in ``shared_limits``, ``shared_rates`` and ``shared_flights``; the scripts that the
server runs are in ``lua/``. Here is what they all need: the connections, one `Link` per event loop, and who is told
what the server says.

**Connections belong to a loop**, so a store that was given a URL has one link for each loop in which something of it
lives, and opens it when the first comes and closes it when the last has gone. A client that was given to it belongs to
the user and to the loop that used it first: whatever is kept, is kept there, and the client is never closed here.

**What the server has to say** ("permits are free", "others wait") comes by a channel of the link's own: one
subscription per loop, however many limiters. A word that gets lost costs time, never a permit: whoever waits asks
again.

**A URL may hold a password**, so no error, representation or log entry has more of it than the host and the port.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from importlib import resources
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

from tideloop.deadlines import without_deadline
from tideloop.durations import seconds

__all__ = ["RedisStore", "StoreUnavailable"]

_log = logging.getLogger("tideloop.redis")

OnOutage = Literal["fail", "local"]

_CALM = 30.0
"""Seconds after which a subscription on which nothing was said is looked at."""


class StoreUnavailable(ConnectionError):
    """The store does not answer, and has not for as long as what was leased from it was good."""


def _library() -> Any:
    try:
        import redis.asyncio
    except ImportError as error:
        raise ImportError("RedisStore needs the package redis: pip install 'tideloop[redis]'") from error
    return redis


class Link:
    """The connections of one loop, and who hears what the server says. Belongs to that loop."""

    def __init__(self, client: Any, prefix: str, owned: bool, patience: float) -> None:
        self._client = client
        self._owned = owned
        self._patience = patience
        self._scripts: dict[str, Any] = {}
        self._hearers: dict[str, Callable[[], object]] = {}
        self._ear: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Future[Any]] = set()
        self.channel = f"{prefix}:ear:{uuid4().hex}"

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[str | int]) -> Any:
        """Run a script of ours at the server. Raises what the client raises, TimeoutError without an answer in time.

        Cancelled, the script may run all the same. It runs in a task of its own, which nobody cancels in good time:
        redis-py (8.1.0) takes a cancellation for the end of one of its own time limits, now and then, and loses it.
        """
        known = self._scripts.get(script)
        if known is None:
            text = resources.files("tideloop").joinpath("lua", f"{script}.lua").read_text(encoding="utf-8")
            known = self._scripts[script] = self._client.register_script(text)
        call = asyncio.ensure_future(known(keys=keys, args=arguments))
        self._calls.add(call)
        call.add_done_callback(self._called)
        await asyncio.wait([call], timeout=self._patience)
        if not call.done():
            call.cancel()
            raise TimeoutError(f"no answer within {self._patience:g} s")
        return call.result()

    def _called(self, call: asyncio.Future[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # looked at, should nobody wait for it any more

    def attach(self, word: str, hear: Callable[[], object]) -> None:
        """Call `hear` whenever the word comes, and when the subscription begins anew."""
        self._hearers[word] = hear
        if self._ear is None:
            # It outlives whoever came first, and that one's deadline.
            self._ear = asyncio.create_task(
                self._listen(), name="tideloop: what Redis says", context=without_deadline()
            )

    def serves_others(self, word: str) -> bool:
        """Whether somebody is attached by another word."""
        return bool(self._hearers.keys() - {word})

    def mute(self, word: str) -> None:
        """Call it no more. Others are attached still, who will see to the end of the link."""
        self._hearers.pop(word, None)

    async def detach(self, word: str) -> None:
        """Call it no more. If nobody is left, the link is closed."""
        self._hearers.pop(word, None)
        if self._hearers:
            return
        ear, self._ear = self._ear, None
        for task in [*self._calls, *([] if ear is None else [ear])]:
            # Again and again: see run().
            while not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=0.05)
        if self._owned:
            await self._client.aclose()

    async def _listen(self) -> None:
        errors = (_library().RedisError, OSError)
        pause = 0.05
        while True:
            try:
                async with self._client.pubsub() as ear:
                    await ear.subscribe(self.channel)
                    while True:
                        message = await ear.get_message(timeout=_CALM)
                        if message is None:
                            await ear.ping()
                        elif message["type"] == "message":
                            self._tell(message["data"])
                        elif message["type"] == "subscribe":
                            pause = 0.05
                            # What was said before is lost.
                            for hear in list(self._hearers.values()):
                                hear()
            except errors:
                # Whoever calls the server finds out, and tells.
                await asyncio.sleep(pause)
                pause = min(1.0, 2 * pause)

    def _tell(self, word: bytes | str) -> None:
        hear = self._hearers.get(word.decode() if isinstance(word, bytes) else word)
        if hear is not None:
            hear()


class RedisStore:
    """Where processes and machines share limits: a Redis server, version 5 or newer, or a cluster of them.

    ``Limiter(n, store=store, name=...)``, ``RateLimiter(..., store=store, name=...)`` and
    ``SingleFlight(store=store, name=...)`` are shared by all who give the same name, at the same server, under the same
    `prefix`; processes should agree about the numbers.

    server: a URL (redis://, rediss://, unix://), or an asyncio client of the package redis, which is used in the loop
    that used it first and not closed. lease: seconds after which what a dead process held is free again; twice the
    longest time that your loop may be blocked, at least. batch: permits that are fetched at once, and lie ready in a
    process as long as no other one wants them. on_outage: what becomes of those who want a permit when the server
    has not answered for a lease: "fail", they get StoreUnavailable; "local", each process goes on by itself, with
    its fair share (the limit divided by how many processes there were, at least one permit; work that would
    be shared it does itself).

    ``async with store:`` or ``await store.aclose()`` gives back what is not in use and closes what was opened. One
    store serves any number of limiters, loops and threads. Raises ImportError without the package redis (the
    extra ``tideloop[redis]``), ValueError for a number or a URL that is none.
    """

    def __init__(
        self,
        server: str | Any,
        *,
        lease: float = 10.0,
        batch: int = 16,
        on_outage: OnOutage = "fail",
        prefix: str = "tideloop",
    ) -> None:
        self._redis = _library()
        self.lease = 1.0 * seconds("lease", lease)
        if not 0.1 <= self.lease <= 86_400:
            raise ValueError(f"lease is {lease!r}; expected seconds from 0.1 to 86400")
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            raise ValueError(f"batch is {batch!r}; expected an int >= 1")
        if on_outage not in ("fail", "local"):
            raise ValueError(f"on_outage is {on_outage!r}; expected 'fail' or 'local'")
        if not isinstance(prefix, str) or not prefix or set(prefix) & set("{}"):
            raise ValueError(f"prefix is {prefix!r}; expected a str without braces")
        self.batch = batch
        self.on_outage: OnOutage = on_outage
        self.prefix = prefix
        self._url = server if isinstance(server, str) else None
        self._client = None if self._url is not None else server
        self.place = "the given client" if self._url is None else self._place(self._url)
        if self._client is not None and not hasattr(self._client, "register_script"):
            raise TypeError(f"RedisStore takes a URL or a client of redis.asyncio, not {type(server).__name__}")
        self._home: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._links: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Link] = weakref.WeakKeyDictionary()
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()
        # Re-entrant: a collection inside of it may run code that uses this.
        self._lock = threading.RLock()
        self._is_inherited = False
        _stores.add(self)

    @staticmethod
    def _place(url: str) -> str:
        """Where the server is, without what nobody may read."""
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("redis", "rediss", "unix")
            place = parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
        except ValueError:
            known, place = False, ""
        if not known:
            # Not shown: it may hold a password.
            raise ValueError("RedisStore: the URL is none that begins with redis://, rediss:// or unix://")
        return place

    def join(self, user: Any) -> None:
        """Something to be closed with the store: it has ``async def aclose()``."""
        with self._lock:
            self._users.add(user)

    def home(self, running: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
        """The loop in which what is begun in `running` is kept: that one, or the one of the client that was given."""
        if self._client is None:
            return running
        with self._lock:
            self._check_process()
            home = None if self._home is None else self._home()
            if home is None or not (home is running or home.is_running()):
                self._home, home = weakref.ref(running), running
            return home

    def link(self) -> Link:
        """The link of the running loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._check_process()
            for closed in [one for one in self._links if one.is_closed()]:
                # It was closed without cancelling its tasks; they refer to it, so it would stay here for ever.
                del self._links[closed]
            link = self._links.get(loop)
            if link is None:
                link = self._links[loop] = Link(self._open(), self.prefix, self._client is None, self.lease / 3)
            return link

    async def leave(self, link: Link, word: str) -> None:
        """Somebody needs the link of the running loop no more."""
        if not link.serves_others(word):
            with self._lock:
                # From now on whoever comes gets a new one. (A keeper that is collected runs this in any loop.)
                loop = asyncio.get_running_loop()
                if self._links.get(loop) is link:
                    del self._links[loop]
        await link.detach(word)

    def _open(self) -> Any:
        if self._client is not None:
            return self._client
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        # Repeated once, for connections that have died while nobody looked; whoever calls has pauses of its own.
        return self._redis.asyncio.Redis.from_url(
            self._url, socket_timeout=self.lease / 3, socket_connect_timeout=self.lease / 3, retry=Retry(NoBackoff(), 1)
        )

    def _forked(self) -> None:
        """In a child: connections are the parent's, and stay untouched; they are only kept from being closed.

        A client that was given has such connections once it was used, and is bound to a loop that does not run here,
        though it says so. It is nothing for the child.
        """
        self._is_inherited = self._is_inherited or self._home is not None
        self._lock = threading.RLock()
        _inherited.append(list(self._links.values()))
        self._links = weakref.WeakKeyDictionary()
        for user in list(self._users):
            user._forked()

    def _check_process(self) -> None:
        if self._is_inherited:
            raise RuntimeError(
                "RedisStore: its client was used before this process was forked, and is the parent's; make another"
                " client and another store here, or give the store a URL"
            )

    async def aclose(self) -> None:
        """Give back what is not in use, and close what was opened. Limits of it may be used again afterwards."""
        with self._lock:
            users = list(self._users)
        for user in users:
            await user.aclose()

    async def __aenter__(self) -> RedisStore:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<tideloop.RedisStore {self.place}, lease={self.lease:g}, batch={self.batch}, {self.on_outage!r}>"


_stores: weakref.WeakSet[RedisStore] = weakref.WeakSet()
_inherited: list[list[Link]] = []


def _in_child() -> None:
    for store in list(_stores):
        store._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
