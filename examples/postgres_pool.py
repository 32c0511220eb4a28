"""PostgreSQL connections of asyncpg in a pool: checked, reset, worn, and never more than the server should have.

python examples/postgres_pool.py postgresql://user@localhost/database
"""

import asyncio
import sys

import asyncpg
import tideloop


async def main(address: str) -> None:
    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(address)

    async def is_alive(connection: asyncpg.Connection) -> bool:
        return not connection.is_closed() and await connection.fetchval("SELECT 1") == 1

    async with tideloop.Pool(
        connect,
        asyncpg.Connection.close,
        check=is_alive,
        reset=asyncpg.Connection.reset,
        min=1,
        max=4,
        max_lifetime=1800,
        leak_after=30,
        name="postgres",
    ) as pool:

        async def double(number: int) -> tuple[int, int]:
            async with pool.acquire() as connection:
                row = await connection.fetchrow("SELECT $1::int * 2, pg_backend_pid()", number)
                return row[0], row[1]

        rows = [row async for row in tideloop.amap(double, range(200), limit=50, ordered=True)]
        print("all right:", [value for value, _ in rows] == [2 * number for number in range(200)])
        print("at most 4 connections:", len({backend for _, backend in rows}) <= 4)

        # One that breaks is not lent again, if the pool is told.
        lease = await pool.acquire()
        lease.value.terminate()
        lease.discard()
        lease.release()
        print("afterwards:", (await double(21))[0], "closed:", pool.stats().retired)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1])) if "--loop=asyncio" in sys.argv else tideloop.run(main(sys.argv[1]))
