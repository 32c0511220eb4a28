"""AdaptiveLimiter. The algorithms have their own simulations, in crates/core/src/adaptive/simulation.rs."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
import tideloop
from tideloop import AIMD, AdaptiveLimiter, Gradient2, Limiter, LimiterFull, Vegas

from tests.toolkit import harness
from tests.toolkit.harness import Inside, Permits


async def visit(limiter: AdaptiveLimiter, inside: Inside) -> None:
    async with limiter:
        await inside()


async def visit_partition(limiter: AdaptiveLimiter, inside: Inside) -> None:
    # Not of the task: a name from outside would not be the same in every run.
    limiter.visits = getattr(limiter, "visits", 0) + 1
    async with limiter("live" if limiter.visits % 2 else "batch"):
        await inside()


async def visit_alone(limiter: AdaptiveLimiter, inside: Inside) -> None:
    async with limiter("live"):
        await inside()


def all_back(limiter: AdaptiveLimiter) -> None:
    harness.demand(limiter.in_flight == 0 and limiter.waiting == 0, f"not idle: {limiter!r}")
    harness.demand(not limiter._begun, f"remembers {limiter._begun}")


PLAIN = Permits(
    "AdaptiveLimiter", lambda: AdaptiveLimiter(max=3, initial=2), visit, all_back, limit=3, several_loops=True
)
PARTS = Permits(
    "partitioned",
    lambda: AdaptiveLimiter(max=3, initial=3, partitions={"live": 0.7, "batch": 0.3}),
    visit_partition,
    all_back,
    limit=5,  # batch may have borrowed all three when live claims its two
    fifo=False,
    several_loops=True,
)


@pytest.mark.parametrize("subject", [PLAIN, PARTS], ids=str)
def test_cancelled_at_every_await(kind, subject):
    assert harness.cancel_everywhere(kind, harness.permits_scenario(subject, visitors=7)) > 5


@pytest.mark.parametrize("subject", [PLAIN, PARTS], ids=str)
def test_random_schedules(kind, subject):
    for seed in range(40):
        harness.interleave(kind, subject, seed)


@pytest.mark.parametrize("subject", [PLAIN, PARTS], ids=str)
def test_several_loops_in_threads(backend, subject):
    harness.share(backend.name, subject, visits=20)


FULL = Permits("full", lambda: AdaptiveLimiter(min=2, max=2, initial=2), visit, all_back, limit=2, several_loops=True)
ALONE = Permits(
    "alone in its partition",
    lambda: AdaptiveLimiter(min=2, max=2, initial=2, partitions={"live": 0.5, "batch": 0.5}),
    visit_alone,
    all_back,
    limit=2,
    several_loops=True,
)


@pytest.mark.parametrize("subject", [FULL, ALONE], ids=str)
def test_loop_closed_with_waiters(backend, subject):
    harness.close_loop(backend.name, subject)


@pytest.mark.parametrize("subject", [FULL, ALONE], ids=str)
def test_loop_closed_in_the_turn_of_a_grant(backend, subject):
    harness.close_in_the_turn_of_a_grant(backend.name, subject)


@pytest.mark.parametrize("subject", [FULL, ALONE], ids=str)
def test_forked_with_waiters(backend, subject):
    harness.fork_with_waiters(backend.name, subject)


# --- it learns -----------------------------------------------------------------------------------


class Backend:
    """So many servers; operations of a noisy time, of 20 ms unless said otherwise, queue behind them."""

    def __init__(self, servers: int, service: float = 0.02) -> None:
        self.servers = Limiter(servers)
        self.service = service
        self.dice = random.Random(1)
        self.done = 0

    async def operate(self) -> None:
        async with self.servers:
            await asyncio.sleep(self.service * self.dice.lognormvariate(-0.045, 0.3))
        self.done += 1


async def load(backend: Backend, limiter: AdaptiveLimiter, seconds: float, clients: int = 100) -> float:
    """Operations per second while there is always more to do than is allowed."""
    loop = asyncio.get_running_loop()
    until, before = loop.time() + seconds, backend.done

    async def client() -> None:
        while loop.time() < until:
            async with limiter:
                await backend.operate()

    await asyncio.gather(*(client() for _ in range(clients)))
    return (backend.done - before) / seconds


@pytest.mark.parametrize("algorithm", [Gradient2(), Vegas()], ids=lambda algorithm: type(algorithm).__name__)
def test_it_follows_a_stepped_noisy_backend(kind, algorithm):
    async def main():
        backend = Backend(20)
        limiter = AdaptiveLimiter(algorithm, initial=5)
        for servers in (20, 40, 5):
            backend.servers.resize(servers)
            await load(backend, limiter, 10)
            rate = await load(backend, limiter, 5)
            stats = limiter.stats()
            assert rate >= 0.9 * servers / 0.02, f"{servers} servers: {rate:.0f}/s, {stats}"
            assert stats.limit < 2 * servers + 5, f"{servers} servers: {stats}"
            assert stats.baseline == pytest.approx(0.02, rel=0.3)

    harness.run(kind, main())


@pytest.mark.parametrize("algorithm", [Gradient2(), Vegas()], ids=lambda algorithm: type(algorithm).__name__)
def test_a_start_of_50_times_the_capacity_is_left_behind(kind, algorithm):
    async def main():
        backend = Backend(10)
        limiter = AdaptiveLimiter(algorithm, initial=500, max=500)
        await load(backend, limiter, 10, clients=600)
        rate = await load(backend, limiter, 5, clients=600)
        assert rate >= 0.9 * 10 / 0.02, f"{rate:.0f}/s, {limiter.stats()}"
        assert limiter.limit < 25, limiter.stats()

    harness.run(kind, main())


def test_24_hours_leave_it_where_it_was(kind):
    async def main():
        backend = Backend(4, service=20)
        limiter = AdaptiveLimiter(initial=4)
        limits = []
        for _ in range(24):
            rate = await load(backend, limiter, 3600, clients=20)
            assert rate >= 0.8 * 4 / 20, limiter.stats()
            limits.append(limiter.limit)
        assert all(3 <= limit <= 16 for limit in limits), limits
        assert limiter.stats().baseline == pytest.approx(20, rel=0.4)

    harness.run(kind, main())


def test_shrinking_hangs_nobody(kind):
    async def main():
        backend = Backend(50)
        limiter = AdaptiveLimiter(initial=100, max=100)
        working = asyncio.ensure_future(load(backend, limiter, 60, clients=300))
        await asyncio.sleep(5)
        backend.servers.resize(1)
        await working
        assert limiter.limit < 10
        all_back(limiter)

    harness.run(kind, main())


def test_drops_shrink_it_and_what_is_ignored_does_not(kind):
    class Refused(Exception):
        status = 503

    async def end(limiter, error):
        for _ in range(300):
            with contextlib.suppress(type(error)):
                async with limiter:
                    await asyncio.sleep(0.01)
                    raise error

    async def main():
        for error, shrinks in [
            (TimeoutError(), True),
            (ConnectionResetError(), True),
            (Refused(), True),
            (ValueError(), False),
            (asyncio.CancelledError(), False),
        ]:
            limiter = AdaptiveLimiter(initial=50, min=2)
            await end(limiter, error)
            assert (limiter.limit < 20) == shrinks, error
            stats = limiter.stats()
            assert (stats.dropped, stats.ignored) == ((300, 0) if shrinks else (0, 300))
            assert (stats.baseline is None) == (not shrinks) or stats.ok == 0

    harness.run(kind, main())


def test_outcomes_can_be_told(kind):
    async def main():
        limiter = AdaptiveLimiter(outcomes={KeyError: "drop", LookupError: "ok"})
        for error in (KeyError(), IndexError(), ValueError()):
            with pytest.raises(type(error)):
                async with limiter:
                    raise error
        async with limiter() as permit:
            permit.outcome = "drop"
        stats = limiter.stats()
        assert (stats.ok, stats.dropped, stats.ignored) == (1, 2, 1)
        judged = AdaptiveLimiter(outcomes=lambda error: "drop")
        with pytest.raises(ValueError, match="x"):
            async with judged:
                raise ValueError("x")
        assert judged.stats().dropped == 1

    harness.run(kind, main())


def test_acquire_and_release_see_the_exception_under_way(kind):
    async def main():
        limiter = AdaptiveLimiter()

        async def work():
            await limiter.acquire()
            try:
                raise TimeoutError
            finally:
                limiter.release()

        with pytest.raises(TimeoutError):
            await work()
        await limiter.acquire()
        limiter.release()
        assert (limiter.stats().dropped, limiter.stats().ok) == (1, 1)
        with pytest.raises(RuntimeError, match="which has not acquired it"):
            limiter.release()

    harness.run(kind, main())


def test_full_it_rejects_if_asked_to(kind):
    async def main():
        limiter = AdaptiveLimiter(initial=2, on_full="reject", name="api")
        async with limiter, limiter:
            with pytest.raises(LimiterFull, match="Limiter 'api'"):
                await limiter.acquire()
        assert limiter.stats().rejected == 1
        all_back(limiter)

    harness.run(kind, main())


def test_partitions_share_and_borrow(kind):
    async def main():
        limiter = AdaptiveLimiter(initial=10, max=10, partitions={"live": 0.7, "batch": 0.3})
        inside = {"live": 0, "batch": 0}
        leave = asyncio.Event()

        async def work(partition):
            async with limiter(partition):
                inside[partition] += 1
                try:
                    await leave.wait()
                finally:
                    inside[partition] -= 1

        batch = [asyncio.ensure_future(work("batch")) for _ in range(20)]
        await asyncio.sleep(1)
        assert inside == {"live": 0, "batch": 10}, "what nobody uses is lent"
        live = [asyncio.ensure_future(work("live")) for _ in range(20)]
        await asyncio.sleep(1)
        assert inside == {"live": 7, "batch": 10}, "a share is claimed back at once"
        for task in batch[:10]:
            task.cancel()
        await asyncio.sleep(1)
        assert inside["live"] + inside["batch"] == 10
        assert inside["batch"] >= 3
        leave.set()
        await asyncio.gather(*batch, *live, return_exceptions=True)
        all_back(limiter)

    harness.run(kind, main())


# --- errors and looks ----------------------------------------------------------------------------


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match="algorithm is 5"):
        AdaptiveLimiter(5)
    with pytest.raises(ValueError, match="on_full is 'drop'"):
        AdaptiveLimiter(on_full="drop")
    with pytest.raises(ValueError, match="min is 5 and max 3"):
        AdaptiveLimiter(min=5, max=3)
    with pytest.raises(ValueError, match="positive shares"):
        AdaptiveLimiter(partitions={"a": 0.9, "b": 0.2})
    with pytest.raises(ValueError, match="partition is 'c'; expected one of 'a'"):
        AdaptiveLimiter(partitions={"a": 1.0})("c")
    with pytest.raises(TypeError, match=r"min is 1\.5; expected an int"):
        AdaptiveLimiter(min=1.5)
    with pytest.raises(ValueError, match="initial is 0; expected 1 or more"):
        AdaptiveLimiter(initial=0)


@pytest.mark.parametrize(
    ("algorithm", "wrong"),
    [
        (Gradient2, {"tolerance": 1.0}),
        (Gradient2, {"tolerance": float("nan")}),
        (Gradient2, {"smoothing": 0}),
        (Gradient2, {"smoothing": 1.5}),
        (Gradient2, {"backoff": 1}),
        (Vegas, {"alpha": 3.0}),
        (Vegas, {"beta": float("inf")}),
        (Vegas, {"backoff": 0}),
        (AIMD, {"step": -1}),
        (AIMD, {"backoff": 2}),
        (AIMD, {"too_long": 0}),
    ],
)
def test_numbers_with_which_an_algorithm_would_run_away_are_refused(algorithm, wrong):
    (word,) = wrong
    with pytest.raises(ValueError, match=rf"^{word} of {algorithm.__name__}\(.*\): expected "):
        algorithm(**wrong)


def test_looks(kind):
    async def main():
        limiter = AdaptiveLimiter(AIMD(), initial=3, name="db")
        assert repr(limiter) == "<tideloop.AdaptiveLimiter 'db' 0/3 in use, AIMD>"
        permit = limiter()
        async with permit:
            assert limiter.in_flight == 1
        with pytest.raises(RuntimeError, match="was entered already"):
            await permit.__aenter__()
        assert limiter.stats()._replace(limit=0) == tideloop.AdaptiveLimiterStats(
            "db", 0, 3, 0, 0, None, 0, False, "start", 1, 0, 0, 0
        )

    harness.run(kind, main())


def outcomes(limiter):
    stats = limiter.stats()
    return stats.ok, stats.dropped, stats.ignored


async def refuses(number):
    raise ConnectionError(number)


async def answers(number):
    return number


async def test_errors_in_a_map_are_drops(loop):
    limiter = AdaptiveLimiter(max=4, initial=2)
    await tideloop.amap(refuses, range(10), limit=limiter, on_error="skip").to_list()
    assert outcomes(limiter) == (0, 10, 0)


async def test_an_error_that_is_under_way_outside_is_somebody_elses(loop):
    limiter = AdaptiveLimiter(max=4, initial=2)
    try:
        raise ConnectionError("outside")
    except ConnectionError:
        async with tideloop.group(limit=limiter) as g:
            for number in range(5):
                g.spawn(answers, number)
    assert outcomes(limiter) == (5, 0, 0)


async def test_outcomes_that_raise_lose_no_permit(loop):
    def judge(error):
        raise LookupError("judge")

    limiter = AdaptiveLimiter(max=1, initial=1, outcomes=judge)
    for _ in range(3):
        with pytest.raises(LookupError, match="judge"):
            async with limiter:
                raise ValueError("body")
    assert limiter.in_flight == 0


async def test_an_outcome_that_is_none_is_named_and_loses_no_permit(loop):
    limiter = AdaptiveLimiter(max=1, initial=1, outcomes={KeyError: "failed"}, name="db")
    said = r"AdaptiveLimiter 'db'.*outcome is 'failed'; expected 'ok', 'drop' or 'ignore'"
    with pytest.raises(ValueError, match=said):
        async with limiter() as permit:
            permit.outcome = "failed"
    with pytest.raises(ValueError, match=said):
        async with limiter:
            raise KeyError
    await limiter.acquire()
    with pytest.raises(ValueError, match=said):
        limiter.release("failed")
    assert limiter.in_flight == 0
    assert limiter.stats().ignored == 3
