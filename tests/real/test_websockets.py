"""The websockets library, server and client."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from tests.real import peers

websockets = peers.package("websockets")
from websockets.asyncio.client import connect  # noqa: E402
from websockets.asyncio.server import broadcast, serve  # noqa: E402


async def echo(socket):
    async for message in socket:
        await socket.send(message)


def address_of(server, scheme="ws"):
    return f"{scheme}://localhost:{server.sockets[0].getsockname()[1]}"


async def test_a_hundred_clients_talk_at_once(loop):
    async def talk(number):
        async with connect(address_of(server)) as socket:
            for length in (0, 1, 125, 126, 65_535, 65_536, 200_000):
                await socket.send(bytes([number]) * length)
                assert await socket.recv() == bytes([number]) * length

    async with serve(echo, "127.0.0.1", 0) as server:
        await asyncio.gather(*(talk(number) for number in range(100)))


async def test_messages_in_fragments_and_compressed(loop):
    async def parts():
        for number in range(50):
            yield f"part {number};" * 100

    async with serve(echo, "127.0.0.1", 0, compression="deflate") as server, connect(address_of(server)) as socket:
        await socket.send(parts())
        assert await socket.recv() == "".join([part async for part in parts()])


async def test_a_broadcast_reaches_everyone(loop):
    async def stay(socket):
        joined.put_nowait(socket)
        await socket.wait_closed()

    joined = asyncio.Queue()
    async with serve(stay, "127.0.0.1", 0) as server:
        clients = [await connect(address_of(server)) for _ in range(50)]
        members = [await joined.get() for _ in clients]
        broadcast(members, "news")
        assert [await client.recv() for client in clients] == ["news"] * 50
        await asyncio.gather(*(client.close() for client in clients))


async def test_ping_is_answered(loop):
    async with serve(echo, "127.0.0.1", 0) as server, connect(address_of(server)) as socket:
        assert await (await socket.ping()) >= 0


async def test_closing_tells_code_and_reason(loop):
    async def refuse(socket):
        await socket.close(4001, "not you")

    async with serve(refuse, "127.0.0.1", 0) as server, connect(address_of(server)) as socket:
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await socket.recv()
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "not you")


async def test_a_cancelled_receive_loses_no_message(loop):
    async with serve(echo, "127.0.0.1", 0) as server, connect(address_of(server)) as socket:
        for number in range(20):
            receiving = asyncio.create_task(socket.recv())
            await asyncio.sleep(0)
            receiving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await receiving
            await socket.send(str(number))
            assert await socket.recv() == str(number)


async def test_closing_the_server_closes_its_connections(loop):
    server = await serve(echo, "127.0.0.1", 0)
    clients = [await connect(address_of(server)) for _ in range(10)]
    server.close()
    await server.wait_closed()
    for client in clients:
        with pytest.raises(websockets.ConnectionClosedOK) as closed:
            await client.recv()
        assert closed.value.rcvd.code == 1001
        await client.wait_closed()


async def test_tls(loop, certificate, client_tls):
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(certificate.chain, certificate.key)
    async with (
        serve(echo, "127.0.0.1", 0, ssl=server_tls, max_size=None) as server,
        connect(address_of(server, "wss"), ssl=client_tls, max_size=None) as socket,
    ):
        await socket.send(b"s" * 3_000_000)
        assert await socket.recv() == b"s" * 3_000_000
