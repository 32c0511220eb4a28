"""hypercorn and httpx in one process on one loop: HTTP/1.1 and HTTP/2, in the clear and over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl

import pytest

from tests.real import peers

httpx = peers.package("httpx")
peers.package("h2")
peers.package("starlette")
config = peers.package("hypercorn.config")
serving = peers.package("hypercorn.asyncio")

from tests.real.asgi_app import app  # noqa: E402

EVERYTHING = hashlib.sha256(b"".join(bytes([number]) * 65536 for number in range(64))).hexdigest()


@contextlib.asynccontextmanager
async def served(certificate=None):
    settings = config.Config()
    settings.bind = ["127.0.0.1:0"]
    settings.loglevel = "ERROR"
    settings.graceful_timeout = 5
    if certificate is not None:
        settings.certfile, settings.keyfile = str(certificate.chain), str(certificate.key)
    sockets = settings.create_sockets()
    settings.create_sockets = lambda: sockets
    listener = (sockets.secure_sockets or sockets.insecure_sockets)[0]
    listener.listen()  # from here on connections wait in the backlog until hypercorn accepts them
    end = asyncio.Event()
    task = asyncio.create_task(serving.serve(app, settings, shutdown_trigger=end.wait))
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        end.set()
        await task


async def exchange(client, http_version):
    answer = await client.get("/loop")
    assert answer.http_version == http_version
    assert answer.json() == "tideloop.EventLoop"
    body = bytes(range(256)) * 10_000
    assert (await client.post("/upload", content=body)).json() == hashlib.sha256(body).hexdigest()

    async def download():
        return hashlib.sha256((await client.get("/download")).content).hexdigest()

    assert set(await asyncio.gather(*(download() for _ in range(10)))) == {EVERYTHING}


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_hypercorn_and_httpx(loop, certificate, client_tls, tls, http2):
    async with (
        served(certificate if tls else None) as address,
        httpx.AsyncClient(
            base_url=address, verify=client_tls if tls else False, http1=not http2, http2=http2, timeout=20
        ) as client,
    ):
        await exchange(client, "HTTP/2" if http2 else "HTTP/1.1")


async def test_an_untrusted_certificate_is_refused(loop, certificate, handled):
    async with served(certificate) as address:
        strangers = ssl.create_default_context()
        async with httpx.AsyncClient(base_url=address, verify=strangers) as client:
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                await client.get("/loop")
    assert [context for context in handled if not isinstance(context.get("exception"), ssl.SSLError)] == []
