"""amap() and the other streams: order, bounds, errors, leaving early, on every loop."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref

import pytest
import tideloop
from tideloop import Outcome
from tideloop.testing import new_virtual_loop

from tests.toolkit import harness
from tests.toolkit.work import Boom, forever, tasks_left


async def double(number):
    await asyncio.sleep(0)
    return 2 * number


class Source:
    """Numbers, with a note of how far it was pulled and whether it was closed."""

    def __init__(self, count=None, fails_at=None):
        self.pulled = 0
        self.closed = 0
        self.tasks = set()
        self._count = count
        self._fails_at = fails_at

    def numbers(self):
        try:
            for number in itertools.count() if self._count is None else range(self._count):
                if number == self._fails_at:
                    raise Boom("source")
                self.pulled += 1
                yield number
        finally:
            self.closed += 1

    async def anumbers(self):
        try:
            for number in itertools.count() if self._count is None else range(self._count):
                self.tasks.add(asyncio.current_task())
                if number == self._fails_at:
                    raise Boom("source")
                if number % 3:
                    await asyncio.sleep(0)
                self.pulled += 1
                yield number
        finally:
            self.tasks.add(asyncio.current_task())
            self.closed += 1
            await asyncio.sleep(0)

    def of(self, kind):
        return self.numbers() if kind == "sync" else self.anumbers()


@pytest.fixture(params=["sync", "async"])
def way(request):
    return request.param


# --- amap ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    ("count", "limit", "buffer"), [(0, 3, None), (1, 3, 0), (50, 1, 0), (50, 3, None), (50, 99, 2)]
)
async def test_everything_comes_once(loop, way, ordered, count, limit, buffer):
    source = Source(count)
    stream = tideloop.amap(double, source.of(way), limit=limit, ordered=ordered, buffer=buffer)
    got = [result async for result in stream]
    assert sorted(got) == [2 * number for number in range(count)]
    if ordered:
        assert got == sorted(got)
    assert source.closed == 1
    assert not tasks_left()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await stream.aclose()


async def test_unordered_results_come_as_they_are_ready_and_ordered_ones_wait(loop):
    gates = [asyncio.Event() for _ in range(3)]

    async def wait(number):
        await gates[number].wait()
        return number

    for ordered, expected in (False, [2, 0, 1]), (True, [0, 1, 2]):
        for gate in gates:
            gate.clear()
        stream = tideloop.amap(wait, range(3), limit=3, ordered=ordered)
        async with asyncio.TaskGroup() as tasks:
            got = tasks.create_task(stream.to_list())
            for number in 2, 0, 1:
                for _ in range(5):
                    await asyncio.sleep(0)
                gates[number].set()
        assert got.result() == expected


async def test_one_item_at_the_head_does_not_stop_the_others(loop):
    """Ordered: as many run on as `limit` and `buffer` allow."""
    gate = asyncio.Event()
    done = []

    async def work(number):
        if number == 0:
            await gate.wait()
        done.append(number)
        return number

    async with tideloop.amap(work, itertools.count(), limit=2, buffer=5, ordered=True) as stream:
        first = asyncio.ensure_future(anext(stream))
        for _ in range(30):
            await asyncio.sleep(0)
        assert done == [1, 2, 3, 4, 5, 6]
        gate.set()
        assert await first == 0


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("limit", "buffer"), [(1, 0), (3, 0), (3, 4)])
async def test_the_source_is_not_pulled_ahead(loop, way, ordered, limit, buffer):
    source = Source()
    running = peak = 0

    async def work(number):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    async with tideloop.amap(work, source.of(way), limit=limit, buffer=buffer, ordered=ordered) as stream:
        assert source.pulled == 0
        for taken in range(1, 30):
            await anext(stream)
            for _ in range(taken % 7):
                await asyncio.sleep(0)
            assert source.pulled <= taken + limit + buffer
        stats = stream.stats()
        assert stats.running + stats.ready <= limit + buffer
    assert peak == limit if way == "sync" else peak <= limit  # a slow source needs fewer
    assert source.closed == 1
    assert not tasks_left()


async def test_slots_are_used_again(loop, way):
    tasks = set()

    async def work(number):
        tasks.add(asyncio.current_task())
        await asyncio.sleep(0)
        return number

    source = Source(10_000)
    total = 0
    async for number in tideloop.amap(work, source.of(way), limit=10):
        total += number
    assert total == sum(range(10_000))
    assert len(tasks) == 10 if way == "sync" else len(tasks) <= 10
    assert not tasks_left()
    if way == "async":
        assert len(source.tasks) == 1


@pytest.mark.parametrize("ordered", [False, True])
async def test_no_more_items_are_alive_than_the_bounds_allow(loop, ordered):
    class Item:
        pass

    alive = weakref.WeakSet()
    peak = 0

    def items():
        while True:
            item = Item()
            alive.add(item)
            yield item
            del item

    async def work(item):
        await asyncio.sleep(0)
        return item

    async with tideloop.amap(work, items(), limit=4, buffer=3, ordered=ordered) as stream:
        for number in range(20_000):
            await anext(stream)
            peak = max(peak, len(alive))
            if number % 7 == 0:
                await asyncio.sleep(0)
    # 7 are ahead; and each slot remembers its last one until it has the next.
    assert peak <= 4 + 3 + 4
    assert not tasks_left()


async def test_an_async_source_belongs_to_one_task(loop):
    """Time limits around its yield work, and so does closing."""

    async def limited():
        async with asyncio.timeout(60):
            for number in range(20):
                await asyncio.sleep(0)
                yield number

    assert len(await tideloop.amap(double, limited(), limit=4).to_list()) == 20
    async with tideloop.amap(double, limited(), limit=4) as stream:
        await anext(stream)


@pytest.mark.parametrize("how", ["aclose", "async with", "break in async with", "cancel"])
async def test_leaving_early(loop, way, how):
    source = Source()
    ended = 0

    async def work(number):
        nonlocal ended
        try:
            if number > 5:
                await forever()
            return number
        finally:
            if number > 5:
                await asyncio.sleep(0)
                ended += 1

    stream = tideloop.amap(work, source.of(way), limit=3)

    async def consume():
        if how == "break in async with":
            async with stream:
                async for _ in stream:
                    break
            return
        async for number in stream:
            if number == 4 and how != "cancel":
                break
        if how == "aclose":
            await stream.aclose()
        else:
            await stream.__aexit__(None, None, None)

    task = loop.create_task(consume())
    if how == "cancel":
        for _ in range(50):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == 3
    else:
        await task
    assert source.closed == 1
    assert not tasks_left()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_dropped_stream_is_wound_down(loop, way):
    source = Source()
    async for number in tideloop.amap(double, source.of(way), limit=3):
        if number > 10:
            break
    gc.collect()
    for _ in range(20):
        await asyncio.sleep(0)
    assert source.closed == 1
    assert not tasks_left()


async def test_a_stream_that_never_began_does_nothing(loop, way):
    source = Source()
    stream = tideloop.amap(double, source.of(way), limit=3)
    await stream.aclose()
    assert source.pulled == 0
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


# --- errors --------------------------------------------------------------------------------------


async def fail_at_five(number):
    await asyncio.sleep(0)
    if number == 5:
        raise Boom("fn")
    return number


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_failure_is_raised_in_its_place(loop, way, ordered):
    source = Source()
    got = []

    async def attempt():
        async for number in tideloop.amap(fail_at_five, source.of(way), limit=2, ordered=ordered):
            got.append(number)

    with pytest.raises(Boom, match="fn"):
        await attempt()
    assert set(got) >= {0, 1, 2, 3, 4} if ordered else got
    if ordered:
        assert got == [0, 1, 2, 3, 4]
    assert source.closed == 1
    assert not tasks_left()


@pytest.mark.parametrize("ordered", [False, True])
async def test_failures_can_be_collected_or_left_out(loop, way, ordered):
    source = Source(10)
    outcomes = await tideloop.amap(fail_at_five, source.of(way), limit=3, ordered=ordered, on_error="collect").to_list()
    assert {outcome.value for outcome in outcomes if outcome.ok} == set(range(10)) - {5}
    assert [str(outcome.exception) for outcome in outcomes if outcome.failed] == ["fn"]
    if ordered:
        assert outcomes[4] == Outcome(4)
        assert outcomes[5].failed
    stream = tideloop.amap(fail_at_five, Source(10).of(way), limit=3, ordered=ordered, on_error="skip")
    assert set(await stream.to_list()) == set(range(10)) - {5}
    assert stream.stats() == (10, 0, 0, 1)


@pytest.mark.parametrize("on_error", ["raise", "collect", "skip"])
@pytest.mark.parametrize("ordered", [False, True])
async def test_an_error_of_the_source_is_raised_behind_the_results(loop, way, on_error, ordered):
    source = Source(fails_at=7)
    got = []

    async def attempt():
        async for number in tideloop.amap(double, source.of(way), limit=3, ordered=ordered, on_error=on_error):
            got.append(number)

    with pytest.raises(Boom, match="source") as caught:
        await attempt()
    assert len(got) == 7
    assert caught.value.__notes__ == ["raised by the source of tideloop.amap()"]
    assert not tasks_left()


async def test_an_error_of_the_consumer_is_its_own(loop, way):
    source = Source()

    async def attempt():
        async with tideloop.amap(double, source.of(way), limit=3) as stream:
            async for _ in stream:
                raise Boom("consumer")

    with pytest.raises(Boom, match="consumer") as caught:
        await attempt()
    assert not hasattr(caught.value, "__notes__")
    assert source.closed == 1
    assert not tasks_left()


async def test_cancelled_error_out_of_the_function_is_a_failure(loop):
    async def cancelled(number):
        raise asyncio.CancelledError("its own")

    outcomes = await tideloop.amap(cancelled, range(3), limit=2, on_error="collect").to_list()
    assert [outcome.cancelled for outcome in outcomes] == [True] * 3


async def test_a_slot_that_is_cancelled_from_outside_ends_the_stream(loop):
    async def work(number):
        if number:
            await forever()
        return number

    stream = tideloop.amap(work, range(10), limit=2)
    await anext(stream)
    tasks_left().pop().cancel()
    with pytest.raises(asyncio.CancelledError):
        await anext(stream)
    assert not tasks_left()


async def test_two_consumers_are_refused(loop):
    async with tideloop.amap(lambda _: forever(), range(3), limit=2) as stream:
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one consumer"):
            await anext(stream)
        first.cancel()
        await asyncio.wait([first])


async def test_wrong_arguments(loop):
    for arguments, kind, said in (
        ({"limit": None}, TypeError, "keeps no bound"),
        ({"limit": 0}, ValueError, "at least 1"),
        ({"limit": 1, "buffer": -1}, ValueError, "at least 0"),
        ({"limit": 1, "on_error": "ignore"}, ValueError, "'ignore'"),
        ({"limit": 1, "rate": 0}, ValueError, "positive"),
        ({"limit": 1, "rate": "fast"}, TypeError, "'fast'"),
    ):
        with pytest.raises(kind, match=said):
            tideloop.amap(double, [], **arguments)
    with pytest.raises(TypeError, match="iterable or an async iterable, not 3"):
        tideloop.amap(double, 3, limit=1)
    with pytest.raises(TypeError, match="coroutine function, not 3"):
        tideloop.amap(3, [], limit=1)


# --- limits and rates ----------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("permits", [1, 3])
async def test_a_limiter(loop, way, ordered, permits):
    limiter = asyncio.Semaphore(permits)
    running = peak = 0

    async def work(number):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        try:
            for _ in range(4):
                await asyncio.sleep(0)
            if number == 7:
                raise Boom
            return number
        finally:
            running -= 1

    stream = tideloop.amap(work, Source(40).of(way), limit=limiter, ordered=ordered, on_error="skip")
    assert set(await stream.to_list()) == set(range(40)) - {7}
    assert peak == permits
    async with tideloop.amap(work, Source().of(way), limit=limiter, ordered=ordered) as stream:
        await anext(stream)
    for _ in range(permits):
        await asyncio.wait_for(limiter.acquire(), 1)


def test_a_rate(kind):
    async def main():
        loop = asyncio.get_running_loop()
        times = []

        async def work(number):
            times.append(loop.time())
            await asyncio.sleep(10)

        await tideloop.amap(work, range(100), limit=100, rate=10).to_list()
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert gaps == [pytest.approx(0.1)] * 99

    harness.run(kind, main())


# --- the others ----------------------------------------------------------------------------------


async def test_batched(loop, way):
    for count, sizes in (0, []), (4, [4]), (9, [4, 4, 1]):
        batches = await tideloop.batched(Source(count).of(way), 4).to_list()
        assert [len(batch) for batch in batches] == sizes
        assert list(itertools.chain(*batches)) == list(range(count))
    source = Source()
    async with tideloop.batched(source.of(way), 4) as stream:
        await anext(stream)
        assert source.pulled == 4
    assert source.closed == 1


def test_batches_within_a_time(kind):
    async def main():
        loop = asyncio.get_running_loop()

        async def at(times):
            for when in times:
                await asyncio.sleep(when - loop.time())
                yield when

        began = loop.time()
        times = [began + offset for offset in (0, 1, 2, 5, 6, 20, 20, 20, 20, 20, 40)]
        got = []
        async for batch in tideloop.batched(at(times), 4, within=2.5):
            got.append(([round(when - began) for when in batch], round(loop.time() - began, 1)))
        assert got == [
            ([0, 1, 2], 2.5),
            ([5, 6], 7.5),
            ([20, 20, 20, 20], 20.0),
            ([20], 22.5),
            ([40], 40.0),
        ]

    harness.run(kind, main())


async def test_merge(loop):
    sources = [Source(10), Source(20), Source(0)]
    got = await tideloop.merge(*(source.anumbers() for source in sources)).to_list()
    assert sorted(got) == sorted([*range(10), *range(20)])
    assert await tideloop.merge().to_list() == []
    assert sorted(await tideloop.merge([1, 2], Source(2).anumbers()).to_list()) == [0, 1, 1, 2]
    sources = [Source(), Source(fails_at=5)]
    with pytest.raises(Boom) as caught:
        async for _ in tideloop.merge(*(source.anumbers() for source in sources)):
            pass
    assert caught.value.__notes__ == ["raised by a source of tideloop.merge()"]
    assert [source.closed for source in sources] == [1, 1]
    assert not tasks_left()


async def test_merge_pulls_no_further_than_its_buffer(loop):
    sources = [Source(), Source()]
    async with tideloop.merge(*(source.anumbers() for source in sources), buffer=4) as stream:
        for taken in range(1, 20):
            await anext(stream)
            for _ in range(10):
                await asyncio.sleep(0)
            assert sum(source.pulled for source in sources) <= taken + 4
    assert not tasks_left()


def test_throttle(kind):
    async def main():
        loop = asyncio.get_running_loop()
        began = loop.time()
        got = [(number, round(loop.time() - began, 3)) async for number in tideloop.throttle(range(4), 2, per=3)]
        assert got == [(0, 0), (1, 1.5), (2, 3), (3, 4.5)]

    harness.run(kind, main())


@pytest.mark.parametrize("limit", [1, 3])
async def test_flat_map(loop, way, limit):
    inner = []

    def pages(number):
        inner.append(Source(number))
        return inner[-1].of(way)

    source = Source(6)
    got = await tideloop.flat_map(pages, source.of(way), limit=limit).to_list()
    expected = [item for number in range(6) for item in range(number)]
    assert got == expected if limit == 1 else sorted(got) == sorted(expected)
    assert source.closed == 1
    source = Source()
    inner.clear()
    async with tideloop.flat_map(pages, source.of(way), limit=limit) as stream:
        for _ in range(7):
            await anext(stream)
    assert source.closed == 1
    assert all(one.closed for one in inner if one.pulled)
    assert not tasks_left()


@pytest.mark.parametrize("ahead", [0, 2])
async def test_paginate_by_number(loop, ahead):
    asked = []

    async def fetch(page):
        asked.append(page)
        await asyncio.sleep(0)
        return [f"{page}.{item}" for item in range(2)] if page < 4 else []

    assert await tideloop.paginate(fetch, ahead=ahead).to_list() == ["1.0", "1.1", "2.0", "2.1", "3.0", "3.1"]
    assert asked == [1, 2, 3, 4]
    asked.clear()
    async with tideloop.paginate(fetch, ahead=ahead) as stream:
        await anext(stream)
        for _ in range(10):
            await asyncio.sleep(0)
    assert asked == ([1] if ahead == 0 else [1, 2, 3])
    assert not tasks_left()


async def test_paginate_by_cursor(loop):
    pages = {"a": ([1, 2], "b"), "b": ([], "c"), "c": ([3], None)}

    async def fetch(cursor):
        return pages[cursor]

    stream = tideloop.paginate(fetch, "a", next=lambda page: page[1], items=lambda page: page[0])
    assert await stream.to_list() == [1, 2, 3]


async def test_steps_can_be_chained(loop):
    source = Source()
    stream = (
        tideloop.amap(double, source.anumbers(), limit=4, ordered=True)
        .batched(3)
        .flat_map(lambda batch: [sum(batch)])
        .throttle(1e6)
        .amap(double, limit=2, ordered=True)
    )
    async with stream:
        assert [await anext(stream) for _ in range(3)] == [12, 48, 84]
    assert source.closed == 1
    assert not tasks_left()


# --- cancellation anywhere, random schedules -----------------------------------------------------


# --- limiters that refuse --------------------------------------------------------------------------


class TestALimiterThatRefuses:
    @pytest.mark.parametrize("way", ["sync", "async"])
    @pytest.mark.parametrize("ordered", [False, True])
    @pytest.mark.parametrize("permits", [1, 3])
    async def test_the_stream_waits_for_its_own_calls(self, loop, way, ordered, permits):
        limiter = tideloop.AdaptiveLimiter(min=permits, max=permits, on_full="reject")
        most = 0

        async def work(number):
            nonlocal most
            most = max(most, limiter.in_flight)
            return await double(number)

        source = Source(40)
        async with tideloop.amap(work, source.of(way), limit=limiter, ordered=ordered) as stream:
            results = [result async for result in stream]
        assert sorted(results) == [2 * number for number in range(40)]
        assert not ordered or results == sorted(results)
        assert most == permits
        assert limiter.in_flight == 0
        assert source.closed == 1

    async def test_those_who_wait_for_others_count(self, loop):
        limiter = tideloop.Limiter(1, queue_limit=1)
        await limiter.acquire()
        loop.call_later(0.001, limiter.release)
        assert sorted(await tideloop.amap(double, range(20), limit=limiter).to_list()) == list(range(0, 40, 2))
        assert limiter.in_use == 0

    async def test_two_streams_share_one(self, loop):
        limiter = tideloop.AdaptiveLimiter(min=2, max=2, on_full="reject")
        first = tideloop.amap(double, range(0, 20), limit=limiter, on_error="collect")
        second = tideloop.amap(double, range(20, 40), limit=limiter, on_error="collect")
        outcomes = [*itertools.chain(*await asyncio.gather(first.to_list(), second.to_list()))]
        assert len(outcomes) == 40
        assert {type(outcome.exception) for outcome in outcomes} <= {type(None), tideloop.LimiterFull}
        assert [outcome.value for outcome in outcomes if outcome.ok]
        assert limiter.in_flight == 0

    async def test_if_others_hold_all_the_refusal_is_the_items(self, loop):
        limiter = tideloop.AdaptiveLimiter(min=1, max=1, name="full", on_full="reject")
        async with limiter:
            outcomes = await tideloop.amap(double, range(3), limit=limiter, on_error="collect").to_list()
            assert [type(outcome.exception) for outcome in outcomes] == [tideloop.LimiterFull] * 3
            stream = tideloop.amap(double, range(3), limit=limiter, on_error="skip")
            assert await stream.to_list() == []
            assert stream.stats().failed == 3
            with pytest.raises(tideloop.LimiterFull, match="full"):
                await tideloop.amap(double, range(3), limit=limiter).to_list()
        assert await tideloop.amap(double, range(3), limit=limiter).to_list() == [0, 2, 4]

    @pytest.mark.parametrize("ordered", [False, True])
    def test_cancelled_at_every_await(self, kind, ordered):
        async def scenario(attack):
            before = asyncio.all_tasks()
            limiter = tideloop.AdaptiveLimiter(min=2, max=2, on_full="reject")

            async def consume():
                async with tideloop.amap(double, range(8), limit=limiter, ordered=ordered) as stream:
                    return [result async for result in stream]

            attack.task(consume())
            await attack.settle()
            harness.demand(limiter.in_flight == 0, f"still in use: {limiter!r}")
            harness.demand(not tasks_left(before), "tasks are left")

        assert harness.cancel_everywhere(kind, scenario) >= 5


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("what", ["sync", "async", "limiter", "merge", "batched", "flat_map", "throttle", "paginate"])
def test_cancelled_at_every_await(kind, what, ordered):
    async def scenario(attack):
        before = asyncio.all_tasks()
        sources = [Source(9), Source(9)]
        limiter = tideloop.Semaphore(2)

        async def fetch(page):
            return range(3) if page < 4 else []

        async def consume():
            if what in ("sync", "async"):
                stream = tideloop.amap(double, sources[0].of(what), limit=3, ordered=ordered)
            elif what == "limiter":
                stream = tideloop.amap(double, sources[0].anumbers(), limit=limiter, ordered=ordered)
            elif what == "merge":
                stream = tideloop.merge(*(source.anumbers() for source in sources))
            elif what == "batched":
                stream = tideloop.batched(sources[0].anumbers(), 2, within=1)
            elif what == "flat_map":
                stream = tideloop.flat_map(range, sources[0].anumbers(), limit=3)
            elif what == "throttle":
                stream = tideloop.throttle(sources[0].anumbers(), 10)
            else:
                stream = tideloop.paginate(fetch, ahead=1)
            async with stream:
                async for _ in stream:
                    pass

        attack.task(consume())
        await attack.settle()
        assert not tasks_left(before), "tasks are left"
        assert all(source.closed or not source.pulled for source in sources), "a source is not closed"
        for _ in range(2):
            await limiter.acquire()

    assert harness.cancel_everywhere(kind, scenario) > 2


@pytest.mark.parametrize("seed", range(40))
def test_random_schedules(kind, seed):
    import random

    dice = random.Random(seed)

    async def idle():
        for _ in range(dice.randrange(3)):
            await asyncio.sleep(0)
        if dice.random() < 0.3:
            await asyncio.sleep(dice.random())

    async def main():
        before = asyncio.all_tasks()
        count, limit, buffer = dice.randrange(30), dice.randrange(1, 6), dice.randrange(4)
        ordered = dice.random() < 0.5
        on_error = dice.choice(["collect", "skip"])
        limiter = tideloop.Semaphore(limit)
        running = 0
        closed = []

        async def work(number):
            nonlocal running
            running += 1
            try:
                assert running <= limit
                await idle()
                if number % 7 == 3:
                    raise Boom
                return number
            finally:
                running -= 1

        async def source():
            try:
                for number in range(count):
                    await idle()
                    yield number
            finally:
                closed.append(True)

        stream = tideloop.amap(
            work,
            source() if dice.random() < 0.5 else range(count),
            limit=limiter if dice.random() < 0.3 else limit,
            buffer=buffer,
            ordered=ordered,
            on_error=on_error,
        )
        got = []

        async def consume():
            async for entry in stream:
                got.append(entry.value if on_error == "collect" else entry)
                await idle()

        task = asyncio.ensure_future(consume())
        cancelled = dice.random() < 0.3
        if cancelled:
            for _ in range(dice.randrange(20)):
                await idle()
            task.cancel()
        await asyncio.wait([task])
        if not cancelled:
            expected = [None if number % 7 == 3 else number for number in range(count)]
            if on_error == "skip":
                expected = [number for number in expected if number is not None]
            assert got == expected if ordered else sorted(got, key=repr) == sorted(expected, key=repr)
        await stream.aclose()
        assert running == 0
        assert not tasks_left(before)
        for _ in range(limit):
            await limiter.acquire()

    harness.run(kind, main())


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


class _Through:
    """A limiter as a rate: who is let in leaves at once."""

    def __init__(self, limiter):
        self._limiter = limiter

    async def acquire(self):
        async with self._limiter:
            pass


class TestSeams:
    """Streams with the limits and rates of other modules, and with little room."""

    async def test_a_rate_limiter_paces(self, loop):
        limiter = tideloop.RateLimiter(tideloop.rate(1_000_000, burst=3))
        async with tideloop.amap(double, range(5), limit=2, rate=limiter, ordered=True) as stream:
            assert await stream.to_list() == [0, 2, 4, 6, 8]
        assert limiter.stats().admitted == 5

    async def test_what_wants_its_permits_back_is_no_rate(self, loop):
        with pytest.raises(TypeError, match="wants its permits back"):
            tideloop.amap(double, range(5), limit=2, rate=tideloop.Limiter(1))

    @pytest.mark.parametrize("limit", [1, 2])
    async def test_a_flat_map_with_little_room(self, loop, limit):
        stream = tideloop.flat_map(lambda number: [number, number], range(3), limit=limit, buffer=1)
        assert sorted(await asyncio.wait_for(stream.to_list(), 5)) == [0, 0, 1, 1, 2, 2]

    async def test_a_source_that_is_silent_does_not_hold_the_others_back(self, loop):
        async def silent():
            await forever()
            yield 0

        async with tideloop.merge(silent(), iter(range(3)), buffer=1) as stream:
            assert [await asyncio.wait_for(anext(stream), 5) for _ in range(3)] == [0, 1, 2]

    async def test_a_cancellation_out_of_a_source_does_not_end_the_stream_in_silence(self, loop):
        async def pages():
            for number in range(5):
                if number == 3:
                    raise asyncio.CancelledError
                yield number

        with pytest.raises(asyncio.CancelledError):
            await tideloop.merge(pages()).to_list()

    @pytest.mark.parametrize("within", [None, 60])
    async def test_what_came_before_an_error_is_a_batch(self, loop, way, within):
        source, got = Source(fails_at=5), []

        async def take():
            async for batch in tideloop.batched(source.of(way), 3, within):
                got.append(batch)

        with pytest.raises(Boom, match="source") as caught:
            await take()
        assert got == [[0, 1, 2], [3, 4]]
        assert caught.value.__notes__ == ["raised by a source of tideloop.batched()"]
        assert source.closed == 1
        assert not tasks_left()

    @pytest.mark.parametrize("limit", [1, 3])
    async def test_whose_error_it_is(self, loop, limit):
        def open_page(number):
            if number == 2:
                raise Boom("fn")
            return Source(2, fails_at=1 if number == 1 else None).numbers()

        for numbers, notes in (([0, 2], []), ([0, 1], ["raised by a source of tideloop.flat_map()"])):
            with pytest.raises(Boom) as caught:
                await tideloop.flat_map(open_page, numbers, limit=limit).to_list()
            assert getattr(caught.value, "__notes__", []) == notes
        with pytest.raises(Boom) as caught:
            await tideloop.throttle(Source(fails_at=1).numbers(), 1e6, name="slowly").to_list()
        assert caught.value.__notes__ == ["raised by a source of tideloop.slowly()"]

    async def test_each_has_stats_and_a_name(self, loop):
        async def page(number):
            return range(2) if number < 3 else []

        source = Source(10)
        batches = tideloop.batched(source.anumbers(), 4, within=60, name="fours")
        assert batches.stats() == (0, 0, 0, 0)
        assert await anext(batches) == [0, 1, 2, 3]
        await settle()
        stats = batches.stats()
        assert stats == (stats.pulled, 0, stats.pulled - 4, 0)
        assert stats.ready == source.pulled - 4 > 0
        assert repr(batches) == f"<tideloop.Stream fours pulled={stats.pulled} running=0 ready={stats.ready} failed=0>"
        await batches.aclose()

        gate = tideloop.Limiter(1)
        await gate.acquire()
        slow = tideloop.batched(range(5), 2).throttle(_Through(gate))
        waiting = asyncio.ensure_future(anext(slow))
        await settle()
        assert slow.stats() == (1, 1, 0, 0)
        gate.release()
        assert await waiting == [0, 1]
        assert slow.stats() == (1, 0, 0, 0)
        await slow.aclose()

        for stream, pulled in (
            (tideloop.merge(range(3), range(3)), 6),
            (tideloop.flat_map(range, range(4)), 6),
            (tideloop.flat_map(range, range(4), limit=2), 6),
            (tideloop.paginate(page), 4),
            (tideloop.paginate(page, ahead=1), 4),
            (tideloop.batched(range(7), 2), 7),
        ):
            await stream.to_list()
            assert stream.stats() == (pulled, 0, 0, 0)

    async def test_amap_of_a_stream_takes_what_amap_takes(self, loop):
        async def odd(number):
            if number % 2:
                raise Boom(number)
            return number

        def numbers():
            return tideloop.merge(range(4))

        assert await numbers().amap(odd, limit=1, on_error="skip").to_list() == [0, 2]
        outcomes = await numbers().amap(odd, limit=1, on_error="collect", name="odd").to_list()
        assert [outcome.ok for outcome in outcomes] == [True, False, True, False]

    @pytest.mark.parametrize("limit", [1, 3])
    async def test_stop_async_iteration_of_the_function_is_an_error(self, loop, limit):
        async def stops(number):
            if number == 3:
                raise StopAsyncIteration
            return number

        with pytest.raises(RuntimeError, match="raised StopAsyncIteration"):
            await tideloop.amap(stops, range(10), limit=limit).to_list()


def test_what_closing_the_source_raises_hides_nothing(kind):
    def source():
        try:
            yield from range(10)
        finally:
            raise OSError("closing")

    async def work(number):
        await asyncio.sleep(0)
        if number == 1:
            raise ValueError(number)

    async def main():
        with pytest.raises(OSError, match="closing") as caught:
            async for _ in tideloop.amap(work, source(), limit=2):
                pass
        known, error = [], caught.value
        while error is not None:
            known.append(type(error))
            error = error.__context__
        assert ValueError in known

    harness.run(kind, main())


@pytest.mark.parametrize("what", ["amap", "merge", "batched", "throttle"])
def test_a_stream_belongs_to_its_loop(kind, what):
    """On another loop it refuses to wait for tasks that do not run there, and goes on where it was begun."""
    first, second = new_virtual_loop(kind), new_virtual_loop(kind)
    source = Source()
    stream = {
        "amap": lambda: tideloop.amap(double, source.anumbers(), limit=2, buffer=1),
        "merge": lambda: tideloop.merge(source.anumbers()),
        "batched": lambda: tideloop.batched(source.anumbers(), 2, within=1),
        "throttle": lambda: tideloop.throttle(source.anumbers(), 1),
    }[what]()

    async def take():
        return await asyncio.wait_for(anext(stream), 60)

    async def repeat(call):
        for _ in range(5):  # what is ready is there for all
            await asyncio.wait_for(call(), 60)

    async def refused():
        for call in (lambda: anext(stream), stream.aclose):
            with pytest.raises(RuntimeError, match=f"{what}.*belongs to the event loop"):
                await repeat(call)

    try:
        first.run_until_complete(take())
        second.run_until_complete(refused())
        first.run_until_complete(take())
        first.run_until_complete(stream.aclose())
        assert source.closed == 1
        second.run_until_complete(stream.aclose())  # there is nothing left to do
    finally:
        first.close()
        second.close()


STREAMS_OF_ONE = {
    "batched": lambda source: tideloop.batched(source, 2),
    "batched within": lambda source: tideloop.batched(source, 2, within=1),
    "throttle": lambda source: tideloop.throttle(source, 10),
    "flat_map": lambda source: tideloop.flat_map(lambda item: [item], source),
    "flat_map, several": lambda source: tideloop.flat_map(lambda item: [item], source, limit=2),
    "merge": lambda source: tideloop.merge(source),
}


@pytest.mark.parametrize("make", STREAMS_OF_ONE.values(), ids=STREAMS_OF_ONE)
async def test_closing_one_that_was_not_begun_closes_its_source(loop, make):
    source = Source(10)
    inner = tideloop.amap(double, source.numbers(), limit=1)
    assert await anext(inner) == 0
    async with make(inner):
        pass
    assert source.closed == 1
    assert not tasks_left()
