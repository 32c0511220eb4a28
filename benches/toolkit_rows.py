"""The rows of ``toolkit.py``: what is done, by whom, so many times; and what one run of it comes to.

A body does so many operations with what a contender makes, and returns a sample: the nanoseconds of CPU time that each
of them took, set-up excluded, and whatever else the row tells.
"""

from __future__ import annotations

import asyncio
import functools
import graphlib
import importlib
import statistics
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import tideloop
from toolkit_adaptive import LIMITS, STEPS, least_share  # beside this file
from toolkit_services import POLICIES, POOLS  # beside this file
from toolkit_shared import asking, limiter, rate_limiter  # beside this file

Sample = dict[str, float]
Body = Callable[[Any, int], Awaitable[Sample]]
Make = Callable[[], Any]


@dataclass(frozen=True)
class Metric:
    """One number of a sample: its name, how it is written, and whether it is a cost, to be compared as a ratio."""

    name: str
    form: str = ",.0f"
    lower_is_better: bool = True


NS = Metric("ns")


@dataclass(frozen=True)
class Row:
    """One operation, and who does it: name of the contender to what makes the thing, the reference first."""

    name: str
    what: str
    operations: int
    contenders: dict[str, Make]
    body: Body | None = None
    simulated: Callable[[str, int, int], Sample] | None = None
    """Instead of a body: contender, operations and seed to a sample; needs no loop."""
    goal: str = ""
    metrics: tuple[Metric, ...] = (NS,)

    @property
    def reference(self) -> str:
        """The first contender, which is never one that may be missing."""
        return next(iter(self.contenders))


def of(module: str, name: str, *args: Any, **kwargs: Any) -> Make:
    """What makes an object of a class that is imported when it is wanted."""
    return lambda: getattr(importlib.import_module(module), name)(*args, **kwargs)


def needing(module: str, function: Any) -> Make:
    """A contender that is a function, and imports a module that may be missing."""

    def make() -> Any:
        importlib.import_module(module)
        return function

    return make


@contextmanager
def spent(count: int) -> Iterator[Sample]:
    """The CPU time of a block, per operation."""
    sample: Sample = {}
    began = time.process_time()
    yield sample
    sample["ns"] = (time.process_time() - began) / count * 1e9


async def done(function: Callable[[int], Awaitable[Any]], count: int) -> Sample:
    """For contenders that are functions."""
    with spent(count) as sample:
        await function(count)
    return sample


# --- queues --------------------------------------------------------------------------------------

BOUND = 1024


async def two_tasks(ends: Any, count: int) -> Sample:
    put, get = ends

    async def produce() -> None:
        for item in range(count):
            await put(item)

    async def consume() -> None:
        for _ in range(count):
            await get()

    with spent(count) as sample:
        await asyncio.gather(produce(), consume())
    return sample


async def one_task(ends: Any, count: int) -> Sample:
    """No waiting, no switch: what the two cost by themselves."""
    put, get = ends
    with spent(count) as sample:
        for item in range(count):
            await put(item)
            await get()
    return sample


async def from_a_thread(ends: Any, count: int) -> Sample:
    put, get = ends

    def feed() -> None:
        for item in range(count):
            put(item)

    thread = threading.Thread(target=feed)
    with spent(count) as sample:
        thread.start()
        for expected in range(count):
            assert await get() == expected
    # Not here: the loop may have to answer the thread still.
    await asyncio.to_thread(thread.join)
    return sample


def queue(module: str, name: str, bound: int = BOUND) -> Make:
    def make() -> Any:
        made = of(module, name, bound)()
        return made.put, made.get

    return make


def channel(bound: int = BOUND) -> Make:
    def make() -> Any:
        tx, rx = tideloop.Channel[int](bound)
        return tx.send, rx.recv

    return make


def queues(bound: int) -> dict[str, Make]:
    return {
        "asyncio.Queue": queue("asyncio", "Queue", bound),
        "tideloop.Queue": queue("tideloop", "Queue", bound),
        "tideloop.Channel": channel(bound),
    }


def thread_channel() -> Any:
    tx, rx = tideloop.Channel[int](BOUND)
    return tx.blocking_send, rx.recv


def thread_queue(module: str) -> Make:
    def make() -> Any:
        made = of(module, "Queue", BOUND)()
        return made.sync_q.put, made.async_q.get

    return make


def thread_coroutine() -> Any:
    """What documentation recommends: one round trip per item."""
    made: asyncio.Queue[int] = asyncio.Queue(BOUND)
    loop = asyncio.get_running_loop()
    return lambda item: asyncio.run_coroutine_threadsafe(made.put(item), loop).result(), made.get


# --- limits --------------------------------------------------------------------------------------


async def enter_and_leave(limiter: Any, count: int) -> Sample:
    with spent(count) as sample:
        for _ in range(count):
            async with limiter:
                pass
    return sample


async def crowd(limiter: Any, count: int) -> Sample:
    async def work() -> None:
        async with limiter:
            await asyncio.sleep(0)

    with spent(count) as sample:
        await asyncio.gather(*(work() for _ in range(count)))
    return sample


def closing(body: Body) -> Body:
    """With a first use before, which opens connections, and what closes them after."""

    async def warm(thing: Any, count: int) -> Sample:
        async with thing:
            pass
        sample = await body(thing, count)
        if close := getattr(thing, "aclose", None):
            await close()
        return sample

    return warm


def claims(argument: Callable[[int], Any]) -> Body:
    """``async with limiter(argument)``."""

    async def body(limiter: Any, count: int) -> Sample:
        with spent(count) as sample:
            for number in range(count):
                async with limiter(argument(number)):
                    pass
        return sample

    return body


async def give_up(limiter: Any, count: int) -> Sample:
    async def work() -> None:
        async with limiter:
            pass

    async with limiter:
        tasks = [asyncio.ensure_future(work()) for _ in range(count)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with spent(count) as sample:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    return sample


def limiters(permits: int) -> dict[str, Make]:
    return {
        "asyncio.Semaphore": of("asyncio", "Semaphore", permits),
        "tideloop.Limiter": of("tideloop", "Limiter", permits),
        "tideloop.Semaphore": of("tideloop", "Semaphore", permits),
        "anyio.Semaphore": of("anyio", "Semaphore", permits),
        "anyio.CapacityLimiter": of("anyio", "CapacityLimiter", permits),
        "aiologic.Semaphore": of("aiologic", "Semaphore", permits),
    }


def ours(name: str, *args: Any) -> dict[str, Make]:
    return {f"tideloop.{name}": of("tideloop", name, *args)}


# --- rates ---------------------------------------------------------------------------------------

RATE = 5_000
"""Per second, and the burst."""

FINISH = Metric("finish / ideal", ".4f", lower_is_better=False)


async def rated_crowd(limiter: Any, count: int) -> Sample:
    """So many come at once. The ideal is the time that the rate allows from the first to the last."""
    admissions: list[float] = []

    async def come() -> None:
        async with limiter:
            admissions.append(time.monotonic())

    with spent(count) as sample:
        await asyncio.gather(*(come() for _ in range(count)))
    # At a small scale all of them are in the burst.
    ideal = (count - RATE) / RATE
    sample[FINISH.name] = (admissions[-1] - admissions[0]) / ideal if ideal > 0 else 1.0
    return sample


def rate_limiters(rate: int) -> dict[str, Make]:
    return {
        "tideloop.RateLimiter": lambda: tideloop.RateLimiter(tideloop.rate(rate)),
        "aiolimiter.AsyncLimiter": of("aiolimiter", "AsyncLimiter", rate, 1),
    }


# --- streams -------------------------------------------------------------------------------------

WIDE = 100


async def turn(number: int) -> int:
    await asyncio.sleep(0)
    return number


async def exhaust(results: AsyncIterator[Any]) -> int:
    count = 0
    async for _ in results:
        count += 1
    return count


async def gather_and_semaphore(items: int) -> None:
    permits = asyncio.Semaphore(WIDE)

    async def limited(number: int) -> int:
        async with permits:
            return await turn(number)

    await asyncio.gather(*(limited(number) for number in range(items)))


async def shared_iterator(items: int) -> None:
    """The least that it can cost in Python: tasks that share an iterator, results in a list."""
    numbers, results = iter(range(items)), []

    async def worker() -> None:
        for number in numbers:
            results.append(await turn(number))

    async with asyncio.TaskGroup() as group:
        for _ in range(WIDE):
            group.create_task(worker())


async def amap(items: int) -> None:
    assert await exhaust(tideloop.amap(turn, range(items), limit=WIDE)) == items


async def amap_ordered(items: int) -> None:
    assert await exhaust(tideloop.amap(turn, range(items), limit=WIDE, ordered=True)) == items


async def amap_async(items: int) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(items):
            yield number

    assert await exhaust(tideloop.amap(turn, numbers(), limit=WIDE)) == items


async def aiostream_map(items: int) -> None:
    stream = importlib.import_module("aiostream").stream
    async with stream.map(stream.iterate(range(items)), turn, ordered=False, task_limit=WIDE).stream() as results:
        assert await exhaust(results) == items


async def aiometer_amap(items: int) -> None:
    aiometer = importlib.import_module("aiometer")
    async with aiometer.amap(turn, list(range(items)), max_at_once=WIDE) as results:
        assert await exhaust(results) == items


# --- groups --------------------------------------------------------------------------------------


async def nothing() -> None:
    pass


async def task_group(tasks: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(nothing())


async def our_group(tasks: int) -> None:
    async with tideloop.group() as group:
        for _ in range(tasks):
            group.spawn(nothing)


async def limited_task_group(tasks: int) -> None:
    permits = asyncio.Semaphore(WIDE)

    async def limited(number: int) -> int:
        async with permits:
            return await turn(number)

    async with asyncio.TaskGroup() as group:
        for number in range(tasks):
            group.create_task(limited(number))


async def our_limited_group(tasks: int) -> None:
    async with tideloop.group(limit=WIDE) as group:
        for number in range(tasks):
            group.spawn(turn, number)


async def cancelled_task_group(tasks: int) -> None:
    async with asyncio.TaskGroup() as group:
        sleepers = [group.create_task(asyncio.sleep(3600)) for _ in range(tasks)]
        await asyncio.sleep(0)
        for sleeper in sleepers:
            sleeper.cancel()


async def our_cancelled_group(tasks: int) -> None:
    async with tideloop.group() as group:
        for _ in range(tasks):
            group.spawn(asyncio.sleep, 3600)
        await asyncio.sleep(0)
        group.cancel()


async def timeouts(count: int) -> None:
    for _ in range(count):
        async with asyncio.timeout(60):
            await nothing()


async def fail_afters(count: int) -> None:
    for _ in range(count):
        with tideloop.fail_after(60):
            await nothing()


# --- graphs --------------------------------------------------------------------------------------

Needs = list[list[int]]


def lattice(nodes: int) -> Needs:
    """Layers of a hundred; each node needs two of the layer before."""
    return [
        [] if node < WIDE else [node - WIDE, (node - WIDE) // WIDE * WIDE + (node + 1) % WIDE] for node in range(nodes)
    ]


async def no_work(*values: object) -> None:
    pass


async def one_turn(*values: object) -> None:
    await asyncio.sleep(0)


def our_graph(work: Callable[..., Awaitable[None]]) -> Make:
    def prepare(needs: Needs) -> Callable[[], Awaitable[Any]]:
        graph = tideloop.Graph()
        nodes: list[Any] = []
        for need in needs:
            nodes.append(graph.node(work, [nodes[number] for number in need]))
        return graph.run

    return lambda: prepare


def graphlib_and_tasks(work: Callable[..., Awaitable[None]]) -> Make:
    """What the standard library has: its sorter says what is ready, and each node is a task."""

    def prepare(needs: Needs) -> Callable[[], Awaitable[Any]]:
        async def run() -> dict[int, Any]:
            sorter = graphlib.TopologicalSorter(dict(enumerate(needs)))
            sorter.prepare()
            values: dict[int, Any] = {}
            finished: asyncio.Queue[int] = asyncio.Queue()

            async def one(node: int) -> None:
                values[node] = await work(*[values[need] for need in needs[node]])
                finished.put_nowait(node)

            async with asyncio.TaskGroup() as group:
                while sorter.is_active():
                    for node in sorter.get_ready():
                        group.create_task(one(node))
                    sorter.done(await finished.get())
            return values

        return run

    return lambda: prepare


async def graph_of(prepare: Callable[[Needs], Callable[[], Awaitable[Any]]], count: int) -> Sample:
    """A run of a graph that was built before."""
    run = prepare(lattice(count))
    with spent(count) as sample:
        await run()
    return sample


CHAINS = ((0.060, 0.0055), (0.0055, 0.060))
"""Two chains: each sleeps so long in turn. The longest way through both is the same."""


def chains(pairs: int) -> tideloop.Graph:
    graph = tideloop.Graph()
    for chain in CHAINS:
        before: list[Any] = []
        for seconds in chain * pairs:
            before = [graph.node(lambda *_, seconds=seconds: asyncio.sleep(seconds), before)]
    return graph


async def chains_ready_driven(pairs: int) -> None:
    await chains(pairs).run()


async def chains_by_levels(pairs: int) -> None:
    """A batch of what may run, and the next one when all of it has ended, as executors are that go by levels."""
    graph = chains(pairs)
    for group in graph.independent_groups():
        await asyncio.gather(*(graph[name]() for name in group))


async def over_the_longest_way(run: Callable[[int], Awaitable[None]], pairs: int) -> Sample:
    began = time.perf_counter()
    await run(pairs)
    return {"wall / longest way": (time.perf_counter() - began) / (pairs * sum(CHAINS[0]))}


def functions(**contenders: Callable[[int], Awaitable[None]]) -> dict[str, Make]:
    return {name: (lambda function=function: function) for name, function in contenders.items()}  # type: ignore[misc]


# --- off the loop --------------------------------------------------------------------------------


def nothing_that_blocks() -> None:
    pass


async def to_thread(count: int) -> None:
    for _ in range(count):
        await asyncio.to_thread(nothing_that_blocks)


async def run_blocking(count: int) -> None:
    for _ in range(count):
        await tideloop.run_blocking(nothing_that_blocks)


async def anyio_to_thread(count: int) -> None:
    run_sync = importlib.import_module("anyio.to_thread").run_sync
    for _ in range(count):
        await run_sync(nothing_that_blocks)


@functools.cache
def process_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"))


async def in_process_pool(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.run_in_executor(process_pool(), nothing_that_blocks)


async def run_in_process(count: int) -> None:
    for _ in range(count):
        await tideloop.run_blocking(nothing_that_blocks, kind="process")


async def run_in_interpreter(count: int) -> None:
    for _ in range(count):
        await tideloop.run_blocking(int, kind="interpreter")


async def elapsed(function: Callable[[int], Awaitable[Any]], count: int) -> Sample:
    """As done(), and how long it took: two threads that take turns also wait."""
    await function(10)
    began = time.perf_counter()
    sample = await done(function, count)
    sample["wall ns"] = (time.perf_counter() - began) / count * 1e9
    return sample


# --- processes -----------------------------------------------------------------------------------

TRUE = ["/bin/true"]
NULL, PIPE = subprocess.DEVNULL, subprocess.PIPE


def subprocess_run(**options: Any) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        subprocess.run(TRUE, stdin=NULL, check=True, **options)  # noqa: ASYNC221  # that is the question

    return run


async def subprocess_exec() -> None:
    process = await asyncio.create_subprocess_exec(*TRUE, stdin=NULL, stdout=PIPE, stderr=PIPE)
    await process.communicate()


async def run_process(**options: Any) -> None:
    await tideloop.run_process(TRUE, check=True, **options)


async def child_by_child(function: Callable[[], Awaitable[None]], count: int) -> Sample:
    """How long one took, and the CPU time of this process and of the child; medians, for the noise is large."""
    import resource

    def used() -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    await function()
    wall, cpu = [], []
    for _ in range(count):
        began, before = time.perf_counter(), used()
        await function()
        wall.append(time.perf_counter() - began)
        cpu.append(used() - before)
    return {"wall ns": statistics.median(wall) * 1e9, "CPU ns": statistics.median(cpu) * 1e9}


async def sleep_zero(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def checkpoints(count: int) -> None:
    for _ in range(count):
        await tideloop.checkpoint(3600)


async def each_to_thread(count: int) -> None:
    items = iter(range(count))
    while await asyncio.to_thread(next, items, None) is not None:
        pass


async def iterated_in_thread(count: int) -> None:
    async for _ in tideloop.iter_in_thread(range(count), buffer=64):
        pass


# --- caches and batches --------------------------------------------------------------------------

TOGETHER = 100
"""Keys that are asked for at once."""


async def load_one(key: int) -> int:
    return key


async def load_some(keys: list[int]) -> list[int]:
    return keys


def dict_in_a_coroutine() -> Any:
    """What one writes by hand, and which does nothing else."""
    found: dict[int, int] = {}

    async def fetch(key: int) -> int:
        if key in found:
            return found[key]
        value = found[key] = await load_one(key)
        return value

    return fetch


def cached(**options: Any) -> Make:
    return lambda: tideloop.cached(**options)(load_one)


def cache_get() -> Any:
    cache: tideloop.Cache[int, int] = tideloop.Cache()
    return lambda key: cache.get(key, load_one)


async def hits(fetch: Any, count: int) -> Sample:
    for key in range(TOGETHER):
        await fetch(key)
    with spent(count) as sample:
        for number in range(count):
            await fetch(number % TOGETHER)
    return sample


async def misses(fetch: Any, count: int) -> Sample:
    """Every key is new, so each is loaded, stored and, beyond 128 of them, drives another one out."""
    with spent(count) as sample:
        for number in range(count):
            await fetch(number)
    return sample


async def joined_misses(fetch: Any, count: int) -> Sample:
    with spent(count) as sample:
        for number in range(count // TOGETHER):
            await asyncio.gather(*(fetch(number) for _ in range(TOGETHER)))
    return sample


def aiodataloader() -> Any:
    loader = of("aiodataloader", "DataLoader", load_some, cache=False)()
    return loader.load


async def loads(load: Any, count: int) -> Sample:
    with spent(count) as sample:
        for start in range(0, count, TOGETHER):
            await asyncio.gather(*(load(key) for key in range(start, start + TOGETHER)))
    return sample


def alru_cache(**options: Any) -> Make:
    return lambda: of("async_lru", "alru_cache", **options)()(load_one)


CACHES: dict[str, Make] = {
    "a dict in a coroutine": dict_in_a_coroutine,
    "async_lru.alru_cache": alru_cache(maxsize=128),
    "async_lru.alru_cache, ttl": alru_cache(maxsize=128, ttl=60),
    "tideloop.cached": cached(),
    "tideloop.cached, ttl": cached(ttl=60),
    "tideloop.Cache.get": cache_get,
}


# --- what a service calls -------------------------------------------------------------------------


async def borrowings(pool: Any, count: int) -> Sample:
    async with pool:
        async with pool.acquire():
            pass
        with spent(count) as sample:
            for _ in range(count):
                async with pool.acquire():
                    pass
    return sample


async def calls(call: Any, count: int) -> Sample:
    with spent(count) as sample:
        for _ in range(count):
            await call()
    return sample


# --- adaptive limits -----------------------------------------------------------------------------

SHARE = Metric("share of the best static limit", ".3f", lower_is_better=False)


def followed(contender: str, count: int, seed: int) -> Sample:
    return {SHARE.name: least_share(contender, count / 100, seed)}


# --- all of them ---------------------------------------------------------------------------------

ROWS = [
    Row(
        "queue",
        f"two tasks, at most {BOUND} items",
        50_000,
        queues(BOUND),
        two_tasks,
        goal="0.25 µs, 4 times less than asyncio",
    ),
    Row(
        "thread",
        f"a thread to a loop, at most {BOUND} items",
        20_000,
        {
            "run_coroutine_threadsafe(put)": thread_coroutine,
            "tideloop.Channel": thread_channel,
            "culsans.Queue": thread_queue("culsans"),
            "janus.Queue": thread_queue("janus"),
        },
        from_a_thread,
        goal="1 µs",
    ),
    Row(
        "semaphore",
        "async with, a permit is free",
        50_000,
        limiters(10),
        enter_and_leave,
        goal="4 times less than asyncio",
    ),
    Row("crowd", "20,000 tasks over 50 permits, one sleep(0) each", 20_000, limiters(50), crowd, goal="4 µs"),
    Row(
        "rate",
        "20,000 tasks come at once, 5,000 per second are admitted",
        20_000,
        rate_limiters(RATE),
        rated_crowd,
        goal="5 µs, finish at most 1.01 times the ideal",
        metrics=(NS, FINISH),
    ),
    Row(
        "amap",
        "20,000 x sleep(0), 100 at once",
        20_000,
        {
            **functions(**{"gather + Semaphore": gather_and_semaphore, "tideloop.amap": amap}),
            **functions(**{"tideloop.amap, ordered": amap_ordered, "tideloop.amap, async source": amap_async}),
            **functions(**{"100 tasks, one iterator": shared_iterator}),
            "aiometer.amap": needing("aiometer", aiometer_amap),
            "aiostream.map": needing("aiostream", aiostream_map),
        },
        done,
        goal="1.6 µs",
    ),
    Row(
        "group",
        "spawn and await",
        10_000,
        functions(**{"asyncio.TaskGroup": task_group, "tideloop.group": our_group}),
        done,
        goal="1.8 times less than asyncio",
    ),
    Row("cache_hit", "a call that is answered from the cache", 50_000, CACHES, hits, goal="0.35 µs"),
    Row(
        "batched_load",
        f"{TOGETHER} keys at once, by asyncio.gather",
        20_000,
        {
            "a call per key": lambda: load_one,
            "aiodataloader": aiodataloader,
            "tideloop.batched": lambda: tideloop.batched(load_some),
            "tideloop.cached over batched": lambda: tideloop.cached(tideloop.batched(load_some)),
        },
        loads,
        goal="1.5 µs",
    ),
    Row("pool", "async with pool.acquire(), one is idle", 50_000, POOLS, borrowings, goal="1 µs"),
    Row("policy", "a call that succeeds at once", 20_000, POLICIES, calls, goal="1 µs"),
    Row(
        "offload",
        "a function that does nothing, in a thread",
        3_000,
        {
            **functions(**{"asyncio.to_thread": to_thread, "tideloop.run_blocking": run_blocking}),
            "anyio.to_thread": needing("anyio", anyio_to_thread),
        },
        elapsed,
        goal="20 µs",
        metrics=(NS, Metric("wall ns")),
    ),
    Row(
        "spawn",
        "/bin/true, from its start to its end, with what it writes",
        3,
        {
            "subprocess.run": lambda: subprocess_run(capture_output=True),
            "subprocess.run, own session": lambda: subprocess_run(capture_output=True, start_new_session=True),
            "subprocess.run, output to /dev/null": lambda: subprocess_run(stdout=NULL, stderr=NULL),
            "asyncio, communicate()": lambda: subprocess_exec,
            "tideloop.run_process": lambda: run_process,
            "tideloop.run_process, no capture": lambda: functools.partial(run_process, capture=None),
        },
        child_by_child,
        goal="1.06 times subprocess.run",
        metrics=(Metric("wall ns"), Metric("CPU ns")),
    ),
    Row(
        "adaptive",
        f"simulated: a noisy backend of {', then '.join(map(str, STEPS))} servers, each for 15 s of which 5 count",
        100,
        LIMITS,
        simulated=followed,
        goal="0.9 of the best static limit, after 10 s",
        metrics=(SHARE,),
    ),
    Row("hand_over", "two tasks, at most 1 item: two switches per item", 20_000, queues(1), two_tasks),
    Row("put_get", "one task, put and get", 50_000, queues(BOUND), one_task),
    Row(
        "priority",
        "one task, put and get by priority",
        50_000,
        {
            "asyncio.PriorityQueue": queue("asyncio", "PriorityQueue"),
            "tideloop.PriorityQueue": queue("tideloop", "PriorityQueue"),
        },
        one_task,
    ),
    Row("give_up", "20,000 waiters are cancelled", 20_000, limiters(1), give_up),
    Row("cache_miss", "a call with a new key, room for 128", 5_000, CACHES, misses),
    Row("cache_join", f"{TOGETHER} calls at once for one new key", 10_000, CACHES, joined_misses),
    Row("weighted", "async with limiter(3)", 50_000, ours("Limiter", 10), claims(lambda _: 3)),
    Row(
        "keyed",
        "async with limiter(key), every key new",
        20_000,
        ours("KeyedLimiter", 2),
        claims(lambda number: number),
    ),
    Row("rate_free", "async with, the rate allows it", 20_000, rate_limiters(10_000_000), enter_and_leave),
    Row(
        "group_limit",
        "spawn and await, 100 at once, one sleep(0) each",
        10_000,
        functions(
            **{"asyncio.TaskGroup + Semaphore": limited_task_group, "tideloop.group(limit=100)": our_limited_group}
        ),
        done,
    ),
    Row(
        "group_cancel",
        "5,000 tasks are cancelled",
        5_000,
        functions(**{"asyncio.TaskGroup": cancelled_task_group, "tideloop.group": our_cancelled_group}),
        done,
    ),
    Row(
        "timeout",
        "a time limit that is not reached",
        10_000,
        functions(**{"asyncio.timeout": timeouts, "tideloop.fail_after": fail_afters}),
        done,
    ),
    Row(
        "shared",
        "async with, a permit is free; of processes together, one of which this is",
        20_000,
        {
            "tideloop.Limiter, local": of("tideloop", "Limiter", 100),
            "tideloop.Limiter, batch=16": limiter(100, 16),
            "tideloop.Limiter, batch=1": limiter(100, 1),
            "a counter at the server": asking(100),
        },
        closing(enter_and_leave),
        goal="3 µs with batch=16",
    ),
    Row(
        "shared_crowd",
        "20,000 tasks over 50 permits of processes together, one sleep(0) each",
        20_000,
        {
            "tideloop.Limiter, local": of("tideloop", "Limiter", 50),
            "tideloop.Limiter, batch=16": limiter(50, 16),
            "tideloop.Limiter, batch=1": limiter(50, 1),
        },
        closing(crowd),
    ),
    Row(
        "shared_rate",
        "async with, the rate of processes together allows it",
        20_000,
        {
            "tideloop.RateLimiter, local": of("tideloop", "RateLimiter", tideloop.rate(1e6, burst=1_000_000)),
            "tideloop.RateLimiter, batch=16": rate_limiter(16),
            "tideloop.RateLimiter, batch=256": rate_limiter(256),
        },
        closing(enter_and_leave),
    ),
    Row(
        "iterate",
        "the items of an iterator that blocks",
        3_000,
        functions(**{"asyncio.to_thread(next)": each_to_thread, "tideloop.iter_in_thread": iterated_in_thread}),
        elapsed,
        metrics=(NS, Metric("wall ns")),
    ),
    Row(
        "process",
        "a function that does nothing, in a process or an interpreter; CPU time of this process only",
        1_000,
        {
            **functions(**{"ProcessPoolExecutor": in_process_pool, "tideloop.run_blocking, process": run_in_process}),
            "tideloop.run_blocking, interpreter": needing("concurrent.interpreters", run_in_interpreter),
        },
        elapsed,
        metrics=(NS, Metric("wall ns")),
    ),
    Row(
        "checkpoint",
        "others have their turn if it is time, and it is not",
        50_000,
        functions(**{"asyncio.sleep(0)": sleep_zero, "tideloop.checkpoint": checkpoints}),
        done,
    ),
    Row(
        "graph_nodes",
        "100,000 nodes in layers of 100, two dependencies each, that return at once",
        100_000,
        {"graphlib + tasks": graphlib_and_tasks(no_work), "tideloop.Graph": our_graph(no_work)},
        graph_of,
        goal="1 µs",
    ),
    Row(
        "graph_chains",
        "two chains of ten nodes that sleep 60 and 5.5 ms in turn, the longest way being 327.5 ms",
        5,
        functions(**{"level by level": chains_by_levels, "tideloop.Graph": chains_ready_driven}),
        over_the_longest_way,
        goal="1.03",
        metrics=(Metric("wall / longest way", ".3f", lower_is_better=False),),
    ),
    Row(
        "graph_tasks",
        "the same with one sleep(0) in each node",
        100_000,
        {"graphlib + tasks": graphlib_and_tasks(one_turn), "tideloop.Graph": our_graph(one_turn)},
        graph_of,
    ),
]
