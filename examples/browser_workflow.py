"""Steps of a workflow in pages of one browser: each begins when those before it are done, three contexts serve all.

    python examples/browser_workflow.py --chromium /usr/bin/chromium [--articles 12]

Needs Playwright (`pip install playwright`) and a Chromium. The site is a server of the program's own, on loopback. A
browser context is a browser's profile: cookies, storage, cache. Making one costs time and memory, so they are pooled;
`reset` wipes the cookies, permissions and pages that a borrower has left. Runs on any asyncio loop.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import tideloop
from playwright.async_api import Browser, BrowserContext, async_playwright

Work = Callable[[BrowserContext], Awaitable[str]]


@dataclass(frozen=True)
class Step:
    """What is done in a context, and which steps have to be done before."""

    work: Work
    after: tuple[str, ...] = ()


async def run_workflow(steps: dict[str, Step], contexts: tideloop.Pool[BrowserContext]) -> dict[str, str]:
    """The steps' results by name. Who waits for another step holds no context; the first error cancels what is left."""

    async def run(step: Step) -> str:
        for name in step.after:
            await handles[name].wait()
        async with contexts.acquire() as context:
            return await step.work(context)

    handles: dict[str, tideloop.TaskHandle[str]] = {}
    async with tideloop.group(name="workflow") as group:
        for name, step in steps.items():
            handles[name] = group.spawn(run, step, key=name)
    return {name: handle.result() for name, handle in handles.items()}


def pool_of(browser: Browser, size: int) -> tideloop.Pool[BrowserContext]:
    """A pool of a browser's contexts."""

    async def create() -> BrowserContext:
        return await browser.new_context()

    async def close(context: BrowserContext) -> None:
        await context.close()

    async def wipe(context: BrowserContext) -> None:
        for page in context.pages:
            await page.close()
        await context.clear_cookies()
        await context.clear_permissions()

    return tideloop.Pool(
        create,
        close,
        reset=wipe,
        check=lambda _: browser.is_connected(),
        max=size,
        max_uses=50,  # a browser's contexts grow with use
        acquire_timeout=60,
        leak_after=120,
        name="browser contexts",
    )


# --- a site, and what is done on it --------------------------------------------------------------


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A page whose heading is its path, and a cookie; below it stands the cookie that the browser brought."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        path = head.split(" ", 2)[1]
        brought = next((line[8:] for line in head.split("\r\n") if line.lower().startswith("cookie: ")), "no cookie")
        page = f"<!doctype html><title>{path}</title><h1>{path}</h1><p id=cookie>{brought}</p>".encode()
        answer = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\nConnection: close\r\n"
        if path != "/favicon.ico":  # which browsers ask for by themselves
            answer += f"Set-Cookie: last={path}; Path=/\r\n"
        writer.write(f"{answer}\r\n".encode() + page)
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # a browser opens connections in advance, and lets go of them
    finally:
        writer.close()


def visit(address: str) -> Work:
    """Opens a page and returns its heading and the cookie that it was asked with."""

    async def work(context: BrowserContext) -> str:
        page = await context.new_page()
        await page.goto(address)
        heading = await page.text_content("h1")
        return f"{heading}: {await page.text_content('#cookie')}"

    return work


async def main(chromium: str, articles: int) -> tuple[dict[str, str], tideloop.PoolStats]:
    """An index, articles beside each other after it, and a summary after all of them."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        site = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        names = [f"article{number}" for number in range(articles)]
        steps = {"index": Step(visit(f"{site}/index"))}
        steps |= {name: Step(visit(f"{site}/{name}"), after=("index",)) for name in names}
        steps["summary"] = Step(visit(f"{site}/summary"), after=tuple(names))
        async with async_playwright() as driver:
            browser = await driver.chromium.launch(executable_path=chromium)
            try:
                async with pool_of(browser, 3) as contexts:
                    results = await run_workflow(steps, contexts)
                    return results, contexts.stats()
            finally:
                await browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", required=True, help="path of the browser")
    parser.add_argument("--articles", type=int, default=12)
    options = parser.parse_args()
    found, stats = tideloop.run(main(options.chromium, options.articles))
    for name, text in found.items():
        print(f"{name}: {text}")
    print(f"{stats.lent} loans of {stats.created} contexts, waited {stats.waited:.2f} s together")
