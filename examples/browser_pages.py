"""Pages of one Chromium, each with a browser context of its own, lent by a pool and recycled after some uses.

python examples/browser_pages.py /usr/bin/chromium
"""

import asyncio
import sys

import tideloop
from playwright.async_api import Page, async_playwright


async def main(chromium: str) -> None:
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        async def open_page() -> Page:
            # What a context remembers, like cookies, ends with it.
            context = await browser.new_context()
            return await context.new_page()

        async def close_page(page: Page) -> None:
            await page.context.close()

        async def clean(page: Page) -> None:
            await page.goto("about:blank")

        # Contexts grow with use: each goes after five, and its successor is there before.
        async with tideloop.Pool(
            open_page, close_page, reset=clean, check=lambda page: not page.is_closed(), min=1, max=3, max_uses=5
        ) as pages:

            async def title(number: int) -> str:
                async with pages.acquire() as page:
                    await page.set_content(f"<title>page {number}</title>")
                    return await page.title()

            titles = [found async for found in tideloop.amap(title, range(20), limit=6, ordered=True)]
            stats = pages.stats()
            print("all right:", titles == [f"page {number}" for number in range(20)])
            print("at most 3 contexts:", len(browser.contexts) <= 3, "recycled:", stats.retired >= 3)
        print("left:", len(browser.contexts))
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1])) if "--loop=asyncio" in sys.argv else tideloop.run(main(sys.argv[1]))
