"""One end of a fuzzed connection: it performs operations, writes down what it is told, and judges it.

An `Endpoint` outlives the protocols and transports that serve it, since programs replace both. What must hold
is checked where it can be seen to break, in the callbacks; `Endpoint.faults` says what did.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import socket
import struct
from typing import IO, Any

from tests.fuzz.programs import Answers, Operation

# What ends write: an endless sequence for each, so that a reader knows every byte by its position.
_PERIOD = (1 << 20) - 3
_PATTERNS = [random.Random(f"end {end}").randbytes(_PERIOD) * 2 for end in range(2)]

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that turns close() into a reset of the connection."""


def written(end: int, start: int, size: int) -> bytes:
    """What an end writes at a position of its stream, up to a period of it."""
    start %= _PERIOD
    return _PATTERNS[end][start : start + size]


@functools.cache
def sequences() -> list[IO[bytes]]:
    """The sequences as files, in memory, for as long as the process lives."""
    files = []
    for end, pattern in enumerate(_PATTERNS):
        file = os.fdopen(os.memfd_create(f"end {end}"), "w+b")
        file.write(pattern)
        file.flush()
        files.append(file)
    return files


class Boom(Exception):
    """Raised by a callback on purpose."""


class Bang(BaseException):
    """Raised by a callback on purpose, past `except Exception`."""


RAISED = {"Exception": Boom, "BaseException": Bang, "CancelledError": asyncio.CancelledError}


class Endpoint:
    """The state of one end, whatever protocol or transport it has at the moment."""

    def __init__(
        self, end: int, loop: asyncio.AbstractEventLoop, answers: Answers, keep_open: bool, comparable: bool
    ) -> None:
        self.end = end
        self.loop = loop
        self.answers = {name: list(lists) for name, lists in answers.items()}
        self.keep_open = keep_open
        self.comparable = comparable
        self.transport: Any = None
        self.protocol: Any = None
        self.upgraded = False
        """Whether TLS stands between this end and its socket: asyncio's own code then decides what is told when."""
        self.upgrading = False
        self.garbled = False
        """Whether the other end speaks TLS and this one does not."""
        self.sent = 0
        self.received = 0
        self.trace: list[tuple] = []
        self.faults: list[str] = []
        self.raised: list[BaseException] = []
        self.fatal: BaseException | None = None
        self.made = self.ended = self.lost = False
        self.paused = self.writing_paused = self.closing = self.aborted = self.shut = False
        self.robbed = False
        """Whether the application has closed the socket."""
        self.cut = False
        """Whether sendfile() has failed, so that nobody knows how much of the file was sent."""
        self.answering = 0
        self.resuming = False
        self.events = 0

    def fault(self, text: str) -> None:
        self.faults.append(f"end {self.end}: {text}")

    # --- what the end does -------------------------------------------------------------------------

    def do(self, operation: Operation) -> None:
        """Perform an operation; what asyncio refuses is part of the trace."""
        name, *arguments = operation
        if self.transport is None or (self.upgraded and not self._makes_sense(name)):
            return
        if self.comparable and self.lost and not self.answering:
            return  # asyncio's transport has forgotten its loop by now, and some of its methods miss it
        if name == "raise":
            exception = RAISED[arguments[0]](f"end {self.end}")
            self.raised.append(exception)
            raise exception
        try:
            getattr(self, f"_{name}")(*arguments)
        except (RuntimeError, ValueError, TypeError) as error:
            self.trace.append(("refused", name, type(error).__name__))
        except AttributeError:
            # asyncio's TLS transport forgets its protocol a little before the protocol hears of the end.
            if not self.upgraded:
                raise
        if self.transport is not None and not self.upgraded:
            self._check_state()

    def _makes_sense(self, name: str) -> bool:
        """With TLS: not while a handshake speaks for this end, and nothing that only asyncio has to bear."""
        if self.lost or name in ("misuse", "steal") or (name == "close" and self.closing):
            return False
        return not self.upgrading or name in ("close", "abort", "info", "raise")

    def can_upgrade(self) -> bool:
        """Whether start_tls() has a chance: asyncio's TLS needs a transport that it can write to at once."""
        return not (self.lost or self.transport.is_closing() or self.shut or self.ended or self.writing_paused)

    def _check_state(self) -> None:
        transport = self.transport
        if self.closing and not transport.is_closing():
            self.fault("closed, but is_closing() is False")
        if transport.is_closing() and transport.is_reading():
            self.fault("is_reading() although closing")
        if self.aborted and transport.get_write_buffer_size():
            self.fault("bytes are queued after abort()")

    def _write(self, size: int, kind: str) -> None:
        data = written(self.end, self.sent, size)
        if kind == "bytes":
            self._account(size, self.transport.write, data)
            return
        mutable = bytearray(data)
        view = memoryview(mutable) if kind == "memoryview" else mutable
        self._account(size, self.transport.write, view)
        del view
        if _may_change(self.transport):
            mutable[:] = bytes(size)

    def _writelines(self, sizes: tuple[int, ...]) -> None:
        if self.comparable and self.transport.is_closing():
            return  # asyncio queues them, drops them or raises, depending on its version
        pieces, start = [], self.sent
        for size in sizes:
            pieces.append(written(self.end, start, size))
            start += size
        self._account(start - self.sent, self.transport.writelines, pieces)

    def _account(self, size: int, write: Any, data: Any) -> None:
        """Count before the call: the protocol may write more inside of it, which follows these bytes."""
        if self.transport.is_closing() and not (self.upgraded or self.resuming or self._queued()):
            size = 0  # the connection is lost: they are dropped
        self.sent += size
        try:
            write(data)
        except RuntimeError:
            self.sent -= size
            raise

    def _queued(self) -> int:
        return self.transport.get_write_buffer_size()

    def _eof(self) -> None:
        if self.transport.can_write_eof():
            self.shut = True
            self.transport.write_eof()

    def _pause(self) -> None:
        reading = self.transport.is_reading()
        self.transport.pause_reading()
        self.paused = self.paused or reading

    def _resume(self) -> None:
        if self.ended and self.comparable:
            return  # asyncio then reads on, and tells the end of file again; we tell it once
        if not self.transport.is_closing():
            self.paused = False
        self.transport.resume_reading()

    def _limits(self, high: int | None, low: int | None) -> None:
        self.transport.set_write_buffer_limits(high, low)

    def _close(self) -> None:
        self.closing = True
        self.transport.close()

    def _abort(self) -> None:
        self.closing = self.aborted = True
        self.transport.abort()

    def _protocol(self, kind: str) -> None:
        if self.lost:
            return
        before = self.protocol
        try:
            self.transport.set_protocol(self.use(kind))
        except AttributeError:
            self.protocol = before
            raise

    def _info(self) -> None:
        repr(self.transport)
        for name in ("socket", "sockname", "peername", "nothing"):
            self.transport.get_extra_info(name)
        self.transport.get_write_buffer_limits()

    def _misuse(self) -> None:
        if self.comparable and self.transport.is_closing():
            return  # newer asyncios look at the arguments later than at the connection
        for call, argument in [
            (self.transport.write, "text"),
            (self.transport.write, None),
            (self.transport.writelines, [1]),
            (self.transport.set_write_buffer_limits, -1),
        ]:
            with contextlib.suppress(TypeError, ValueError, RuntimeError):
                call(argument)
                self.fault(f"{call.__name__}({argument!r}) was accepted")

    def _steal(self) -> None:
        sock = self.transport.get_extra_info("socket")
        self.robbed = True
        if sock is not None:
            sock._sock.close()

    async def send_file(self, size: int) -> None:
        """loop.sendfile() of the next bytes; writes that come meanwhile are refused."""
        position, self.sent = self.sent, self.sent + size
        try:
            await self.loop.sendfile(self.transport, sequences()[self.end], position % _PERIOD, size)
        except RuntimeError:
            self.sent -= size
        except OSError:
            self.cut = True

    # --- what the end is told ----------------------------------------------------------------------

    def use(self, kind: str) -> asyncio.BaseProtocol:
        """A new protocol of a kind, which takes over from the one before."""
        self.protocol = (Buffered if kind == "buffered" else Plain)(self)
        return self.protocol

    def told(self, name: str, protocol: asyncio.BaseProtocol) -> None:
        """Whatever it is, it must come to the current protocol, after connection_made and before the end."""
        self.events += 1
        # asyncio's TLS decides early whom it tells of the end.
        if protocol is not self.protocol and not (self.upgraded and name == "lost"):
            self.fault(f"{name} came to a protocol that was replaced")
        if self.lost:
            self.fault(f"{name} after connection_lost")
        if not self.made and name != "made":
            self.fault(f"{name} before connection_made")

    def answer(self, name: str) -> None:
        """Perform what the program does inside of this callback."""
        waiting = self.answers.get(name)
        if not waiting or self.answering >= 3:
            return
        self.answering += 1
        try:
            for operation in waiting.pop(0):
                self.do(operation)
        finally:
            self.answering -= 1

    def on_made(self, protocol: asyncio.BaseProtocol, transport: Any) -> None:
        if self.made:
            self.fault("connection_made twice")
        self.made = True
        self.told("made", protocol)
        self.transport = transport
        self.trace.append(("made",))
        self.answer("made")

    def may_receive(self, name: str) -> None:
        if self.upgraded:
            return
        if self.ended:
            self.fault(f"{name} after eof_received")
        if self.paused:
            self.fault(f"{name} while paused")
        if self.closing:
            self.fault(f"{name} after close() or abort()")

    def on_data(self, data: bytes | bytearray | memoryview) -> None:
        self.may_receive("data")
        if not len(data):
            self.fault("empty data")
        if not self.garbled and bytes(data) != written(1 - self.end, self.received, len(data)):
            self.fault(f"wrong bytes at {self.received} (+{len(data)})")
        self.received += len(data)
        if self.trace[-1][0] == "data":
            self.trace[-1] = ("data", self.trace[-1][1] + len(data))
        else:
            self.trace.append(("data", len(data)))
        self.guarded("data")

    def on_eof(self, protocol: asyncio.BaseProtocol) -> bool:
        self.told("eof", protocol)
        self.may_receive("eof")
        self.ended = True
        self.trace.append(("eof",))
        self.guarded("eof")
        return self.keep_open and not self.upgraded

    def guarded(self, name: str) -> None:
        """An exception that leaves here ends the connection, and nothing is received after it."""
        try:
            self.answer(name)
        except BaseException as exception:
            self.fatal = exception
            self.closing = True
            raise

    def on_pause(self, protocol: asyncio.BaseProtocol) -> None:
        self.told("pause", protocol)
        if self.writing_paused:
            self.fault("pause_writing twice")
        if self.aborted and not self.upgraded:
            self.fault("pause_writing after abort()")
        self.writing_paused = True
        self.trace.append(("pause",))
        if not self.upgraded:
            size, (_, high) = self.transport.get_write_buffer_size(), self.transport.get_write_buffer_limits()
            if size <= high:
                self.fault(f"pause_writing at {size} <= {high}")
        self.answer("pause")

    def on_resume(self, protocol: asyncio.BaseProtocol) -> None:
        self.told("resume", protocol)
        if not self.writing_paused:
            self.fault("resume_writing without pause_writing")
        if (self.aborted or self.fatal) and not self.upgraded:
            self.fault("resume_writing after the end was decided")
        self.writing_paused = False
        self.trace.append(("resume",))
        if not self.upgraded:
            size, (low, _) = self.transport.get_write_buffer_size(), self.transport.get_write_buffer_limits()
            if size > low:
                self.fault(f"resume_writing at {size} > {low}")
        # The last queued bytes of a connection that closes have gone; it is not lost before this returns.
        self.resuming = not self.upgraded and self.transport.is_closing()
        try:
            self.answer("resume")
        finally:
            self.resuming = False

    def on_lost(self, protocol: asyncio.BaseProtocol, exception: BaseException | None) -> None:
        self.told("lost", protocol)
        self.lost = True
        self.trace.append(("lost", type(exception).__name__))
        expected = exception in (None, self.fatal) or isinstance(exception, OSError)
        if not expected and not self.upgraded:
            self.fault(f"connection_lost({exception!r}), which nobody raised")
        self.answer("lost")


def _may_change(transport: Any) -> bool:
    """Whether data may be changed after write(): ours has taken a snapshot, asyncio's newer ones keep a reference."""
    return type(transport).__module__.startswith("tideloop")


class Plain(asyncio.Protocol):
    """A protocol that is handed bytes."""

    def __init__(self, end: Endpoint) -> None:
        self.end = end

    def connection_made(self, transport):
        self.end.on_made(self, transport)

    def data_received(self, data):
        self.end.told("data", self)
        if type(data) is not bytes:
            self.end.fault(f"data_received({type(data).__name__})")
        self.end.on_data(data)

    def eof_received(self):
        return self.end.on_eof(self)

    def pause_writing(self):
        self.end.on_pause(self)

    def resume_writing(self):
        self.end.on_resume(self)

    def connection_lost(self, exc):
        self.end.on_lost(self, exc)


class Buffered(asyncio.BufferedProtocol):
    """A protocol that brings its own buffer, of a size that changes from call to call."""

    connection_made = Plain.connection_made
    eof_received = Plain.eof_received
    pause_writing = Plain.pause_writing
    resume_writing = Plain.resume_writing
    connection_lost = Plain.connection_lost

    def __init__(self, end: Endpoint) -> None:
        self.end = end
        self.size = 0
        self.buffer = bytearray()

    def get_buffer(self, sizehint):
        self.end.told("get_buffer", self)
        self.end.may_receive("get_buffer")
        self.size = self.size * 4 % 300_007 or 5
        self.buffer = bytearray(self.size)
        # asyncio's TLS reads into slices of it, and a slice of a bytearray is a copy.
        return memoryview(self.buffer) if self.end.upgraded else self.buffer

    def buffer_updated(self, nbytes):
        self.end.told("data", self)
        if not 0 < nbytes <= self.size:
            self.end.fault(f"buffer_updated({nbytes}) of {self.size}")
        self.end.on_data(memoryview(self.buffer)[:nbytes])


class PlainSocket:
    """The other end as a plain non-blocking socket; it does what it is told and checks what it receives."""

    def __init__(self, end: int, sock: socket.socket) -> None:
        self.end = end
        self.sock = sock
        self.sent = self.received = 0
        self.faults: list[str] = []

    def do(self, operation: Operation) -> None:
        name, *arguments = operation
        with contextlib.suppress(BlockingIOError, ConnectionError, OSError):
            if name == "send":
                self.sent += self.sock.send(written(self.end, self.sent, arguments[0]))
            elif name == "receive":
                self.take(arguments[0])
            elif name == "shut":
                self.sock.shutdown(socket.SHUT_WR)
            elif name == "hang up":
                self.sock.close()
            elif name == "reset":
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                self.sock.close()

    def take(self, size: int) -> bool:
        """Receive up to `size` bytes. Whether any came."""
        data = self.sock.recv(max(size, 1))
        if data != written(1 - self.end, self.received, len(data)):
            self.faults.append(f"end {self.end}: wrong bytes at {self.received} (+{len(data)})")
        self.received += len(data)
        return bool(data)

    def drain(self) -> bool:
        """Receive what there is. Whether any came."""
        came = False
        with contextlib.suppress(OSError):
            while self.take(1 << 16):
                came = True
        return came
