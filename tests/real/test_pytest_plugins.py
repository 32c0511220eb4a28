"""tideloop's pytest plugin beside pytest-asyncio and anyio's, in a pytest of its own that has all three."""

from __future__ import annotations

import pytest

from tests.real import peers
from tests.testing.conftest import plugged  # noqa: F401  (a fixture)

peers.package("pytest_asyncio")
peers.package("anyio")
peers.package("trio")

pytest_plugins = ["pytester"]

HEAD = """
import asyncio
import time

import anyio
import pytest
import pytest_asyncio
import tideloop

def kind():
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]

"""


@pytest.fixture
def run(plugged, monkeypatch):  # noqa: F811
    """Runs tests with all three plugins, in a process of their own: each of them keeps state of the process."""
    plugged.makeini(
        "[pytest]\nfilterwarnings = error\naddopts = -p no:cacheprovider\n"
        "asyncio_default_fixture_loop_scope = function\n"
    )

    def run(source, *options):
        plugged.makepyfile(HEAD + source)
        return plugged.runpytest_subprocess(*options, timeout=peers.PATIENCE * 2)

    return run


def lines(result, *patterns):
    result.stdout.fnmatch_lines([f"*{pattern}*" for pattern in patterns])


LOOPS = """
@pytest_asyncio.fixture
async def of_asyncio():
    await asyncio.sleep(0)
    yield kind()
    await asyncio.sleep(0)

@pytest.fixture
async def of_anyio(anyio_backend):
    await anyio.sleep(0)
    yield kind() if anyio_backend != "trio" else "trio"
    await anyio.sleep(0)

@pytest.mark.asyncio
async def test_of_pytest_asyncio(of_asyncio):
    assert of_asyncio == kind() == EXPECTED

@pytest.mark.asyncio(loop_scope="module")
class TestOfOneLoop:
    loops = set()

    async def test_first(self):
        self.loops.add(asyncio.get_running_loop())

    async def test_second(self):
        assert self.loops == {asyncio.get_running_loop()}
        assert kind() == EXPECTED

@pytest.mark.anyio
async def test_of_anyio(of_anyio, anyio_backend_name):
    assert of_anyio == ("trio" if anyio_backend_name == "trio" else EXPECTED)
    if anyio_backend_name == "asyncio":
        assert kind() == EXPECTED

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": asyncio.SelectorEventLoop})])
async def test_of_anyio_on_a_loop_that_it_names():
    assert kind() == "asyncio"
"""


def test_their_tests_run_on_tideloop(run):
    result = run(
        'EXPECTED = "tideloop"\n' + LOOPS + "\nasync def test_ours():\n    assert kind() == EXPECTED\n", "--tideloop"
    )
    result.assert_outcomes(passed=7)


def test_unasked_they_are_left_alone(run):
    result = run('EXPECTED = "asyncio"\n' + LOOPS)
    result.assert_outcomes(passed=6)


def test_in_their_automatic_modes(run, plugged):  # noqa: F811
    source = """
async def test_it():
    assert kind() == "tideloop"
    await asyncio.sleep(0)
"""
    run(source, "--tideloop", "--asyncio-mode=auto").assert_outcomes(passed=1)
    plugged.makeini("[pytest]\nfilterwarnings = error\naddopts = -p no:cacheprovider\n")
    only_asyncio = """
@pytest.fixture(params=["asyncio"])
def anyio_backend(request):
    return request.param
"""
    run(only_asyncio + source, "--tideloop", "--anyio-mode=auto", "-p", "no:asyncio").assert_outcomes(passed=1)


CHECKS = """
@pytest.fixture(params=["asyncio"], scope="module")
def anyio_backend(request):
    return request.param

@pytest.fixture
def permits():
    semaphore = asyncio.Semaphore(1)
    yield semaphore
    assert semaphore._value == 1, "a permit is lost"

@THEIRS
async def test_clock(virtual_clock):
    began = time.monotonic()
    await asyncio.sleep(3600)
    assert virtual_clock.time() == 3600
    assert time.monotonic() - began < 20

@THEIRS
async def test_leak(no_task_leaks):
    asyncio.create_task(asyncio.sleep(3600), name="left alone")

@THEIRS
@pytest.mark.no_blocking(50)
async def test_block():
    await asyncio.sleep(0)
    time.sleep(0.3)

@THEIRS
@pytest.mark.cancel_everywhere
async def test_right(permits, virtual_clock):
    async with permits:
        await asyncio.sleep(60)
    await asyncio.sleep(60)

@THEIRS
@pytest.mark.cancel_everywhere
async def test_wrong(permits, virtual_clock):
    await asyncio.sleep(60)
    await permits.acquire()
    await asyncio.sleep(60)
    permits.release()

@THEIRS
async def test_the_next_one_is_unharmed():
    await asyncio.sleep(0)
    assert kind() == EXPECTED
"""


@pytest.mark.parametrize("loop", ["asyncio", "tideloop"])
@pytest.mark.parametrize("theirs", ["pytest.mark.asyncio", "pytest.mark.anyio"])
def test_the_checks_hold_for_their_tests(run, theirs, loop):
    options = ["--tideloop"] if loop == "tideloop" else []
    result = run(CHECKS.replace("THEIRS", theirs) + f"\nEXPECTED = {loop!r}\n", *options)
    result.assert_outcomes(passed=3, failed=3)
    lines(
        result,
        "1 task left behind:",
        "'left alone', sleep(), which waits at",
        "step* of the loop took longer than 50 ms:",
        "in test_block: time.sleep(0.3)",
        "cancel_everywhere: 2 of 4 cancelled runs failed, at await 2 of 2",
        "in test_wrong: await asyncio.sleep(60)",
        "a permit is lost",
    )


def test_a_loop_that_was_there_before_has_no_virtual_clock(run):
    """anyio makes the loop of a test for its async fixtures, and shares it: then it is not for the test to choose."""
    result = run("""
@pytest.fixture(params=["asyncio"])
def anyio_backend(request):
    return request.param

@pytest.fixture
async def resource(anyio_backend):
    yield 1

@pytest.mark.anyio
async def test_it(resource, virtual_clock):
    pass
""")
    result.assert_outcomes(failed=1)
    lines(result, "virtual_clock: this test runs on <*, which has no virtual clock; a fixture of another plugin")


def test_trio_is_not_asyncio(run):
    result = run("""
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_it(no_task_leaks):
    pass
""")
    result.assert_outcomes(failed=1)
    lines(result, "the checks of tideloop's plugin are for tests that run on asyncio")
