"""tideloop.observe.gauges(): what there is of the toolkit, without keeping it alive."""

import asyncio
import copy
import gc
import os
import pickle
import threading
import weakref

import pytest
import tideloop
from tideloop import observe
from tideloop.observe import exposition
from tideloop.testing import new_virtual_loop


def named(name):
    return [gauge for gauge in observe.gauges() if gauge.name == name]


async def answer(items):
    return items


MAKERS = {
    "adaptive": lambda name: tideloop.AdaptiveLimiter(name=name),
    "background": lambda name: tideloop.Background(name=name),
    "batcher": lambda name: tideloop.Batcher(answer, name=name),
    "breaker": lambda name: tideloop.Breaker(name=name),
    "cache": lambda name: tideloop.Cache(name=name),
    "channel": lambda name: tideloop.Channel(name=name),
    "graph": lambda name: tideloop.Graph(name=name),
    "keyed_limiter": lambda name: tideloop.KeyedLimiter(1, name=name),
    "keyed_pool": lambda name: tideloop.KeyedPool(lambda key: key, name=name),
    "keyed_rate": lambda name: tideloop.KeyedRateLimiter(tideloop.rate(1), name=name),
    "limiter": lambda name: tideloop.Limiter(1, name=name),
    "policy": lambda name: tideloop.policy(name=name),
    "pool": lambda name: tideloop.Pool(object, name=name),
    "queue": lambda name: tideloop.PriorityQueue(name=name),
    "rate": lambda name: tideloop.RateLimiter(tideloop.rate(1), name=name),
    "resource_limits": lambda name: tideloop.ResourceLimits(a=1, name=name),
    "single_flight": lambda name: tideloop.SingleFlight(name=name),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_each_is_listed_while_it_lives(kind):
    name = f"gauge-{kind}"
    made = MAKERS[kind](name)
    (gauge,) = named(name)
    assert gauge.kind == kind
    target = made.tx if kind == "channel" else made
    assert gauge.stats == target.stats()
    del made, target
    gc.collect()
    assert named(name) == []


def test_every_kind_that_is_named_here_is_made():
    from tideloop.observe.roll import KINDS

    assert set(MAKERS) | {"graph_run", "group", "shared_limiter", "shared_rate", "shared_single_flight"} == set(
        KINDS.values()
    )


def test_groups_and_runs_of_graphs():
    graph = tideloop.Graph(name="gauge-of-a-graph")

    @graph.node
    async def look():
        return {gauge.kind for gauge in observe.gauges() if gauge.kind == "graph_run"}

    async def main():
        async with tideloop.group(name="gauge-of-a-group") as group:
            group.spawn(asyncio.sleep, 0)
            (gauge,) = named("gauge-of-a-group")
            assert (gauge.kind, gauge.stats) == ("group", group.stats())
            assert gauge.stats.spawned == 1
        return await graph.run()

    with asyncio.Runner(loop_factory=new_virtual_loop) as runner:
        assert runner.run(main())["look"] == {"graph_run"}


def test_parts_of_something_else_are_not_listed():
    keyed, rates = tideloop.KeyedLimiter(2, name="parts"), tideloop.KeyedRateLimiter(tideloop.rate(1), name="parts")
    adaptive, cache = tideloop.AdaptiveLimiter(name="parts"), tideloop.Cache(name="parts")
    assert keyed.try_acquire("key")
    assert rates.try_acquire("key")
    assert [gauge.kind for gauge in named("parts")] == ["adaptive", "cache", "keyed_limiter", "keyed_rate"]
    assert not [gauge for gauge in observe.gauges() if gauge.name and "key" in gauge.name and "parts[" in gauge.name]
    del adaptive, cache


def test_subclasses_are_of_their_bases_kind_and_a_failing_one_is_left_out():
    class Odd(tideloop.Limiter):
        def stats(self):
            raise ZeroDivisionError

    class Even(tideloop.Limiter):
        pass

    kept = [Odd(1, name="odd"), Even(1, name="even")]
    assert [gauge.kind for gauge in named("even")] == ["limiter"]
    assert named("odd") == []
    del kept


def test_the_dead_do_not_pile_up():
    async def churn():
        for _ in range(300):
            tideloop.Queue(), tideloop.Limiter(1), tideloop.Breaker()

    asyncio.run(churn())
    gc.collect()
    before = len(observe.gauges())
    keep = [tideloop.Breaker(name="kept") for _ in range(200)]
    assert len(named("kept")) == 200
    del keep
    assert named("kept") == []
    assert len(observe.gauges()) <= before


def test_one_that_is_about_to_die_is_not_seen():
    """What its end runs asks for gauges: a dying object must not be among them."""
    seen = []

    class Marked(tideloop.Limiter):
        pass

    limiter = Marked(1, name="dying")
    limiter.witness = weakref.finalize(limiter, lambda: seen.append(len(named("dying"))))
    last = weakref.ref(limiter, lambda _: seen.append(len(named("dying"))))
    del limiter
    gc.collect()
    assert seen
    assert set(seen) == {0}
    assert last() is None


def test_one_that_its_finalizer_revives_is_listed_again():
    revived = []

    class Phoenix(tideloop.Limiter):
        def __del__(self):
            revived.append(self)

    Phoenix(1, name="phoenix")
    assert [gauge.name for gauge in named("phoenix")] == ["phoenix"]
    revived.clear()
    gc.collect()
    assert named("phoenix") == []


def test_threads_make_and_look_at_once():
    stop = threading.Event()
    failures = []

    def churn():
        try:
            while not stop.is_set():
                tideloop.Limiter(1), tideloop.SingleFlight(), tideloop.Channel()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    mine = tideloop.Limiter(3, name="mine")
    for _ in range(100):
        assert [gauge.stats.capacity for gauge in named("mine")] == [3]
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    del mine


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_has_what_its_parent_had_and_its_own():
    mine = tideloop.Limiter(3, name="forked")
    pid = os.fork()
    if pid == 0:
        try:
            more = tideloop.Limiter(4, name="forked")
            os._exit(0 if sorted(gauge.stats.capacity for gauge in named("forked")) == [3, 4] and more else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    del mine


@pytest.mark.parametrize("make", [tideloop.Breaker, tideloop.Policy, tideloop.SingleFlight])
def test_one_that_is_copied_is_another_one_and_is_not_listed(make):
    made = make(name="copied")
    other = copy.copy(made)
    assert [gauge.id for gauge in named("copied")] == [id(made)]
    assert (type(other), other.name) == (type(made), "copied")
    del made
    assert named("copied") == []
    del other
    assert named("copied") == []


def test_one_with_a_place_is_pickled_without_it():
    made = tideloop.Breaker(name="pickled", rate=0.25)
    other = pickle.loads(pickle.dumps(made))
    assert (other.rate, other.window, len(named("pickled"))) == (0.25, made.window, 1)


def test_a_cycle_through_one_is_collected():
    class Held(tideloop.Breaker):
        pass

    held = Held(name="cycle")
    held.itself = held
    gone = weakref.ref(held)
    del held
    gc.collect()
    assert gone() is None
    assert named("cycle") == []


def test_what_is_made_without_its_constructor_is_none():
    made = tideloop.Breaker.__new__(tideloop.Breaker)
    assert id(made) not in {gauge.id for gauge in observe.gauges()}


def test_what_a_programs_own_class_tells_spoils_nothing():
    told = exposition.Exposition()
    stats = {"hit rate": 1, "two\nlines": 2, "vast": 10**400, "good": 3, "none": None}
    exposition.add_gauge(told, {"kind": "cache", "name": None, "id": 1, "stats": stats})
    lines = [line for line in told.text().decode().splitlines() if not line.startswith("#")]
    assert lines == ['tideloop_cache_good{name="",id="1"} 3']
