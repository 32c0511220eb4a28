"""aiohttp, server and client, both on tideloop: bodies both ways, WebSockets, many at once, TLS, the end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl

import pytest

from tests.real import peers

aiohttp = peers.package("aiohttp")
from aiohttp import web  # noqa: E402

MIB = 1024 * 1024


@contextlib.asynccontextmanager
async def served(app, **options):
    """The address of an application on an ephemeral port."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, **options).start()
        scheme = "https" if options.get("ssl_context") else "http"
        yield f"{scheme}://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def client(timeout=None, **options):
    """A session. Names are resolved in the loop's executor: with aiodns installed aiohttp would ask c-ares, whose
    thread closes its descriptors some time after the session is closed."""
    connector = aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver(), **options)
    return aiohttp.ClientSession(connector=connector, timeout=timeout or aiohttp.ClientTimeout(total=20))


def application(*routes):
    app = web.Application(client_max_size=64 * MIB)
    app.add_routes(routes)
    return app


async def digest_upload(request):
    digest, length = hashlib.sha256(), 0
    async for chunk in request.content.iter_chunked(65536):
        digest.update(chunk)
        length += len(chunk)
    return web.json_response({"digest": digest.hexdigest(), "length": length})


async def test_a_streamed_upload_arrives_whole(loop):
    blocks = [bytes([number % 256]) * 70_001 for number in range(200)]  # 14 MB, not a multiple of anything

    async def body():
        for block in blocks:
            yield block

    async with (
        served(application(web.post("/", digest_upload))) as address,
        client() as session,
        session.post(address, data=body()) as response,
    ):
        answer = await response.json()
    assert answer == {"digest": hashlib.sha256(b"".join(blocks)).hexdigest(), "length": 200 * 70_001}


async def test_a_streamed_download_waits_for_its_reader(loop):
    """The server may not run ahead of a client that does not read: that is the flow control of both ends."""
    sent = 0

    async def stream(request):
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(256):
            await response.write(bytes([number]) * 256 * 1024)
            sent = number + 1
        return response

    async with (
        served(application(web.get("/", stream))) as address,
        client() as session,
        session.get(address) as response,
    ):
        first = await response.content.readexactly(1)
        for _ in range(200):
            await asyncio.sleep(0)
        assert first == b"\0"
        assert sent < 256
        digest, length = hashlib.sha256(first), 1
        async for chunk in response.content.iter_any():
            digest.update(chunk)
            length += len(chunk)
    assert length == 64 * MIB
    expected = hashlib.sha256()
    for number in range(256):
        expected.update(bytes([number]) * 256 * 1024)
    assert digest.digest() == expected.digest()


async def test_a_file_is_sent(loop, tmp_path):
    """FileResponse uses loop.sendfile."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 20_000)

    async def send(request):
        return web.FileResponse(path)

    async with served(application(web.get("/", send))) as address, client() as session:
        async with session.get(address) as response:
            assert await response.read() == path.read_bytes()
        async with session.get(address, headers={"Range": "bytes=1000000-1000009"}) as response:
            assert response.status == 206
            assert await response.read() == path.read_bytes()[1_000_000:1_000_010]


async def test_two_hundred_requests_at_once(loop):
    """All two hundred are in their handlers together before the first is answered."""
    everyone = asyncio.Barrier(200)

    async def meet(request):
        await everyone.wait()
        return web.Response(text=request.match_info["name"] * 500)

    async with (
        served(application(web.get("/{name}", meet))) as address,
        client(limit=0) as session,
    ):

        async def fetch(number):
            async with session.get(f"{address}/{number}") as response:
                assert response.status == 200
                return await response.text()

        texts = await asyncio.gather(*(fetch(number) for number in range(200)))
    assert texts == [str(number) * 500 for number in range(200)]


async def test_connections_are_kept_and_reused(loop):
    peers_seen = set()

    async def who(request):
        peers_seen.add(request.transport.get_extra_info("peername"))
        return web.Response()

    async with served(application(web.get("/", who))) as address, client() as session:
        for _ in range(20):
            async with session.get(address) as response:
                await response.read()
    assert len(peers_seen) == 1


async def test_websockets_both_ways(loop):
    async def talk(request):
        socket = web.WebSocketResponse(heartbeat=30)
        await socket.prepare(request)
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                await socket.send_str(message.data.upper())
            elif message.type is aiohttp.WSMsgType.BINARY:
                await socket.send_bytes(message.data[::-1])
        closed.set_result(socket.close_code)
        return socket

    closed = loop.create_future()
    large = bytes(range(256)) * 8192  # 2 MiB
    async with served(application(web.get("/", talk))) as address, client() as session:
        async with session.ws_connect(address, max_msg_size=4 * MIB) as socket:
            for number in range(100):
                await socket.send_str(f"message {number}")
            for number in range(100):
                assert await socket.receive_str() == f"MESSAGE {number}"
            await socket.send_bytes(large)
            assert await socket.receive_bytes() == large[::-1]
            await socket.ping()
            await socket.close(code=4000)
        assert await closed == 4000


async def test_a_client_that_gives_up_cancels_nothing_else(loop):
    started, left = asyncio.Event(), asyncio.Event()

    async def slow(request):
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            left.set()

    async def quick(request):
        return web.Response(text="quick")

    app = application(web.get("/slow", slow), web.get("/quick", quick))
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with client() as session:
        request = asyncio.ensure_future(session.get(f"{address}/slow"))
        await started.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await left.wait()  # the server saw the connection go, and cancelled the handler
        async with session.get(f"{address}/quick") as response:
            assert await response.text() == "quick"
    await runner.cleanup()


async def test_a_timeout_of_the_client(loop):
    async def slow(request):
        await asyncio.sleep(3600)

    timeout = aiohttp.ClientTimeout(total=0.05)
    app = application(web.get("/", slow))
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with client(timeout) as session:
        with pytest.raises(TimeoutError):
            await session.get(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    await runner.cleanup()


async def test_shutdown_lets_a_running_request_end(loop):
    started, release = asyncio.Event(), asyncio.Event()

    async def slow(request):
        started.set()
        await release.wait()
        return web.Response(text="in time")

    runner = web.AppRunner(application(web.get("/", slow)), access_log=None, shutdown_timeout=20)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    async with client() as session:
        request = asyncio.ensure_future(session.get(address))
        await started.wait()
        cleanup = asyncio.ensure_future(runner.cleanup())
        while True:  # until the listening socket is closed
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", int(address.rsplit(":")[-1][:-1]))
            except ConnectionRefusedError:
                break
            writer.close()
            await asyncio.sleep(0)
        release.set()
        response = await request
        assert await response.text() == "in time"
        await cleanup


async def test_tls_with_many_requests(loop, certificate, client_tls):
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(certificate.chain, certificate.key)
    async with (
        served(application(web.post("/", digest_upload)), ssl_context=server_tls) as address,
        client(ssl=client_tls, limit=10) as session,
    ):

        async def send(number):
            body = bytes([number]) * (number * 20_000)
            async with session.post(address, data=body) as response:
                answer = await response.json()
            assert answer == {"digest": hashlib.sha256(body).hexdigest(), "length": len(body)}

        await asyncio.gather(*(send(number) for number in range(40)))


async def test_a_unix_socket(loop, tmp_path):
    path = str(tmp_path / "s")
    runner = web.AppRunner(application(web.post("/", digest_upload)), access_log=None)
    await runner.setup()
    await web.UnixSite(runner, path).start()
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session,
        session.post("http://anything/", data=b"x" * MIB) as response,
    ):
        assert (await response.json())["length"] == MIB
    await runner.cleanup()
