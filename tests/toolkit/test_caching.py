"""Caches: one load for all, entries that age and go, errors and invalidations; on a virtual clock."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import inspect
import logging
import os
import random
import signal
import sys
import threading
import warnings
import weakref
from typing import ClassVar

import pytest
import tideloop
from tideloop import Cache, LoadCancelled, cached

from tests.toolkit import harness
from tests.toolkit.work import Boom


class Source:
    """Loads that are counted, take a second, and fail as told."""

    def __init__(self, seconds=1.0):
        self.seconds = seconds
        self.loads = []
        self.failures = []
        self.finished = 0

    async def load(self, key):
        self.loads.append(key)
        number = len(self.loads)
        await asyncio.sleep(self.seconds)
        self.finished += 1
        if self.failures:
            raise self.failures.pop(0)
        return (key, number)


class Thing:
    """Can be referred to weakly."""


class Missing(KeyError):
    """Hands on other arguments than it takes."""

    def __init__(self, key):
        super().__init__(f"no {key!r}")

    def __str__(self):
        return self.args[0]


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Can be made anew, and not be changed."""


class Fragile:
    """A key that all others of its class collide with, and that neither compares nor shows itself within fragile()."""

    broken = False

    def __init__(self, number):
        self.number = number

    def __hash__(self):
        return 1

    def __eq__(self, other):
        if self.broken:
            raise Boom("__eq__")
        return isinstance(other, Fragile) and other.number == self.number

    def __repr__(self):
        if self.broken:
            raise Boom("__repr__")
        return f"Fragile({self.number})"


@contextlib.contextmanager
def fragile():
    Fragile.broken = True
    try:
        yield
    finally:
        Fragile.broken = False


class Compared:
    """A key of which all are equal. Each comparison takes the next of `steps` and does it."""

    steps: ClassVar = []

    def __hash__(self):
        return 1

    def __eq__(self, other):
        if self.steps and (step := self.steps.pop(0)):
            step()
        return isinstance(other, Compared)


def refuse(loop, coro, **options):
    """A task factory."""
    raise Boom("no more tasks")


def run(main):
    """As a decorator of a test's body: run it on a virtual clock."""

    @functools.wraps(main)
    def test(*args, kind, **kwargs):
        harness.run(kind, main(*args, **kwargs))

    signature = inspect.signature(main)
    kind = inspect.Parameter("kind", inspect.Parameter.KEYWORD_ONLY)
    test.__signature__ = signature.replace(parameters=[*signature.parameters.values(), kind])
    return test


class TestLoads:
    @run
    async def test_n_misses_one_load(self):
        source, cache = Source(), Cache()
        assert await asyncio.gather(*(cache.get("a", source.load) for _ in range(100))) == [("a", 1)] * 100
        assert await cache.get("a", source.load) == ("a", 1)
        stats = cache.stats()
        assert (stats.misses, stats.loads, stats.joined, stats.hits, stats.entries) == (100, 1, 99, 1, 1)

    @pytest.mark.parametrize("victim", [0, 1, 2])
    @run
    async def test_a_load_survives_any_one_caller(self, victim):
        source, cache = Source(), Cache()
        tasks = [asyncio.ensure_future(cache.get("a", source.load)) for _ in range(3)]
        await asyncio.sleep(0.5)
        tasks[victim].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results.pop(victim), asyncio.CancelledError)
        assert results == [("a", 1)] * 2
        assert len(source.loads) == 1

    @run
    async def test_a_load_that_everybody_left_is_finished_and_stored(self):
        source, cache = Source(), Cache()
        task = asyncio.ensure_future(cache.get("a", source.load))
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.sleep(1)
        assert await cache.get("a", source.load) == ("a", 1)

    @run
    async def test_or_cancelled_if_asked_for(self):
        source, cache = Source(), Cache(cancel_abandoned=True)
        tasks = [asyncio.ensure_future(cache.get("a", source.load)) for _ in range(2)]
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        await asyncio.sleep(0.1)
        assert cache.stats().loading == 1
        tasks[1].cancel()
        await asyncio.sleep(0)
        # Who comes in the same turn gets a load of his own, not the dying one.
        assert await cache.get("a", source.load) == ("a", 2)
        assert source.finished == 1

    @run
    async def test_a_callers_deadline_is_his_own(self):
        cache = Cache()
        seen = []

        async def load(key):
            seen.append(tideloop.remaining())
            await asyncio.sleep(5)
            return key

        async def hurried():
            with tideloop.deadline(1):
                await cache.get("a", load)

        hurried_one = asyncio.ensure_future(hurried())
        await asyncio.sleep(0)
        patient = asyncio.ensure_future(cache.get("a", load))
        with pytest.raises(tideloop.DeadlineExceeded):
            await hurried_one
        assert await patient == "a"
        assert seen == [float("inf")]

    @run
    async def test_a_load_that_asks_for_its_own_key(self):
        cache = Cache(name="loops")

        async def load(key):
            return await cache.get(key, load)

        with pytest.raises(RuntimeError, match=r"Cache 'loops' .*'a' asks for 'a'"):
            await cache.get("a", load)

    @run
    async def test_loads_that_are_no_coroutine_functions(self):
        cache = Cache()

        def refuse(key):
            raise Boom(key)

        def later(key):
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(1, future.set_result, key.upper())
            return future

        def stop(key):
            raise StopIteration(key)

        for _ in range(2):
            with pytest.raises(Boom, match="a"):
                await cache.get("a", refuse)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await cache.get("a", stop)
        with pytest.raises(TypeError, match="await"):
            await cache.get("a", lambda key: 7)
        with pytest.raises(TypeError, match="not callable"):
            await cache.get("a", None)
        assert await asyncio.gather(cache.get("a", later), cache.get("a", later)) == ["A", "A"]
        assert cache.peek("a") == "A"

    @run
    async def test_a_load_that_was_cancelled_is_no_cancellation_of_the_callers(self):
        cache = Cache()

        async def load(key):
            raise asyncio.CancelledError

        results = await asyncio.gather(*(cache.get("a", load) for _ in range(2)), return_exceptions=True)
        assert [type(result) for result in results] == [LoadCancelled] * 2

    def test_cancel_everywhere(self, kind):
        async def scenario(attack):
            source, cache = Source(), Cache(ttl=10, stale=10)
            for _ in range(3):
                attack.task(cache.get("a", source.load))
            attack.task(cache.get_many(["a", "b", "c"], many(source)))
            await attack.settle()
            await asyncio.sleep(3)
            assert source.loads.count("a") == 1
            assert cache.stats().loading == 0
            assert cache.get("a", source.load).send is not None  # a coroutine, closed unused

        with pytest.warns(RuntimeWarning, match="never awaited"):
            assert harness.cancel_everywhere(kind, scenario) > 3


def many(source):
    async def load(keys):
        return {key: await source.load(key) for key in keys}

    return load


@pytest.mark.parametrize("abandons", [False, True])
def test_single_flights_cancelled_everywhere(kind, abandons):
    def scenario(attack):
        async def main():
            flights = tideloop.SingleFlight(cancel_abandoned=abandons)
            begun, ended = [], []

            async def work(key):
                begun.append(key)
                try:
                    await asyncio.sleep(1)
                    return key
                finally:
                    ended.append(key)

            async def ask(key):
                assert await flights.do(key, work, key) == key

            for key in "aabba":
                attack.task(ask(key))
            await attack.settle()
            await asyncio.sleep(5)
            assert begun == ended
            assert flights.stats()[1:3] == (0, 0)

        return main()

    assert harness.cancel_everywhere(kind, scenario) == 5


class TestErrors:
    @run
    async def test_errors_are_not_kept(self):
        source, cache = Source(), Cache()
        source.failures = [Boom("one"), Boom("two")]
        for word in ("one", "two"):
            with pytest.raises(Boom, match=word):
                await cache.get("a", source.load)
        assert await cache.get("a", source.load) == ("a", 3)
        assert cache.stats().failed == 2

    @run
    async def test_each_caller_has_an_exception_of_his_own(self):
        source, cache = Source(), Cache()
        source.failures = [Boom("one")]
        first, second = await asyncio.gather(*(cache.get("a", source.load) for _ in range(2)), return_exceptions=True)
        assert first is not second
        assert (type(first), first.args) == (type(second), second.args) == (Boom, ("one",))
        for error in (first, second):
            frames = []
            traceback = error.__traceback__
            while traceback is not None:
                frames.append(traceback.tb_frame.f_code.co_name)
                traceback = traceback.tb_next
            assert frames.count("load") == 1, "the traceback of the load, once"

    @run
    async def test_errors_are_kept_if_asked_for(self):
        source, cache = Source(), Cache(ttl=100, negative_ttl=10)
        source.failures = [Boom("one")]
        for _ in range(5):
            with pytest.raises(Boom, match="one"):
                await cache.get("a", source.load)
        assert len(source.loads) == 1
        assert cache.stats().negative_hits == 4
        assert "a" not in cache
        await asyncio.sleep(10)
        assert await cache.get("a", source.load) == ("a", 2)

    @run
    async def test_a_failed_refresh_leaves_the_stale_value_and_says_so(self):
        messages = []
        handler = logging.Handler()
        handler.emit = messages.append
        log = logging.getLogger("tideloop.flights")
        log.addHandler(handler)
        try:
            source, cache = Source(), Cache(ttl=10, stale=100, negative_ttl=1000)
            await cache.get("a", source.load)
            await asyncio.sleep(20)
            source.failures = [Boom("one")]
            assert await cache.get("a", source.load) == ("a", 1)
            await asyncio.sleep(2)
            assert await cache.get("a", source.load) == ("a", 1)
            await asyncio.sleep(2)
            assert await cache.get("a", source.load) == ("a", 3)
        finally:
            log.removeHandler(handler)
        assert ["nobody waits" in message.getMessage() for message in messages] == [True]

    @run
    async def test_a_task_that_could_not_be_made(self):
        source, cache = Source(), Cache()
        loop = asyncio.get_running_loop()

        async def attempt(asking):
            loop.set_task_factory(refuse)
            try:
                with pytest.raises(Boom, match="no more tasks"):
                    await asking
            finally:
                loop.set_task_factory(None)
            assert cache.stats().loading == 0

        await attempt(cache.get("a", source.load))
        await attempt(cache.get_many(["a", "b"], many(source)))
        assert await cache.get_many(["a", "b"], many(source)) == {"a": ("a", 1), "b": ("b", 2)}

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks that begin at once came with Python 3.12")
    @run
    async def test_a_task_that_begins_at_once_and_asks_for_its_own_key(self):
        cache = Cache()

        async def load(key):
            return await cache.get(key, load)

        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="wait for itself"):
                await cache.get("a", load)

    @run
    async def test_exceptions_that_cannot_be_changed(self):
        cache = Cache(negative_ttl=5)

        async def load(key):
            await asyncio.sleep(1)
            raise Frozen()

        for _ in range(2):
            failures = await asyncio.gather(*(cache.get("a", load) for _ in range(2)), return_exceptions=True)
            assert failures == [Frozen()] * 2

    @run
    async def test_keys_that_break_while_they_are_loaded(self):
        cache = Cache()
        cache.put(Fragile(1), "kept")

        async def load(key):
            await asyncio.sleep(1)
            return key

        async def cancelled(key):
            await asyncio.sleep(1)
            raise asyncio.CancelledError

        for loading in (load, cancelled):
            asking = asyncio.ensure_future(cache.get(Fragile(2), loading))
            await asyncio.sleep(0.5)
            with fragile(), pytest.raises(Boom):
                await asking
            assert cache.stats().loading == 0

    @run
    async def test_an_exceptions_message_and_notes(self):
        cache = Cache(negative_ttl=5)

        async def load(key):
            await asyncio.sleep(1)
            failure = Missing(key)
            failure.add_note("of the load")
            raise failure

        for _ in range(2):
            first, second = await asyncio.gather(*(cache.get(7, load) for _ in range(2)), return_exceptions=True)
            assert first is not second
            first.add_note("of a caller")
            assert (str(first), str(second)) == ("no 7", "no 7")
            assert second.__notes__ == ["of the load"]

    @run
    async def test_one_that_is_kept_does_not_keep_who_got_it(self):
        """Though it cannot be copied."""
        cache = Cache(negative_ttl=5)

        async def load(key):
            raise Frozen

        async def ask():
            thing = Thing()
            with pytest.raises(Frozen):
                await cache.get(7, load)
            return weakref.ref(thing)

        asked = [await ask() for _ in range(3)]
        with pytest.raises(Frozen) as last:
            await cache.get(7, load)
        gc.collect()
        assert [thing() for thing in asked] == [None] * 3
        del last


class TestTime:
    @run
    async def test_fresh_then_gone(self):
        source, cache = Source(0), Cache(ttl=10)
        assert await cache.get("a", source.load) == ("a", 1)
        await asyncio.sleep(9.9)
        assert await cache.get("a", source.load) == ("a", 1)
        await asyncio.sleep(0.1)
        assert "a" not in cache
        assert await cache.get("a", source.load) == ("a", 2)
        assert cache.stats().expired == 1

    @run
    async def test_stale_is_handed_out_at_once_with_one_refresh_in_flight(self):
        source, cache = Source(), Cache(ttl=10, stale=20)
        await cache.get("a", source.load)
        await asyncio.sleep(10)
        before = asyncio.get_running_loop().time()
        for _ in range(50):
            assert await cache.get("a", source.load) == ("a", 1)
        assert asyncio.get_running_loop().time() == before
        assert (cache.stats().stale_hits, cache.stats().loading) == (50, 1)
        await asyncio.sleep(1.5)
        assert await cache.get("a", source.load) == ("a", 2)
        assert len(source.loads) == 2
        await asyncio.sleep(30)
        assert "a" not in cache

    @run
    async def test_what_nobody_asks_for_goes(self):
        source, cache = Source(0), Cache(idle=10)
        for key in "ab":
            await cache.get(key, source.load)
        for _ in range(5):
            await asyncio.sleep(6)
            await cache.get("a", source.load)
        assert ("a" in cache, "b" in cache) == (True, False)
        assert source.loads == ["a", "b"]

    @run
    async def test_jitter_spreads_what_was_stored_together(self):
        cache = Cache(None, ttl=100, jitter=0.5)
        for key in range(1000):
            cache.put(key, key)
        await asyncio.sleep(49.9)
        assert sum(key in cache for key in range(1000)) == 1000
        await asyncio.sleep(25.1)
        assert 300 < sum(key in cache for key in range(1000)) < 700
        await asyncio.sleep(25)
        assert sum(key in cache for key in range(1000)) == 0

    @run
    async def test_a_ttl_of_one_entry(self):
        cache = Cache()
        cache.put("a", 1, ttl=5)
        cache.put("b", 2)
        await asyncio.sleep(5)
        assert (cache.peek("a"), cache.peek("a", "none"), cache.peek("b")) == (None, "none", 2)


class TestInvalidation:
    @run
    async def test_what_was_invalidated_during_its_load_is_not_stored(self):
        source, cache = Source(), Cache()
        early = asyncio.ensure_future(cache.get("a", source.load))
        await asyncio.sleep(0.5)
        assert cache.invalidate("a") is False
        late = asyncio.ensure_future(cache.get("a", source.load))
        assert await early == ("a", 1)
        assert "a" not in cache
        assert await late == ("a", 2)
        assert cache.peek("a") == ("a", 2)
        assert cache.invalidate("a") is True
        assert "a" not in cache

    @run
    async def test_what_is_invalidated_in_the_very_turn_in_which_its_load_begins_or_ends(self):
        cache = Cache()
        current = ["old"]

        def begin(key):
            """Reads, and then somebody writes, before it returns."""
            future = asyncio.get_running_loop().create_future()
            future.set_result(current[0])
            current[0] = "new"
            cache.invalidate(key)
            return future

        assert await cache.get("a", begin) == "old"
        assert "a" not in cache

        async def end(key):
            value = current[0]
            current[0] = "newer"
            cache.invalidate(key)
            return value

        first = asyncio.ensure_future(cache.get("a", end))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await cache.get("a", end) == "newer"
        assert (await first, "a" in cache) == ("new", False)

    @run
    async def test_an_old_load_does_not_replace_what_was_put(self):
        source, cache = Source(), Cache()
        early = asyncio.ensure_future(cache.get("a", source.load))
        await asyncio.sleep(0.5)
        cache.put("a", "put")
        assert await early == ("a", 1)
        assert await cache.get("a", source.load) == "put"

    @run
    async def test_a_refresh_before_and_one_after_an_invalidation(self):
        """The later load ends first; the earlier one must not come back on top of it."""
        cache = Cache()
        seconds = {1: 10, 2: 1}
        loads = []

        async def load(key):
            loads.append(key)
            number = len(loads)
            await asyncio.sleep(seconds[number])
            return number

        slow = asyncio.ensure_future(cache.refresh("a", load))
        await asyncio.sleep(0)
        cache.clear()
        assert await cache.get("a", load) == 2
        assert await slow == 1
        assert cache.peek("a") == 2

    def test_an_invalidation_in_a_thread_reaches_loads_on_all_loops(self, kind):
        source, cache = Source(), Cache()

        async def main():
            task = asyncio.ensure_future(cache.get("a", source.load))
            await asyncio.sleep(0.5)
            thread = threading.Thread(target=cache.invalidate, args=("a",))
            thread.start()
            thread.join()
            await task
            assert "a" not in cache

        harness.run(kind, main())

    @pytest.mark.parametrize("during", range(5))
    @pytest.mark.parametrize("inner", ["put", "invalidate", "clear", "put and invalidate", "put another"])
    @pytest.mark.parametrize("outer", ["put", "invalidate", "clear"])
    def test_a_comparison_in_which_somebody_else_comes_first(self, outer, inner, during):
        """As another thread may; whoever it was, each entry keeps its name, and each name its entry."""
        cache = Cache(maxsize=1)
        actions = {
            "put": lambda: cache.put(Compared(), 1),
            "invalidate": lambda: cache.invalidate(Compared()),
            "clear": cache.clear,
            "put and invalidate": lambda: cache.put(Compared(), 1) and cache.invalidate(Compared()),
            "put another": lambda: cache.put("another", 1),
        }
        cache.put(Compared(), 0)
        cache.put(Compared(), 0)  # has the name of the first, whose key is another object
        Compared.steps = [*[None] * during, actions[inner]]
        try:
            actions[outer]()
        finally:
            Compared.steps = []
        assert all(map(cache.__contains__, cache.keys()))
        assert len(cache) == len(cache.keys())
        cache.invalidate(Compared())
        cache.invalidate("another")
        assert (len(cache), cache.keys()) == (0, [])


class TestRoom:
    @run
    async def test_no_more_than_maxsize(self):
        source, cache = Source(0), Cache(10)
        for key in range(100):
            await cache.get(key, source.load)
        assert (len(cache), len(cache.keys()), cache.stats().evicted) == (10, 10, 90)
        cache.resize(5)
        assert (len(cache), len(cache.keys())) == (5, 5)
        assert repr(cache) == "<tideloop.Cache 5 of 5>"

    @run
    async def test_weights(self):
        cache = Cache(10, weight=lambda key, value: len(value))
        assert cache.put("a", "x" * 4)
        assert cache.put("b", "x" * 6)
        assert not cache.put("c", "x" * 11)
        assert cache.stats()[1:3] == (2, 10)
        assert cache.put("d", "x" * 5)
        assert cache.stats().weight <= 10
        assert cache.stats().refused == 1
        # A value that became too heavy is not what is found from then on.
        assert not cache.put("d", "x" * 11)
        assert "d" not in cache

        async def load(key):
            return 1

        with pytest.raises(TypeError, match="len"):
            await cache.get("e", load)
        for weight in (-1, 1.5, 2**64):
            odd = Cache(None, weight=lambda key, value, weight=weight: weight)
            with pytest.raises(ValueError, match="weight of 'e' must be an int from 0 to"):
                await odd.get("e", load)
            assert (len(odd), odd.stats().loading) == (0, 0)

    def test_nothing_is_left_of_a_million_keys(self, kind):
        """No lock, task, flight or name of a key stays behind."""

        async def main():
            cache = Cache(1000)
            for key in range(1_000_000):
                cache._store(key, None, "value", 1, None, None, None, None)  # what put() comes to, in half the time
            assert (len(cache), len(cache.keys())) == (1000, 1000)

            async def load(key):
                return None

            for key in range(3000):
                await cache.get(-key, load)
            stats = cache.stats()
            assert (len(cache.keys()), stats.loading) == (1000, 0)
            await cache.get_many(range(5000, 6000), many(Source(0)))
            assert (len(cache.keys()), cache.stats().loading) == (1000, 0)

        harness.run(kind, main())

    @run
    async def test_weak_values_live_as_long_as_somebody_has_them(self):
        cache = Cache(weak=True)
        loads = []

        async def load(key):
            loads.append(key)
            return Thing()

        thing = await cache.get("a", load)
        assert await cache.get("a", load) is thing
        await asyncio.sleep(0)  # whose step has the value: the one that brought it
        del thing
        gc.collect()
        assert (len(cache), cache.keys(), "a" in cache) == (0, [], False)
        assert isinstance(await cache.get("a", load), Thing)
        assert loads == ["a", "a"]

    @run
    async def test_weak_falls_back_for_what_cannot_be_referred_to(self):
        cache = Cache(weak=True)

        async def load(key):
            return key

        for value in ("text", 7, (1, 2), None):
            assert await cache.get(value, load) == value
            assert cache.peek(value, "none") == value
        assert len(cache) == 4

    @run
    async def test_a_new_weak_value_survives_the_death_of_the_old_one(self):
        cache = Cache(weak=True)
        old, new = Thing(), Thing()
        cache.put("a", old)
        cache.put("a", new)
        del old
        gc.collect()
        assert cache.peek("a") is new


class TestMany:
    @run
    async def test_one_call_for_those_that_are_missing(self):
        source, cache = Source(), Cache()
        calls = []

        async def load(keys):
            calls.append(list(keys))
            await asyncio.sleep(1)
            return [key * 2 for key in keys]

        cache.put(2, "put")
        single = asyncio.ensure_future(cache.get(4, source.load))
        await asyncio.sleep(0.5)
        assert await cache.get_many([3, 2, 1, 3, 4], load) == {3: 6, 2: "put", 1: 2, 4: (4, 1)}
        assert calls == [[3, 1]]
        assert await single == (4, 1)
        assert await cache.get_many([1, 2, 3], load) == {1: 2, 2: "put", 3: 6}
        assert len(calls) == 1

    @run
    async def test_who_asks_for_one_of_them_joins(self):
        source, cache = Source(), Cache()

        async def load(keys):
            await asyncio.sleep(1)
            return {"a": 1}

        both = asyncio.ensure_future(cache.get_many(["a", "b"], load))
        await asyncio.sleep(0.5)
        single = asyncio.ensure_future(cache.get("a", source.load))
        absent = asyncio.ensure_future(cache.get("b", source.load))
        assert await both == {"a": 1}
        assert await single == 1
        with pytest.raises(KeyError, match="b"):
            await absent
        assert source.loads == []
        assert await cache.get("b", source.load) == ("b", 1)

    @run
    async def test_the_load_survives_its_caller(self):
        source, cache = Source(), Cache()
        task = asyncio.ensure_future(cache.get_many(["a", "b"], many(source)))
        await asyncio.sleep(0.5)
        single = asyncio.ensure_future(cache.get("b", source.load))
        task.cancel()
        gc.collect()
        assert await single == ("b", 2)
        assert cache.peek("a") == ("a", 1)

    @run
    async def test_one_key_fails_and_the_others_are_stored(self):
        cache = Cache(negative_ttl=5)

        async def load(keys):
            for key in keys:
                yield key, Boom(key) if key == "b" else key.upper()

        for _ in range(2):
            with pytest.raises(Boom, match="b"):
                await cache.get_many(["a", "b", "c"], load)
        assert await cache.get_many(["a", "c"], load) == {"a": "A", "c": "C"}
        assert cache.stats().loads == 3

    @pytest.mark.parametrize(
        ("answer", "error"), [([1], "1 answers for 2 keys"), (7, "returned 7"), (["ab", 3], None), ({3}, "yielded 3")]
    )
    @run
    async def test_answers_that_are_none(self, answer, error):
        cache = Cache(name="db")

        async def load(keys):
            return answer

        if error is None:
            assert await cache.get_many("xy", load) == {"x": "ab", "y": 3}
            return
        with pytest.raises((TypeError, ValueError), match=f"Cache 'db'.*{error}"):
            await cache.get_many("xy", load)

    @run
    async def test_stale_ones_are_refreshed_by_one_call_that_nobody_waits_for(self):
        source, cache = Source(), Cache(ttl=10, stale=10)
        assert await cache.get_many("ab", many(source)) == {"a": ("a", 1), "b": ("b", 2)}
        await asyncio.sleep(11)
        before = asyncio.get_running_loop().time()
        assert await cache.get_many("ab", many(source)) == {"a": ("a", 1), "b": ("b", 2)}
        assert await cache.get("a", source.load) == ("a", 1)
        assert asyncio.get_running_loop().time() == before
        await asyncio.sleep(3)
        assert await cache.get_many("ab", many(source)) == {"a": ("a", 3), "b": ("b", 4)}

    @run
    async def test_it_is_the_first_keys_failure_that_is_raised(self):
        cache = Cache(negative_ttl=5)

        async def load(keys):
            return [Boom(key) for key in keys]

        with pytest.raises(Boom, match="a"):
            await cache.get_many(["a"], load)
        with pytest.raises(Boom, match="a"):
            await cache.get_many(["a", "b"], load)
        with pytest.raises(Boom, match="c"):
            await cache.get_many(["c", "b", "a"], load)

    @run
    async def test_a_failure_before_the_load_leaves_nothing_under_way(self):
        source, cache = Source(), Cache()
        cache.put(Fragile(1), "kept")
        waiting = asyncio.ensure_future(cache.get("b", source.load))
        await asyncio.sleep(0)
        with fragile(), pytest.raises(Boom):
            await cache.get_many(["a", "b", Fragile(2)], many(source))
        assert cache.stats().loading == 1
        assert await waiting == ("b", 1)
        assert await cache.get_many(["a", "b"], many(source)) == {"a": ("a", 2), "b": ("b", 1)}

    @run
    async def test_a_load_that_was_cancelled_before_it_began(self):
        source, cache = Source(), Cache()
        before = asyncio.all_tasks()
        asking = asyncio.ensure_future(cache.get_many(["a", "b"], many(source)))
        await asyncio.sleep(0)
        (load,) = asyncio.all_tasks() - before - {asking}
        load.cancel()
        with pytest.raises(LoadCancelled):
            await asking
        assert (source.loads, cache.stats().loading) == ([], 0)
        assert await cache.get("a", source.load) == ("a", 1)

    @run
    async def test_a_load_of_many_that_asks_for_one_of_them(self):
        source, cache = Source(), Cache(name="loops")

        async def load(keys):
            return [await cache.get(key, source.load) for key in keys]

        async def load_many(keys):
            return await cache.get_many(keys[1:], many(source))

        for loading in (load, load_many):
            with pytest.raises(RuntimeError, match="wait for itself"):
                await cache.get_many(["a", "b"], loading)
            assert cache.stats().loading == 0

    @pytest.mark.parametrize("cancelled", ["load", "part"])
    @run
    async def test_what_was_cancelled_has_not_failed(self, cancelled):
        source, cache = Source(), Cache(negative_ttl=100)

        async def load(keys):
            if cancelled == "load":
                raise asyncio.CancelledError
            return [asyncio.CancelledError() for _ in keys]

        for _ in range(2):
            with pytest.raises(LoadCancelled):
                await cache.get_many(["a", "b"], load)
        assert cache.stats().negative_hits == 0
        assert await cache.get("a", source.load) == ("a", 1)

    @run
    async def test_a_load_of_many_is_abandoned_with_its_last_key(self):
        source, cache = Source(), Cache(cancel_abandoned=True)
        asking = asyncio.ensure_future(cache.get_many(["a", "b"], many(source)))
        await asyncio.sleep(0.5)
        single = asyncio.ensure_future(cache.get("b", source.load))
        await asyncio.sleep(0)
        asking.cancel()
        assert await single == ("b", 2)
        asking = asyncio.ensure_future(cache.get_many(["c", "d"], many(source)))
        await asyncio.sleep(0.5)
        asking.cancel()
        await asyncio.sleep(10)
        assert source.finished == 2
        assert cache.stats().loading == 0


class TestFunctions:
    @run
    async def test_calls_that_are_the_same(self):
        calls = []

        @cached
        async def fetch(*args, **kwargs):
            calls.append((args, kwargs))
            return len(calls)

        same = [
            (lambda: fetch(), 1),
            (lambda: fetch(1), 2),
            (lambda: fetch((1,)), 3),
            (lambda: fetch("a"), 4),
            (lambda: fetch(1, 2), 5),
            (lambda: fetch((1, 2)), 6),
            (lambda: fetch(1, b=2), 7),
            (lambda: fetch(b=2, a=1), 8),
            (lambda: fetch(a=1, b=2), 8),
            (lambda: fetch(1, **{}), 2),
            (lambda: fetch(None), 9),
            (lambda: fetch(frozenset([1])), 10),
        ]
        for _ in range(2):
            for call, expected in same:
                assert await call() == expected
        assert calls[6] == ((1,), {"b": 2})
        assert fetch.stats().loads == 10

    @run
    async def test_keys_whose_comparison_runs_python(self):
        class Key:
            def __init__(self, number):
                self.number = number

            def __hash__(self):
                return 1

            def __eq__(self, other):
                return isinstance(other, Key) and self.number == other.number

        @cached
        async def fetch(key):
            return object()

        first = await fetch(Key(1))
        assert await fetch(Key(1)) is first
        assert await fetch(Key(2)) is not first
        assert await fetch(1) is await fetch(1)
        assert (fetch.invalidate(Key(1)), fetch.invalidate(Key(1))) == (True, False)

    @run
    async def test_what_it_looks_like(self):
        @cached(ttl=60)
        async def fetch(user_id: int, *, deep: bool = False) -> str:
            """Fetch it."""
            return f"{user_id}"

        assert (fetch.__name__, fetch.__doc__) == ("fetch", "Fetch it.")
        assert str(inspect.signature(fetch)).startswith("(user_id: 'int'")
        if hasattr(inspect, "markcoroutinefunction"):
            assert inspect.iscoroutinefunction(fetch)
        else:
            assert asyncio.iscoroutinefunction(fetch)
        coroutine = fetch(1)
        assert inspect.iscoroutine(coroutine) or inspect.isawaitable(coroutine)
        assert coroutine.__qualname__.endswith("fetch")
        assert await asyncio.create_task(coroutine) == "1"
        assert repr(fetch).startswith("<tideloop.cached ")
        assert (fetch.peek(1), fetch.peek(2)) == ("1", None)
        assert fetch.invalidate(1)
        assert await fetch.refresh(1, deep=True) == "1"
        assert fetch.clear() == 1

    @run
    async def test_methods(self):
        class Users:
            def __init__(self, prefix):
                self.prefix = prefix
                self.calls = 0

            @cached
            async def fetch(self, number):
                self.calls += 1
                return f"{self.prefix}{number}"

            @cached(key=lambda self, number: number)
            async def shared(self, number):
                return f"{self.prefix}{number}"

        a, b = Users("a"), Users("b")
        assert [await a.fetch(1), await b.fetch(1), await a.fetch(1)] == ["a1", "b1", "a1"]
        assert (a.calls, b.calls) == (1, 1)
        assert [await a.shared(1), await b.shared(1)] == ["a1", "a1"]
        assert Users.fetch.invalidate(a, 1)
        await a.fetch(1)
        assert a.calls == 2

    @run
    async def test_what_is_no_key(self):
        @cached(name="db")
        async def fetch(key):
            return key

        with pytest.raises(TypeError, match=r"Cache 'db' .* \(\[1\],\) is not hashable; key="):
            await fetch([1])
        with pytest.raises(TypeError, match=r"Cache 'db' .* \[1\] is not hashable"):
            await fetch.cache.get_many([2, [1]], fetch)

    @run
    async def test_over_a_batcher(self):
        """The two together: what is not in the cache is asked for in batches."""
        batches = []

        @cached
        @tideloop.batched
        async def double(numbers):
            batches.append(numbers)
            return [number * 2 for number in numbers]

        assert await asyncio.gather(*map(double, [1, 2, 1, 3])) == [2, 4, 2, 6]
        assert await asyncio.gather(*map(double, [3, 4])) == [6, 8]
        assert batches == [[1, 2, 3], [4]]

    @run
    async def test_over_another_cached_function(self):
        calls = []

        @cached(maxsize=1)
        async def inner(key):
            calls.append(key)
            return key * 2

        outer = cached(maxsize=5)(inner)
        assert [await outer(key) for key in (1, 2, 1)] == [2, 4, 2]
        assert outer.cache is not inner.cache
        assert (outer.cache.maxsize, inner.cache.maxsize) == (5, 1)
        assert outer.invalidate(1)
        assert (outer.peek(1), outer.peek(2), inner.peek(1), inner.peek(2)) == (None, 4, None, 4)
        assert await outer(1) == 2
        assert calls == [1, 2, 1]

    @run
    async def test_a_class_with_arguments_of_its_own(self):
        class Users(Cache):
            def __init__(self, source, *, size):
                super().__init__(size, name="users")
                self.source = source

        users = Users(Source(), size=2)
        assert [await users.get(key, users.source.load) for key in "abc"] == [("a", 1), ("b", 2), ("c", 3)]
        assert (len(users), users.maxsize, users.name) == (2, 2, "users")

    def test_options_that_are_wrong(self):
        for error, match, options in [
            (TypeError, "maxsize must be", {"maxsize": 1.5}),
            (ValueError, "maxsize must be", {"maxsize": -1}),
            (ValueError, "ttl must be", {"ttl": -1}),
            (ValueError, "jitter must be", {"ttl": 1, "jitter": 1}),
            (ValueError, "stale=1 needs a ttl", {"stale": 1}),
            (ValueError, "negative_ttl must be", {"negative_ttl": "1"}),
            (TypeError, "weight must be", {"weight": 1}),
            (TypeError, "ttll", {"ttll": 1}),
        ]:
            with pytest.raises(error, match=match):
                cached(**options)(Source.load)
        with pytest.raises(TypeError, match="key must be"):
            cached(key=1)
        with pytest.raises(TypeError, match="decorates a coroutine function, not 7"):
            cached(7)


class TestDefects:
    """What is wrong with caches as they are written by hand, each of which ours does not have; here on real loops."""

    async def test_str_values_and_the_first_caller_cancelled(self, loop):
        release = asyncio.Event()
        loads = []

        async def load(key):
            loads.append(key)
            await release.wait()
            return f"value of {key}"

        cache = Cache(weak=True)
        tasks = [asyncio.ensure_future(cache.get("a", load)) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        release.set()
        assert await asyncio.gather(*tasks[1:]) == ["value of a"] * 4
        assert tasks[0].cancelled()
        assert await cache.get("a", load) == "value of a"
        assert loads == ["a"]

    async def test_times_on_real_loops(self, loop):
        """uvloop's and asyncio's clocks are asked by Python, ours is not."""
        cache = Cache(ttl=1000, idle=1000, stale=1000)
        source = Source(0)
        for _ in range(3):
            assert await cache.get("a", source.load) == ("a", 1)
        cache.put("b", 1, ttl=0)
        assert cache.peek("b") == 1, "stale at once"


class TestLoops:
    def test_entries_are_shared_by_loops_and_loads_are_not(self, kind):
        """On real loops, whose clocks are one: a second one asks while the first one loads."""
        cache = Cache()
        loads = []
        inside = threading.Barrier(2, timeout=harness.REAL_PATIENCE)
        results = []

        async def load(key):
            loads.append(threading.get_ident())
            if len(loads) < 3:
                await asyncio.to_thread(inside.wait)
            return key

        def work():
            with asyncio.Runner(loop_factory=lambda: harness.new_real_loop(kind)) as runner:
                results.append(runner.run(cache.get("a", load)))

        threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(harness.REAL_PATIENCE)
        assert results == ["a", "a"]
        assert len(set(loads)) == 2
        work()
        assert len(loads) == 2

    def test_a_loop_that_was_closed_leaves_no_flight(self, kind):
        cache = Cache()
        source = Source(1000)

        async def begin():
            task = asyncio.ensure_future(cache.get("a", source.load))
            await asyncio.sleep(1)
            return task

        loop = harness.new_virtual_loop(kind)
        left = loop.run_until_complete(begin())
        loads = [task for task in asyncio.all_tasks(loop) if task is not left]
        loop.close()
        source.seconds = 1
        harness.run(kind, cache.get("a", source.load))
        assert cache.stats().loading == 0
        for task in (left, *loads):
            harness._abandon(task)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    def test_a_forked_child_loads_for_itself(self, kind):
        cache, batcher = Cache(), tideloop.Batcher(lambda keys: keys)

        async def parent():
            release = asyncio.Event()

            async def load(key):
                await release.wait()
                return "parent's"

            task = asyncio.ensure_future(cache.get("a", load))
            future = batcher(1)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            child = os.fork()
            if child == 0:
                os._exit(in_child())
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            release.set()
            assert (await task, await future) == ("parent's", 1)
            assert os.waitstatus_to_exitcode(status) == 0

        def in_child():
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(harness.REAL_PATIENCE))
            asyncio._set_running_loop(None)

            async def load(key):
                return "child's"

            async def main():
                return await cache.get("a", load), await batcher(2)

            loop = harness.new_real_loop(kind)
            return 0 if loop.run_until_complete(main()) == ("child's", 2) else 3

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks while there are threads
            with asyncio.Runner(loop_factory=lambda: harness.new_real_loop(kind)) as runner:
                runner.run(parent())

    def test_no_cycle_keeps_it(self, kind):
        cache = Cache()

        @cached
        async def fetch(key):
            return fetch  # noqa: F821 - it is deleted below, later than this runs

        harness.run(kind, fetch(1))
        cache.put("self", cache)
        kept = weakref.ref(cache), weakref.ref(fetch)
        del cache, fetch
        gc.collect()
        assert [reference() for reference in kept] == [None, None]

    def test_random_programs(self, kind):
        """Against what must hold whatever happens: no value older than the last invalidation, no load left."""
        for seed in range(60):
            harness.run(kind, _play(random.Random(seed)))


async def _play(dice):
    cache = Cache(dice.choice([2, 4, None]), ttl=dice.choice([None, 5]), stale=None)
    versions = dict.fromkeys("abcd", 0)

    async def load(key):
        version = versions[key]
        await asyncio.sleep(dice.random() * 3)
        if dice.random() < 0.2:
            raise Boom(key)
        return version

    async def ask(key):
        floor = versions[key]
        with contextlib.suppress(Boom):
            assert await cache.get(key, load) >= floor

    tasks = []
    for _ in range(80):
        key = dice.choice("abcd")
        match dice.randrange(5):
            case 0:
                versions[key] += 1
                cache.invalidate(key)
            case 1 if tasks:
                dice.choice(tasks).cancel()
            case _:
                tasks.append(asyncio.ensure_future(ask(key)))
        await asyncio.sleep(dice.random())
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, asyncio.CancelledError), result
    await asyncio.sleep(5)
    assert cache.stats().loading == 0
