"""A real aiohttp server and a real aiohttp client: 200 pages over loopback, each one checked.

    python examples/aiohttp_pages.py                 on stock asyncio
    python examples/aiohttp_pages.py --loop tideloop on tideloop
    tideloop run examples/aiohttp_pages.py           the same without a word about it in the program
    python examples/aiohttp_pages.py --compare       both, in fresh processes that take turns

The server is a process of its own, on the loop that --loop names or else on asyncio. Nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from statistics import median

import aiohttp
from aiohttp import web

PAGES = 200
VISITS = 5
CONCURRENCY = 20
ROUNDS = 9
LOOPS = ("asyncio", "tideloop")


@cache
def page(number: int) -> str:
    """Page `number`: from half a kilobyte to 40 KB of text that only this page has."""
    line = hashlib.sha256(str(number).encode()).hexdigest()
    return f"<h1>Page {number}</h1>\n" + f"<p>{line}</p>\n" * (6 + number * 37 % 500)


# --- the server ---------------------------------------------------------------------------------


async def serve() -> None:
    """Serves pages and its own CPU time until its standard input closes; prints its port first."""

    async def show_page(request: web.Request) -> web.Response:
        return web.Response(text=page(int(request.match_info["number"])), content_type="text/html")

    async def show_cpu(_: web.Request) -> web.Response:
        return web.json_response(time.process_time())

    app = web.Application()
    app.add_routes([web.get("/pages/{number:[0-9]+}", show_page), web.get("/cpu", show_cpu)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


@contextmanager
def running_server(loop: str) -> Iterator[str]:
    """The address of a server process on the given loop."""
    command = (sys.executable, __file__, "--serve", "--loop", loop)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            port = server.stdout.readline().strip()
            if not port:
                raise SystemExit("aiohttp_pages: the server did not start; its own message is above")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stdin.close()


# --- the client ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fetched:
    loop: str
    # All visits together.
    pages: int
    bytes: int
    wall_ms_per_page: float
    client_cpu_ms_per_page: float
    server_cpu_ms_per_page: float

    @property
    def cpu_ms_per_page(self) -> float:
        return self.client_cpu_ms_per_page + self.server_cpu_ms_per_page


async def fetch_all(session: aiohttp.ClientSession) -> int:
    """Fetches and checks every page, at most CONCURRENCY at a time; returns how many bytes came."""
    places = asyncio.Semaphore(CONCURRENCY)

    async def fetch(number: int) -> int:
        async with places, session.get(f"/pages/{number}") as response:
            text = await response.text()
        if response.status != 200 or text != page(number):
            raise SystemExit(f"aiohttp_pages: page {number} came back wrong (status {response.status})")
        return len(text)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(fetch(number)) for number in range(PAGES)]
    return sum(task.result() for task in tasks)


async def visit(address: str) -> Fetched:
    """Warms the server up with one visit to all pages, and measures the following ones."""

    async def server_cpu() -> float:
        async with session.get("/cpu") as response:
            return float(await response.json())

    async with aiohttp.ClientSession(address) as session:
        await fetch_all(session)
        server, client, start = await server_cpu(), time.process_time(), time.perf_counter()
        size = sum([await fetch_all(session) for _ in range(VISITS)])
        wall, client = time.perf_counter() - start, time.process_time() - client
        server = await server_cpu() - server
    kind = type(asyncio.get_running_loop())
    return Fetched(
        loop=f"{kind.__module__.partition('.')[0]}.{kind.__name__}",
        pages=PAGES * VISITS,
        bytes=size,
        wall_ms_per_page=wall / (PAGES * VISITS) * 1e3,
        client_cpu_ms_per_page=client / (PAGES * VISITS) * 1e3,
        server_cpu_ms_per_page=server / (PAGES * VISITS) * 1e3,
    )


# --- the comparison -----------------------------------------------------------------------------


def compare() -> None:
    """Visits on each loop in turn, each time in fresh processes, and prints medians with their range."""
    visits: dict[str, list[Fetched]] = {loop: [] for loop in LOOPS}
    for turn in range(1, ROUNDS + 1):
        for loop in random.sample(LOOPS, len(LOOPS)):
            tell(f"fetching {PAGES} pages on {loop}, {turn} of {ROUNDS} ...")
            visits[loop].append(visit_in_fresh_process(loop))
    tell("")

    one = visits[LOOPS[0]][0]
    print(f"aiohttp {aiohttp.__version__}, server and client on the same kind of loop, each its own process:")
    print(f"{PAGES} pages of {one.bytes / one.pages / 1000:.0f} KB on average, {VISITS} times, every one checked,")
    print(f"{CONCURRENCY} at a time; median of {ROUNDS} fresh runs that took turns (lowest to highest).\n")
    rows: list[tuple[str, Callable[[Fetched], float]]] = [
        ("time per page, ms", lambda run: run.wall_ms_per_page),
        ("CPU per page, ms", lambda run: run.cpu_ms_per_page),
        ("  of that client", lambda run: run.client_cpu_ms_per_page),
        ("  of that server", lambda run: run.server_cpu_ms_per_page),
    ]
    print(f"{'':<18}" + "".join(f"  {loop:>26}" for loop in LOOPS) + f"  {'asyncio / tideloop':>18}")
    for name, figure in rows:
        columns = [[figure(run) for run in visits[loop]] for loop in LOOPS]
        cells = "".join(f"  {with_range(values):>26}" for values in columns)
        # Neighbours in time are compared, so that a slow minute of the machine does not count against one side.
        ratio = median(first / second for first, second in zip(*columns, strict=True))
        print(f"{name:<18}{cells}  {ratio:>17.2f}x")


def tell(text: str) -> None:
    """A line that the next one overwrites; nothing when nobody watches."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}\r", end="", file=sys.stderr, flush=True)


def with_range(values: Sequence[float]) -> str:
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def visit_in_fresh_process(loop: str) -> Fetched:
    command = (sys.executable, __file__, "--loop", loop, "--json")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"\naiohttp_pages: the run on {loop} ended with code {done.returncode}; see above")
    return Fetched(**json.loads(done.stdout))


# --- the command --------------------------------------------------------------------------------


def loop_factory(name: str | None) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """For asyncio.Runner; None keeps whatever `asyncio.run` would use."""
    if name is None:
        return None
    module = importlib.import_module(name)
    if not hasattr(module, "new_event_loop"):
        raise SystemExit(f"aiohttp_pages: this {name} has no new_event_loop; build it with `make build`")
    factory: Callable[[], asyncio.AbstractEventLoop] = module.new_event_loop
    return factory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=LOOPS, help="the loop to run on (default: the one that is installed)")
    parser.add_argument("--compare", action="store_true", help="stock asyncio against tideloop")
    parser.add_argument("--json", action="store_true", help="print the figures of one visit as JSON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compare:
        loop_factory("tideloop")
        compare()
        return
    with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
        if options.serve:
            runner.run(serve())
            return
        with running_server(options.loop or "asyncio") as address:
            fetched = runner.run(visit(address))
    if options.json:
        print(json.dumps(asdict(fetched)))
        return
    print(f"{PAGES} pages, {VISITS} times, {fetched.bytes / 1e6:.1f} MB, all as they should be, on {fetched.loop}")
    print(f"{fetched.wall_ms_per_page:.3f} ms and {fetched.cpu_ms_per_page:.3f} ms of CPU per page")


if __name__ == "__main__":
    main()
