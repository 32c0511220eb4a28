"""A crawl from end to end: lists in pages, documents fetched, parsed off the loop, and written to SQLite in batches.

    python examples/crawl_pipeline.py
    python examples/crawl_pipeline.py --dask                       (a cluster of processes on this machine, for the run)
    python examples/crawl_pipeline.py --dask tcp://scheduler:8786  (a cluster that is there)

Dask comes with ``pip install 'tideloop[dask]'``.
The sites are small servers in this program, on loopback, which count who is inside. Of each site two documents are
fetched at once. Parsing runs in processes, or on the cluster: there `parse` and `weigh` of a document go as one
submission, and what is between them stays there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import tideloop

SITES = ("alpha", "beta", "gamma")
PAGES, ENTRIES = 3, 4
PER_SITE = 2
BATCH = 8


class Sites:
    """Three servers, each with lists and documents: one line with a path, and the answer until the end."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self.inside: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[Sites]:
        async with contextlib.AsyncExitStack() as stack:
            for site in SITES:

                async def answer(reader: Any, writer: Any, site: str = site) -> None:
                    with contextlib.suppress(ConnectionError), contextlib.closing(writer):
                        writer.write((await self._answer(site, (await reader.readline()).decode().split())).encode())
                        await writer.drain()

                server = await stack.enter_async_context(await asyncio.start_server(answer, "127.0.0.1", 0))
                self.ports[site] = server.sockets[0].getsockname()[1]
            yield self

    async def _answer(self, site: str, path: Sequence[str]) -> str:
        kind, number = path[0], int(path[1])
        if kind == "list":
            first = (number - 1) * ENTRIES
            return json.dumps(list(range(first, first + ENTRIES)) if number <= PAGES else [])
        self.inside[site] += 1
        self.most[site] = max(self.most[site], self.inside[site])
        await asyncio.sleep(0.002)
        self.inside[site] -= 1
        return f"<title>{site} {number}</title><p>{'a word of many ' * (number + 1)}</p>"

    async def get(self, site: str, path: str) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[site])
        with contextlib.closing(writer):
            writer.write(f"{path}\n".encode())
            return (await reader.read()).decode()


# --- what blocks: runs in processes, or on the cluster ------------------------------------------


class Document(NamedTuple):
    title: str
    words: list[str]


def parse(text: str) -> Document:
    """The words of a document, which are many."""
    title, body = re.findall(r"<title>(.*)</title><p>(.*)</p>", text)[0]
    return Document(title, body.split())


def weigh(document: Document) -> tuple[str, int, str]:
    """What is kept of it."""
    return document.title, len(document.words), max(set(document.words), key=lambda word: (len(word), word))


# --- the pipeline ---------------------------------------------------------------------------------


def pipeline(sites: Sites, database: sqlite3.Connection, where: str) -> tideloop.Graph:
    """Everything but where it runs is the same on one machine and on a cluster."""
    graph = tideloop.Graph(limits=dict.fromkeys(SITES, PER_SITE), name="crawl")

    def insert(rows: list[tuple[str, int, str]]) -> list[None]:
        with database:
            database.executemany("INSERT INTO documents VALUES (?, ?, ?)", rows)
            database.execute("INSERT INTO batches VALUES (?)", (len(rows),))
        return [None] * len(rows)

    @tideloop.batched(max_size=BATCH, window=0.02, max_inflight=1)
    async def write(rows: list[tuple[str, int, str]]) -> list[None]:
        return await tideloop.run_blocking(insert, rows)

    async def store(row: tuple[str, int, str]) -> None:
        await write(row)

    async def crawl(site: str) -> None:
        """Adds the documents of a site while its lists are being read."""
        run = tideloop.graph_run()

        async def entries(number: int) -> list[int]:
            found: list[int] = json.loads(await sites.get(site, f"list {number}"))
            return found

        async for entry in tideloop.paginate(entries):
            name = f"{site} {entry}"
            page = run.node(
                lambda entry=entry: sites.get(site, f"document {entry}"),
                name=f"fetch {name}",
                limit=site,
                retry=3,
                timeout=5,
            )
            document = run.node(parse, [page], name=f"parse {name}", where=where, retry=2)
            row = run.node(weigh, [document], name=f"weigh {name}", where=where, retry=2)
            run.node(store, [row], name=f"store {name}")

    for site in SITES:
        graph.node(lambda site=site: crawl(site), name=f"crawl {site}")
    return graph


@contextlib.asynccontextmanager
async def cluster(address: str | None) -> AsyncIterator[Any]:
    """A client of the cluster that was asked for, if one was."""
    if address is None:
        yield None
        return
    import distributed

    async with contextlib.AsyncExitStack() as stack:
        target: Any = address
        if address == "here":
            made = distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", asynchronous=True
            )
            target = await stack.enter_async_context(made)
        yield await stack.enter_async_context(distributed.Client(target, asynchronous=True))


async def main(address: str | None, path: str) -> None:
    with contextlib.closing(sqlite3.connect(path, check_same_thread=False)) as database:
        database.execute("CREATE TABLE documents (title TEXT PRIMARY KEY, words INTEGER, longest TEXT)")
        database.execute("CREATE TABLE batches (rows INTEGER)")
        async with Sites().serve() as sites, cluster(address) as client:
            graph = pipeline(sites, database, "process" if client is None else "dask")
            results = await graph.run(dask=client)
        (count, words), (batches,) = (
            database.execute(f"SELECT {what}").fetchone()
            for what in ("count(*), sum(words) FROM documents", "count(*) FROM batches")
        )
        print(f"{count} documents of {len(SITES)} sites, {words} words")
        print(f"at most {max(sites.most.values())} of a site at once; {len(results)} nodes")
        print(f"fewer batches than documents: {batches < count}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dask", nargs="?", const="here", metavar="ADDRESS", help="parse on a Dask cluster")
    parser.add_argument("--database", default=":memory:")
    parser.add_argument("--loop", choices=["asyncio", "tideloop"], default="tideloop")
    options = parser.parse_args()
    if options.dask is not None:
        importlib.import_module("distributed")  # takes a second, for which the loop would be blocked
    runs = asyncio.run if options.loop == "asyncio" else tideloop.run
    runs(main(options.dask, options.database))
