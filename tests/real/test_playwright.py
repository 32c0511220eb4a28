"""Playwright's driver, a process spoken to through pipes; without a browser, through its HTTP client."""

from __future__ import annotations

import asyncio

import pytest

from tests.real import peers

playwright = peers.package("playwright.async_api")


async def answer(reader, writer):
    request = await reader.readuntil(b"\r\n\r\n")
    path = request.split(b" ")[1]
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(path), path))
    await writer.drain()
    writer.close()
    await writer.wait_closed()


@pytest.mark.limit(60)
def test_requests_through_the_driver(run):
    async def main():
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with playwright.async_playwright() as driver:
                assert driver.chromium.name == "chromium"
                client = await driver.request.new_context(base_url=address)
                responses = await asyncio.gather(*(client.get(f"/page/{number}") for number in range(20)))
                texts = [await response.text() for response in responses]
                with pytest.raises(playwright.Error, match="ECONNREFUSED"):
                    await client.get("http://127.0.0.1:1/")
                await client.dispose()
        assert texts == [f"/page/{number}" for number in range(20)]

    run(main())
