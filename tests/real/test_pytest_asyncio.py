"""pytest-asyncio's own tests on tideloop, by its hook pytest_asyncio_loop_factories; a pytest of its own."""

from __future__ import annotations

import textwrap

from tests.real import peers

peers.package("pytest_asyncio")

CONFTEST = """
    import asyncio
    import tideloop

    def pytest_asyncio_loop_factories(config, item):
        return {"tideloop": tideloop.new_event_loop, "asyncio": asyncio.SelectorEventLoop}
"""

TESTS = """
    import asyncio
    import pytest
    import pytest_asyncio

    EXPECTED = {"tideloop": "tideloop.loop.event_loop", "asyncio": "asyncio.unix_events"}

    def kind():
        return type(asyncio.get_running_loop()).__module__

    @pytest.fixture
    def expected(request):
        return EXPECTED[next(name for name in EXPECTED if name in request.node.name)]

    @pytest_asyncio.fixture
    async def echo():
        async def answer(reader, writer):
            writer.write(await reader.read(100))
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        yield server.sockets[0].getsockname(), kind()
        server.close()
        await server.wait_closed()

    @pytest_asyncio.fixture
    async def numbers():
        async def count():
            for number in range(3):
                yield number
                await asyncio.sleep(0)

        return [number async for number in count()]

    @pytest.mark.asyncio
    async def test_a_fixture_and_a_test_share_a_loop(echo, expected):
        address, fixture_kind = echo
        assert kind() == fixture_kind == expected
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"hello")
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()

    @pytest.mark.asyncio
    async def test_generators(numbers):
        assert numbers == [0, 1, 2]

    @pytest.mark.asyncio
    @pytest.mark.parametrize("delay", [0, 0.001])
    async def test_timeouts(delay, expected):
        assert kind() == expected
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(delay):
                await asyncio.sleep(3600)

    @pytest.mark.asyncio(loop_scope="module")
    class TestOfOneLoop:
        loops = {}

        async def test_first(self, expected):
            self.loops[expected] = asyncio.get_running_loop()

        async def test_second(self, expected):
            assert self.loops[expected] is asyncio.get_running_loop()

    @pytest.mark.asyncio
    @pytest.mark.xfail(strict=True, raises=LookupError)
    async def test_a_failure_is_a_failure():
        raise LookupError
"""


def test_a_pytest_run_on_both_loops(tmp_path):
    (tmp_path / "conftest.py").write_text(textwrap.dedent(CONFTEST))
    (tmp_path / "test_it.py").write_text(textwrap.dedent(TESTS))
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
    )
    output = peers.run(
        (*peers.PYTHON, "-m", "pytest", "-v", "--tb=short", "-p", "no:anyio", "-p", "no:cacheprovider"), cwd=tmp_path
    )
    assert output.count("[tideloop") == output.count("[asyncio") == 7, output
    assert "12 passed, 2 xfailed" in output, output
