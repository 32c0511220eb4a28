"""Fixtures for real peers: packages and servers as people run them, on tideloop alone.

`loop`, `runner`  as in tests/conftest.py with its checks at the end, but on tideloop only
`run`             runs a coroutine on tideloop, without the check of descriptors
`postgres`, `redis_server`  a server of this test run, started when the first test asks for it
`chromium`        the path of the distribution's browser
`own_redis`  a Redis server of this test alone, which it may stop and start

`TIDELOOP_REAL=required` turns what is missing (a package, a server) into a failure; otherwise its tests are skipped.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import tideloop

from tests.conftest import check, open_fds, watch, wind_down
from tests.real import servers
from tests.real.peers import absent


@pytest.fixture
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop of ours; of asyncio's where a test is parametrized so (`loop`, indirectly)."""
    before = open_fds()
    loop = getattr(request, "param", tideloop.new_event_loop)()
    contexts = watch(loop, request)
    yield loop
    pending = wind_down(loop)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    check(contexts, pending, before, request)


@pytest.fixture
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    before = open_fds()
    with tideloop.Runner() as runner:
        contexts = watch(runner.get_loop(), request)
        yield runner
    check(contexts, [], before, request)


@pytest.fixture
def run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """tideloop.run() for packages that keep threads and descriptors for the life of the process."""
    contexts: list[dict[str, Any]] = []
    with tideloop.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda loop, context: contexts.append(context))
        yield runner.run
    assert contexts == []


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    try:
        found = servers.find_postgres()
    except FileNotFoundError as error:
        absent(str(error))
    with servers.postgres(found) as running:
        yield running


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Redis]:
    try:
        found = servers.find_redis()
    except FileNotFoundError as error:
        absent(str(error))
    with servers.redis(found) as running:
        yield running


@pytest.fixture
def own_redis() -> Iterator[servers.Restartable]:
    """A Redis server of this test alone, which it may stop and start."""
    try:
        found = servers.find_redis()
    except FileNotFoundError as error:
        absent(str(error))
    with servers.restartable_redis(found) as running:
        yield running


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a browser, which the tests start themselves."""
    try:
        return servers.find_chromium()
    except FileNotFoundError as error:
        absent(str(error))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> servers.Certificate:
    """A certificate for localhost and the authority that a client must trust."""
    return servers.Certificate.made(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def client_tls(certificate: servers.Certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate.authority))
