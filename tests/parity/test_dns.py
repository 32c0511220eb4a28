"""getaddrinfo and getnameinfo off the loop, without asking the network."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.backends import deviates
from tests.peers import LOOPBACK


@pytest.fixture(autouse=True)
def no_threads_left(loop):
    yield
    loop.run_until_complete(loop.shutdown_default_executor())


@pytest.mark.parametrize(
    ("host", "port", "arguments"),
    [
        (LOOPBACK, 80, {"type": socket.SOCK_STREAM}),
        (LOOPBACK, 80, {}),
        (LOOPBACK, "80", {"type": socket.SOCK_STREAM}),
        (LOOPBACK, "http", {"type": socket.SOCK_STREAM}),
        (LOOPBACK, 80, {"type": socket.SOCK_DGRAM}),
        (LOOPBACK, None, {"type": socket.SOCK_STREAM}),
        (LOOPBACK, 0, {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP}),
        (b"127.0.0.1", b"80", {"type": socket.SOCK_STREAM}),
        ("127.1", 80, {"type": socket.SOCK_STREAM}),
        ("::1", 80, {"type": socket.SOCK_STREAM}),
        ("::1", 80, {"family": socket.AF_INET6}),
        ("::ffff:127.0.0.1", 80, {"type": socket.SOCK_STREAM}),
        ("localhost", 80, {"type": socket.SOCK_STREAM}),
        ("localhost", 80, {"family": socket.AF_INET, "type": socket.SOCK_STREAM}),
        (None, 80, {"type": socket.SOCK_STREAM}),
        (None, 80, {"type": socket.SOCK_STREAM, "flags": socket.AI_PASSIVE}),
        (LOOPBACK, 80, {"flags": socket.AI_NUMERICHOST, "type": socket.SOCK_STREAM}),
        (LOOPBACK, 80, {"flags": socket.AI_CANONNAME, "type": socket.SOCK_STREAM}),
    ],
    ids=lambda value: str(value) if value != {} else "plain",
)
async def test_answers_as_socket_does(loop, host, port, arguments):
    assert await loop.getaddrinfo(host, port, **arguments) == socket.getaddrinfo(host, port, **arguments)


@deviates("uvloop", "drops the zone")
@pytest.mark.parametrize("host", ["::1%1", "fe80::1%lo"])
async def test_the_zone_is_kept(loop, host):
    arguments = {"type": socket.SOCK_STREAM}
    assert await loop.getaddrinfo(host, 80, **arguments) == socket.getaddrinfo(host, 80, **arguments)


@pytest.mark.parametrize(
    ("host", "port", "arguments"),
    [
        ("name.invalid", 80, {}),
        (LOOPBACK, "no-such-service", {}),
        (LOOPBACK, 80, {"family": socket.AF_INET6}),
        ("::1", 80, {"family": socket.AF_INET}),
        ("localhost", 80, {"flags": socket.AI_NUMERICHOST}),
        (None, None, {}),
    ],
    ids=str,
)
async def test_fails_as_socket_does(loop, host, port, arguments):
    with pytest.raises(socket.gaierror) as expected:
        socket.getaddrinfo(host, port, **arguments)
    with pytest.raises(socket.gaierror) as seen:
        await loop.getaddrinfo(host, port, **arguments)
    assert seen.value.errno == expected.value.errno


async def test_many_at_once(loop):
    answers = await asyncio.gather(
        *(loop.getaddrinfo("localhost", port, family=socket.AF_INET, type=socket.SOCK_STREAM) for port in range(1, 51))
    )
    assert [answer[0][4] for answer in answers] == [(LOOPBACK, port) for port in range(1, 51)]


async def test_cancelled(loop):
    gate = threading.Event()
    with ThreadPoolExecutor(1) as busy:
        loop.set_default_executor(busy)
        busy.submit(gate.wait)
        task = loop.create_task(loop.getaddrinfo("localhost", 80))
        await asyncio.sleep(0)
        task.cancel()
        try:
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            gate.set()


class TestNames:
    @pytest.mark.parametrize("address", [(LOOPBACK, 80), ("::1", 80, 0, 0), ("::1", 80)], ids=str)
    async def test_numbers(self, loop, address):
        flags = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        assert await loop.getnameinfo(address, flags) == (address[0], "80")

    async def test_names(self, loop):
        assert await loop.getnameinfo((LOOPBACK, 80)) == socket.getnameinfo((LOOPBACK, 80), 0)

    @pytest.mark.parametrize("address", [("name.invalid", 80), ("localhost", 80)], ids=str)
    async def test_a_host_must_be_numeric(self, loop, address):
        try:
            expected = socket.getnameinfo(address, 0)
        except OSError as exc:
            with pytest.raises(type(exc)):
                await loop.getnameinfo(address)
        else:
            assert await loop.getnameinfo(address) == expected
