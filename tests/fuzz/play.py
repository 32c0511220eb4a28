"""Plays a program on a loop, and says what it showed and what was wrong with it.

The ends are connected, the steps are done, both ends leave, and whoever is still there is aborted. Then nothing
may be left: no descriptor, no registration, no scheduled call, no exception that nobody raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.certificate import contexts
from tests.fuzz.endpoint import RAISED, Endpoint, PlainSocket, sequences
from tests.fuzz.programs import Operation, Program, Step

_QUIET = 2
"""Polls in a row that bring nothing, after which nothing more will come."""

_MOST = 5_000
"""Polls after which a program that does not come to rest has gone wrong."""


_HANGS = 10.0
"""Seconds after which a task that has lost its connection hangs."""

_OURS = ("PanicException", "SystemError")
"""What only a bug of the native half raises. asyncio's TLS reports what it likes when its connection breaks."""


@dataclass
class Outcome:
    """What a program did: the callbacks of each end, in order, and what must not have happened."""

    traces: tuple[list[tuple], list[tuple]] = ((), ())  # type: ignore[assignment]
    faults: list[str] = field(default_factory=list)


class Player:
    """Plays programs on one loop, one after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.handled: list[dict[str, Any]] = []
        self.pulse = socket.socketpair()
        for end in self.pulse:
            end.setblocking(False)
        loop.set_exception_handler(lambda loop, context: self.handled.append(context))
        sequences()  # open from now on
        self.loop.run_until_complete(self._poll())
        self.idle = self._registered()

    def close(self) -> None:
        for end in self.pulse:
            end.close()
        self.loop.close()

    def play(self, program: Program) -> Outcome:
        """Play it. Exceptions that end the loop come out of here; whatever else goes wrong is a fault."""
        before = _descriptors()
        unraisable: list[str] = []
        with _strict(unraisable):
            match = _Match(self, program)
            faults = self.loop.run_until_complete(match.play())
            self.loop.run_until_complete(self._poll())
        faults += [f"nobody caught: {text}" for text in unraisable]
        faults += self._unexplained(match)
        self.handled.clear()
        if _descriptors() != before:
            gc.collect()
            if (after := _descriptors()) != before:
                faults.append(f"{after - before:+} descriptors are open")
        if (now := self._registered()) != self.idle:
            faults.append(f"registered with the loop: {now}, and {self.idle} when idle")
        return Outcome(match.traces(), faults)

    def _registered(self) -> tuple[int, ...]:
        """Handles in the ready ring and watched descriptors. Cancelled timers may stay for a while."""
        counts = getattr(self.loop, "_counts", None)
        if counts is None:
            return ()
        ready, _, watched = counts()
        return ready, watched

    def _unexplained(self, match: _Match) -> Iterator[str]:
        """Exceptions that reached the handler, other than those raised on purpose; each of those is reported once."""
        raised = [exception for end in match.ends for exception in getattr(end, "raised", ())]
        for context in self.handled:
            exception = context.get("exception")
            found = next((index for index, one in enumerate(raised) if one is exception), None)
            if found is not None:
                del raised[found]
            elif not match.upgrades or type(exception).__name__ in _OURS:
                yield f"reached the exception handler: {context!r}"
        if not match.upgrades:
            yield from (f"was raised and not reported: {exception!r}" for exception in raised)

    async def settle(self, events: Any = lambda: 0) -> None:
        """Poll until nothing more happens; `events` counts what does."""
        quiet = 0
        for _ in range(_MOST):
            before = events()
            await self._poll()
            quiet = quiet + 1 if events() == before else 0
            if quiet == _QUIET:
                return
        raise AssertionError("the connection does not come to rest")

    async def _poll(self) -> None:
        """Return once the loop has asked the system: what was ready before is delivered."""
        here, there = self.pulse
        seen = self.loop.create_future()
        self.loop.add_reader(here, seen.set_result, None)
        there.send(b"x")
        await seen
        self.loop.remove_reader(here)
        here.recv(1)


class _Match:
    """One program being played."""

    def __init__(self, player: Player, program: Program) -> None:
        self.player = player
        self.loop = player.loop
        self.program = program
        self.ends: list[Any] = []
        self.upgrades: list[asyncio.Task[Any]] = []
        self.files: list[asyncio.Task[Any]] = []
        self.server: Any = None
        self.done = 0

    async def play(self) -> list[str]:
        try:
            await self._connect()
            for step in [*self.program.steps, *self.program.ending]:
                await self._perform(step)
            self._go_on()
            await self._settle()
            await self._leave()
        except AssertionError as error:
            return [str(error), *self._faults()]
        return self._faults()

    def traces(self) -> tuple[list[tuple], list[tuple]]:
        return tuple([getattr(end, "trace", []) for end in self.ends])  # type: ignore[return-value]

    # --- connecting --------------------------------------------------------------------------------

    async def _connect(self) -> None:
        program = self.program
        if program.link == "tls":
            self.upgrades.append(asyncio.current_task())  # type: ignore[arg-type]  # TLS from the beginning
        for end in range(2):
            keep_open, answers = program.keep_open[end], program.answers[end]
            self.ends.append(Endpoint(end, self.loop, answers, keep_open, program.comparable))
            self.ends[end].upgraded = program.link == "tls"
        if program.link in ("pair", "raw"):
            left, right = self._sockets()
            if program.link == "raw":
                self.ends[1] = PlainSocket(1, right)
                await self._adopt(0, left)
            else:
                await self._adopt(0, left)
                await self._adopt(1, right)
        else:
            await self._serve()
        await self._settle()

    def _sockets(self) -> tuple[socket.socket, socket.socket]:
        """Two connected sockets: of the UNIX family, or TCP where a reset is to be a reset."""
        if self.program.link == "raw":
            with socket.create_server(("127.0.0.1", 0)) as listener:
                left = socket.create_connection(listener.getsockname())
                right, _ = listener.accept()
        else:
            left, right = socket.socketpair()
        for sock in (left, right):
            sock.setblocking(False)
            self._shrink(sock)
        return left, right

    def _shrink(self, sock: Any) -> None:
        if self.program.send_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.program.send_buffer)

    async def _adopt(self, end: int, sock: socket.socket) -> None:
        kind = self.program.kinds[end]
        factory = lambda: self.ends[end].use(kind)  # noqa: E731
        if end == 0:
            await self.loop.create_connection(factory, sock=sock)
        else:
            await self.loop.connect_accepted_socket(factory, sock)

    async def _serve(self) -> None:
        client, server = contexts() if self.program.link == "tls" else (None, None)
        kinds = self.program.kinds
        self.server = await self.loop.create_server(lambda: self.ends[1].use(kinds[1]), "127.0.0.1", 0, ssl=server)
        address = self.server.sockets[0].getsockname()
        name = "localhost" if client else None
        try:
            await self.loop.create_connection(
                lambda: self.ends[0].use(kinds[0]), *address, ssl=client, server_hostname=name
            )
        except (Exception, *RAISED.values()) as error:
            # A handshake fails with whatever its connection is lost with.
            if self.program.link != "tls":
                raise AssertionError(f"could not connect: {error!r}") from error
        while not self.ends[1].made and self.program.link != "tls":
            await self.player.settle()
        if self.program.send_buffer and self.program.link == "tcp":
            for end in self.ends:
                sock = end.transport.get_extra_info("socket") if end.transport and not end.lost else None
                if sock is not None:
                    self._shrink(sock)

    # --- playing -----------------------------------------------------------------------------------

    async def _perform(self, step: Step) -> None:
        if step.operation[0] in ("tls", "tls-alone"):
            self._upgrade(step)
        elif step.operation[0] == "file":
            end = self.ends[step.end]
            if end.transport is not None and not self.upgrades:
                self.files.append(self.loop.create_task(end.send_file(step.operation[1])))
        else:
            self._do(self.ends[step.end], step.operation)
        self.done += 1
        if step.pace == "turn":
            await asyncio.sleep(0)
        elif step.pace == "settle":
            await self._settle()
            if self.program.comparable:
                for end in self.ends:
                    end.trace.append(("after", self.done, end.transport.is_closing(), end.received))

    def _do(self, end: Any, operation: Operation) -> None:
        try:
            end.do(operation)
        except (ssl.SSLError, *RAISED.values()):
            # asyncio's TLS may read while it closes: what the protocol raises then comes out here.
            if not self.upgrades:
                raise

    def _upgrade(self, step: Step) -> None:
        """start_tls on both ends, or on one, whatever state they are in."""
        sending = any(not task.done() for task in self.files)
        if self.upgrades or sending or not all(end.can_upgrade() for end in self.ends):
            return
        for end in self.ends:
            if step.operation[0] == "tls" or end.end == step.end:
                self.upgrades.append(self.loop.create_task(self._upgrade_end(end)))
            else:
                self._garble()

    async def _upgrade_end(self, end: Endpoint) -> None:
        if not end.can_upgrade():
            self._garble()
            return
        end.upgraded = end.upgrading = True
        client, server = contexts()
        end.transport = await self.loop.start_tls(
            end.transport,
            end.protocol,
            server if end.end else client,
            server_side=bool(end.end),
            server_hostname=None if end.end else "localhost",
        )
        end.upgrading = False

    def _garble(self) -> None:
        """One end speaks TLS and the other does not: what either receives means nothing."""
        for end in self.ends:
            end.garbled = True

    def _go_on(self) -> None:
        """Nobody who paused keeps the other from sending the rest."""
        for end in self.ends:
            if isinstance(end, Endpoint):
                self._do(end, ("resume",))

    async def _settle(self) -> None:
        await self.player.settle(self._events)

    def _events(self) -> int:
        count = 0
        for end in self.ends:
            if isinstance(end, Endpoint):
                count += end.events
            elif self.program.ending and self.done >= len(self.program.steps) and end.drain():
                count += end.received
        return count + sum(task.done() for task in [*self.upgrades, *self.files])

    async def _leave(self) -> None:
        """Everybody goes, at once."""
        if self.server is not None:
            self.server.close()
        for end in self.ends:
            if isinstance(end, PlainSocket):
                end.sock.close()
            elif end.transport is not None and not (end.lost and end.comparable):
                end.closing = True
                end.aborted = end.aborted or not end.lost
                end.transport.abort()
        await self._settle()
        tasks = [task for task in [*self.upgrades, *self.files] if task is not asyncio.current_task()]
        # Whoever has lost a connection has noticed, unless asyncio's executor has a file of theirs at the moment.
        hanging = (await asyncio.wait(tasks, timeout=_HANGS))[1] if tasks else set()
        for task in hanging:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        if hanging:
            raise AssertionError(f"hangs: {hanging!r}")
        for end in ends[-len(self.files) :] if self.files else ():
            if end is not None:
                raise AssertionError(f"sendfile: {end!r}")
        if self.server is not None:
            await self.server.wait_closed()

    def _faults(self) -> list[str]:
        """What the ends saw, and what the two of them together must show."""
        faults = [fault for end in self.ends for fault in end.faults]
        for end in self.ends:
            if isinstance(end, Endpoint) and not self.upgrades and not end.lost:
                faults.append(f"end {end.end}: connection_lost never came")
        for writer, reader in [self.ends, self.ends[::-1]] if len(self.ends) == 2 else []:
            if reader.received > writer.sent and not self.upgrades:
                faults.append(f"end {reader.end} received {reader.received} of {writer.sent} bytes")
            elif self._must_be_whole(writer, reader) and reader.received != writer.sent:
                faults.append(f"end {reader.end} saw the end after {reader.received} of {writer.sent} bytes")
        return faults

    def _must_be_whole(self, writer: Any, reader: Any) -> bool:
        """Whether the reader's end of file promises that it has everything."""
        if self.upgrades or not isinstance(writer, Endpoint) or not isinstance(reader, Endpoint):
            return False
        if writer.cut or writer.robbed or writer.received < reader.sent:
            return False  # who closes with bytes unread resets the connection, and what is on its way is lost
        failed = writer.trace[-1:] != [("lost", "NoneType")] or writer.fatal is not None
        return reader.ended and not failed and not writer.aborted and not reader.fatal


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def _strict(unraisable: list[str]) -> Iterator[None]:
    """Warnings are errors, and errors that nobody can catch are collected."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda what: unraisable.append(f"{what.exc_value!r} in {what.object!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        sys.unraisablehook = hook
