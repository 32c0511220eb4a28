"""uvicorn with Starlette, as it is started from a shell: `uvicorn --loop tideloop:new_event_loop`."""

from __future__ import annotations

import asyncio
import hashlib
import re
import signal

import pytest

from tests.real import peers
from tests.real.peers import PYTHON, program

httpx = peers.package("httpx")
websockets = peers.package("websockets")
peers.package("starlette")
peers.package("uvicorn")

EVERYTHING = hashlib.sha256(b"".join(bytes([number]) * 65536 for number in range(64))).hexdigest()


@pytest.fixture(params=["h11", "httptools"])
def server(request):
    """uvicorn as a process of its own, with either of its HTTP parsers; its address and the program."""
    if request.param == "httptools":
        peers.package("httptools")
    command = (*PYTHON, "-m", "uvicorn", "--loop", "tideloop:new_event_loop", "--port", "0")
    options = ("--http", request.param, "--ws", "websockets-sansio", "tests.real.asgi_app:app")
    with program((*command, *options)) as running:
        line = running.wait_for("Uvicorn running on")
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)", line)[1])
        yield f"127.0.0.1:{port}", running


async def fetch_everything(address):
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        assert (await client.get("/loop")).json() == "tideloop.EventLoop"
        assert (await client.get("/thread")).json() == sum(range(1000))
        body = bytes(range(256)) * 20_000
        assert (await client.post("/upload", content=body)).json() == hashlib.sha256(body).hexdigest()

        async def download():
            digest = hashlib.sha256()
            async with client.stream("GET", "/download") as response:
                async for chunk in response.aiter_raw():
                    digest.update(chunk)
            return digest.hexdigest()

        assert set(await asyncio.gather(*(download() for _ in range(20)))) == {EVERYTHING}


async def talk(address):
    async with websockets.connect(f"ws://{address}/talk") as socket:
        for number in range(100):
            await socket.send(f"message {number}")
        assert [await socket.recv() for _ in range(100)] == [f"MESSAGE {number}" for number in range(100)]


@pytest.mark.limit(60)
def test_http_and_websockets_until_sigterm(server, runner):
    address, running = server
    runner.run(fetch_everything(address))
    runner.run(talk(address))
    # uvicorn raises the signal again once it has shut down, so that its parent sees it.
    assert running.end(signal.SIGTERM) == -signal.SIGTERM, running.output
    assert "application ends" in running.output
    assert "Finished server process" in running.output
    for trouble in ("Traceback", "Warning", "never retrieved", "was destroyed"):
        assert trouble not in running.output


@pytest.mark.limit(60)
def test_several_workers(runner):
    """Children that uvicorn's supervisor spawns, all on tideloop and on one port."""

    async def ask():
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            answers = await asyncio.gather(*(client.get("/loop") for _ in range(50)))
        return {answer.json() for answer in answers}

    command = (*PYTHON, "-m", "uvicorn", "--loop", "tideloop:new_event_loop", "--port", "0", "--workers", "2")
    with program((*command, "tests.real.asgi_app:app")) as running:
        line = running.wait_for("Uvicorn running on")
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)", line)[1])
        running.wait_for("Application startup complete")
        assert runner.run(ask()) == {"tideloop.EventLoop"}
        running.end(signal.SIGTERM)
        assert running.output.count("application ends") == running.output.count("application starts") == 2
        # No "Warning" here: on any loop uvicorn's workers leave the socket that they share to the interpreter's end.
        for trouble in ("Traceback", "never retrieved", "was destroyed"):
            assert trouble not in running.output


@pytest.mark.limit(60)
def test_sigint_ends_it_with_connections_open(server, runner):
    address, running = server

    async def interrupt():
        async with websockets.connect(f"ws://{address}/talk") as socket:
            await socket.send("hello")
            assert await socket.recv() == "HELLO"
            running.process.send_signal(signal.SIGINT)
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd.code == 1012  # service restart, as uvicorn says it

    runner.run(interrupt())
    code = running.end()
    assert code in (0, -signal.SIGINT, 130), running.output
    assert "application ends" in running.output
    assert "Warning" not in running.output
