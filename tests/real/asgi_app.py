"""The Starlette application that uvicorn and hypercorn serve."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute


@asynccontextmanager
async def lifespan(app):
    print("application starts", flush=True)
    yield
    print("application ends", flush=True)


async def which_loop(request):
    loop = asyncio.get_running_loop()
    return JSONResponse(f"{type(loop).__module__.partition('.')[0]}.{type(loop).__qualname__}")


async def upload(request):
    digest = hashlib.sha256()
    async for chunk in request.stream():
        digest.update(chunk)
    return JSONResponse(digest.hexdigest())


async def download(request):
    async def blocks():
        for number in range(64):
            yield bytes([number]) * 65536

    return StreamingResponse(blocks())


async def in_a_thread(request):
    return JSONResponse(await asyncio.to_thread(sum, range(1000)))


async def talk(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())


app = Starlette(
    routes=[
        Route("/loop", which_loop),
        Route("/upload", upload, methods=["POST"]),
        Route("/download", download),
        Route("/thread", in_a_thread),
        WebSocketRoute("/talk", talk),
    ],
    lifespan=lifespan,
)
