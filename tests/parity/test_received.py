"""What data_received() was given is the program's: it never changes, whatever comes afterwards."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.peers import Recorder, facing_socket

# Around where an object of bytes is taken from another allocator, and where none is used twice.
SIZES = (1, 479, 480, 481, 512, 1024, 1300, 4096, 16 * 1024, 16 * 1024 + 1, 70_000)


class Keeper(Recorder):
    """Keeps what `choose` says of what it has received, beside a copy that shares nothing with it."""

    def __init__(self, loop, choose):
        super().__init__(loop)
        self.choose = choose
        self.kept = []
        self.came = 0
        self.more = asyncio.Event()

    def data_received(self, data):
        self.came += len(data)
        self.more.set()
        if self.choose(data):
            self.kept.append((data, memoryview(data), bytes(bytearray(data)), hash(data)))

    async def reach(self, count):
        """Wait until `count` bytes have come in all."""
        while self.came < count:
            self.more.clear()
            await self.more.wait()


async def messages(loop, peer, keeper, count, chance):
    total = 0
    for _ in range(count):
        message = chance.randbytes(chance.choice(SIZES))
        total += len(message)
        await loop.sock_sendall(peer, message)
        await keeper.reach(total)
    return total


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 1.0])
async def test_it_stays_what_it_was(loop, kept):
    chance = random.Random(f"received {kept}")
    keeper = Keeper(loop, lambda data: chance.random() < kept)
    async with facing_socket(loop, lambda: keeper) as (_, peer):
        total = await messages(loop, peer, keeper, 400, chance)
    assert keeper.came == total
    for data, view, copy, known in keeper.kept:
        assert data == copy
        assert bytes(view) == copy
        assert known == hash(copy) == hash(data)
        assert data[-1:] == copy[-1:]


async def test_one_of_the_same_length_has_its_own_hash(loop):
    seen = []
    keeper = Keeper(loop, lambda data: seen.append((hash(data), bytes(bytearray(data)))))
    async with facing_socket(loop, lambda: keeper) as (_, peer):
        for letter in (b"a", b"b", b"c"):
            await loop.sock_sendall(peer, letter * 1024)
            await keeper.reach(1024 * (1 + b"abc".index(letter)))
    assert all(known == hash(copy) for known, copy in seen)
    assert len(b"".join(copy for _, copy in seen)) == 3 * 1024


async def test_a_shorter_one_ends_where_it_ends(loop):
    """A number is parsed from its bytes up to the zero behind them."""
    numbers = []
    keeper = Keeper(loop, lambda data: numbers.append(int(data)))
    texts = [b"1" * 600, b"2" * 590, b"3" * 580]
    async with facing_socket(loop, lambda: keeper) as (_, peer):
        total = 0
        for text in texts:
            total += len(text)
            await loop.sock_sendall(peer, text)
            await keeper.reach(total)
    assert numbers == [int(text) for text in texts]


async def test_what_is_written_is_kept_until_it_is_sent(loop):
    """An echo to a peer that does not read, while more comes."""
    whole = bytearray()

    class Echo(Keeper):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.set_write_buffer_limits(1 << 30)

        def data_received(self, data):
            super().data_received(data)
            whole.extend(data)
            self.transport.write(data)

    keeper = Echo(loop, lambda data: False)
    async with facing_socket(loop, lambda: keeper) as (_, peer):
        chance = random.Random("unread")
        total = await messages(loop, peer, keeper, 1500, chance)
        back = bytearray()
        while len(back) < total:
            back += await loop.sock_recv(peer, 1 << 20)
    assert back == whole
