"""Transfers between accounts over a few connections to PostgreSQL, one of which the server ends in the middle.

    python examples/postgres_transfers.py --host 127.0.0.1 --port 5432 --user me --database test [--transfers 300]

Needs asyncpg (`pip install asyncpg`) and a server; the table is in a schema of the program's own. What is shown: a
connection that breaks is given up by whoever notices and never lent again, its transfer is tried again, a cancelled
borrower leaves nothing open, and the sum of the accounts is what it was. Runs on any asyncio loop.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from typing import Any

import asyncpg
import tideloop

ACCOUNTS = 10
EACH = 1000
SCHEMA = "tideloop_transfers"

BROKEN = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    ConnectionError,
)
"""What asyncpg says of a connection that the server has ended, depending on what it was doing then.

Whether a transfer has happened is in doubt if its commit was under way; a program that cares gives each one a number
and looks it up. The sum is right either way.
"""


def pool_of(address: dict[str, Any], size: int) -> tideloop.Pool[Any]:
    """A pool of connections."""

    async def create() -> Any:
        return await asyncpg.connect(**address)

    async def close(connection: Any) -> None:
        await connection.close(timeout=5)

    async def alive(connection: Any) -> bool:
        return bool(await connection.fetchval("SELECT true"))

    async def reset(connection: Any) -> None:
        # A query that was cancelled is waited for here, not by the borrower.
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK", timeout=5)
        await connection.reset(timeout=5)  # settings, locks, what listens, what is temporary

    return tideloop.Pool(
        create, close, check=alive, reset=reset, min=1, max=size, max_lifetime=1800, leak_after=60, name="postgres"
    )


async def transfer(pool: tideloop.Pool[Any], source: int, target: int, amount: int) -> None:
    """Moves an amount; all of it or nothing. A connection that turns out to be broken does not go back."""
    lease = pool.acquire()
    async with lease as connection:
        try:
            # In the order of their numbers, so that two transfers cannot wait for each other.
            async with connection.transaction():
                for account, change in sorted([(source, -amount), (target, amount)]):
                    await connection.execute(
                        f"UPDATE {SCHEMA}.accounts SET amount = amount + $2 WHERE id = $1", account, change
                    )
        except BaseException:
            if connection.is_closed():
                lease.discard()
            raise


async def total(pool: tideloop.Pool[Any]) -> int:
    async with pool.acquire() as connection:
        found: int = await connection.fetchval(f"SELECT sum(amount) FROM {SCHEMA}.accounts")
        return found


async def end_a_backend(pool: tideloop.Pool[Any]) -> None:
    """Has the server end a connection of the pool, as a restart or a failover would."""
    async with pool.acquire() as connection:
        await connection.fetchval(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE usename = current_user AND application_name = 'transfers' AND pid <> pg_backend_pid() LIMIT 1"
        )


async def main(address: dict[str, Any], transfers: int) -> tuple[int, int, tideloop.PoolStats]:
    """The sum before and after, and the pool in numbers."""
    address = {**address, "server_settings": {"application_name": "transfers"}}
    dice = random.Random(7)
    retry = tideloop.policy(retry=tideloop.Retry(BROKEN, attempts=5, first=0.01))
    async with pool_of(address, 4) as pool:
        async with pool.acquire() as connection:
            await connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}")
            await connection.execute(f"CREATE TABLE {SCHEMA}.accounts (id int PRIMARY KEY, amount int NOT NULL)")
            rows = [(number, EACH) for number in range(ACCOUNTS)]
            await connection.executemany(f"INSERT INTO {SCHEMA}.accounts VALUES ($1, $2)", rows)
        try:
            before = await total(pool)
            async with tideloop.group(name="transfers") as group:
                for number in range(transfers):
                    source, target = dice.sample(range(ACCOUNTS), 2)
                    moved = group.spawn(retry.call, transfer, pool, source, target, dice.randrange(100))
                    if number % 10 == 0:
                        # Some give up in the middle, or before they have begun.
                        asyncio.get_running_loop().call_later(dice.random() / 50, moved.cancel)
                    if number == transfers // 2:
                        group.spawn(end_a_backend, pool)
            return before, await total(pool), pool.stats()
        finally:
            async with pool.acquire() as connection:
                await connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("host", "127.0.0.1"), ("port", 5432), ("user", "postgres"), ("database", "postgres")):
        parser.add_argument(f"--{option}", type=type(default), default=default)
    parser.add_argument("--transfers", type=int, default=300)
    options = vars(parser.parse_args())
    count = options.pop("transfers")
    begun, ended, stats = tideloop.run(main(options, count))
    print(f"sum before {begun}, after {ended}")
    print(f"{stats.lent} loans of {stats.created} connections, {stats.retired} retired, {stats.borrowed} still lent")
