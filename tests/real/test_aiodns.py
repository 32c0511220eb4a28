"""aiodns on c-ares, which may wait in a thread of its own, asking a name server that the test plays itself."""

from __future__ import annotations

import asyncio
import contextlib
import struct

import pytest

from tests.real import peers

aiodns = peers.package("aiodns")


class NameServer(asyncio.DatagramProtocol):
    """Answers A questions: `<n>.test` is 10.0.0.n, everything else does not exist; `silent.test` gets no answer."""

    def __init__(self):
        self.asked = []
        self.silenced = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        labels, position = [], 12
        while length := data[position]:
            labels.append(data[position + 1 : position + 1 + length].decode())
            position += 1 + length
        question = data[12 : position + 5]
        self.asked.append(".".join(labels))
        if labels[0] == "silent":
            self.silenced.set()
            return
        number = int(labels[0]) if labels[0].isdigit() else None
        flags, count = (0x8180, 1) if number is not None else (0x8183, 0)
        answer = struct.pack(">HHHHHH", int.from_bytes(data[:2], "big"), flags, 1, count, 0, 0) + question
        if number is not None:
            answer += struct.pack(">HHHIHBBBB", 0xC00C, 1, 1, 60, 4, 10, 0, number // 256, number % 256)
        self.transport.sendto(answer, address)


@contextlib.asynccontextmanager
async def resolving():
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    try:
        async with aiodns.DNSResolver(nameservers=[f"127.0.0.1:{port}"], timeout=5, tries=2) as resolver:
            yield resolver, server
    finally:
        transport.close()


def test_many_names_at_once(run):
    async def main():
        async with resolving() as (resolver, server):
            answers = await asyncio.gather(*(resolver.query_dns(f"{number}.test", "A") for number in range(100)))
        assert [answer.answer[0].data.addr for answer in answers] == [f"10.0.0.{number}" for number in range(100)]
        assert set(server.asked) == {f"{number}.test" for number in range(100)}

    run(main())


def test_a_name_that_does_not_exist(run):
    async def main():
        async with resolving() as (resolver, _):
            with pytest.raises(aiodns.error.DNSError):
                await resolver.query_dns("nowhere.test", "A")

    run(main())


def test_a_cancelled_query(run):
    async def main():
        async with resolving() as (resolver, server):
            query = asyncio.ensure_future(resolver.query_dns("silent.test", "A"))
            await server.silenced.wait()
            query.cancel()
            with pytest.raises(asyncio.CancelledError):
                await query
            answer = await resolver.query_dns("7.test", "A")
            assert answer.answer[0].data.addr == "10.0.0.7"

    run(main())
