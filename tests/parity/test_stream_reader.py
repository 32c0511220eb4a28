"""Our stream reader beside asyncio's: the same programs, word for word.

A program feeds chunks, ends, errors and cancellations to a reader and reads from it in every way. What it sees
(values, exceptions with their contexts, when the transport is paused, what repr() says) must not differ.
"""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import sys
import warnings
import weakref

import pytest
import tideloop
from tideloop.loop import streams

from tests.peers import LOOPBACK, turns

SEEDS = 300
STEPS = 40
SEPARATORS = [b"\n", b"\r\n", b"ab", b"abab", bytearray(b"b\n"), b""]
if sys.version_info >= (3, 13):
    SEPARATORS += [(b"\n", b"ab"), (b"aba", b"b\n", b"\r"), (), (b"", b"a")]
SIZES = [0, 1, 2, 5, 20, 64, 200, -1, -7, True, None, "1", 10**30]


class Transport:
    """Writes down when it is paused."""

    def __init__(self, log, *, can_pause=True):
        self.log = log
        self.can_pause = can_pause

    def pause_reading(self):
        self.log.append("pause")
        if not self.can_pause:
            raise NotImplementedError

    def resume_reading(self):
        self.log.append("resume")

    def __repr__(self):
        return "<transport>"


def told(error):
    """An exception as far as two runs can have it in common."""
    if error is None:
        return None
    return type(error), error.args, told(error.__context__)


async def play(make, seed):
    """Run the program of a seed on a reader; what it saw."""
    chance = random.Random(seed)
    log: list[object] = []
    loop = asyncio.get_running_loop()
    limit = chance.choice([1, 8, 30, 100])
    reader = make(limit, loop)
    if chance.random() < 0.9:
        reader.set_transport(Transport(log, can_pause=chance.random() < 0.9))
    pending: asyncio.Task | None = None
    ended = False

    def finished(name, task):
        if task.cancelled():
            log.append((name, "cancelled"))
        elif task.exception() is not None:
            log.append((name, told(task.exception())))
        else:
            log.append((name, task.result(), type(task.result())))

    def start():
        name = chance.choice(["read", "read", "readexactly", "readuntil", "readuntil", "readline", "__anext__"])
        arguments = []
        if name in ("read", "readexactly"):
            arguments = [chance.choice(SIZES)]
        elif name == "readuntil" and chance.random() < 0.8:
            arguments = [chance.choice(SEPARATORS)]
        if name == "read" and chance.random() < 0.1:
            arguments = []
        task = loop.create_task(getattr(reader, name)(*arguments))
        task.add_done_callback(lambda task: finished((name, *arguments), task))
        return task

    for _ in range(STEPS):
        action = chance.choices(
            ["feed", "start", "cancel", "eof", "error", "look", "odd"], [12, 12, 2, 0.6, 0.2, 2, 0.7]
        )[0]
        if action == "feed" and not ended:
            chunk = bytes(chance.choices(b"ab\r\n", k=chance.choice([0, 1, 3, 10, 40, 120])))
            reader.feed_data(chance.choice([bytes, bytearray, memoryview])(chunk) if chance.random() < 0.2 else chunk)
        elif action == "start" and (pending is None or pending.done()):
            pending = start()
        elif action == "cancel" and pending is not None:
            pending.cancel()
        elif action == "eof":
            reader.feed_eof()
            ended = True
        elif action == "error":
            reader.set_exception(OSError(5, "gone"))
        elif action == "look" and (pending is None or pending.done()):
            log.append((reader.at_eof(), told(reader.exception()), repr(reader).partition(" waiter=")[0]))
        elif action == "odd":
            shown = reader._buffer
            log.append(bytes(shown))
            if chance.random() < 0.3 and not ended:
                shown.extend(b"ab")
        if chance.random() < 0.8:
            await turns()
    if not ended:
        reader.feed_eof()
    await turns()
    if pending is not None and not pending.done():
        log.append("still waiting")
        pending.cancel()
        await turns()
    log.append(bytes(reader._buffer))
    return log


def stock(limit, loop):
    return asyncio.StreamReader(limit, loop)


def ours(limit, loop):
    return streams.StreamReader(limit, loop)


def attached(limit, loop):
    reader = asyncio.StreamReader(limit, loop)
    reader._protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    streams.attach(reader._protocol)
    assert type(reader) is streams.StreamReader
    return reader


@pytest.mark.parametrize("make", [ours, attached])
def test_random_programs_see_the_same(make):
    with tideloop.Runner() as runner, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for seed in range(SEEDS):
            assert runner.run(play(make, seed)) == runner.run(play(stock, seed)), f"seed {seed}"


def run(main):
    with tideloop.Runner() as runner:
        return runner.run(main())


def test_a_second_reader_is_refused():
    async def main():
        loop = asyncio.get_running_loop()
        found = []
        for make in (stock, ours):
            reader = make(100, loop)
            first = loop.create_task(reader.readexactly(3))
            await turns()
            for name, arguments in (("read", (1,)), ("readexactly", (2,)), ("readuntil", ()), ("readline", ())):
                with pytest.raises(RuntimeError, match="already waiting") as caught:
                    await getattr(reader, name)(*arguments)
                found.append(caught.value.args)
            reader.feed_data(b"abc")
            assert await first == b"abc"
        assert found[:4] == found[4:]

    run(main)


def test_connections_get_native_streams():
    async def main():
        served = asyncio.get_running_loop().create_future()

        async def serve(reader, writer):
            served.set_result((type(reader), type(writer)))
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(serve, LOOPBACK, 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"line\n")
            await writer.drain()
            assert await reader.read() == b"line\n"
            writer.close()
            await writer.wait_closed()
            assert await served == (streams.StreamReader, streams.StreamWriter)
        assert type(reader) is streams.StreamReader
        assert isinstance(reader, asyncio.StreamReader)
        assert isinstance(writer, asyncio.StreamWriter)
        assert asyncio.StreamReader is asyncio.streams.StreamReader is streams.StockReader

    run(main)


@pytest.mark.parametrize("which", ["reader", "protocol"])
def test_subclasses_keep_their_methods(which):
    """A class of the application is never taken for the stock one."""

    class Reader(asyncio.StreamReader):
        def feed_data(self, data):
            super().feed_data(data.upper())

    class Protocol(asyncio.StreamReaderProtocol):
        def data_received(self, data):
            super().data_received(data.upper())

    async def main():
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        with far:
            reader = Reader() if which == "reader" else asyncio.StreamReader()
            protocol = (Protocol if which == "protocol" else asyncio.StreamReaderProtocol)(reader)
            near.setblocking(False)
            transport, _ = await loop.create_connection(lambda: protocol, sock=near)
            far.send(b"text")
            assert await reader.readexactly(4) == b"TEXT"
            transport.close()
            await turns()

    run(main)


def test_a_native_class_may_be_derived_from():
    class Reader(streams.StreamReader):
        async def readline(self):
            return b"-" + await super().readline()

    async def main():
        reader = Reader(loop=asyncio.get_running_loop())
        reader.feed_data(b"a\nb\n")
        found = []
        async for line in reader:
            found.append(line)
            if len(found) == 2:
                break
        return found

    assert run(main) == [b"-a\n", b"-b\n"]


def test_what_comes_for_a_dropped_reader_is_dropped():
    async def main():
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        with far:
            reader = asyncio.StreamReader(limit=4)
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.create_connection(lambda: protocol, sock=near)
            ref = weakref.ref(reader)
            reader._transport = None  # else the transport keeps it, by way of its own attributes
            del reader
            gc.collect()
            assert ref() is None
            for _ in range(10):
                far.send(b"x" * 100)
                await turns()
            assert transport.is_reading()
            transport.close()
            await turns()

    run(main)


class Mark:
    """Something that can be referred to weakly."""


def test_cycles_through_a_connection_die():
    async def main():
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        near.setblocking(False)
        with far:
            reader, writer, transport = await connect(loop, near)
            reader.mark = Mark()
            reader.writer = writer
            reader.set_exception(Exception(reader))
            transport.abort()
            await turns()
            return weakref.ref(reader.mark)

    async def connect(loop, sock):
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
        return reader, streams.StreamWriter(transport, protocol, reader, loop), transport

    ref = run(main)
    gc.collect()
    assert ref() is None
