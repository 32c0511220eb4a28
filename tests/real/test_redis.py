"""redis-py's asyncio client on a Redis server of our own."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.real import peers

redis = peers.package("redis.asyncio")


@pytest.fixture(params=["tcp", "unix"])
def connect(request, redis_server):
    def connect(**options):
        if request.param == "unix":
            return redis.Redis(unix_socket_path=redis_server.path, decode_responses=True, **options)
        return redis.Redis(host="127.0.0.1", port=redis_server.port, decode_responses=True, **options)

    return connect


async def wait_until_blocked(client, count=1):
    """Until the server itself says that so many clients block."""
    while (await client.info("clients"))["blocked_clients"] < count:
        pass


async def test_values_large_and_small(loop, connect):
    async with connect() as client:
        await client.flushall()
        for length in (0, 1, 16_384, 5_000_000):
            await client.set("key", "v" * length)
            assert await client.get("key") == "v" * length


async def test_a_pipeline(loop, connect):
    async with connect() as client:
        await client.flushall()
        async with client.pipeline(transaction=False) as pipeline:
            for number in range(1000):
                pipeline.set(f"key {number}", number)
                pipeline.incr(f"key {number}")
            answers = await pipeline.execute()
        assert answers == [answer for number in range(1000) for answer in (True, number + 1)]


async def test_a_transaction_retries_when_watched_keys_change(loop, connect):
    async with connect() as client, connect() as other:
        await client.set("counter", 0)
        tries = 0

        async def add(pipeline):
            nonlocal tries
            tries += 1
            current = int(await pipeline.get("counter"))
            if tries == 1:
                await other.set("counter", 10)
            pipeline.multi()
            pipeline.set("counter", current + 1)

        await client.transaction(add, "counter")
        assert (tries, await client.get("counter")) == (2, "11")


async def test_many_tasks_share_a_pool(loop, connect):
    async with connect(max_connections=10) as client:
        await client.delete("sum")
        places = asyncio.Semaphore(10)

        async def add(number):
            async with places:
                await client.incrby("sum", number)

        await asyncio.gather(*(add(number) for number in range(500)))
        assert await client.get("sum") == str(sum(range(500)))


async def test_publish_and_subscribe(loop, connect):
    async with connect() as client, client.pubsub() as subscriber:
        await subscriber.subscribe("news")
        assert (await subscriber.get_message(timeout=5))["type"] == "subscribe"
        for number in range(200):
            assert await client.publish("news", number) == 1
        heard = [await subscriber.get_message(timeout=5) for _ in range(200)]
        assert [message["data"] for message in heard] == [str(number) for number in range(200)]
        await subscriber.unsubscribe("news")


async def test_a_blocking_pop_waits_for_a_push(loop, connect):
    async with connect() as client, connect() as other:
        await client.delete("list")
        popped = asyncio.create_task(client.blpop("list", timeout=0))
        await wait_until_blocked(other)
        await other.rpush("list", "item")
        assert list(await popped) == ["list", "item"]


async def test_a_cancelled_blocking_pop_takes_no_item(loop, connect):
    """The connection that waited is closed, so the server does not hand it the next item."""
    async with connect() as client, connect() as other:
        await client.delete("list")
        pops = [asyncio.create_task(client.blpop("list", timeout=0)) for _ in range(5)]
        await wait_until_blocked(other, 5)
        for pop in pops:
            pop.cancel()
        for ended in await asyncio.gather(*pops, return_exceptions=True):
            assert isinstance(ended, asyncio.CancelledError)
        while (await other.info("clients"))["blocked_clients"]:
            pass
        await other.rpush("list", "item")
        assert await client.lpop("list") == "item"


async def test_consumers_of_a_group_share_a_stream(loop, connect):
    async with connect() as client:
        await client.delete("stream")
        await client.xgroup_create("stream", "group", mkstream=True)

        async def consume(name):
            """Takes one entry after another until it takes an end."""
            seen = []
            async with connect() as own:
                while True:
                    found = await own.xreadgroup("group", name, {"stream": ">"}, count=1, block=0)
                    ((_, entries),) = found.items() if isinstance(found, dict) else found
                    ((identity, fields),) = entries if isinstance(entries[0][0], str) else entries[0]
                    await own.xack("stream", "group", identity)
                    if fields["n"] == "end":
                        return seen
                    seen.append(int(fields["n"]))

        consumers = [asyncio.create_task(consume(f"consumer {number}")) for number in range(3)]
        await wait_until_blocked(client, 3)
        for number in [*range(100), "end", "end", "end"]:
            await client.xadd("stream", {"n": number})
        seen = await asyncio.gather(*consumers)
        assert sorted(itertools.chain(*seen)) == list(range(100))
        assert (await client.xpending("stream", "group"))["pending"] == 0
