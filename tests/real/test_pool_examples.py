"""tideloop.Pool over real resources, as examples/ shows it: contexts of a Chromium, connections to PostgreSQL."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys

import pytest
import tideloop

from tests.real import peers

playwright = peers.package("playwright.async_api")
asyncpg = peers.package("asyncpg")

from tests.real.test_asyncpg import wait_until_sleeping  # noqa: E402

# Without the development mode, whose loop says what is slow: a browser's programs are, on a busy machine.
PYTHON = (sys.executable, "-W", "error")


def example(name):
    """A module of examples/."""
    spec = importlib.util.spec_from_file_location(name, peers.ROOT / "examples" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- a browser's contexts ------------------------------------------------------------------------

browser_workflow = example("browser_workflow")


async def with_browser(chromium, body):
    """Run `body(browser, address)` with a Chromium and the example's site."""
    async with await asyncio.start_server(browser_workflow.serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with playwright.async_playwright() as driver:
            browser = await driver.chromium.launch(executable_path=chromium)
            try:
                return await body(browser, address)
            finally:
                await browser.close()


@pytest.mark.limit(120)
def test_the_workflow_as_a_program(chromium):
    program = str(peers.ROOT / "examples" / "browser_workflow.py")
    command = [*PYTHON, program, "--chromium", chromium, "--articles", "7"]
    said = peers.run(command, timeout=peers.PATIENCE * 4).splitlines()
    names = ["index", *(f"article{number}" for number in range(7)), "summary"]
    assert said[:-1] == [f"{name}: /{name}: no cookie" for name in names]
    assert re.fullmatch(r"9 loans of 3 contexts, waited \d+\.\d\d s together", said[-1])


@pytest.mark.limit(120)
def test_steps_wait_for_those_before_them(run, chromium):
    async def body(browser, address):
        order = []

        def step(name):
            async def work(context):
                page = await context.new_page()
                await page.goto(f"{address}/{name}")
                order.append(name)
                return name

            return work

        steps = {
            "last": browser_workflow.Step(step("last"), after=("a", "b")),
            "a": browser_workflow.Step(step("a"), after=("first",)),
            "b": browser_workflow.Step(step("b"), after=("first",)),
            "first": browser_workflow.Step(step("first")),
        }
        async with browser_workflow.pool_of(browser, 2) as contexts:
            assert await browser_workflow.run_workflow(steps, contexts) == {name: name for name in steps}
        assert (order[0], order[-1]) == ("first", "last")

        async def fails(context):
            raise LookupError("of a step")

        steps["first"] = browser_workflow.Step(fails)
        order.clear()
        async with browser_workflow.pool_of(browser, 2) as contexts:
            with pytest.raises(ExceptionGroup) as caught:
                await browser_workflow.run_workflow(steps, contexts)
            assert [str(error) for error in caught.value.exceptions] == ["of a step"]
            assert contexts.stats().borrowed == 0
        assert order == []

    run(with_browser(chromium, body))


@pytest.mark.limit(120)
def test_a_context_is_wiped_between_two_borrowers(run, chromium):
    """Without the reset, which is the control, the second one is asked with the cookie of the first."""

    async def body(browser, address):
        async def two(contexts):
            async with contexts:
                for path in ("one", "two"):
                    async with contexts.acquire() as context:
                        said = await browser_workflow.visit(f"{address}/{path}")(context)
                return said, contexts.stats().created

        assert await two(browser_workflow.pool_of(browser, 1)) == ("/two: no cookie", 1)
        unwiped = tideloop.Pool(browser.new_context, lambda context: context.close(), max=1)
        assert await two(unwiped) == ("/two: last=/one", 1)

    run(with_browser(chromium, body))


@pytest.mark.limit(120)
def test_a_cancelled_visit_gives_its_context_back(run, chromium):
    async def body(browser, address):
        async def endless(reader, writer):
            arrived.set()
            await released.wait()
            writer.close()

        async def visit():
            async with contexts.acquire() as context:
                page = await context.new_page()
                await page.goto(slow)

        arrived, released = asyncio.Event(), asyncio.Event()
        async with await asyncio.start_server(endless, "127.0.0.1", 0) as server:
            slow = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            async with browser_workflow.pool_of(browser, 1) as contexts:
                task = asyncio.create_task(visit())
                await arrived.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                async with contexts.acquire() as context:
                    assert context.pages == []
                    assert await browser_workflow.visit(f"{address}/after")(context) == "/after: no cookie"
                assert contexts.stats().created == 1
            released.set()

    run(with_browser(chromium, body))


@pytest.mark.limit(120)
def test_contexts_of_a_browser_that_is_gone_are_not_lent_again(run, chromium):
    async def body(browser, address):
        async with browser_workflow.pool_of(browser, 1) as contexts:
            async with contexts.acquire() as context:
                assert await browser_workflow.visit(f"{address}/before")(context) == "/before: no cookie"
                await browser.close()
            with pytest.raises(playwright.Error, match="closed"):
                async with contexts.acquire():
                    pytest.fail("lent a context of a browser that is gone")
            stats = contexts.stats()
            assert (stats.borrowed, stats.idle, stats.retired, stats.failed) == (0, 0, 1, 1)

    run(with_browser(chromium, body))


# --- connections to PostgreSQL -------------------------------------------------------------------

postgres_transfers = example("postgres_transfers")


@pytest.fixture
def address(postgres):
    return {"host": postgres.host, "port": postgres.port, "user": postgres.user, "database": postgres.database}


def test_the_transfers_as_a_program(address):
    program = str(peers.ROOT / "examples" / "postgres_transfers.py")
    options = [word for name, value in address.items() for word in (f"--{name}", str(value))]
    said = peers.run([*PYTHON, program, *options, "--transfers", "200"], timeout=peers.PATIENCE * 2)
    assert "sum before 10000, after 10000" in said
    loans, created, retired, lent = map(int, re.findall(r"(\d+) (?:loans|connections|retired|still)", said))
    assert loans > 150
    assert created >= 3  # one more than there are at a time was made, or one of few was replaced
    assert retired >= 1
    assert lent == 0


async def pid_of(connection):
    return await connection.fetchval("SELECT pg_backend_pid()")


async def test_a_connection_that_was_ended_is_not_lent_again(loop, address):
    async with postgres_transfers.pool_of(address, 1) as pool:
        lease = pool.acquire()
        async with lease as connection:
            first = await pid_of(connection)
            other = await asyncpg.connect(**address)
            await other.fetchval("SELECT pg_terminate_backend($1)", first)
            await other.close()
            with pytest.raises(postgres_transfers.BROKEN):
                await pid_of(connection)
            lease.discard()
        async with pool.acquire() as connection:
            assert await pid_of(connection) != first
        assert pool.stats()[7:10] == (2, 0, 1)  # created, failed, retired


async def test_a_borrower_leaves_nothing_behind(loop, address):
    """Not a transaction, a setting or a lock, also when it is cancelled in the middle of a query."""

    async def leave():
        async with pool.acquire() as connection:
            await connection.execute("SET search_path = nowhere")
            await connection.fetchval("SELECT pg_advisory_lock(7)")
            await connection.execute("BEGIN")
            begun.set_result(await pid_of(connection))
            await connection.execute("SELECT pg_sleep(3600)")

    async with postgres_transfers.pool_of(address, 1) as pool:
        begun = loop.create_future()
        task = asyncio.create_task(leave())
        pid = await begun
        # A cancel request that overtakes its query is lost.
        other = await asyncpg.connect(**address)
        await wait_until_sleeping(other, pid)
        await other.close()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with pool.acquire() as connection:
            assert await pid_of(connection) == pid
            assert not connection.is_in_transaction()
            assert await connection.fetchval("SHOW search_path") == '"$user", public'
            assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


async def test_many_borrowers_share_few_connections(loop, address):
    async def borrow():
        async with pool.acquire() as connection:
            pids.add(await pid_of(connection))

    pids = set()
    async with postgres_transfers.pool_of(address, 3) as pool:
        await asyncio.gather(*(borrow() for _ in range(100)))
        stats = pool.stats()
    assert 1 <= len(pids) <= 3
    assert (stats.lent, stats.borrowed, stats.waiting) == (100, 0, 0)
