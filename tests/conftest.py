"""Fixtures for every test: a loop per backend, a time limit, and a leak check in teardown.

`backend`  the backend's name and its `new_event_loop`
`loop`     a fresh loop, closed afterwards; an `async def` test that asks for it runs on it
`runner`   an `asyncio.Runner` on the backend's loops, closed afterwards
`handled`  the contexts that reached the loop's exception handler; a test that does not ask for it must cause none

After each test that used a loop, no task may be pending and no file descriptor may be open that was not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import inspect
import os
import signal
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from tests import backends
from tests.backends import Backend

LIMIT = 30.0
"""Seconds that a test may take; `@pytest.mark.limit(seconds)` says otherwise."""

GRACE = 5.0
"""Seconds after the limit at which a test that cannot be interrupted ends the whole run, with all stacks."""

SHOWN = 8
"""Frames shown of a test that takes too long."""

_contexts = pytest.StashKey[list[dict[str, Any]]]()
_stderr = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", action="append", choices=backends.NAMES, help="run on this loop only; repeatable")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "deviates(backend, reason, when): a known difference; see backends.deviates")
    config.addinivalue_line("markers", "soak: takes minutes; runs when asked for, by `-m soak` (make soak)")
    config.addinivalue_line("markers", f"limit(seconds): time limit of the test, instead of {LIMIT:.0f} s")
    config.stash[_stderr] = os.dup(2)
    # Whoever runs the tests in the background has it ignored, and children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where it finds this, pytest spells out how values differ whatever their size: minutes for two megabytes.
    os.environ.pop("CI", None)
    # On a busy machine anything may block a loop, and be logged. What is tested of it turns it on.
    os.environ["TIDELOOP_BLOCK_THRESHOLD"] = "off"


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_stderr])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backends.params(metafunc.config.getoption("backend")), indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        backends.expect_deviation(item)
    if "soak" not in config.option.markexpr:
        long = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(autouse=True, scope="module")
def what_lives_on() -> None:
    """Leave the million objects of pytest, of modules and of reports out of a module's collections: they will not die.

    A test that collects takes a few milliseconds then, in place of half a second.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test on its `loop`."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj) or "loop" not in pyfuncitem.funcargs:
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names if name in pyfuncitem.funcargs}
    pyfuncitem.funcargs["loop"].run_until_complete(pyfuncitem.obj(**arguments))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with time_limit(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with time_limit(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    with time_limit(item):
        return (yield)


@contextlib.contextmanager
def time_limit(item: pytest.Item) -> Iterator[None]:
    """SystemExit at the limit: it passes through a running loop. A stuck C call ends the run a little later."""
    mark = item.get_closest_marker("limit")
    seconds = mark.args[0] if mark else LIMIT

    class Late(SystemExit):
        pass

    def give_up(signum: int, frame: FrameType | None) -> None:
        where = "".join(traceback.format_stack(frame)[-SHOWN:])
        raise Late(f"the test took longer than {seconds:.0f} s, here:\n{where}")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=item.config.stash[_stderr])
    try:
        yield
    except Late as late:
        # Raised between any two instructions, some of which are on no line: no traceback to show.
        raise pytest.fail.Exception(str(late), pytrace=False) from None
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def warm() -> set[str]:
    """Backends that have already opened what they keep for the life of the process."""
    return set()


@pytest.fixture
def backend(request: pytest.FixtureRequest, warm: set[str]) -> Backend:
    found = backends.load(request.param)
    if found.name not in warm:
        warm.add(found.name)
        found.new_event_loop().close()
    return found


@pytest.fixture
def loop(backend: Backend, request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    before = open_fds()
    loop = backend.new_event_loop()
    contexts = watch(loop, request)
    yield loop
    pending = wind_down(loop)
    loop.close()
    check(contexts, pending, before, request)


@pytest.fixture
def runner(backend: Backend, request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    before = open_fds()
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        contexts = watch(runner.get_loop(), request)
        yield runner
    check(contexts, [], before, request)


@pytest.fixture
def handled(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    request.getfixturevalue("runner" if "runner" in request.fixturenames else "loop")
    return request.node.stash[_contexts]


def open_fds() -> dict[int, str]:
    """Open file descriptors of this process and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return found


def watch(loop: asyncio.AbstractEventLoop, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Collect what reaches the loop's exception handler."""
    contexts: list[dict[str, Any]] = []
    request.node.stash[_contexts] = contexts
    loop.set_exception_handler(lambda loop, context: contexts.append(context))
    return contexts


def wind_down(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task]:
    """Let queued callbacks run, end the tasks that the test left, and return them."""
    pending = [task for task in asyncio.all_tasks(loop) if not task.done()]
    if loop.is_closed():
        return pending
    for task in pending:
        task.cancel()
    passes = 3  # enough for connection_lost and what it schedules
    while passes or not all(task.done() for task in pending):
        loop.call_soon(loop.stop)
        loop.run_forever()
        passes -= passes > 0
    return pending


def check(contexts: list, pending: list, before: dict[int, str], request: pytest.FixtureRequest) -> None:
    """Fail the test that left something behind."""
    faults = []
    if contexts and "handled" not in request.fixturenames:
        faults += [f"reached the exception handler: {context!r}" for context in contexts]
    faults += [f"still pending: {task!r}" for task in pending]
    if leaked := open_fds().keys() - before.keys():
        gc.collect()
        after = open_fds()
        faults += [f"still open: fd {fd} {after[fd]}" for fd in sorted(leaked & after.keys())]
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)
