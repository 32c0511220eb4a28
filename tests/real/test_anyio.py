"""anyio's own primitives on tideloop, as its users ask for a loop: backend_options={"loop_factory": ...}."""

from __future__ import annotations

import functools
import math
import os
import signal
import socket
import ssl
import sys

import pytest
import tideloop

from tests.conftest import open_fds
from tests.real import peers

anyio = peers.package("anyio")
from anyio import from_thread, to_process, to_thread  # noqa: E402
from anyio.abc import SocketAttribute  # noqa: E402
from anyio.streams.tls import TLSListener, TLSStream  # noqa: E402

run = functools.partial(
    anyio.run, backend="asyncio", backend_options={"loop_factory": tideloop.new_event_loop, "debug": False}
)


@pytest.fixture(autouse=True)
def nothing_left():
    before = open_fds().keys()
    yield
    assert open_fds().keys() <= before


async def echo(stream):
    async with stream:
        try:
            async for data in stream:
                await stream.send(data)
        except anyio.EndOfStream:
            pass


async def talk(stream, number):
    async with stream:
        for length in (1, 1000, 300_000):
            message = bytes([number]) * length
            await stream.send(message)
            received = b""
            while len(received) < length:
                received += await stream.receive()
            assert received == message


def test_tcp_with_a_hundred_clients():
    async def main():
        async def client(number):
            await talk(await anyio.connect_tcp("127.0.0.1", port), number)

        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(SocketAttribute.local_port)
            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, echo)
                async with anyio.create_task_group() as clients:
                    for number in range(100):
                        clients.start_soon(client, number)
                group.cancel_scope.cancel()

    run(main)


def test_unix_sockets_with_descriptors(tmp_path):
    async def main():
        async def give(stream):
            async with stream:
                reader, writer = os.pipe()
                with os.fdopen(reader, "rb"), os.fdopen(writer, "wb") as pipe:
                    pipe.write(b"through a pipe")
                    pipe.flush()
                    await stream.send_fds(b"here", [reader])

        async with await anyio.create_unix_listener(tmp_path / "s") as listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, give)
            async with await anyio.connect_unix(tmp_path / "s") as stream:
                message, fds = await stream.receive_fds(10, 1)
                with os.fdopen(fds[0], "rb") as pipe:
                    assert (message, pipe.read()) == (b"here", b"through a pipe")
            group.cancel_scope.cancel()

    run(main)


def test_udp():
    async def main():
        async with (
            await anyio.create_udp_socket(family=socket.AF_INET, local_host="127.0.0.1") as one,
            await anyio.create_connected_udp_socket("127.0.0.1", one.extra(SocketAttribute.local_port)) as other,
        ):
            for number in range(50):
                await other.send(str(number).encode())
                packet, address = await one.receive()
                await one.sendto(packet[::-1], *address)
                assert await other.receive() == str(number).encode()[::-1]

    run(main)


def test_tls(certificate, client_tls):
    async def main():
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_tls.load_cert_chain(certificate.chain, certificate.key)
        inner = await anyio.create_tcp_listener(local_host="127.0.0.1")
        listener, port = TLSListener(inner, server_tls), inner.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            plain = await anyio.connect_tcp("127.0.0.1", port)
            await talk(await TLSStream.wrap(plain, hostname="localhost", ssl_context=client_tls), 7)
            group.cancel_scope.cancel()

    run(main)


def test_subprocesses():
    async def main():
        done = await anyio.run_process([sys.executable, "-c", "print(input()[::-1])"], input=b"anyio\n")
        assert done.stdout == b"oiyna\n"
        async with await anyio.open_process(
            [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(3600)"]
        ) as child:
            assert (await child.stdout.receive()).startswith(b"1")
            child.terminate()
            assert await child.wait() == -signal.SIGTERM

    run(main)


def test_a_cancelled_subprocess_is_ended():
    async def main():
        with anyio.move_on_after(3600) as scope:
            async with await anyio.open_process(
                [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(3600)"]
            ) as child:
                await child.stdout.receive()
                scope.cancel()
                await child.wait()
        assert scope.cancelled_caught
        assert child.returncode == -signal.SIGKILL

    run(main)


def test_threads_both_ways():
    async def main():
        async def double(number):
            await anyio.sleep(0)
            return 2 * number

        def work(number):
            return from_thread.run(double, number) + from_thread.run_sync(int, 1)

        results = {}

        async def one(number):
            results[number] = await to_thread.run_sync(work, number)

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(one, number)
        assert results == {number: 2 * number + 1 for number in range(100)}

    run(main)


def test_a_portal_from_another_thread():
    async def double(number):
        await anyio.sleep(0)
        return 2 * number

    options = {"loop_factory": tideloop.new_event_loop}
    with from_thread.start_blocking_portal("asyncio", options) as portal:
        assert [portal.call(double, number) for number in range(100)] == [2 * number for number in range(100)]
        future = portal.start_task_soon(anyio.sleep_forever)
        future.cancel()


def test_worker_processes():
    async def main():
        assert await to_process.run_sync(math.factorial, 30) == math.factorial(30)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await to_process.run_sync(math.factorial, 5, cancellable=True)
        assert scope.cancelled_caught

    run(main)


def test_cancellation_reaches_every_child_and_shields_hold():
    async def main():
        events = []

        async def child(number):
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.001)
                    events.append(number)

        async def parent():
            async with anyio.create_task_group() as inner:
                for number in range(50):
                    inner.start_soon(child, number)

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as outer:
                outer.start_soon(parent)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        assert sorted(events) == list(range(50))

    run(main)


def test_the_first_error_cancels_the_siblings():
    async def main():
        cancelled = []

        async def sibling():
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                cancelled.append(True)
                raise

        async def fail():
            await anyio.wait_all_tasks_blocked()
            raise LookupError("the first")

        async def family():
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(sibling)
                tasks.start_soon(fail)

        with pytest.raises(ExceptionGroup) as group:
            await family()
        assert [type(error) for error in group.value.exceptions] == [LookupError]
        assert len(cancelled) == 10

    run(main)


def test_deadlines():
    async def main():
        with pytest.raises(TimeoutError), anyio.fail_after(0.01):
            await anyio.sleep_forever()
        with anyio.move_on_after(3600) as outer, anyio.move_on_after(0.01) as inner:
            await anyio.sleep_forever()
        assert (outer.cancelled_caught, inner.cancelled_caught) == (False, True)

    run(main)


def test_memory_streams_and_synchronisation():
    async def main():
        sender, receiver = anyio.create_memory_object_stream(5)
        limiter, received = anyio.CapacityLimiter(3), []

        async def take(own):
            async with own:
                async for item in own:
                    async with limiter:
                        await anyio.sleep(0)
                        received.append(item)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(take, receiver.clone())
            receiver.close()
            async with sender:
                for number in range(500):
                    await sender.send(number)
        assert sorted(received) == list(range(500))

    run(main)


def test_signals():
    async def main():
        with anyio.open_signal_receiver(signal.SIGUSR1, signal.SIGUSR2) as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert await anext(signals) == signal.SIGUSR1
            os.kill(os.getpid(), signal.SIGUSR2)
            assert await anext(signals) == signal.SIGUSR2

    run(main)


def test_files(tmp_path):
    async def main():
        path = anyio.Path(tmp_path) / "file"
        await path.write_text("line\n" * 1000)
        async with await anyio.open_file(path) as file:
            assert [line async for line in file] == ["line\n"] * 1000

    run(main)
