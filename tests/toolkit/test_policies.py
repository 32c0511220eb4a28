"""Call policies, part by part and together, on a virtual clock."""

from __future__ import annotations

import asyncio
import email.utils
import inspect
import math
import time
from types import MappingProxyType

import pytest
import tideloop
from tideloop import AdaptiveLimiter, Breaker, Hedge, Limiter, Retry, policy

from tests.toolkit import harness
from tests.toolkit.work import Boom, Flaky, fail, forever, give, now, turns


class TestRetry:
    def test_until_it_answers(self, kind):
        async def main():
            flaky = Flaky(3)
            guarded = policy(retry=Retry(first=1, factor=2, longest=3, jitter=0))
            assert await guarded(flaky)("x") == "x"
            assert flaky.pauses() == pytest.approx([1, 2, 3])
            assert guarded.stats() == (3, 0, 0, 0)

        harness.run(kind, main())

    def test_the_last_error_is_raised_and_says_how_often(self, kind):
        async def main():
            guarded = policy(retry=Retry(first=1, attempts=3), name="bank")
            with pytest.raises(Boom) as caught:
                await guarded.call(fail, "no")
            assert caught.value.__notes__ == ["the last of 3 attempts by <tideloop.Policy 'bank' retry>"]
            assert guarded.stats() == (2, 1, 0, 0)
            with pytest.raises(Boom) as caught:
                await policy(retry=Retry(attempts=1)).call(fail, "no")
            assert not hasattr(caught.value, "__notes__")

        harness.run(kind, main())

    def test_only_what_may_be(self, kind):
        async def main():
            for retry in (Retry(on=KeyError), Retry(on=(KeyError, OSError)), Retry(on=lambda error: False)):
                flaky = Flaky(1)
                guarded = policy(retry=retry)
                with pytest.raises(Boom):
                    await guarded.call(flaky)
                assert len(flaky.times) == 1
                assert guarded.stats().exhausted == 0
            flaky = Flaky(1)
            assert await policy(retry=Retry(on=lambda error: isinstance(error, Boom))).call(flaky) == "answer"

        harness.run(kind, main())

    def test_cancellation_is_never_tried_again(self, kind):
        async def main():
            flaky = Flaky(1, asyncio.CancelledError)
            with pytest.raises(asyncio.CancelledError):
                await policy(retry=Retry(), timeout=5).call(flaky)
            assert len(flaky.times) == 1
            waiting = Flaky(1)
            task = asyncio.ensure_future(policy(retry=Retry(first=100, longest=100, jitter=0)).call(waiting))
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(waiting.times) == 1

        harness.run(kind, main())

    def test_what_the_server_asks_for(self, kind):
        class Busy(Exception):
            retry_after = 3

        async def main():
            flaky = Flaky(1, Busy)
            await policy(retry=Retry(first=1)).call(flaky)
            assert flaky.pauses() == pytest.approx([3])
            flaky = Flaky(1, Busy)
            with pytest.raises(Busy):
                await policy(retry=Retry(first=1, longest=2)).call(flaky)
            flaky = Flaky(1)
            await policy(retry=Retry(first=1, retry_after=lambda error: 4.5)).call(flaky)
            assert flaky.pauses() == pytest.approx([4.5])

        harness.run(kind, main())

    @pytest.mark.parametrize(
        ("header", "pause"),
        [
            ("3", 3),
            (" 120 ", 120),
            ("Thu, 01 Jan 1970 00:00:01 GMT", 0),
            ("Sun, 06 Nov 99999999999 08:49:37 GMT", None),
            ("soon", None),
            ("-1", None),
            ("1e3", None),
        ],
    )
    def test_what_the_headers_of_a_response_ask_for(self, header, pause):
        class Failure(Exception):
            pass

        class Response:
            headers = MappingProxyType({"Retry-After": header})

        retry = Retry(first=0, longest=1000)
        failure = Failure()
        failure.response = Response
        assert retry.retry_after(failure) == pause
        failure = Failure()
        failure.headers = {"retry-after": header}
        assert retry.retry_after(failure) == pause
        assert retry.pause(failure, 1) == (pause or 0)
        late = Failure()
        late.headers = {"Retry-After": email.utils.formatdate(time.time() + 600, usegmt=True)}
        assert 590 < retry.pause(late, 1) <= 600

    def test_budget(self, kind):
        async def main():
            calls = 0

            async def out():
                nonlocal calls
                calls += 1
                raise Boom

            retry = Retry(first=0, attempts=4, budget=0.1, reserve=5)
            for guarded in (policy(retry=retry), policy(retry=retry, timeout=1)):
                for _ in range(100):
                    with pytest.raises(Boom):
                        await guarded(out)()
            # Each call is made; of the retries a tenth of that, and the reserve once.
            assert 200 + 20 <= calls <= 200 + 20 + 5

        harness.run(kind, main())

    def test_a_budget_that_is_earned_needs_no_reserve(self, kind):
        async def main():
            guarded = policy(retry=Retry(first=0, budget=1.0, reserve=0))
            for _ in range(3):
                assert await guarded.call(Flaky(1)) == "answer"
            assert guarded.stats().retries == 3

        harness.run(kind, main())

    def test_a_retry_that_the_deadline_forbids_costs_no_budget(self, kind):
        async def main():
            retry = Retry(first=10, longest=10, jitter=0, budget=0, reserve=1)
            for _ in range(5):
                with pytest.raises(Boom):
                    await policy(retry=retry, deadline=5).call(fail)
            assert await policy(retry=retry, deadline=50).call(Flaky(1)) == "answer"

        harness.run(kind, main())

    def test_full_jitter_spreads(self):
        retry = Retry(first=8, longest=8)
        pauses = [retry.pause(Boom(), 1) for _ in range(500)]
        assert 0 <= min(pauses) < 1
        assert 7 < max(pauses) <= 8
        assert Retry(first=1, longest=9, jitter=0, attempts=None).pause(Boom(), 10**9) == 9


class TestTimeout:
    def test_of_an_attempt(self, kind):
        async def main():
            guarded = policy(timeout=2, retry=Retry(first=1, jitter=0, attempts=3))
            began = now()
            with pytest.raises(tideloop.AttemptTimeout, match="was not done in 2 s"):
                await guarded.call(forever)
            assert now() - began == pytest.approx(2 + 1 + 2 + 2 + 2)
            assert guarded.stats() == (2, 1, 0, 3)

        harness.run(kind, main())

    def test_is_told_from_the_functions_own(self, kind):
        async def own():
            raise TimeoutError("mine")

        async def main():
            with pytest.raises(TimeoutError, match="mine") as caught:
                await policy(timeout=2).call(own)
            assert type(caught.value) is TimeoutError

        harness.run(kind, main())

    def test_begins_with_its_place_in_the_limit(self, kind):
        async def main():
            limiter = Limiter(1)
            guarded = policy(timeout=2, limit=limiter)
            await asyncio.gather(*(guarded.call(asyncio.sleep, 1.5) for _ in range(5)))
            assert limiter.stats().in_use == 0

        harness.run(kind, main())

    def test_tells_a_limit_that_learns(self, kind):
        async def main():
            limiter = AdaptiveLimiter()
            guarded = policy(timeout=2, limit=limiter)
            with pytest.raises(tideloop.AttemptTimeout):
                await guarded.call(forever)
            with pytest.raises(tideloop.AttemptTimeout):
                async with guarded:
                    await forever()
            await guarded.call(give, 1)
            task = asyncio.ensure_future(guarded.call(forever))
            await turns(2)
            task.cancel()
            await asyncio.wait([task])
            stats = limiter.stats()
            assert (stats.ok, stats.dropped, stats.ignored) == (1, 2, 1)

        harness.run(kind, main())


class TestBreaker:
    def test_opens_probes_and_closes(self, kind):
        async def main():
            breaker = Breaker(rate=0.5, window=4, pause=10, probes=2, name="bank")
            guarded = policy(breaker=breaker)
            for _ in range(2):
                await guarded.call(give, 1)
            assert breaker.state == "closed"
            for _ in range(2):
                with pytest.raises(Boom):
                    await guarded.call(fail)
            assert breaker.state == "open"
            with pytest.raises(tideloop.BreakerOpen, match=r"'bank' opened .* lets no call through") as caught:
                await guarded.call(give, 1)
            assert caught.value.retry_in == pytest.approx(10)
            await asyncio.sleep(10)
            assert breaker.state == "half-open"
            tasks = [asyncio.ensure_future(guarded.call(give, number, 5)) for number in range(4)]
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert done[:2] == [0, 1]
            assert all(isinstance(error, tideloop.BreakerOpen) for error in done[2:])
            assert breaker.state == "closed"
            assert breaker.stats() == ("closed", 0.0, 3, 1)

        harness.run(kind, main())

    def test_a_probe_that_fails_opens_it_again(self, kind):
        async def main():
            breaker = Breaker(window=1, pause=10, probes=2)
            guarded = policy(breaker=breaker)
            for _ in range(3):
                with pytest.raises(Boom):
                    await guarded.call(fail)
                assert breaker.state == "open"
                await asyncio.sleep(10)
            assert breaker.stats().opened == 3

        harness.run(kind, main())

    def test_a_cancelled_probe_makes_room(self, kind):
        async def main():
            breaker = Breaker(window=1, pause=10, probes=1)
            guarded = policy(breaker=breaker)
            with pytest.raises(Boom):
                await guarded.call(fail)
            await asyncio.sleep(10)
            task = asyncio.ensure_future(guarded.call(forever))
            await turns(2)
            with pytest.raises(tideloop.BreakerOpen):
                await guarded.call(give, 1)
            task.cancel()
            await asyncio.wait([task])
            assert await guarded.call(give, 1) == 1
            assert breaker.state == "closed"

        harness.run(kind, main())

    def test_what_began_before_does_not_count(self, kind):
        async def main():
            breaker = Breaker(window=1, pause=10, probes=1)
            guarded = policy(breaker=breaker)
            early = asyncio.ensure_future(guarded.call(fail, "late", 50))
            with pytest.raises(Boom):
                await guarded.call(fail)
            await asyncio.sleep(10)
            assert await guarded.call(give, 1) == 1
            assert breaker.state == "closed"
            await asyncio.wait([early])
            assert isinstance(early.exception(), Boom)

        harness.run(kind, main())

    def test_what_began_when_it_was_closed_before_does_not_count(self, kind):
        async def fail_late():
            await asyncio.sleep(50)
            raise Boom

        async def main():
            breaker = Breaker(window=1, pause=10, probes=1)
            guarded = policy(breaker=breaker)
            early = asyncio.ensure_future(guarded.call(fail_late))
            await turns(2)
            with pytest.raises(Boom):
                await guarded.call(fail)
            await asyncio.sleep(10)
            assert await guarded.call(give, 1) == 1
            assert breaker.state == "closed"
            await asyncio.wait([early])
            assert isinstance(early.exception(), Boom)
            assert breaker.stats() == ("closed", 0.0, 0, 1)

        harness.run(kind, main())

    def test_is_not_tried_again(self, kind):
        async def main():
            breaker = Breaker(window=1, pause=10)
            flaky = Flaky(9)
            with pytest.raises(tideloop.BreakerOpen):
                await policy(breaker=breaker, retry=Retry(first=0)).call(flaky)
            assert len(flaky.times) == 1

        harness.run(kind, main())

    def test_gives_its_place_in_the_limit_back(self, kind):
        async def main():
            limiter = Limiter(1)
            guarded = policy(breaker=Breaker(window=1, on=Boom), limit=limiter)
            with pytest.raises(Boom):
                await guarded.call(fail)
            with pytest.raises(tideloop.BreakerOpen):
                await guarded.call(fail)
            assert limiter.stats().in_use == 0

        harness.run(kind, main())

    def test_only_what_counts(self, kind):
        async def main():
            breaker = Breaker(window=1, on=KeyError)
            with pytest.raises(Boom):
                await policy(breaker=breaker).call(fail)
            assert breaker.state == "closed"

        harness.run(kind, main())

    def test_what_it_counts_by_may_fail(self, kind):
        """A mistake in `on` is raised, and costs neither a probe nor a place in the limit."""

        def on(error):
            return 1 // int(str(error))

        async def main():
            limiter = Limiter(1)
            breaker = Breaker(window=1, pause=0, probes=1, on=on)
            guarded = policy(breaker=breaker, limit=limiter)
            for message, error in (("1", Boom), ("0", ZeroDivisionError), ("0", ZeroDivisionError)):
                with pytest.raises(error):
                    await guarded.call(fail, message)
                assert limiter.stats().in_use == 0
            assert await guarded.call(give, 1) == 1
            assert breaker.state == "closed"

        harness.run(kind, main())


class TestHedge:
    def test_the_second_answers(self, kind):
        async def main():
            delays = iter([100, 1, 1])
            cancelled = []

            async def ask():
                delay = next(delays)
                try:
                    await asyncio.sleep(delay)
                except asyncio.CancelledError:
                    await turns(3)
                    cancelled.append(delay)
                    raise
                return delay

            began = now()
            guarded = policy(hedge=Hedge(after=2, share=1))
            assert await guarded(ask)() == 1
            assert now() - began == pytest.approx(3)
            # The loser was awaited, not only told.
            assert cancelled == [100]
            assert await guarded(ask)() == 1
            assert guarded.stats().hedged == 1

        harness.run(kind, main())

    def test_a_failure_before_it_is_one(self, kind):
        async def main():
            guarded = policy(hedge=Hedge(after=2))
            with pytest.raises(Boom):
                await guarded.call(fail)
            assert guarded.stats().hedged == 0

        harness.run(kind, main())

    def test_one_that_fails_waits_for_the_other(self, kind):
        async def main():
            work = iter([(5, Boom("first")), (5, None), (5, Boom("third")), (1, Boom("fourth"))])

            async def ask():
                delay, error = next(work)
                await asyncio.sleep(delay)
                if error:
                    raise error
                return "good"

            guarded = policy(hedge=Hedge(after=2, share=1))
            assert await guarded(ask)() == "good"
            with pytest.raises(Boom, match="third"):
                await guarded(ask)()

        harness.run(kind, main())

    def test_share(self, kind):
        async def main():
            guarded = policy(hedge=Hedge(after=1, share=0.05))
            for _ in range(100):
                await guarded.call(asyncio.sleep, 2)
            assert guarded.stats().hedged in (5, 6)

        harness.run(kind, main())

    def test_quantile(self, kind):
        async def main():
            guarded = policy(hedge=Hedge(after="p90", share=1))
            for number in range(20):
                await guarded.call(asyncio.sleep, 1 if number else 50)
            assert guarded.hedge.after == pytest.approx(1)
            began = now()
            delays = iter([50, 1])

            async def ask():
                await asyncio.sleep(next(delays))

            await guarded(ask)()
            assert now() - began == pytest.approx(2)

        harness.run(kind, main())

    def test_learns_how_long_the_answer_took_and_not_the_losers_end(self, kind):
        async def main():
            first = True

            async def ask():
                nonlocal first
                if not first:
                    await asyncio.sleep(1)
                    return
                first = False
                try:
                    await forever()
                finally:
                    await asyncio.sleep(50)

            guarded = policy(hedge=Hedge(after="p50", share=1))
            guarded.hedge.after = 2
            await guarded(ask)()
            for _ in range(19):
                guarded.hedge.took(100)
            assert min(guarded.hedge._durations) == pytest.approx(3)

        harness.run(kind, main())

    def test_cancelled_both_go(self, kind):
        async def main():
            running = set()

            async def ask():
                running.add(asyncio.current_task())
                try:
                    await forever()
                finally:
                    running.discard(asyncio.current_task())

            task = asyncio.ensure_future(policy(hedge=Hedge(after=1, share=1)).call(ask))
            await asyncio.sleep(2)
            assert len(running) == 2
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not running

        harness.run(kind, main())


class TestPolicy:
    def test_a_block(self, kind):
        async def main():
            limiter = Limiter(1)
            guarded = policy(timeout=2, limit=limiter, breaker=Breaker(window=1))
            async with guarded:
                assert limiter.stats().in_use == 1
            with pytest.raises(tideloop.AttemptTimeout):
                async with guarded:
                    await forever()
            assert limiter.stats().in_use == 0
            with pytest.raises(tideloop.BreakerOpen):
                async with guarded:
                    pass
            assert limiter.stats().in_use == 0
            with pytest.raises(TypeError, match="cannot guard a block"):
                async with policy(retry=Retry()):
                    pass

        harness.run(kind, main())

    def test_blocks_of_several_tasks_and_nested_ones(self, kind):
        async def main():
            guarded = policy(timeout=2)

            async def inner(delay):
                async with guarded:
                    await asyncio.sleep(delay)
                    async with guarded:
                        await asyncio.sleep(delay)

            done = await asyncio.gather(inner(0.5), inner(1.5), inner(3), return_exceptions=True)
            assert done[0] is None
            assert isinstance(done[1], tideloop.AttemptTimeout)
            assert isinstance(done[2], tideloop.AttemptTimeout)

        harness.run(kind, main())

    def test_a_deadline_of_a_block(self, kind):
        async def main():
            async def block():
                async with policy(deadline=3):
                    assert tideloop.remaining() == pytest.approx(3)
                    await forever()

            with pytest.raises(tideloop.DeadlineExceeded):
                await block()
            assert tideloop.remaining() == math.inf

        harness.run(kind, main())

    def test_cancelled_everywhere_nothing_is_lost(self, kind):
        limiter = Limiter(2)
        guarded = policy(
            timeout=5,
            deadline=60,
            limit=limiter,
            retry=Retry(first=1, attempts=3),
            breaker=Breaker(window=100),
            hedge=Hedge(after=1, share=1),
        )

        async def main():
            for count in range(40):
                task = asyncio.ensure_future(guarded.call(asyncio.sleep, 2))
                await turns(count)
                await asyncio.sleep(count / 10)
                task.cancel()
                await asyncio.wait([task])
                assert limiter.stats().in_use == 0

        harness.run(kind, main())

    def test_decorated_functions_keep_their_names(self):
        @policy(timeout=1)
        async def ask(question: str) -> str:
            """Ask."""
            return question

        assert (ask.__name__, ask.__doc__) == ("ask", "Ask.")
        assert inspect.iscoroutinefunction(ask)

    @pytest.mark.parametrize(
        ("make", "error"),
        [
            (lambda: policy(timeout=-1), ValueError),
            (lambda: policy(deadline="1"), ValueError),
            (lambda: policy(retry=3), TypeError),
            (lambda: policy(limit=3), TypeError),
            (lambda: policy()(3), TypeError),
            (lambda: Retry(attempts=0), ValueError),
            (lambda: Retry(jitter=2), ValueError),
            (lambda: Retry(factor=0.5), ValueError),
            (lambda: Retry(budget=-1), ValueError),
            (lambda: Breaker(rate=0), ValueError),
            (lambda: Breaker(window=0), ValueError),
            (lambda: Breaker(probes=0), ValueError),
            (lambda: Hedge(after="95"), ValueError),
            (lambda: Hedge(after="p100"), ValueError),
            (lambda: Hedge(share=0), ValueError),
        ],
    )
    def test_bad_arguments(self, make, error):
        with pytest.raises(error, match=r"must be|a policy decorates|must have"):
            make()
