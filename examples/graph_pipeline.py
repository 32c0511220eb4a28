"""A graph of work: pages are found while it runs, fetched three at a time, counted in a thread, and added up.

``--svg FILE`` leaves a picture of the run.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import tideloop

SITE = {"/": ["/a", "/b"], "/a": ["/a/1", "/a/2"], "/b": ["/a/1", "/b/1"], "/a/1": [], "/a/2": [], "/b/1": []}
TEXT = "a page says what it says "

graph = tideloop.Graph(limits={"http": 3}, name="site")


async def fetch(path: str) -> str:
    """A server that takes its time."""
    await asyncio.sleep(0.01)
    return f"{TEXT * 50}{path}"


def count(page: str) -> Counter[str]:
    """What would block the loop if it were larger."""
    return Counter(page.split())


def crawl(path: str) -> Callable[[], None]:
    """What adds the nodes of a page, and has its links crawled behind it."""

    def found() -> None:
        run = tideloop.graph_run()
        page = run.node(lambda: fetch(path), name=f"fetch {path}", limit="http", retry=3, timeout=5)
        words = run.node(count, [page], name=f"count {path}", where="thread")
        run.add_edge(words, "total")
        for link in SITE[path]:
            if f"crawl {link}" not in run.results:
                # The sum is made once all that was found by then has ended.
                run.add_edge(run.node(crawl(link), after=[page], name=f"crawl {link}"), "total")

    return found


@graph.node(after=[graph.node(crawl("/"), name="crawl /")])
def total() -> Counter[str]:
    """All that was counted."""
    results = tideloop.graph_run().results
    return sum((results[f"count {path}"] for path in SITE), Counter())


async def main() -> tideloop.GraphResult:
    results = await graph.run(on_error="fail_fast")
    words = results[total]
    print(f"{words['page']} times 'page' on {len(SITE)} pages, {len(results)} nodes")
    print("critical path:", " > ".join(node.name for node in results.critical_path))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", choices=["asyncio", "tideloop"], default="tideloop")
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    runs = asyncio.run if options.loop == "asyncio" else tideloop.run
    results = runs(main())
    if options.svg is not None:
        options.svg.write_text(results.to_svg())
