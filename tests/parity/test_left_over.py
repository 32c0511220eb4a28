"""What has come is told, however little of it is taken at a time, and whatever happens in between."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.peers import Recorder, facing_socket, settled


class Spoonful(Recorder, asyncio.BufferedProtocol):
    """Takes ten bytes at a time."""

    def __init__(self, loop):
        super().__init__(loop)
        self.room = bytearray(10)

    def get_buffer(self, sizehint):
        return self.room

    def buffer_updated(self, nbytes):
        self.data_received(self.room[:nbytes])


async def test_more_than_the_protocols_buffer_takes(loop):
    async with facing_socket(loop, lambda: Spoonful(loop)) as (mine, peer):
        for length in (95, 200):
            peer.sendall(bytes(range(length - len(mine.data))))
            await mine.received(length)
            assert len(mine.data) == length


@pytest.mark.parametrize("kind", [Recorder, Spoonful])
async def test_data_and_the_end_at_once(loop, kind):
    async with facing_socket(loop, lambda: kind(loop)) as (mine, peer):
        peer.sendall(b"0123456789")
        peer.shutdown(socket.SHUT_WR)
        await mine.ended
        assert mine.data == b"0123456789"


async def test_urgent_data_in_between(loop):
    """A receive stops before it; it is not part of the stream."""
    async with facing_socket(loop) as (mine, peer):
        for length in (4, 8):
            peer.send(b"ab")
            peer.send(b"!", socket.MSG_OOB)
            peer.send(b"cd")
            await mine.received(length)
            assert mine.data == b"abcd" * (length // 4)


async def test_what_comes_while_it_is_not_read(loop):
    async with facing_socket(loop) as (mine, peer):
        for times in range(1, 4):
            mine.transport.pause_reading()
            peer.send(b"x")
            await settled(loop)
            assert len(mine.data) == times - 1
            mine.transport.resume_reading()
            await mine.received(times)


async def test_another_one_that_was_found_together_with_it_is_paused(loop):
    protocols = []

    class Selfish(Recorder):
        def data_received(self, data):
            super().data_received(data)
            for other in protocols:
                if other is not self:
                    other.transport.pause_reading()

    async with (
        facing_socket(loop, lambda: Selfish(loop)) as (one, its),
        facing_socket(loop, lambda: Selfish(loop)) as (two, whose),
    ):
        protocols += [one, two]
        its.send(b"x")
        whose.send(b"x")
        await settled(loop)
        for protocol in protocols:
            protocol.transport.resume_reading()
            await protocol.received(1)


@pytest.mark.parametrize("kind", [Recorder, Spoonful])
def test_what_was_found_when_an_exception_ended_the_loop(backend, kind):
    """It is found again when the loop goes on."""
    if backend.name == "uvloop":
        pytest.skip("the exception ends the connection")
    loop = backend.new_event_loop()
    ended = []

    class Ending(kind):
        def get_buffer(self, sizehint):
            if self not in ended:
                ended.append(self)
                raise KeyboardInterrupt
            return super().get_buffer(sizehint)

        def data_received(self, data):
            super().data_received(data)
            if self not in ended:
                ended.append(self)
                raise KeyboardInterrupt

    async def main():
        async with (
            facing_socket(loop, lambda: Ending(loop)) as (one, its),
            facing_socket(loop, lambda: Ending(loop)) as (two, whose),
        ):
            its.send(b"x")
            whose.send(b"x")
            await one.received(1)
            await two.received(1)

    try:
        task = loop.create_task(main())
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                loop.run_until_complete(task)
        loop.run_until_complete(asyncio.wait_for(task, 5))
        assert len(ended) == 2
    finally:
        loop.close()
