"""Fifty HTTP requests to a server that answers after a delay: one by one, on threads, and on an event loop.

The server is a process of its own (`tideloop.lab.delay_server`) and the same for every approach. With 50 answers that
take 20 ms each, one by one cannot take less than a second, ten threads not less than 100 ms and a loop not less than
20 ms; what is above that is the approach's own cost.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter, process_time

from tideloop.lab.bodies import WrongResult, expect
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params

# (status, body) of each answer, in the order of the requests.
Answers = list[tuple[int, str]]
TIMEOUT = 5.0


def measure(kit: Kit, params: Params) -> dict[str, float]:
    with _delay_server(params["delay_s"]) as base:
        urls = [f"{base}/delay?id={index}" for index in range(params["requests"])]
        approach = _approach(kit, params)
        approach(urls[:1])  # warm-up: imports, the first connection
        cpu = process_time()
        start = perf_counter()
        answers = approach(urls)
        duration = perf_counter() - start
        cpu = process_time() - cpu
    expect("answers", answers, [(200, f"answer {index}") for index in range(len(urls))])
    return {
        "requests": len(urls),
        "delay_s": params["delay_s"],
        "duration_s": duration,
        "total_ms": duration * 1e3,
        "requests_per_sec": len(urls) / duration,
        "cpu_ms": cpu * 1e3,
    }


def _approach(kit: Kit, params: Params) -> Callable[[list[str]], Answers]:
    if kit.backend.name == "sequential":
        return lambda urls: [_fetch(url) for url in urls]
    if kit.backend.name == "threads":
        return lambda urls: _on_threads(urls, params["threads"])
    import aiohttp

    async def fetch(session: aiohttp.ClientSession, url: str) -> tuple[int, str]:
        async with session.get(url) as response:
            return response.status, await response.text()

    async def fetch_all(urls: list[str]) -> Answers:
        async with aiohttp.ClientSession() as session:
            return list(await asyncio.gather(*[fetch(session, url) for url in urls]))

    return lambda urls: kit.run(lambda: fetch_all(urls))


def _on_threads(urls: list[str], threads: int) -> Answers:
    with ThreadPoolExecutor(max_workers=threads) as pool:
        return list(pool.map(_fetch, urls))


def _fetch(url: str) -> tuple[int, str]:
    import requests

    response = requests.get(url, timeout=TIMEOUT)
    return response.status_code, response.text


@contextmanager
def _delay_server(delay: float) -> Iterator[str]:
    """The base address of a running server; it ends when its standard input closes."""
    command = [sys.executable, "-m", "tideloop.lab.delay_server", str(delay)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        if not port:
            raise WrongResult("the delay server did not start")
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stdin.close()
