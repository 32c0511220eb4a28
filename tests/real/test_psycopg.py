"""psycopg's asynchronous connections on a PostgreSQL server of our own: libpq's sockets through add_reader."""

from __future__ import annotations

import asyncio

import pytest

from tests.real import peers

psycopg = peers.package("psycopg")
pool_module = peers.package("psycopg_pool")


@pytest.fixture(params=["tcp", "unix"])
def address(request, postgres):
    host = postgres.host if request.param == "tcp" else postgres.folder
    return f"host={host} port={postgres.port} user={postgres.user} dbname={postgres.database}"


async def connect(address):
    return await psycopg.AsyncConnection.connect(address, autocommit=True)


async def value(connection, query, *arguments):
    cursor = await connection.execute(query, arguments)
    return (await cursor.fetchone())[0]


async def test_queries_and_large_results(loop, address):
    async with await connect(address) as connection:
        assert await value(connection, "SELECT %s::int + 1", 41) == 42
        text = await value(connection, "SELECT repeat(%s, 1000000)", "ab")
        assert text == "ab" * 1_000_000
        assert await value(connection, "SELECT length(%s::text)", "x" * 5_000_000) == 5_000_000


async def test_a_pool_shared_by_many_tasks(loop, address):
    async def work(number):
        async with pool.connection() as connection:
            return await value(connection, "SELECT %s::int * 2", number)

    async with pool_module.AsyncConnectionPool(address, min_size=1, max_size=5, open=False) as pool:
        assert await asyncio.gather(*(work(number) for number in range(200))) == [2 * n for n in range(200)]


async def test_transactions(loop, address):
    async def insert_and_fail():
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (2)")
            await connection.execute("SELECT 1 / 0")

    async with await connect(address) as connection:
        await connection.execute("CREATE TEMP TABLE t (n int)")
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(psycopg.errors.DivisionByZero):
                await insert_and_fail()
            await connection.execute("INSERT INTO t VALUES (3)")
        cursor = await connection.execute("SELECT n FROM t ORDER BY n")
        assert await cursor.fetchall() == [(1,), (3,)]


async def test_copy_in_and_out(loop, address):
    rows = [(number, f"row {number}") for number in range(20_000)]
    async with await connect(address) as connection, connection.cursor() as cursor:
        await cursor.execute("CREATE TEMP TABLE t (n int, s text)")
        async with cursor.copy("COPY t FROM STDIN") as copy:
            for row in rows:
                await copy.write_row(row)
        out = bytearray()
        async with cursor.copy("COPY (SELECT * FROM t ORDER BY n) TO STDOUT") as copy:
            async for data in copy:
                out += data
    assert out.decode() == "".join(f"{n}\t{s}\n" for n, s in rows)


async def test_a_pipeline(loop, address):
    async with await connect(address) as connection, connection.pipeline():
        cursors = [await connection.execute("SELECT %s::int", (number,)) for number in range(100)]
        assert [(await cursor.fetchone())[0] for cursor in cursors] == list(range(100))


async def test_listen_and_notify(loop, address):
    async def listen():
        heard = []
        async for notification in listener.notifies(stop_after=100):
            heard.append(notification.payload)
        return heard

    async with await connect(address) as listener, await connect(address) as speaker:
        await listener.execute("LISTEN news")
        listening = asyncio.create_task(listen())
        for number in range(100):
            await speaker.execute("SELECT pg_notify('news', %s)", (str(number),))
        heard = await listening
        assert heard == [str(number) for number in range(100)]


async def test_a_query_can_be_cancelled(loop, address):
    async with await connect(address) as connection, await connect(address) as other:
        pid = connection.info.backend_pid
        for _ in range(3):
            query = asyncio.create_task(connection.execute("SELECT pg_sleep(3600)"))
            while not await value(other, "SELECT query LIKE '%%pg_sleep%%' FROM pg_stat_activity WHERE pid = %s", pid):
                pass
            query.cancel()
            with pytest.raises(asyncio.CancelledError):
                await query
            assert await value(connection, "SELECT 42") == 42
        assert connection.info.backend_pid == pid


async def test_a_cancelled_wait_for_the_pool_loses_no_connection(loop, address):
    async with pool_module.AsyncConnectionPool(address, min_size=1, max_size=1, open=False) as pool:
        async with pool.connection():
            waiters = [asyncio.create_task(pool.getconn()) for _ in range(10)]
            await asyncio.sleep(0)
            for waiter in waiters:
                waiter.cancel()
            await asyncio.gather(*waiters, return_exceptions=True)
        async with pool.connection() as connection:
            assert await value(connection, "SELECT 42") == 42
