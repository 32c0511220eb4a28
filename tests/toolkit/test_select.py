"""select(): exactly one item is taken, whatever else happens."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest
import tideloop
from tideloop import Channel, ChannelClosed, Queue, QueueShutDown, select

from tests.toolkit import harness
from tests.toolkit.harness import Pipe


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_first_source_that_has_something(loop):
    one, two, queue = Channel(), Channel(), Queue()
    queue.put_nowait("q")
    two.tx.try_send("2")
    assert await select(one.rx, two.rx, queue) == (two.rx, "2")
    source, item = await select(one.rx, two.rx, queue)
    assert (source, item) == (queue, "q")
    assert isinstance(await_result := (source, item), tuple)
    assert len(await_result) == 2


@pytest.mark.parametrize("first", [0, 1, 2])
async def test_waiting_takes_one_and_leaves_the_others(loop, first):
    one, two, queue = Channel(), Channel(), Queue()
    puts = [lambda: one.tx.try_send("item"), lambda: two.tx.try_send("item"), lambda: queue.put_nowait("item")]
    sources = (one.rx, two.rx, queue)
    waiting = asyncio.create_task(select(*sources))
    await turns()
    # All of them in one turn.
    for at in (first, *(other for other in range(3) if other != first)):
        puts[at]()
    source, item = await waiting
    assert item == "item"
    left = [len(one.rx), len(two.rx), queue.qsize()]
    assert sorted(left) == [0, 1, 1]
    assert left[sources.index(source)] == 0
    assert one.rx.stats().waiting_receivers == two.rx.stats().waiting_receivers == queue.stats().getters == 0
    # What is left can be had by others.
    for other in sources:
        if other is not source:
            assert await asyncio.wait_for(select(other), 5) == (other, "item")


async def test_cancelled_it_takes_nothing_and_the_next_is_told(loop):
    channel, queue = Channel(), Queue()
    for give in (lambda: channel.tx.try_send(1), lambda: queue.put_nowait(1)):
        first = asyncio.create_task(select(channel.rx, queue))
        second = asyncio.create_task(select(channel.rx, queue))
        await turns()
        give()
        first.cancel()
        assert (await second).item == 1
        assert first.cancelled()
        assert len(channel.rx) == queue.qsize() == 0
    assert channel.rx.stats().waiting_receivers == queue.stats().getters == 0


async def test_closed_sources_are_passed_over_until_all_are(loop):
    one, two, queue = Channel(name="one"), Channel(), Queue()
    one.tx.close()
    two.tx.try_send(2)
    assert (await select(one.rx, two.rx)).item == 2
    waiting = asyncio.create_task(select(one.rx, two.rx))
    await turns()
    two.tx.close()
    with pytest.raises(ChannelClosed, match="every source"):
        await waiting
    waiting = asyncio.create_task(select(one.rx, queue))
    await turns()
    queue.shutdown()
    with pytest.raises(QueueShutDown):
        await waiting


async def test_bad_sources(loop):
    with pytest.raises(ValueError, match="nothing"):
        await select()
    for bad in (3, asyncio.Queue() if asyncio.Queue is not Queue else 4, Channel().tx):
        with pytest.raises(TypeError, match=r"expected a tideloop\.Receiver or a tideloop\.Queue"):
            await select(Channel().rx, bad)


async def test_from_a_thread(loop):
    channel, queue = Channel(), Queue()
    threading.Thread(target=channel.tx.blocking_send, args=("item",)).start()
    assert await asyncio.wait_for(select(queue, channel.rx), 10) == (channel.rx, "item")


PIPE = Pipe(
    "select",
    lambda: (Channel(1), Channel(2), Queue(1)),
    lambda sources, item: put(sources, item),
    lambda sources: get(sources),
    lambda sources: left(sources),
)


async def put(sources, item):
    # Each producer uses one source, so that its items stay in order.
    source = sources[item[0] % 3]
    await (source.put(item) if isinstance(source, Queue) else source.tx.send(item))


async def get(sources):
    return (await select(*(source if isinstance(source, Queue) else source.rx for source in sources))).item


def left(sources):
    one, two, queue = sources
    channels = [source.rx.try_recv() for source in (one, two) for _ in range(len(source.rx))]
    return channels + [queue.get_nowait() for _ in range(queue.qsize())]


def test_cancelled_at_every_await(kind):
    assert harness.cancel_everywhere(kind, harness.pipe_scenario(PIPE)) >= 2


def test_random_schedules(kind):
    for seed in range(60):
        harness.interleave(kind, PIPE, seed)


def test_many_selectors_lose_and_double_nothing(runner):
    async def story(seed):
        dice = random.Random(seed)
        sources = PIPE.make()
        puts, received, selectors = 0, [], []

        async def take():
            received.append(await get(sources))

        tasks = []
        for step in range(80):
            roll = dice.random()
            if roll < 0.4:
                tasks.append(asyncio.create_task(put(sources, (dice.randrange(3), step))))
                puts += 1
            elif roll < 0.8:
                selectors.append(asyncio.create_task(take()))
            else:
                dice.choice(selectors).cancel() if selectors else None
            await turns(dice.randrange(2))
        for task in selectors:
            task.cancel()
        await asyncio.gather(*selectors, return_exceptions=True)
        while len(received) < puts:
            received.append(await asyncio.wait_for(get(sources), 10))
        await asyncio.gather(*tasks)
        assert len(set(received)) == len(received) == puts, f"seed {seed}"
        stats = [source.stats() for source in (sources[0].rx, sources[1].rx)]
        assert [one.waiting_receivers for one in stats] == [0, 0]
        assert sources[2].stats().getters == 0

    for seed in range(40):
        runner.run(story(seed))


def test_importable_from_the_package():
    assert {"select", "Selected", "Channel", "ChannelClosed", "ChannelStats"} <= set(tideloop.__all__)
    assert tideloop.Selected._fields == ("source", "item")
