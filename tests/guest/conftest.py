"""Fixtures of the guest tests: each host, each selector, and a check that nothing is left when the host closes."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading

import pytest
import tideloop

from tests.conftest import open_fds
from tests.guest.hosts import AsyncioHost, QueueHost


@pytest.fixture(params=["default", "polling"])
def loop_factory(request):
    return functools.partial(tideloop.EventLoop, selector=request.param)


@pytest.fixture(params=[QueueHost, AsyncioHost], ids=["queue", "asyncio"])
def host(request):
    threads, fds = threading.active_count(), open_fds().keys()
    host = request.param()
    yield host
    host.close()
    assert threading.active_count() == threads
    gc.collect()
    assert open_fds().keys() <= fds


@pytest.fixture
def start(host, loop_factory):
    """Starts a guest whose end stops the host; `.outcome` holds how it ended."""

    class Started:
        outcome = None

        def __init__(self, main=None, **options):
            options.setdefault("loop_factory", loop_factory)
            self.guest = tideloop.guest(host.call_soon_threadsafe, self.done, main, **options)

        def done(self, outcome):
            assert self.guest.loop.is_closed()
            assert asyncio._get_running_loop() is getattr(host, "loop", None)
            self.outcome = outcome
            host.stop()

    return Started


@pytest.fixture
def run(host, start):
    """Runs a main as a guest to its end, and returns its result."""

    def run(main, **options):
        started = start(main, **options)
        host.run()
        return started.outcome.result()

    return run
