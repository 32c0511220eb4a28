"""asyncpg on a PostgreSQL server of our own."""

from __future__ import annotations

import asyncio

import pytest

from tests.real import peers

asyncpg = peers.package("asyncpg")


@pytest.fixture(params=["tcp", "unix"])
def address(request, postgres):
    host = postgres.host if request.param == "tcp" else postgres.folder
    return {"host": host, "port": postgres.port, "user": postgres.user, "database": postgres.database}


async def test_types_and_prepared_statements(loop, address):
    connection = await asyncpg.connect(**address)
    try:
        row = await connection.fetchrow("SELECT $1::int AS a, $2::text AS b, $3::float8[] AS c", 7, "ü", [1.5, 2.5])
        assert dict(row) == {"a": 7, "b": "ü", "c": [1.5, 2.5]}
        statement = await connection.prepare("SELECT repeat(chr(64 + $1), 100000)")
        for number in range(1, 27):
            assert await statement.fetchval(number) == chr(64 + number) * 100_000
    finally:
        await connection.close()


async def test_a_pool_shared_by_many_tasks(loop, address):
    async def work(number):
        async with pool.acquire() as connection:
            pids.add(await connection.fetchval("SELECT pg_backend_pid()"))
            return await connection.fetchval("SELECT $1::int * 2", number)

    pids = set()
    async with asyncpg.create_pool(**address, min_size=1, max_size=5) as pool:
        assert await asyncio.gather(*(work(number) for number in range(200))) == [2 * n for n in range(200)]
    assert 1 <= len(pids) <= 5


async def test_transactions(loop, address):
    async def insert_and_fail():
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (2)")
            await connection.execute("SELECT 1 / 0")

    connection = await asyncpg.connect(**address)
    try:
        await connection.execute("CREATE TEMP TABLE t (n int)")
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(asyncpg.DivisionByZeroError):
                await insert_and_fail()
            await connection.execute("INSERT INTO t VALUES (3)")
        assert [row["n"] for row in await connection.fetch("SELECT n FROM t ORDER BY n")] == [1, 3]
    finally:
        await connection.close()


async def test_copy_in_and_out(loop, address):
    connection = await asyncpg.connect(**address)
    try:
        await connection.execute("CREATE TEMP TABLE t (n int, s text)")
        records = [(number, f"row {number}") for number in range(20_000)]
        assert await connection.copy_records_to_table("t", records=records) == "COPY 20000"
        out = bytearray()

        async def collect(data):
            out.extend(data)

        await connection.copy_from_query("SELECT n, s FROM t ORDER BY n", output=collect)
        assert out.decode() == "".join(f"{n}\t{s}\n" for n, s in records)
    finally:
        await connection.close()


async def test_a_cursor_reads_a_large_result_piece_by_piece(loop, address):
    connection = await asyncpg.connect(**address)
    try:
        async with connection.transaction():
            numbers = [
                row["n"] async for row in connection.cursor("SELECT generate_series(1, 10000) AS n", prefetch=100)
            ]
        assert numbers == list(range(1, 10_001))
    finally:
        await connection.close()


async def test_listen_and_notify(loop, address):
    listener, speaker = await asyncpg.connect(**address), await asyncpg.connect(**address)
    try:
        heard = asyncio.Queue()

        def hear(connection, pid, channel, payload):
            heard.put_nowait(payload)

        await listener.add_listener("news", hear)
        for number in range(100):
            await speaker.execute("SELECT pg_notify('news', $1)", str(number))
        assert [await heard.get() for _ in range(100)] == [str(number) for number in range(100)]
        await listener.remove_listener("news", hear)
    finally:
        await listener.close()
        await speaker.close()


async def wait_until_sleeping(connection, pid):
    """Until the server itself says that the query runs."""
    query = "SELECT state = 'active' AND query LIKE '%pg_sleep%' FROM pg_stat_activity WHERE pid = $1"
    while not await connection.fetchval(query, pid):
        pass


async def test_a_query_can_be_cancelled(loop, address):
    """Cancelling the task makes asyncpg send a cancel request; the connection is usable afterwards."""
    connection, other = await asyncpg.connect(**address), await asyncpg.connect(**address)
    try:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        for _ in range(3):
            query = asyncio.create_task(connection.execute("SELECT pg_sleep(3600)"))
            await wait_until_sleeping(other, pid)
            query.cancel()
            with pytest.raises(asyncio.CancelledError):
                await query
            assert await connection.fetchval("SELECT 42") == 42
        assert await connection.fetchval("SELECT pg_backend_pid()") == pid
    finally:
        await connection.close()
        await other.close()


async def test_a_timeout_of_a_query(loop, address):
    connection = await asyncpg.connect(**address)
    try:
        with pytest.raises(TimeoutError):
            await connection.execute("SELECT pg_sleep(3600)", timeout=0.02)
        assert await connection.fetchval("SELECT 42") == 42
    finally:
        await connection.close()


async def test_a_server_that_ends_the_connection(loop, address):
    connection, other = await asyncpg.connect(**address), await asyncpg.connect(**address)
    try:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        query = asyncio.create_task(connection.execute("SELECT pg_sleep(3600)"))
        await wait_until_sleeping(other, pid)
        assert await other.fetchval("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(asyncpg.PostgresError):
            await query
        assert connection.is_closed()
    finally:
        await connection.close()
        await other.close()
