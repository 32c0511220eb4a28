"""The page of `tideloop run --observe-web` in a real Chromium: light and dark, narrow and wide, and what it may not do.

`TIDELOOP_PICTURES=folder` keeps a picture of each; two of them are in `docs/pictures`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.real import peers

playwright = peers.package("playwright.async_api")

WATCHED = Path(__file__).with_name("watched.py")
LOOKS = [
    pytest.param("light", 1280, id="light-wide"),
    pytest.param("dark", 1280, id="dark-wide"),
    pytest.param("light", 390, id="light-narrow"),
    pytest.param("dark", 390, id="dark-narrow"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of a program that runs."""
    runtime = tmp_path_factory.mktemp("runtime")
    process = subprocess.Popen(
        [sys.executable, "-m", "tideloop", "run", "--observe-web", str(WATCHED)],
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "XDG_RUNTIME_DIR": str(runtime),
            "TIDELOOP_BLOCK_THRESHOLD": "0.1",
            "TIDELOOP_OBSERVE": "tasks",
        },
    )
    with process:
        address = process.stderr.readline().split()[-1]
        # What it logs is taken from it: a full pipe would block its loop.
        taken = threading.Thread(target=process.stderr.read)
        taken.start()
        yield address
        process.kill()
        taken.join()


@contextlib.asynccontextmanager
async def browser_page(chromium, **options):
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            yield await browser.new_page(**options)
        finally:
            await browser.close()


async def until(page, condition):
    """Wait for it. (What the page forbids, evaluating strings, Playwright's own way of waiting needs.)"""
    while not await page.evaluate(condition):  # noqa: ASYNC110
        await asyncio.sleep(0.1)


def brightness(colour):
    red, green, blue = (int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
    return (red + green + blue) / 765


@pytest.mark.limit(90)
@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_the_page_shows_what_goes_on(run, chromium, address, scheme, width):
    async def main():
        viewport = {"width": width, "height": 900}
        async with browser_page(chromium, color_scheme=scheme, viewport=viewport) as page:
            complaints, asked = [], []
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            await page.goto(address)
            await page.wait_for_selector("#blocks details", timeout=30_000)
            await until(page, "document.querySelectorAll('#lag polyline').length === 4")
            await until(page, "document.querySelectorAll('#waiting polyline').length >= 2")
            # Enough points for a line.
            await until(page, "document.querySelector('#steps polyline').getAttribute('points').split(' ').length >= 4")
            assert await page.text_content("#program") == "watched.py"
            assert (await page.text_content("#state")).split()[0] in ("live", "blocked")
            # The newest block: its culprit, its cause and its stack; another one where somebody wants to see it.
            block = page.locator("#blocks details").first
            assert await block.locator("pre").is_visible()
            assert "summarise" in await block.text_content()
            assert "watched.py:" in await block.locator("pre").text_content()
            await until(page, "document.querySelectorAll('#blocks details').length >= 2")
            await page.locator("#blocks details").nth(1).locator("summary").click()
            await until(page, "document.querySelectorAll('#blocks details[open]').length >= 2")
            await page.reload()
            await page.wait_for_selector("#blocks details", timeout=30_000)
            await until(page, "document.querySelectorAll('#waiting polyline').length >= 2")
            assert "limiter pages" in await page.text_content("#waiting")
            assert "of 6" in await page.text_content("#gauges")
            assert "fetch" in await page.text_content("#living")
            functions = await page.text_content("#functions")
            assert "crawl" in functions
            assert "fetch" in functions
            assert "crawler-3" in await page.text_content("#tasks")
            ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (brightness(ground) < 0.3) == (scheme == "dark")
            overflow = await page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert overflow <= 0, "nothing sticks out"
            columns = await page.evaluate(
                "new Set([...document.querySelectorAll('section')].map(one => one.getBoundingClientRect().left)).size"
            )
            assert (columns == 1) == (width < 900)
            host = address.partition("?")[0]
            assert [url for url in asked if not url.startswith(host)] == []
            assert complaints == []
            folder = os.environ.get("TIDELOOP_PICTURES")
            if folder:
                await asyncio.sleep(20)  # for lines that are worth a picture
                await page.evaluate("window.scrollTo(0, 0)")
                await page.screenshot(path=f"{folder}/observe-{scheme}-{'wide' if width > 900 else 'narrow'}.png")

    run(main())


@pytest.mark.limit(60)
def test_pages_of_other_origins_read_nothing(run, chromium, address):
    async def main():
        async def other(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/html\r\n\r\nhi")
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        steal = """async address => {
            try {
                const answer = await fetch(address);
                return answer.status + " " + (await answer.text()).slice(0, 20);
            } catch (error) {
                return error.name;
            }
        }"""
        stolen = address.replace("/?", "/v1/loops?")
        async with (
            await asyncio.start_server(other, "127.0.0.1", 0) as elsewhere,
            browser_page(chromium) as page,
        ):
            await page.goto(f"http://127.0.0.1:{elsewhere.sockets[0].getsockname()[1]}/")
            # With the right token.
            assert await page.evaluate(steal, stolen) == "TypeError"
            await page.goto(address)
            assert (await page.evaluate(steal, stolen)).startswith("200 ")
            # Without one, and by another name of this machine.
            assert (await page.goto(address.partition("?")[0])).status == 403
            assert (await page.goto(address.replace("127.0.0.1", "rebound.localhost"))).status == 403

    run(main())


@pytest.mark.limit(60)
def test_nobody_frames_the_page(run, chromium, address):
    async def main():
        async with browser_page(chromium) as page:
            await page.set_content(f"<iframe src='{address}'></iframe>")
            frame = page.frames[-1]
            await page.wait_for_timeout(300)
            assert await frame.locator("#program").count() == 0

    run(main())
