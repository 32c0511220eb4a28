"""trio as a guest of tideloop, and tideloop as a guest of trio."""

from __future__ import annotations

import asyncio

import pytest
import tideloop

from tests.real import peers

trio = peers.package("trio")


async def echo(stream):
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def talk(port, number):
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for length in (1, 1000, 300_000):
            message = bytes([number]) * length
            received = bytearray()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, message)
                while len(received) < length:
                    received += await stream.receive_some(65536)
            assert received == message


async def trio_main():
    async with trio.open_nursery() as server:
        listeners = await server.start(trio.serve_tcp, echo, 0)
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as clients:
            for number in range(30):
                clients.start_soon(talk, port, number)
        with trio.move_on_after(0.01) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert await trio.to_thread.run_sync(sum, range(100)) == 4950
        server.cancel_scope.cancel()
    return "trio is done"


def start_trio(loop, main):
    """Starts trio as a guest of `loop`; a future of its outcome."""
    ended = loop.create_future()
    trio.lowlevel.start_guest_run(
        main,
        run_sync_soon_threadsafe=loop.call_soon_threadsafe,
        run_sync_soon_not_threadsafe=loop.call_soon,
        done_callback=ended.set_result,
        host_uses_signal_set_wakeup_fd=True,
    )
    return ended


async def test_trio_lives_beside_asyncio_on_tideloop(loop):
    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticks = 0
    ticking = asyncio.create_task(tick())
    outcome = await start_trio(loop, trio_main)
    assert outcome.unwrap() == "trio is done"
    ticking.cancel()
    assert ticks > 10


async def test_an_exception_of_trio_arrives(loop):
    async def fail():
        await trio.sleep(0)
        raise LookupError("trio's own")

    outcome = await start_trio(loop, fail)
    with pytest.raises(LookupError, match="trio's own"):
        outcome.unwrap()


async def test_each_talks_to_the_other(loop):
    """An asyncio server on tideloop, and a client in trio, in one thread."""

    async def answer(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def clients():
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(talk, port, number)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        (await start_trio(loop, clients)).unwrap()


@pytest.mark.parametrize("selector", ["default", "polling"])
def test_tideloop_is_a_guest_of_trio(selector):
    async def asyncio_main():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"from asyncio" * 10_000)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async def host():
        nonlocal port
        ended = trio.Event()
        outcomes = []

        def done(outcome):
            outcomes.append(outcome)
            ended.set()

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, echo, 0)
            port = listeners[0].socket.getsockname()[1]
            token = trio.lowlevel.current_trio_token()
            tideloop.guest(
                token.run_sync_soon, done, asyncio_main, loop_factory=lambda: tideloop.EventLoop(selector=selector)
            )
            with trio.fail_after(20):
                await ended.wait()
            nursery.cancel_scope.cancel()
        return outcomes[0].result()

    port = None
    assert trio.run(host) == b"from asyncio" * 10_000
