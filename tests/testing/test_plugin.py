"""The pytest plugin: each check lets a right test pass and catches a wrong one, on both loops."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

HEAD = """
import asyncio
import time
import pytest
import tideloop

def kind():
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]

"""


@pytest.fixture
def run(kind, plugged):
    """Runs tests in a pytest of their own, without or with --tideloop."""

    def run(source, *options):
        plugged.makepyfile(HEAD + f"LOOP = {kind!r}\n" + source)
        loop = ["--tideloop"] if kind == "tideloop" else []
        return plugged.runpytest_inprocess(*loop, *options)

    return run


def lines(result, *patterns):
    result.stdout.fnmatch_lines([f"*{pattern}*" for pattern in patterns])


# --- --tideloop ----------------------------------------------------------------------------------


def test_async_tests_and_their_fixtures_run_on_tideloop(plugged):
    plugged.makepyfile(
        HEAD
        + """
closed = []

@pytest.fixture
async def plain():
    await asyncio.sleep(0)
    return asyncio.get_running_loop()

@pytest.fixture
async def lent(plain):
    assert plain is asyncio.get_running_loop()
    yield kind()
    await asyncio.sleep(0)
    closed.append(kind())

async def test_one(plain, lent):
    assert asyncio.get_running_loop() is plain
    assert kind() == lent == "tideloop"

def test_the_fixture_was_ended():
    assert closed == ["tideloop"]

class TestMethods:
    name = "a"

    @pytest.fixture
    async def own(self):
        await asyncio.sleep(0)
        self.name = "b"
        return self

    async def test_it(self, own):
        assert own is self
        assert self.name == "b"

    @pytest.mark.parametrize("number", [1, 2])
    async def test_parameters(self, number):
        await asyncio.sleep(0)
        assert number in (1, 2)

async def test_a_failure_is_a_failure():
    await asyncio.sleep(0)
    assert kind() == "nothing"
"""
    )
    result = plugged.runpytest_inprocess("--tideloop")
    result.assert_outcomes(passed=5, failed=1)
    lines(result, "E * AssertionError: assert 'tideloop' == 'nothing'", "test_a_failure_is_a_failure")
    assert "plugin.py" not in result.stdout.str(), "the plugin's frames are in the way"


def test_a_fixture_that_yields_twice_is_wrong(plugged):
    plugged.makepyfile(
        HEAD
        + """
@pytest.fixture
async def twice():
    yield 1
    yield 2

async def test_it(twice):
    pass
"""
    )
    result = plugged.runpytest_inprocess("--tideloop")
    result.assert_outcomes(passed=1, errors=1)
    lines(result, "the fixture twice yields more than once")


def test_unasked_it_does_nothing_and_imports_nothing(plugged):
    """In a process of its own: no event loop is imported, not asyncio's either; async tests are not taken."""
    plugged.makepyfile(
        """
import sys

def test_it():
    assert "tideloop.testing.plugin" in sys.modules
    loaded = [name for name in sys.modules if name.startswith("tideloop")]
    assert sorted(loaded) == ["tideloop", "tideloop.testing", "tideloop.testing.plugin"]

async def test_nobody_runs_this():
    pass
"""
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest"], cwd=plugged.path, capture_output=True, text=True, timeout=25
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "async def functions are not natively supported" in done.stdout
    assert done.stderr == ""


def test_its_markers_and_options_are_listed(plugged):
    result = plugged.runpytest_inprocess("--markers", "--strict-markers")
    for name in ("virtual_clock(start", "no_task_leaks:", "no_blocking(ms", "cancel_everywhere(limit"):
        lines(result, f"@pytest.mark.{name}")
    lines(plugged.runpytest_inprocess("--help"), "--tideloop *run async tests")
    lines(plugged.runpytest_inprocess("--fixtures"), "virtual_clock -- ")
    without = plugged.runpytest_inprocess("-p", "no:tideloop", "--markers")
    without.stdout.no_fnmatch_line("*virtual_clock*")


def test_a_plugin_that_cannot_be_told_of_a_loop_is_named(plugged):
    """A pytest-asyncio before its hook for loops; its tests would stay on asyncio in silence."""
    plugged.makeini("[pytest]\naddopts = -p no:asyncio -p no:anyio -p no:cacheprovider\nmarkers = asyncio: theirs\n")
    plugged.makeconftest("""
class Older:
    pass

def pytest_configure(config):
    config.pluginmanager.unblock("asyncio")
    config.pluginmanager.register(Older(), "asyncio")
""")
    plugged.makepyfile(HEAD + "@pytest.mark.asyncio\nasync def test_it(): pass\n")
    result = plugged.runpytest_inprocess("--tideloop")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    lines(result, "test_it: this pytest-asyncio has no hook pytest_asyncio_loop_factories")


# --- virtual_clock -------------------------------------------------------------------------------


def test_virtual_clock(run):
    result = run("""
import tideloop.testing

async def test_hours_take_no_time(virtual_clock):
    began = time.monotonic()
    assert virtual_clock.time() == 0
    await asyncio.sleep(3600)
    assert virtual_clock.time() == asyncio.get_running_loop().time() == 3600
    virtual_clock.advance(5)
    assert virtual_clock.time() == 3605
    with virtual_clock.hold():
        assert await asyncio.to_thread(lambda: 7) == 7
    assert "3605 s" in repr(virtual_clock)
    assert time.monotonic() - began < 10
    assert isinstance(asyncio.get_running_loop(), tideloop.EventLoop) == (LOOP == "tideloop")

@pytest.mark.virtual_clock(start=100)
async def test_the_marker_alone():
    assert asyncio.get_running_loop().time() == 100

@pytest.fixture
async def later(virtual_clock):
    await asyncio.sleep(10)
    yield virtual_clock
    assert virtual_clock.time() == 30

async def test_fixtures_are_on_it(later):
    assert later.time() == 10
    await asyncio.sleep(20)

def test_outside(request):
    clock = tideloop.testing.VirtualClock()
    with pytest.raises(RuntimeError, match="outside of a running loop"):
        clock.time()
""")
    result.assert_outcomes(passed=4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def test_it(virtual_clock): pass", "virtual_clock is for async tests, and this one is not async"),
        ("@pytest.mark.no_blocking(5)\ndef test_it(): pass", "no_blocking is for async tests"),
        ("@pytest.mark.no_blocking('5')\nasync def test_it(): pass", "no_blocking: ms is '5'; expected a number"),
        ("@pytest.mark.no_blocking(5, 6)\nasync def test_it(): pass", "no_blocking takes ms= and nothing else"),
        ("@pytest.mark.virtual_clock(begin=1)\nasync def test_it(): pass", "virtual_clock takes start= and nothing"),
        ("@pytest.mark.cancel_everywhere(limit=0)\nasync def test_it(): pass", "limit is 0; expected more than 0"),
        ("@pytest.mark.cancel_everywhere(moments=['now'])\nasync def test_it(): pass", "moments is *'now'*expected"),
        ("@pytest.mark.cancel_everywhere(often=1)\nasync def test_it(): pass", "cancel_everywhere: *'often'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(plugged, source, message):
    plugged.makepyfile(HEAD + source)
    result = plugged.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*test_it: *{message}*"])


def test_a_marker_of_the_module_passes_over_plain_tests(run):
    result = run("""
pytestmark = [pytest.mark.no_blocking(5000), pytest.mark.cancel_everywhere, pytest.mark.no_task_leaks]

def test_plain():
    pass

async def test_async():
    await asyncio.sleep(0)
""")
    result.assert_outcomes(passed=2)


def test_checks_that_were_passed_over_are_a_failure(run):
    result = run("""
import unittest

class Plain(unittest.IsolatedAsyncioTestCase):
    async def test_it(self):
        await asyncio.sleep(0)

@pytest.mark.no_task_leaks
class Asking(unittest.IsolatedAsyncioTestCase):
    async def test_it(self):
        await asyncio.sleep(0)

    @pytest.mark.cancel_everywhere
    async def test_again(self):
        await asyncio.sleep(0)
""")
    result.assert_outcomes(passed=1, failed=2)
    lines(result, "whoever runs this test (unittest?) passes over the checks that it asks for")


# --- no_task_leaks -------------------------------------------------------------------------------


def test_no_task_leaks(run):
    result = run("""
pytestmark = pytest.mark.usefixtures("no_task_leaks")
left = []

async def forever():
    await asyncio.Event().wait()

async def test_right():
    task = asyncio.create_task(forever())
    await asyncio.sleep(0)
    task.cancel()  # not awaited: it ends by itself in the next turns

async def test_wrong():
    left.append(asyncio.create_task(forever(), name="left alone"))
    await asyncio.sleep(0)

def test_what_was_left_is_ended():
    assert left[0].cancelled()

async def test_who_fails_is_told_of_the_failure():
    left.append(asyncio.create_task(forever()))
    raise LookupError("the news")
""")
    result.assert_outcomes(passed=2, failed=2)
    lines(
        result,
        "1 task left behind:",
        "'left alone', forever(), which waits at",
        "test_no_task_leaks.py:* in forever: await asyncio.Event().wait()",
        "LookupError: the news",
    )


# --- no_blocking ---------------------------------------------------------------------------------


def test_no_blocking(run):
    result = run("""
pytestmark = pytest.mark.no_blocking(50)

def slow():
    time.sleep(0.3)

@pytest.mark.no_blocking(1000)
async def test_right():
    for _ in range(12):
        await asyncio.sleep(0.1)  # waiting is not blocking, and steps do not add up
        time.sleep(0.001)
    await asyncio.to_thread(slow)

async def test_a_task_that_blocks():
    await asyncio.sleep(0)
    await asyncio.create_task(inner())

async def inner():
    await asyncio.sleep(0)
    slow()

async def test_a_callback_that_blocks():
    asyncio.get_running_loop().call_later(0.001, slow)
    await asyncio.sleep(0.01)
    await asyncio.sleep(0)

async def test_python_that_computes():
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end: pass

@pytest.mark.no_blocking(ms=10_000)
async def test_the_closest_marker_counts():
    slow()
""")
    result.assert_outcomes(passed=2, failed=3)
    lines(
        result,
        "_ test_a_task_that_blocks _",
        "step* of the loop took longer than 50 ms:",
        "??? ms, here:",
        "in inner: slow()",
        "in slow: time.sleep(0.3)",
        "_ test_a_callback_that_blocks _",
        "in slow: time.sleep(0.3)",
        "_ test_python_that_computes _",
        "while time.perf_counter() < end:",
    )


def test_code_that_never_lets_go_is_found_without_its_stack(run):
    result = run("""
@pytest.mark.no_blocking(20)
async def test_it():
    await asyncio.sleep(0)
    sum(range(4_000_000))  # one call, which holds the interpreter throughout
    await asyncio.sleep(0)
""")
    result.assert_outcomes(failed=1)
    lines(result, "step* of the loop took longer than 20 ms:", "test_it")


def test_a_task_that_never_begins_is_no_warning(run):
    result = run("""
@pytest.mark.no_blocking(5000)
async def test_it():
    task = asyncio.create_task(asyncio.sleep(1000))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
""")
    result.assert_outcomes(passed=1)


# --- cancel_everywhere ---------------------------------------------------------------------------


def test_cancel_everywhere_passes_what_is_right(run):
    result = run("""
runs = []

@pytest.fixture
def permits():
    semaphore = asyncio.Semaphore(1)
    yield semaphore
    assert semaphore._value == 1

@pytest.fixture(scope="module", autouse=True)
def once():
    runs.append("module")
    yield
    assert runs.count("module") == 1

@pytest.mark.cancel_everywhere
async def test_it(permits, virtual_clock, no_task_leaks):
    runs.append("test")
    async with permits:
        await asyncio.sleep(60)
    async with asyncio.timeout(5):
        await asyncio.sleep(1)
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(3))

def test_it_ran_so_often():
    assert runs.count("test") == 1 + 2 * 3
""")
    result.assert_outcomes(passed=2)


def test_cancel_everywhere_says_which_await_and_where(run):
    result = run("""
@pytest.fixture
def permits():
    semaphore = asyncio.Semaphore(1)
    yield semaphore
    assert semaphore._value == 1, "a permit is lost"

async def visit(permits):
    await permits.acquire()
    await asyncio.sleep(2)
    permits.release()

@pytest.mark.cancel_everywhere
async def test_it(permits, virtual_clock):
    await asyncio.sleep(1)
    await visit(permits)
    await asyncio.sleep(3)
""")
    result.assert_outcomes(failed=1)
    lines(
        result,
        "cancel_everywhere: 2 of 6 cancelled runs failed, at await 2 of 3",
        "cancelled at await 2 of 3, while it waited:",
        "which_await_and_where.py:* in test_it: await visit(permits)",
        "which_await_and_where.py:* in visit: await asyncio.sleep(2)",
        "its teardown failed:",
        "AssertionError: a permit is lost",
        "cancelled at await 2 of 3, when it was woken, before it went on:",
    )


def test_a_permit_that_is_lost_between_grant_and_wake_up(run):
    """The moment that tests by hand miss: the waiter has been given the permit, and is cancelled before it knows."""
    result = run("""
class Naive:
    def __init__(self):
        self.free = 1
        self.waiting = []

    async def acquire(self):
        if not self.free:
            ticket = asyncio.get_running_loop().create_future()
            self.waiting.append(ticket)
            try:
                await ticket
            except asyncio.CancelledError:
                if ticket in self.waiting:
                    self.waiting.remove(ticket)
                raise
        else:
            self.free -= 1

    def release(self):
        if self.waiting:
            self.waiting.pop(0).set_result(None)  # handed over: who is cancelled now keeps it for ever
        else:
            self.free += 1

@pytest.fixture
def naive():
    made = Naive()
    yield made
    assert made.free == 1

@pytest.mark.cancel_everywhere
async def test_it(naive, virtual_clock):
    naive.free = 0
    asyncio.get_running_loop().call_later(1, naive.release)
    await naive.acquire()
    try:
        await asyncio.sleep(1)
    finally:
        naive.release()

@pytest.mark.cancel_everywhere(moments=["waiting"])
async def test_the_same_without_that_moment(naive, virtual_clock):
    naive.free = 0
    naive.release()
    await naive.acquire()
    naive.release()
    await asyncio.sleep(1)
""")
    result.assert_outcomes(passed=1, failed=1)
    lines(result, "cancelled at await 1 of 2, when it was woken", "in Naive.acquire: await ticket")


def test_cancelled_tests_that_go_on_or_hang(run):
    result = run("""
@pytest.mark.cancel_everywhere
async def test_swallows(virtual_clock):
    try:
        await asyncio.sleep(1)
    except BaseException:
        pass

@pytest.mark.cancel_everywhere(may_swallow=True)
async def test_may_swallow(virtual_clock):
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        pass

@pytest.mark.cancel_everywhere
async def test_hangs(virtual_clock):
    try:
        await asyncio.sleep(1)
    finally:
        await asyncio.Event().wait() if asyncio.current_task().cancelling() else None

@pytest.mark.cancel_everywhere
async def test_raises(virtual_clock):
    lock = asyncio.Lock()
    try:
        await asyncio.sleep(1)
        await lock.acquire()
    finally:
        lock.release()
""")
    result.assert_outcomes(passed=1, failed=3)
    lines(
        result,
        "_ test_swallows _",
        "cancelled, the test went on to its end as if nothing had been: something swallowed it",
        "_ test_hangs _",
        "cancelled, the test does not end; it waits at",
        "in test_hangs: await asyncio.Event().wait() *",
        "_ test_raises _",
        "RuntimeError: Lock is not acquired.",
    )


def test_what_is_shielded_is_not_torn_and_cannot_hang(run):
    result = run("""
@pytest.fixture
def steps():
    made = []
    yield made
    assert made in ([], ["begun", "done"]), "torn"

@pytest.mark.cancel_everywhere
async def test_whole(steps, virtual_clock):
    with tideloop.shield():
        steps.append("begun")
        await asyncio.sleep(1)
        steps.append("done")

@pytest.mark.cancel_everywhere
async def test_hangs(virtual_clock):
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        with tideloop.shield():
            await asyncio.Event().wait()
""")
    result.assert_outcomes(passed=1, failed=1)
    lines(
        result,
        "_ test_hangs _",
        "cancelled, the test does not end; it waits at",
        "in test_hangs: await asyncio.Event().wait()",
    )


def test_a_test_that_is_known_to_be_wrong_when_cancelled(run):
    result = run("""
@pytest.mark.xfail(strict=True, reason="known")
@pytest.mark.cancel_everywhere
async def test_known(virtual_clock):
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        raise LookupError from None

@pytest.mark.xfail(strict=True, reason="mended")
@pytest.mark.cancel_everywhere
async def test_mended(virtual_clock):
    await asyncio.sleep(1)
""")
    result.assert_outcomes(xfailed=1, failed=1)
    lines(result, "[[]XPASS(strict)[]] mended")


def test_cancel_everywhere_at_the_edges(run):
    result = run("""
ended = []

@pytest.fixture(scope="module")
def wide():
    yield
    ended.append("wide")
    raise ValueError("the module's own teardown")

@pytest.mark.cancel_everywhere
async def test_that_fails_anyway(virtual_clock):
    await asyncio.sleep(1)
    raise LookupError("of its own")

@pytest.mark.cancel_everywhere(limit=3)
async def test_too_long():
    for _ in range(4):
        await asyncio.sleep(0)

@pytest.mark.cancel_everywhere
async def test_without_an_await(wide):
    assert not ended

@pytest.mark.cancel_everywhere
async def test_skipped(wide):
    pytest.skip("not today")

@pytest.mark.cancel_everywhere
async def test_generators_are_seen_through(wide, virtual_clock):
    async def numbers():
        yield 1
        await asyncio.sleep(1)
        yield 2

    try:
        async for number in numbers():
            pass
    except asyncio.CancelledError:
        raise LookupError("wrong") from None
""")
    result.assert_outcomes(passed=1, failed=3, skipped=1, errors=1)
    lines(
        result,
        "ERROR at teardown of test_generators_are_seen_through",
        "ValueError: the module's own teardown",
        "LookupError: of its own",
        "the test awaits 4 times, which is more than limit=3",
        "in test_generators_are_seen_through.<locals>.numbers: await asyncio.sleep(1)",
    )
