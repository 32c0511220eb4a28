"""The pytest plugin: what pytest loads in every run where tideloop is installed.

So it costs nothing unless it is asked for: this module imports pytest alone, patches nothing, and its hooks look at a
test and go. What is asked for is done by the modules beside it, which are imported then. docs/testing.md is for its
users.

    --tideloop            async tests, and the loops of pytest-asyncio and anyio, are tideloop's
    virtual_clock         fixture: the test's loop is on a virtual clock
    no_task_leaks         fixture or marker: no task outlives the test
    no_blocking(ms=100)   marker or fixture: no step of the loop takes longer
    cancel_everywhere     marker or fixture: the test again, cancelled at each of its awaits
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from tideloop.testing.checks import Checks
    from tideloop.testing.clock import VirtualClock

_FACTORIES = "tideloop-loop-factories"
"""Our answer to pytest-asyncio's question for loops, which has to be there only while it concerns us."""

_MARKERS = (
    "virtual_clock(start=0.0): the test's loop is on a virtual clock, which shows `start` seconds at first",
    "no_task_leaks: fails an async test that leaves tasks behind",
    "no_blocking(ms=100): fails an async test if a step of its loop takes longer",
    "cancel_everywhere(limit=200, moments=('waiting', 'woken'), patience=10, may_swallow=False): "
    "runs an async test again, cancelled at each of its awaits",
)

_ASYNC_ONLY = ("virtual_clock", "no_blocking", "cancel_everywhere")
"""What a test that is not async cannot have. It has no tasks to leak either, but then nothing is promised in vain."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tideloop", "tideloop")
    group.addoption(
        "--tideloop", action="store_true", help="run async tests, and their fixtures, on tideloop's event loop"
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)


# --- fixtures ------------------------------------------------------------------------------------


@pytest.fixture
def virtual_clock() -> VirtualClock:
    """The test runs on a loop with a virtual clock, and this is the clock."""
    from tideloop.testing.clock import VirtualClock

    return VirtualClock()


@pytest.fixture
def no_task_leaks() -> None:
    """The test fails if it leaves tasks behind."""


@pytest.fixture
def no_blocking() -> None:
    """The test fails if a step of its loop takes longer than the marker of that name says, or 100 ms."""


@pytest.fixture
def cancel_everywhere() -> None:
    """The test runs again, cancelled at each of its awaits."""


@pytest.fixture
def _tideloop_runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    import asyncio

    with asyncio.Runner(loop_factory=_factory(request.node)) as runner:
        yield runner


# --- what a test asks for ------------------------------------------------------------------------


def _asks(item: Any, name: str) -> bool:
    return name in getattr(item, "fixturenames", ()) or item.get_closest_marker(name) is not None


def _asks_itself(item: Any, name: str) -> bool:
    own = any(marker.name == name for marker in item.own_markers)
    return own or (isinstance(item, pytest.Function) and name in item._fixtureinfo.argnames)


def _is_async(item: Any) -> bool:
    return isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj)


def _is_ours(item: Any) -> bool:
    """Whether we run a test: it is async, nobody else does, and we are asked for something."""
    if not _is_async(item) or not (
        item.config.option.tideloop or any(_asks(item, name) for name in (*_ASYNC_ONLY, "no_task_leaks"))
    ):
        return False
    from tideloop.testing.running import is_claimed

    return not is_claimed(item)


def _start(item: Any) -> float:
    """What the test's virtual clock shows at first."""
    return float(_argument(item, "virtual_clock", "start", 0.0))


def _argument(item: Any, marker: str, name: str, default: float) -> float:
    """The one argument of a marker. UsageError if it is wrong."""
    found = item.get_closest_marker(marker)
    if found is None:
        return default
    values = [*found.args, *(value for key, value in found.kwargs.items() if key == name)]
    if len(values) > 1 or set(found.kwargs) - {name}:
        raise pytest.UsageError(f"{item.nodeid}: {marker} takes {name}= and nothing else")
    value = values[0] if values else default
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise pytest.UsageError(f"{item.nodeid}: {marker}: {name} is {value!r}; expected a number of at least 0")
    return value


def _factory(item: Any) -> Callable[[], asyncio.AbstractEventLoop]:
    from tideloop.testing.running import loop_factory

    return loop_factory(item.config.option.tideloop, _asks(item, "virtual_clock"), _start(item))


def _checks(item: Any) -> Checks | None:
    """What is asked of a test in this run of it."""
    if not any(_asks(item, name) for name in (*_ASYNC_ONLY, "no_task_leaks")):
        return None
    from tideloop.testing.checks import Checks

    attack = None
    if _asks(item, "cancel_everywhere"):
        from tideloop.testing import cancelling

        attack = item.stash.get(cancelling.attack, None)
    blocking = _argument(item, "no_blocking", "ms", 100.0) / 1e3 if _asks(item, "no_blocking") else None
    return Checks(_asks(item, "virtual_clock"), _asks(item, "no_task_leaks"), blocking, attack)


# --- running -------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """A test that is to be cancelled everywhere runs many times."""
    if not _is_async(item) or not _asks(item, "cancel_everywhere"):
        return None
    from tideloop.testing.cancelling import run_again

    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in run_again(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What cannot be done is said before anything runs."""
    for item in items:
        asked = [name for name in _ASYNC_ONLY if _asks(item, name)]
        if asked and not _is_async(item):
            # Of a marker of its module, or of a fixture that everything uses, the test may know nothing.
            if own := [name for name in asked if _asks_itself(item, name)]:
                raise pytest.UsageError(f"{item.nodeid}: {own[0]} is for async tests, and this one is not async")
            continue
        if "cancel_everywhere" in asked:
            from tideloop.testing.cancelling import options_of

            options_of(item)
        if asked:
            _start(item)
            _argument(item, "no_blocking", "ms", 100.0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Whoever runs the test gets an async function that checks it as well."""
    checks = _checks(item) if _is_async(item) else None
    if checks is None:
        return (yield)
    from tideloop.testing.checks import checked
    from tideloop.testing.findings import Finding

    assert isinstance(item, pytest.Function)
    plain = item.obj
    item.obj = checked(plain, checks)
    try:
        result = yield
        if not checks.runs:
            pytest.fail("whoever runs this test (unittest?) passes over the checks that it asks for", pytrace=False)
        return result
    except Finding as finding:
        # The message says where; how the loop got there is of no interest.
        raise pytest.fail.Exception(str(finding), pytrace=False) from None
    finally:
        item.obj = plain


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """anyio's plugin makes the loop of a test with no async fixtures just before the test."""
    if _asks(pyfuncitem, "virtual_clock") and (backend := pyfuncitem.funcargs.get("anyio_backend")):
        from tideloop.testing.running import anyio_backend

        pyfuncitem.funcargs["anyio_backend"] = anyio_backend(backend, _factory(pyfuncitem), force=True)
    return (yield)


@pytest.hookimpl(specname="pytest_pyfunc_call")
def pytest_pyfunc_call_of_ours(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that nobody else runs."""
    if not _is_ours(pyfuncitem):
        return None
    from tideloop.testing.running import run

    run(pyfuncitem, pyfuncitem._request.getfixturevalue("_tideloop_runner"))
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Async fixtures of tests of ours run on the test's loop; anyio is told of tideloop where it asks for a backend."""
    function = fixturedef.func
    if request.scope == "function" and (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        if _is_ours(request.node):
            return (yield from _set_up(fixturedef, request))
    elif fixturedef.argname == "anyio_backend" and request.config.option.tideloop:
        from tideloop.loop import new_event_loop
        from tideloop.testing.running import anyio_backend

        backend = anyio_backend((yield), new_event_loop)
        assert fixturedef.cached_result is not None
        fixturedef.cached_result = (backend, *fixturedef.cached_result[1:])
        return backend
    return (yield)


def _set_up(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
    from tideloop.testing.running import make_synchronous

    function = fixturedef.func
    # A method of a class is bound to an instance that was made for another test.
    bound: Any = function
    if request.instance is not None and inspect.ismethod(function):
        bound = function.__func__.__get__(request.instance)
    fixturedef.func = make_synchronous(bound, request)  # type: ignore[misc]
    try:
        return (yield)
    finally:
        fixturedef.func = function  # type: ignore[misc]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, None, None]:
    """pytest-asyncio asks for loops while it collects a test; who answers for one test has to answer for all."""
    manager = metafunc.config.pluginmanager
    concerned = metafunc.config.option.tideloop or _asks(metafunc.definition, "virtual_clock")
    if not concerned or not manager.has_plugin("asyncio"):
        return (yield)
    if not hasattr(manager.hook, "pytest_asyncio_loop_factories"):
        if metafunc.definition.get_closest_marker("asyncio") is None:
            return (yield)
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: this pytest-asyncio has no hook pytest_asyncio_loop_factories, "
            "so it cannot be told which loop to make; newer ones have it"
        )
    manager.register(_LoopFactories(), _FACTORIES)
    try:
        return (yield)
    finally:
        manager.unregister(name=_FACTORIES)


class _LoopFactories:
    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_asyncio_loop_factories(self, item: Any) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
        return {"tideloop" if item.config.option.tideloop else "virtual": _factory(item)}
