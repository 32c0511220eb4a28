"""The doctor's verdicts: each finds what it is for, and nothing in a program that is well."""

import pytest
from tideloop.observe.verdicts import SEVERITIES, examine
from tideloop.observe.verdicts.tasks import cycles

from tests.observe import documents as d


def look(before=None, after=None, seconds=5.0):
    """What is found in a program that was `before` and is `after`: what of its snapshots is not as in a healthy one."""
    return examine(d.snapshot(0.0, **(before or {})), d.snapshot(seconds, **(after or before or {})))


def one(kind, before=None, after=None, seconds=5.0):
    """The only finding, which is of this kind."""
    found = look(before, after, seconds)
    assert [finding.kind for finding in found] == [kind], found
    assert found[0].do
    return found[0]


def test_a_healthy_program_has_nothing():
    busy = d.loops(d.loop(metrics=d.metrics(steps=20_000, spent={"callbacks": 21.0, "internal": 5.5, "idle": 78.5})))
    live = {
        "loops": busy,
        "tasks": d.tasks(d.task(1), d.task(2), functions=[d.function(created=900, ok=895)]),
        "gauges": d.gauges(
            d.gauge("limiter", capacity=10, in_use=4, waiting=0, granted=900, timed_out=0, rejected=0),
            d.gauge("pool", idle=2, borrowed=3, creating=0, waiting=0, lent=300, timeouts=0, leaked=0, failed=0),
            d.gauge("queue", maxsize=100, size=3, put=900, getters=0, putters=0),
            d.gauge("cache", hits=900, misses=100, loads=100, failed=0, evicted=0, expired=100),
            d.gauge("batcher", batches=100, keys=1000, failed=0),
            d.gauge("background", running=3, waiting=0, failed=0, restarts=0),
            d.gauge("breaker", state="closed", refused=0),
        ),
    }
    assert look({"tasks": d.tasks(d.task(1), functions=[d.function()])}, live) == []


def test_the_worst_comes_first():
    found = look(
        {"gauges": d.gauges(d.gauge("adaptive", waiting=1, dropped=0, allowed=3)), "blocks": d.blocks(d.block())},
        {
            "gauges": d.gauges(d.gauge("adaptive", waiting=1, dropped=4, allowed=3, reason="dropped")),
            "blocks": d.blocks(d.block(duration=3.0)),
            "tasks": d.tasks(age=60.0),
        },
    )
    assert [finding.severity for finding in found] == list(SEVERITIES)


def test_who_blocks_is_the_program_not_the_library():
    stack = [
        ["/usr/lib/python3.14/re/__init__.py", 167, "match"],
        ["/venv/lib/python3.14/site-packages/web/route.py", 9, "find"],
        ["/srv/app.py", 22, "parse"],
        ["/usr/lib/python3.14/asyncio/runners.py", 195, "run"],
    ]
    each = [d.block(number, at=d.AT - 60 + number, duration=0.5, cause="c", stack=stack) for number in range(4)]
    finding = one("blocks", {"blocks": d.blocks(*each)})
    assert finding.evidence["frame"] == ["/srv/app.py", 22, "parse"]
    assert (finding.evidence["count"], finding.evidence["total"], finding.evidence["cause"]) == (4, 2.0, "c")
    assert finding.evidence["share"] == pytest.approx(2.0 / 65)
    assert finding.severity == "warning"
    assert finding.says.startswith("parse (app.py:22) has blocked the loop of MainThread 4 times in the last 65.0 s")


def test_of_a_loop_that_is_attached_to_the_lag_is_known():
    then, now = d.histogram(100, 0.1), d.histogram(200, 20.1, 0.4)
    before, after = (d.loops(d.loop(metrics=None, attached=True, lag=lag)) for lag in (then, now))
    found = look({"loops": before}, {"loops": after})
    assert [finding.kind for finding in found] == ["ready_delay", "not_seen"]
    assert found[0].evidence["mean"] == pytest.approx(0.2)
    assert "tideloop's" in found[1].says


def test_old_blocks_are_not_told_and_long_ones_are_a_problem():
    assert look({"blocks": d.blocks(d.block(at=d.AT - 601))}) == []
    assert one("blocks", {"blocks": d.blocks(d.block(at=d.AT - 590, duration=1.5))}).severity == "problem"


def test_a_block_without_a_stack_is_known_by_its_step():
    finding = one("blocks", {"blocks": d.blocks(d.block(stack=[], stacks=[], task=None))})
    assert finding.says.startswith("fetch (app.py:12) has blocked")


def test_a_loop_that_is_blocked_now_is_told_with_what_blocks_it():
    lasting = d.block(duration=2.0, ended=False, what="", task=None)
    finding = one("blocked", {"loops": d.loops(d.loop(blocked_for=2.0)), "blocks": d.blocks(lasting)})
    assert finding.severity == "problem"
    assert finding.says == (
        "The loop of MainThread has been blocked for 2.0 s and still is, by fetch (app.py:12) (cause: syscall)."
    )


def spent(callbacks, internal, idle, **changed):
    return d.loops(
        d.loop(metrics=d.metrics(spent={"callbacks": callbacks, "internal": internal, "idle": idle}, **changed))
    )


@pytest.mark.parametrize(("idle", "severity"), [(0.05, "problem"), (0.4, "warning"), (0.6, None)])
def test_a_full_loop(idle, severity):
    found = look({"loops": spent(20, 5, 75)}, {"loops": spent(20 + 4.5 - idle, 5.5, 75 + idle)})
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_a_full_loop_is_told_with_the_coroutine_that_fills_it():
    finding = one(
        "saturated",
        {"loops": spent(20, 5, 75), "tasks": d.tasks(functions=[d.function(), d.function("quick", busy=9.0)])},
        {
            "loops": spent(24.9, 5.1, 75),
            "tasks": d.tasks(functions=[d.function(busy=4.5), d.function("quick", busy=9.0)]),
        },
    )
    assert (finding.evidence["coroutine"], finding.evidence["coroutine_share"]) == ("handle", 0.8)
    assert finding.says.endswith("handle (app.py:30) alone took 80 % of the time.")


@pytest.mark.parametrize(
    ("mean", "count", "severity"), [(0.2, 100, "problem"), (0.02, 100, "warning"), (0.002, 100, None), (0.2, 10, None)]
)
def test_what_is_ready_waits(mean, count, severity):
    later = d.loops(d.loop(metrics=d.metrics(ready_delay=d.histogram(1000 + count, 0.5 + mean * count))))
    found = look({}, {"loops": later})
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_calls_wait_for_the_executor():
    def queue(size):
        return {"loops": d.loops(d.loop(metrics=d.metrics(executor_queue=size)))}

    assert one("executor", queue(4), queue(40)).evidence["growth"] == pytest.approx(7.2)
    assert look(queue(0), queue(40)) == [], "a burst"


def waiting(*pairs):
    return d.tasks(*(d.task(number, waits_for=others) for number, others in pairs))


def test_tasks_that_wait_for_each_other():
    circle = {"tasks": waiting((1, [2]), (2, [3]), (3, [1]), (4, [1]))}
    finding = one("deadlock", circle)
    assert finding.evidence["tasks"] == ["Task-1", "Task-2", "Task-3"]
    assert finding.says.endswith("none of them will ever go on.")
    assert look({}, circle) == [], "not there before"


def test_tasks_that_wait_for_each_other_and_still_move_are_none():
    moved = d.tasks(d.task(1, waits_for=[2], steps=6), d.task(2, waits_for=[1]))
    assert look({"tasks": waiting((1, [2]), (2, [1]))}, {"tasks": moved}) == []


def test_circles_are_found_once_and_long_chains_are_no_trouble():
    chain = [{"id": number, "waits_for": [number + 1]} for number in range(20_000)]
    assert cycles(chain) == []
    chain[-1]["waits_for"] = [0]
    assert [len(cycle) for cycle in cycles(chain)] == [20_000]
    tasks = [{"id": 1, "waits_for": [1]}, {"id": 2, "waits_for": [3, 4]}, {"id": 3, "waits_for": []}]
    tasks += [{"id": 4, "waits_for": [2, 3]}]
    assert cycles(tasks) == [[1], [2, 4]]


def piling(live, created=None, ok=0, **changed):
    each = [d.task(number, waiting_on="Queue.get", **changed) for number in range(live)]
    named = d.function(live=live, created=created, ok=None if created is None else ok, failed=None, cancelled=None)
    return {"tasks": d.tasks(*each, functions=[named])}


def test_tasks_that_pile_up():
    finding = one("leak", piling(60, created=60), piling(100, created=100))
    assert (finding.severity, finding.evidence["live"], finding.evidence["created"]) == ("warning", 100, 40)
    assert "Most of them wait on Queue.get." in finding.says
    assert "They are spawned at app.py:44." in finding.says
    assert one("leak", piling(2000, created=9000), piling(2100, created=9100)).severity == "problem"


def test_tasks_that_pile_up_without_counts():
    finding = next(finding for finding in look(piling(60), piling(100)) if finding.severity != "note")
    assert (finding.kind, finding.evidence["created"], finding.evidence["ended"]) == ("leak", 40, 0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (piling(60, created=60), piling(60, created=60)),
        (piling(60, created=60), piling(100, created=200, ok=100)),
        (piling(60, created=5000, ok=4940), piling(100, created=5040, ok=4940)),
        (piling(4, created=4), piling(40, created=40)),
    ],
    ids=["as many as before", "many end", "clients came", "few"],
)
def test_tasks_that_do_not_pile_up(before, after):
    assert look(before, after) == []


def test_a_task_that_is_left_behind():
    others = d.function(live=3, created=400, ok=397, failed=0, cancelled=0)
    left = {"tasks": d.tasks(d.task(1, age=90.0), d.task(2, age=300.0), d.task(3, age=2.0), functions=[others])}
    finding = one("stuck", left)
    assert (finding.evidence["tasks"], finding.evidence["oldest"]) == (["Task-2", "Task-1"], 300.0)
    assert finding.says == (
        "Task 'Task-2' in handle (app.py:30) is 5 min old and waits on Event, while 397 others of it have ended; "
        "1 more is like it."
    )
    forever = d.tasks(d.task(1, age=9000.0), functions=[d.function(live=1, created=1, ok=0, failed=0, cancelled=0)])
    assert look({"tasks": forever}) == [], "what runs as long as the program is not stuck"


def test_a_task_that_spins():
    def spinning(steps, idle):
        return {"tasks": d.tasks(d.task(1, steps=steps, idle=idle))}

    finding = one("spinning", spinning(5, 3.0), spinning(100_005, 3.01))
    assert finding.evidence["steps_per_second"] == 20_000
    assert look(spinning(5, 3.0), spinning(100_005, 7.9)) == [], "it waits most of the time"
    assert look(spinning(None, None), spinning(None, None)) == [], "not counted"


def test_failures_that_nobody_has_asked_for():
    lost = [
        {"task": f"save {n}", "coroutine": "save", "exception": "OSError('full')", "age": 60.0 + n} for n in range(5)
    ]
    finding = one("unretrieved", {"tasks": d.tasks(unretrieved=lost)})
    assert finding.says == (
        "5 tasks of save failed and nobody has asked why: OSError('full') "
        "(task 'save 0', 'save 1', 'save 2' and 2 others, 64.0 s ago)."
    )


def gauges(kind, before, after):
    """The findings of a gauge that was so and is so."""
    return look({"gauges": d.gauges(d.gauge(kind, **before))}, {"gauges": d.gauges(d.gauge(kind, **after))})


LIMITER = {"capacity": 10, "in_use": 10, "waiting": 30, "granted": 100, "timed_out": 0, "rejected": 0}
POOL = {"idle": 0, "borrowed": 5, "creating": 0, "waiting": 3, "lent": 50, "timeouts": 0, "leaked": 0, "failed": 0}
QUEUE = {"maxsize": 10, "size": 10, "put": 100, "getters": 0, "putters": 2}
CACHE = {"hits": 0, "misses": 0, "loads": 0, "failed": 0, "evicted": 0, "expired": 0}


@pytest.mark.parametrize(
    ("kind", "before", "after", "severity", "says"),
    [
        ("limiter", LIMITER, LIMITER | {"granted": 110}, "problem", "who comes now waits 15.0 s"),
        ("limiter", LIMITER, LIMITER | {"granted": 350}, "warning", "and 50/s come through"),
        ("limiter", LIMITER, LIMITER, "problem", "the 10 in use are not given back"),
        ("limiter", LIMITER | {"waiting": 0}, LIMITER | {"waiting": 0, "timed_out": 3}, "warning", "3 gave up waiting"),
        ("shared_limiter", {"away": False, "lost": 0}, {"away": True, "lost": 0}, "problem", "cannot reach its server"),
        ("shared_limiter", {"lost": 0}, {"lost": 2}, "warning", "has lost 2 permits"),
        ("keyed_limiter", {"waiting": 4}, {"waiting": 5}, "warning", "5 wait for the keyed_limiter 'api'"),
        ("resource_limits", {"cpu": {"waiting": 1}}, {"cpu": {"waiting": 2}}, "warning", "resource 'cpu' of"),
        ("rate", {"waiting": 9, "admitted": 0}, {"waiting": 9, "admitted": 15}, "problem", "who comes now waits 3.0 s"),
        ("rate", {"waiting": 0, "penalties": 0}, {"waiting": 0, "penalties": 1}, "warning", "slow down 1 time"),
        ("keyed_rate", {"waiting": 3}, {"waiting": 2}, "warning", "2 wait for the keyed_rate 'api'."),
        (
            "adaptive",
            {"waiting": 0, "dropped": 1, "allowed": 4, "reason": "grew"},
            {"waiting": 0, "dropped": 9, "allowed": 3, "reason": "dropped"},
            "warning",
            "lets 3 run at once (why: dropped), 8 were dropped",
        ),
        ("pool", POOL, POOL | {"lent": 100}, "warning", "is too small: 5 of 5 are lent and 3 wait; 10/s are lent"),
        ("pool", POOL, POOL | {"lent": 60, "timeouts": 2}, "problem", "2 borrowers gave up"),
        ("pool", POOL, POOL, "problem", "none was lent meanwhile"),
        ("pool", POOL | {"waiting": 0}, POOL | {"waiting": 0, "leaked": 1}, "problem", "1 loans are longer"),
        ("queue", QUEUE, QUEUE | {"put": 150}, "warning", "is full: 10 of 10 items, 10/s come, 10/s go, and 2 writers"),
        ("queue", QUEUE, QUEUE, "problem", "0/s go"),
        (
            "channel",
            {"maxsize": 0, "size": 10, "sent": 100, "waiting_senders": 0},
            {"maxsize": 0, "size": 510, "sent": 700, "waiting_senders": 0},
            "warning",
            "grows without a limit: 510 items, 500 more than 5.0 s ago (120/s come, 20/s go)",
        ),
        ("cache", CACHE, CACHE | {"hits": 10, "misses": 190, "evicted": 150}, "warning", "150 entries were driven out"),
        ("cache", CACHE, CACHE | {"hits": 10, "misses": 190, "expired": 150}, "warning", "were too old"),
        ("cache", CACHE, CACHE | {"hits": 10, "misses": 190}, "warning", "hardly ever come again"),
        ("cache", CACHE, CACHE | {"misses": 4, "loads": 4, "failed": 3}, "problem", "3 loads of 4 failed"),
        ("batcher", {"batches": 0, "keys": 0}, {"batches": 80, "keys": 90}, "warning", "90 keys in 80 batches"),
        ("batcher", {"batches": 0, "failed": 0}, {"batches": 4, "failed": 3}, "problem", "3 batches of 4 failed"),
        ("background", {"failed": 0}, {"failed": 2}, "warning", "2 tasks failed"),
        ("background", {"waiting": 5, "running": 4}, {"waiting": 5, "running": 4}, "warning", "4 run"),
        (
            "breaker",
            {"state": "closed", "refused": 0},
            {"state": "open", "refused": 7},
            "problem",
            "7 calls were refused",
        ),
        (
            "policy",
            {"exhausted": 0, "timeouts": 1},
            {"exhausted": 3, "timeouts": 1},
            "warning",
            "3 calls failed for good",
        ),
    ],
)
def test_gauges(kind, before, after, severity, says):
    (finding,) = gauges(kind, before, after)
    assert finding.severity == severity
    assert says in finding.says
    assert "'api'" in finding.says
    assert finding.do


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("limiter", LIMITER | {"waiting": 0}, LIMITER),
        ("pool", POOL, POOL | {"idle": 1}),
        ("queue", QUEUE | {"size": 4}, QUEUE),
        ("queue", QUEUE | {"maxsize": 0}, QUEUE | {"maxsize": 0, "size": 50}),
        ("cache", CACHE, CACHE | {"hits": 10, "misses": 40}),
        ("batcher", {"batches": 0, "keys": 0}, {"batches": 20, "keys": 20}),
        ("unheard_of", {"waiting": 9}, {"waiting": 9}),
    ],
)
def test_what_comes_and_goes_is_nothing(kind, before, after):
    assert gauges(kind, before, after) == []


def test_what_has_just_been_made_is_not_compared():
    assert look({}, {"gauges": d.gauges(d.gauge("limiter", **LIMITER)), "tasks": waiting((1, [2]), (2, [1]))}) == []


def test_what_cannot_be_seen_is_noted():
    def notes(**parts):
        found = look(parts)
        assert {finding.severity for finding in found} == {"note"}
        return [finding.says for finding in found]

    assert notes(loops=d.loops(d.loop(level=0)))[0].startswith("Times of tasks are not counted")
    assert notes(tasks=d.tasks(age=9.0)) == ["What is known of its tasks is 9.0 s old: something keeps the GIL."]
    assert notes(tasks=d.tasks(age=None)) == ["Nothing is known of its tasks so far: something keeps the GIL."]
    assert notes(gauges=d.gauges() | {"error": "KeyError: 3"}) == [
        "Its limiters, queues and pools could not be collected: KeyError: 3."
    ]
    assert notes(tasks=d.tasks(d.task(1), truncated=True)) == ["Only 1 of its tasks were looked at."]
