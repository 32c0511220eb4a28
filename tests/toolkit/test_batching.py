"""Batches of calls: when they are sent off, who shares them, and who is told what; on a virtual clock."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import random
import threading
from collections import deque

import pytest
import tideloop
from tideloop import Batcher, LoadCancelled, batched

from tests.toolkit import harness
from tests.toolkit.work import Boom, turns


class Database:
    """Notes what it is asked for, and when."""

    def __init__(self, seconds=1.0):
        self.seconds = seconds
        self.asked = []
        self.times = []
        self.inside = self.most = 0

    async def fetch(self, keys):
        self.asked.append(list(keys))
        self.times.append(asyncio.get_running_loop().time())
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.inside -= 1
        return [key * 10 for key in keys]


def timers(kind_loop):
    """Timers that are still to ring on asyncio's loop."""
    return [handle for handle in getattr(kind_loop, "_scheduled", ()) if not handle.cancelled()]


class TestWindows:
    def test_tick_takes_all_that_the_tasks_of_a_turn_ask_for(self, kind):
        async def main():
            database = Database(0)
            batcher = Batcher(database.fetch)

            async def work(number):
                first = await batcher(number)
                second = await batcher(first + 1)
                return first, second

            assert await asyncio.gather(*map(work, range(3))) == [(0, 10), (10, 110), (20, 210)]
            assert database.asked == [[0, 1, 2], [1, 11, 21]]
            assert database.times == [0, 0]

        harness.run(kind, main())

    def test_seconds_from_the_first_call(self, kind):
        async def main():
            database = Database()
            batcher = Batcher(database.fetch, window=2)
            futures = []
            for number in range(5):
                futures.append(batcher(number))
                await asyncio.sleep(0.9)
            assert await asyncio.gather(*futures) == [0, 10, 20, 30, 40]
            assert database.asked == [[0, 1, 2], [3, 4]]
            assert database.times == [2, pytest.approx(4.7)]

        harness.run(kind, main())

    def test_a_full_batch_goes_at_once_and_leaves_no_timer(self, kind):
        """The window of a batch that was full early must not end the next one's."""

        async def main():
            loop = asyncio.get_running_loop()
            database = Database()
            batcher = Batcher(database.fetch, window=10, max_size=2)
            before = len(timers(loop))
            first = [batcher(1), batcher(2)]
            await turns(2)
            assert database.asked == [[1, 2]]
            assert len(timers(loop)) <= before + 1, "only the database's sleep"
            await asyncio.sleep(9)
            late = batcher(3)
            await asyncio.sleep(9.5)
            assert len(database.asked) == 1, "sent off by the first batch's timer"
            assert await asyncio.gather(*first, late) == [10, 20, 30]
            assert database.times == [0, 19]

        harness.run(kind, main())

    def test_auto_waits_only_for_a_batch_that_is_under_way(self, kind):
        async def main():
            database = Database(1)
            batcher = Batcher(database.fetch, window="auto", max_size=4)
            futures = [batcher(0)]
            await asyncio.sleep(0.25)
            for number in range(1, 4):
                futures.append(batcher(number))
                await asyncio.sleep(0.1)
            assert database.asked == [[0]]
            await asyncio.sleep(1)
            assert database.asked == [[0], [1, 2, 3]]
            # One that is full does not wait.
            for number in range(4, 9):
                futures.append(batcher(number))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert database.asked[2:] == [[4, 5, 6, 7]]
            await asyncio.gather(*futures)
            assert database.asked[3:] == [[8]]

        harness.run(kind, main())

    @pytest.mark.parametrize("window", ["tick", "auto", 0.3])
    def test_max_inflight(self, kind, window):
        async def main():
            database = Database(1)
            batcher = Batcher(database.fetch, window=window, max_size=3, max_inflight=2, name="db")
            futures = []
            for number in range(30):
                futures.append(batcher(number))
                if number % 5 == 0:
                    await asyncio.sleep(0.35)
            assert "in flight>" in repr(batcher)
            assert batcher.stats().inflight <= 2
            assert await asyncio.gather(*futures) == [number * 10 for number in range(30)]
            assert database.most <= 2
            assert [key for keys in database.asked for key in keys] == list(range(30)), "first in, first out"
            assert all(len(keys) <= 3 for keys in database.asked)
            await asyncio.sleep(0)
            assert batcher.stats()[-2:] == (0, 0)

        harness.run(kind, main())

    def test_flush(self, kind):
        async def main():
            database = Database()
            batcher = Batcher(database.fetch, window=100)
            batcher.flush()
            future = batcher(1)
            batcher.flush()
            assert await future == 10
            assert database.times == [0]

        harness.run(kind, main())


class TestCallers:
    def test_equal_keys_share_a_place(self, kind):
        async def main():
            database = Database()
            batcher = Batcher(database.fetch)
            assert await asyncio.gather(*map(batcher, [1, 2, 1, 1])) == [10, 20, 10, 10]
            assert database.asked == [[1, 2]]
            assert batcher.stats()[1:6] == (4, 2, 1, 2, 2)
            # Only within a batch: what is asked for later may have another answer.
            assert await batcher(1) == 10
            assert database.asked == [[1, 2], [1]]

        harness.run(kind, main())

    def test_or_not(self, kind):
        async def main():
            database = Database()
            batcher = Batcher(database.fetch, dedupe=False)
            assert await batcher.load_many([1, 1, 2]) == [10, 10, 20]
            assert database.asked == [[1, 1, 2]]
            unhashable = Batcher(lambda items: [len(item) for item in items], dedupe=False)
            assert await unhashable.load_many([[], [1]]) == [0, 1]

            async def named(items):
                return {item: item for item in items}

            assert await Batcher(named, dedupe=False).load_many([1, 1]) == [1, 1]

        harness.run(kind, main())

    def test_keys_of_items(self, kind):
        async def main():
            asked = []

            async def fetch(users):
                asked.append(users)
                return {user["id"]: user["name"] for user in users}

            batcher = Batcher(fetch, key=lambda user: user["id"])
            a, b = {"id": 1, "name": "a"}, {"id": 2, "name": "b"}
            assert await batcher.load_many([a, b, dict(a)]) == ["a", "b", "a"]
            assert asked == [[a, b]]
            with pytest.raises(TypeError, match=r"\{'id': 1.* is not hashable; pass key="):
                Batcher(fetch)(a)

        harness.run(kind, main())

    @pytest.mark.parametrize("when", ["before", "during"])
    @pytest.mark.parametrize("victim", range(3))
    def test_one_callers_cancel_harms_nobody(self, kind, victim, when):
        async def main():
            database = Database()
            batcher = Batcher(database.fetch, window=1)

            async def ask(key):
                return await batcher(key)

            tasks = [asyncio.ensure_future(ask(key)) for key in (1, 1, 2)]
            await asyncio.sleep(0.5 if when == "before" else 1.5)
            tasks[victim].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(results[victim], asyncio.CancelledError)
            del results[victim]
            assert results == ([10, 10] if victim == 2 else [10, 20])
            assert database.asked == [[1] if (victim, when) == (2, "before") else [1, 2]]

        harness.run(kind, main())

    def test_all_cancelled_means_never_called(self, kind):
        async def main():
            database = Database()
            for options in ({}, {"window": 1}, {"window": "auto"}, {"max_size": 2, "max_inflight": 1}):
                batcher = Batcher(database.fetch, **options)
                futures = [batcher(1), batcher(1)]
                for future in futures:
                    future.cancel()
                await asyncio.sleep(3)
                assert (database.asked, batcher.stats().waiting) == ([], 0)
                assert batcher.stats().cancelled == 1
                # The place of a key that was given up serves who asks for it before the batch goes.
            batcher = Batcher(database.fetch, window=1)
            batcher(1).cancel()
            assert await batcher(1) == 10

        harness.run(kind, main())

    def test_a_queued_batch_that_everybody_left_does_not_stop_the_others(self, kind):
        async def main():
            database = Database()
            batcher = Batcher(database.fetch, max_size=1, max_inflight=1)
            first, second, third = map(batcher, (1, 2, 3))
            second.cancel()
            assert await asyncio.gather(first, third) == [10, 30]
            assert database.asked == [[1], [3]]

        harness.run(kind, main())

    def test_context_and_deadline_of_a_batch(self, kind):
        async def main():
            seen = []

            async def fetch(keys):
                seen.append(tideloop.remaining())
                await asyncio.sleep(5)
                return keys

            batcher = Batcher(fetch)

            async def hurried():
                with tideloop.deadline(1):
                    await batcher(1)

            task = asyncio.ensure_future(hurried())
            await asyncio.sleep(0)
            patient = batcher(1)
            with pytest.raises(tideloop.DeadlineExceeded):
                await task
            assert await patient == 1
            assert seen == [float("inf")]

        harness.run(kind, main())

    def test_cancel_everywhere(self, kind):
        async def scenario(attack):
            database = Database()
            batcher = Batcher(database.fetch, max_size=2, max_inflight=1)
            answers = []

            async def ask(key):
                answers.append(await batcher(key) == key * 10)

            for key in (1, 2, 3, 1, 4):
                attack.task(ask(key))
            await attack.settle()
            await asyncio.sleep(10)
            assert all(answers)
            assert batcher.stats()[-2:] == (0, 0)
            assert await batcher(7) == 70

        assert harness.cancel_everywhere(kind, scenario) >= 5

    def test_random_programs(self, kind):
        async def play(dice):
            database = Database(dice.random() * 2)
            batcher = Batcher(
                database.fetch,
                max_size=dice.randint(1, 5),
                window=dice.choice(["tick", "auto", 0.5]),
                max_inflight=dice.choice([None, 1, 2]),
                dedupe=dice.random() < 0.8,
            )
            futures = []
            for _ in range(60):
                key = dice.randrange(8)
                futures.append((key, batcher(key)))
                if dice.random() < 0.3:
                    dice.choice(futures)[1].cancel()
                if dice.random() < 0.5:
                    await asyncio.sleep(dice.random() * 0.5)
            for key, future in futures:
                if not future.cancelled():
                    assert await future == key * 10
            await asyncio.sleep(5)
            assert batcher.stats()[-2:] == (0, 0)

        for seed in range(60):
            harness.run(kind, play(random.Random(seed)))


class TestAnswers:
    @pytest.mark.parametrize("shape", ["list", "tuple", "deque", "mapping", "async pairs", "pairs", "plain list"])
    def test_shapes(self, kind, shape):
        async def fetch(keys):
            pairs = [(key, Boom(key) if key == 2 else key * 10) for key in keys]
            match shape:
                case "list":
                    return [value for _, value in pairs]
                case "tuple":
                    return tuple(value for _, value in pairs)
                case "deque":
                    return deque(value for _, value in pairs)
                case "mapping":
                    return dict([*reversed(pairs), ("not asked for", 1)])
                case "pairs":
                    return reversed(pairs)

        async def yielding(keys):
            for key in reversed(keys):
                yield key, Boom(key) if key == 2 else key * 10
            yield "not asked for", 1

        def plainly(keys):
            return [Boom(key) if key == 2 else key * 10 for key in keys]

        async def main():
            batcher = Batcher({"async pairs": yielding, "plain list": plainly}.get(shape, fetch))
            one, two, three = await asyncio.gather(*map(batcher, (1, 2, 3)), return_exceptions=True)
            assert (one, three) == (10, 30)
            assert (type(two), two.args) == (Boom, (2,))

        harness.run(kind, main())

    def test_pairs_are_told_as_they_come(self, kind):
        async def fetch(keys):
            for key in keys:
                await asyncio.sleep(1)
                yield key, key

        async def main():
            first, second = map(Batcher(fetch), (1, 2))
            await first
            assert asyncio.get_running_loop().time() == 1
            assert not second.done()
            await second

        harness.run(kind, main())

    @pytest.mark.parametrize("shape", ["mapping", "pairs"])
    def test_a_missing_key_is_a_key_error_for_its_callers_alone(self, kind, shape):
        async def fetch(keys):
            return {key: key for key in keys if key != 2}

        async def yielding(keys):
            for key in keys:
                if key != 2:
                    yield key, key

        async def main():
            batcher = Batcher(fetch if shape == "mapping" else yielding)
            results = await asyncio.gather(*map(batcher, (1, 2, 2, 3)), return_exceptions=True)
            assert (results[0], results[3]) == (1, 3)
            assert [type(result) for result in results[1:3]] == [KeyError, KeyError]
            assert results[1] is not results[2]
            assert results[1].args == (2,)

        harness.run(kind, main())

    def test_if_it_raises_each_caller_has_an_exception_of_his_own(self, kind):
        async def fetch(keys):
            raise Boom("no database")

        async def main():
            batcher = Batcher(fetch)
            results = await asyncio.gather(*map(batcher, (1, 1, 2)), return_exceptions=True)
            assert [(type(result), result.args) for result in results] == [(Boom, ("no database",))] * 3
            assert len({id(result) for result in results}) == 3
            assert all(result.__traceback__ is not None for result in results)
            assert batcher.stats().failed == 1

        harness.run(kind, main())

    def test_stop_iteration_which_no_future_takes(self, kind):
        def stop(keys):
            raise StopIteration("none")

        async def main():
            for answer in (stop, lambda keys: [StopIteration("none")]):
                with pytest.raises(RuntimeError, match="raised StopIteration"):
                    await Batcher(answer)(1)

        harness.run(kind, main())

    def test_what_came_before_the_failure_stands(self, kind):
        async def fetch(keys):
            yield keys[0], "came"
            raise Boom("then not")

        async def main():
            results = await asyncio.gather(*map(Batcher(fetch), (1, 2)), return_exceptions=True)
            assert results[0] == "came"
            assert isinstance(results[1], Boom)

        harness.run(kind, main())

    def test_a_cancelled_batch_is_no_cancellation_of_its_callers(self, kind):
        async def fetch(keys):
            raise asyncio.CancelledError

        async def main():
            batcher = Batcher(fetch, max_inflight=1)
            for _ in range(2):
                results = await asyncio.gather(*map(batcher, (1, 2)), return_exceptions=True)
                assert [type(result) for result in results] == [LoadCancelled] * 2

        harness.run(kind, main())

    @pytest.mark.parametrize("callers", [1, 2])
    def test_a_cancelled_part_is_none_either(self, kind, callers):
        async def one(key):
            if key == 1:
                raise asyncio.CancelledError
            return key

        async def fetch(keys):
            return await asyncio.gather(*map(one, keys), return_exceptions=True)

        async def main():
            batcher = Batcher(fetch)
            *cancelled, two = await asyncio.gather(*map(batcher, [*[1] * callers, 2]), return_exceptions=True)
            assert [type(failure) for failure in cancelled] == [LoadCancelled] * callers
            assert two == 2

        harness.run(kind, main())

    def test_a_task_that_could_not_be_made(self, kind):
        def refuse(loop, coro, **options):
            raise Boom("no more tasks")

        async def main():
            loop = asyncio.get_running_loop()
            database = Database()
            batcher = Batcher(database.fetch, max_inflight=1)
            calls = [batcher(key) for key in (1, 1, 2)]
            loop.set_task_factory(refuse)
            try:
                for call in calls:
                    with pytest.raises(Boom, match="no more tasks"):
                        await call
            finally:
                loop.set_task_factory(None)
            assert batcher.stats().inflight == 0
            assert await batcher(3) == 30
            assert database.asked == [[3]]

        harness.run(kind, main())

    def test_an_exception_that_cannot_be_changed(self, kind):
        @dataclasses.dataclass(frozen=True)
        class Frozen(Exception):
            """Can be made anew, and not be changed."""

        async def fetch(keys):
            raise Frozen()

        async def main():
            batcher = Batcher(fetch)
            assert await asyncio.gather(*map(batcher, (1, 1, 2)), return_exceptions=True) == [Frozen()] * 3
            assert batcher.stats().inflight == 0

        harness.run(kind, main())

    @pytest.mark.parametrize("asynchronous", [True, False])
    def test_one_that_yields_what_is_no_pair_is_closed(self, kind, asynchronous):
        closed = []

        async def later(keys):
            try:
                yield keys[0], "first"
                yield "no pair"
            finally:
                await asyncio.sleep(1)
                closed.append(keys)

        def now(keys):
            try:
                yield keys[0], "first"
                yield "no pair"
            finally:
                closed.append(keys)

        async def main():
            batcher = Batcher(later if asynchronous else now)
            first, second = await asyncio.gather(batcher(1), batcher(2), return_exceptions=True)
            assert (first, type(second)) == ("first", TypeError)
            assert closed == [[1, 2]]

        harness.run(kind, main())

    def test_answers_that_are_none(self, kind):
        async def main():
            for answer, match in [
                ([1, 2], "'db' .* returned 2 answers for 1 keys"),
                (7, "'db' .* returned 7; expected a list"),
                ("x", "'db' .* returned 'x'"),
                ({1}, "'db' .* yielded 1; expected a pair"),
            ]:

                async def fetch(keys, answer=answer):
                    return answer

                with pytest.raises((TypeError, ValueError), match=match):
                    await Batcher(fetch, name="db")(1)

        harness.run(kind, main())


class TestDefects:
    """What is wrong with batchers as they are written by hand, each of which ours does not have; here on real loops."""

    async def test_equal_keys_one_caller_cancelled_and_calls_meanwhile(self, loop):
        release = asyncio.Event()
        asked = []

        async def fetch(keys):
            asked.append(keys)
            await release.wait()
            return dict.fromkeys(keys, "value")

        batcher = Batcher(fetch)
        futures = [batcher("a"), batcher("a"), batcher("b")]
        await turns(3)
        # Nothing is locked while a batch is under way.
        late = batcher("c")
        await turns(3)
        assert asked == [["a", "b"], ["c"]]
        futures[0].cancel()
        release.set()
        assert await asyncio.gather(*futures[1:], late) == ["value"] * 3


class TestName:
    """tideloop.batched is of calls and of streams."""

    def test_the_shape_of_the_call_decides(self, kind):
        async def main():
            assert await batched(range(5), 2).to_list() == [[0, 1], [2, 3], [4]]
            assert await batched(range(3), n=2, within=1).to_list() == [[0, 1], [2]]

            @batched
            async def double(numbers):
                """Twice as much."""
                return [number * 2 for number in numbers]

            @batched(max_size=2, window=1, max_inflight=3, name="d")
            async def other(numbers):
                return numbers

            assert (await double(2), await other(3)) == (4, 3)
            assert (double.__name__, double.__doc__) == ("double", "Twice as much.")
            await asyncio.sleep(0)
            assert repr(other) == "<tideloop.Batcher 'd' 0 waiting, 0 in flight>"
            with pytest.raises(TypeError, match=r"range\(0, 3\) came without n"):
                batched(range(3))
            with pytest.raises(TypeError, match="takes n"):
                batched(range(3), within=1)

        harness.run(kind, main())

    def test_methods_have_batches_per_instance(self, kind):
        class Users:
            def __init__(self, factor):
                self.factor = factor
                self.asked = []

            @batched(window=1)
            async def fetch(self, keys):
                self.asked.append(keys)
                return [key * self.factor for key in keys]

        class Slotted:
            __slots__ = ()
            fetch = Batcher(lambda self, keys: keys)

        async def main():
            a, b = Users(2), Users(3)
            assert await asyncio.gather(a.fetch(1), b.fetch(1), a.fetch(2)) == [2, 3, 4]
            assert (a.asked, b.asked) == ([[1, 2]], [[1]])
            assert a.fetch is a.fetch
            with pytest.raises(TypeError, match="needs a __dict__"):
                _ = Slotted().fetch

        harness.run(kind, main())

    def test_a_method_that_another_overrides(self, kind):
        class Users:
            @batched
            async def fetch(self, keys):
                return [key * 2 for key in keys]

        class Doubled(Users):
            @batched
            async def fetch(self, keys):
                return [2 * answer for answer in await super().fetch.load_many(keys)]

        async def main():
            assert await asyncio.gather(*map(Doubled().fetch, (1, 2))) == [4, 8]

        harness.run(kind, main())

    def test_a_copy_has_batches_of_its_own(self, kind):
        class Users:
            factor = 2

            @batched
            async def fetch(self, keys):
                return [key * self.factor for key in keys]

        async def main():
            users = Users()
            assert await users.fetch(1) == 2
            other = copy.copy(users)
            other.factor = 3
            assert await asyncio.gather(users.fetch(1), other.fetch(1), users.fetch(2)) == [2, 3, 4]

        harness.run(kind, main())

    def test_options_that_are_wrong(self):
        for error, match, options in [
            (TypeError, "max_size must be", {"max_size": 1.5}),
            (ValueError, "max_size must be", {"max_size": 0}),
            (ValueError, "max_inflight must be", {"max_inflight": 0}),
            (ValueError, "window must be", {"window": -1}),
            (ValueError, "window must be", {"window": "soon"}),
            (TypeError, "key must be", {"key": 1}),
            (TypeError, "max_sise", {"max_sise": 1}),
        ]:
            with pytest.raises(error, match=match):
                batched(**options)(Database.fetch)
        with pytest.raises(TypeError, match="fn must be"):
            Batcher(7)
        with pytest.raises(RuntimeError, match="no running event loop"):
            Batcher(Database.fetch)(1)


class TestLoops:
    def test_each_loop_has_batches_of_its_own(self, kind):
        asked = []
        inside = threading.Barrier(2, timeout=harness.REAL_PATIENCE)

        async def fetch(keys):
            asked.append((threading.get_ident(), keys))
            await asyncio.to_thread(inside.wait)
            return keys

        batcher = Batcher(fetch, max_inflight=1)
        results = []

        async def main():
            results.append(await asyncio.gather(batcher(1), batcher(2)))

        def work():
            with asyncio.Runner(loop_factory=lambda: harness.new_real_loop(kind)) as runner:
                runner.run(main())

        threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(harness.REAL_PATIENCE)
        assert results == [[1, 2], [1, 2]]
        assert [keys for _, keys in asked] == [[1, 2], [1, 2]]
        assert len({thread for thread, _ in asked}) == 2

    def test_a_loop_that_was_closed_is_forgotten(self, kind):
        batcher = Batcher(Database().fetch, window=100)

        async def leave():
            batcher(1)

        harness.run(kind, leave())

        async def ask():
            future = batcher(2)
            assert batcher.stats().waiting == 1
            return await future

        assert harness.run(kind, ask()) == 20
