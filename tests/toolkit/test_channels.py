"""Channels in one loop: order, the end, cancellation, and what they are as objects."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import random
import weakref

import pytest
import tideloop
from tideloop import Channel, ChannelClosed

from tests.toolkit import harness
from tests.toolkit.harness import Pipe


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


def take_all(rx):
    items = []
    while len(rx):
        items.append(rx.try_recv())
    return items


async def cancelled(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- order and room ------------------------------------------------------------------------------


async def test_items_come_out_as_they_went_in(loop):
    tx, rx = Channel(3)

    async def produce():
        with tx:
            for item in range(20):
                await tx.send(item)

    producer = asyncio.create_task(produce())
    assert [item async for item in rx] == list(range(20))
    await producer
    assert rx.stats().peak == 3


async def test_a_full_channel_makes_senders_wait_in_their_order(loop):
    tx, rx = Channel(1)
    senders = [asyncio.create_task(tx.send(item)) for item in range(4)]
    await turns()
    assert [task.done() for task in senders] == [True, False, False, False]
    assert rx.stats().waiting_senders == 3
    with pytest.raises(asyncio.QueueFull, match="channel is full"):
        tx.try_send("newcomer")
    assert rx.try_recv() == 0
    # There is room, but it is kept for the first one who waits.
    with pytest.raises(asyncio.QueueFull):
        tx.try_send("newcomer")
    newcomer = asyncio.create_task(tx.send("newcomer"))
    assert [await rx.recv() for _ in range(4)] == [1, 2, 3, "newcomer"]
    await asyncio.gather(newcomer, *senders)


async def test_an_item_is_kept_for_the_receiver_that_was_told(loop):
    tx, rx = Channel(name="kept")
    waiting = asyncio.create_task(rx.recv())
    await turns()
    await tx.send("first")
    with pytest.raises(asyncio.QueueEmpty, match="channel 'kept' is empty"):
        rx.try_recv()
    await tx.send("second")
    # There would be one for a newcomer, who stands behind the first one all the same.
    newcomer = asyncio.create_task(rx.recv())
    assert await waiting == "first"
    assert await newcomer == "second"


async def test_an_unbounded_channel_never_makes_a_sender_wait(loop):
    tx, rx = Channel()
    for item in range(1000):
        tx.try_send(item)
    assert rx.maxsize == 0
    assert take_all(rx) == list(range(1000))


# --- the end -------------------------------------------------------------------------------------


async def test_receivers_drain_and_end_when_the_last_sender_closes(loop):
    tx, rx = Channel(4, name="jobs")
    other = tx.clone()
    await tx.send(1)
    tx.close()
    tx.close()
    assert tx.closed
    await other.send(2)
    waiting = [asyncio.create_task(rx.recv()) for _ in range(3)]
    await turns()
    other.close()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert done[:2] == [1, 2]
    with pytest.raises(ChannelClosed, match="every sender of the channel 'jobs' is closed"):
        raise done[2]
    with pytest.raises(ChannelClosed):
        rx.try_recv()
    assert [item async for item in rx] == []
    for refused in (lambda: tx.try_send(3), tx.clone):
        with pytest.raises(ChannelClosed, match="this sender of the channel 'jobs' is closed"):
            refused()


async def test_a_send_that_was_waiting_when_its_sender_closed_goes_through(loop):
    tx, rx = Channel(1)
    await tx.send(1)
    waiting = asyncio.create_task(tx.send(2))
    await turns()
    tx.close()
    assert [item async for item in rx] == [1, 2]
    await waiting


@pytest.mark.parametrize("take", [lambda rx: rx.recv(), tideloop.select], ids=["recv", "select"])
async def test_a_receive_that_was_waiting_when_its_receiver_closed_keeps_its_place(loop, take):
    tx, rx = Channel(1)
    other = rx.clone()
    waiting = asyncio.create_task(take(rx))
    await turns()
    behind = asyncio.create_task(other.recv())
    await turns()
    rx.close()
    with pytest.raises(ChannelClosed):
        await rx.recv()
    await tx.send(1)
    await tx.send(2)
    assert await waiting in (1, (rx, 1))
    assert await behind == 2


async def test_the_end_comes_also_if_the_last_waiting_send_is_cancelled(loop):
    tx, rx = Channel(1)
    await tx.send(1)
    waiting = asyncio.create_task(tx.send(2))
    await turns()
    tx.close()
    assert await rx.recv() == 1
    receiver = asyncio.create_task(rx.recv())
    await cancelled(waiting)
    with pytest.raises(ChannelClosed):
        await receiver


async def test_senders_are_told_when_the_last_receiver_closes(loop):
    class Item:
        pass

    tx, rx = Channel(1)
    item = Item()
    alive = weakref.ref(item)
    await tx.send(item)
    del item
    waiting = asyncio.create_task(tx.send(2))
    await turns()
    second = rx.clone()
    rx.close()
    await turns()
    assert not waiting.done()
    second.close()
    assert alive() is None
    with pytest.raises(ChannelClosed, match="every receiver of the channel is closed"):
        await waiting
    with pytest.raises(ChannelClosed, match="every receiver"):
        tx.try_send(3)
    with pytest.raises(ChannelClosed, match="this receiver"):
        rx.try_recv()
    assert tx.stats().sent == 1
    assert tx.stats().received == 0


async def test_closing_the_last_receiver_ends_those_who_wait(loop):
    _tx, rx = Channel()
    waiting = asyncio.create_task(rx.recv())
    await turns()
    rx.close()
    with pytest.raises(ChannelClosed, match="this receiver"):
        await waiting


async def test_a_handle_that_nobody_has_any_more_is_closed(loop):
    tx, rx = Channel()
    waiting = asyncio.create_task(rx.recv())
    await turns()
    del tx
    with pytest.raises(ChannelClosed):
        await waiting
    tx, rx = Channel()
    rx.extra = rx
    del rx
    gc.collect()
    with pytest.raises(ChannelClosed):
        await tx.send(1)


async def test_with_closes(loop):
    channel = Channel(2)
    with channel.tx as tx:
        await tx.send(1)
    assert tx.closed
    with channel.rx as rx:
        assert [item async for item in rx] == [1]
    assert rx.closed


# --- cancellation --------------------------------------------------------------------------------


async def test_a_cancelled_send_has_not_sent(loop):
    tx, rx = Channel(1)
    await tx.send(0)
    first, second = (asyncio.create_task(tx.send(item)) for item in (1, 2))
    await turns()
    assert rx.try_recv() == 0
    # The first one has been told by now, and does not come.
    await cancelled(first)
    await second
    assert take_all(rx) == [2]
    assert tx.stats().sent == 2


async def test_a_cancelled_receive_leaves_the_item_at_the_head(loop):
    tx, rx = Channel()
    first, second = (asyncio.create_task(rx.recv()) for _ in range(2))
    await turns()
    for item in range(3):
        tx.try_send(item)
    await cancelled(first)
    assert await second == 0
    assert take_all(rx) == [1, 2]


async def test_a_receive_whose_coroutine_is_closed_leaves_the_line(loop):
    tx, rx = Channel()
    waiting = rx.recv()
    waiting.send(None)
    assert rx.stats().waiting_receivers == 1
    waiting.close()
    assert rx.stats().waiting_receivers == 0
    tx.try_send(1)
    assert rx.try_recv() == 1


CHANNELS = [
    Pipe(
        f"Channel({maxsize})",
        lambda maxsize=maxsize: Channel(maxsize),
        lambda channel, item: channel.tx.send(item),
        lambda channel: channel.rx.recv(),
        lambda channel: take_all(channel.rx),
    )
    for maxsize in (0, 1, 2)
]


@pytest.mark.parametrize("channel", CHANNELS, ids=str)
def test_cancelled_at_every_await(kind, channel):
    assert harness.cancel_everywhere(kind, harness.pipe_scenario(channel)) >= 2


@pytest.mark.parametrize("channel", CHANNELS, ids=str)
def test_random_schedules(kind, channel):
    for seed in range(60):
        harness.interleave(kind, channel, seed)


@pytest.mark.parametrize("maxsize", [1, 2, 0])
def test_nothing_is_lost_doubled_or_overtaken_whatever_is_cancelled(runner, maxsize):
    """Also items of different senders come out in the order in which their sends began."""

    async def story(seed):
        dice = random.Random(seed)
        tx, rx = Channel(maxsize)
        sends, receives = {}, []
        received = []

        async def receive():
            received.append(await rx.recv())

        for step in range(150):
            roll = dice.random()
            if roll < 0.35:
                sends[step] = asyncio.create_task(tx.send(step))
                await asyncio.sleep(0)  # now it has begun
            elif roll < 0.7:
                receives.append(asyncio.create_task(receive()))
            elif roll < 0.9:
                waiting = [task for task in [*sends.values(), *receives] if not task.done()]
                if waiting:
                    dice.choice(waiting).cancel()
            else:
                await turns(dice.randrange(3))
        for task in receives:
            task.cancel()
        drain = asyncio.create_task(collect(rx, received))
        await asyncio.gather(*receives, *sends.values(), return_exceptions=True)
        tx.close()
        await drain
        sent = [item for item, task in sends.items() if not task.cancelled()]
        assert received == sent, f"seed {seed}"

    async def collect(rx, received):
        async for item in rx:
            received.append(item)

    for seed in range(60):
        runner.run(story(seed))


# --- objects -------------------------------------------------------------------------------------


def test_stats_and_words(loop):
    tx, rx = Channel(2, name="frames")
    other = rx.clone()
    tx.try_send(1)
    tx.try_send(2)
    other.try_recv()
    assert tx.stats() == rx.stats() == ("frames", 2, 1, 2, 2, 1, 1, 2, 0, 0)
    assert tx.stats().received == 1
    assert tx.name == rx.name == "frames"
    assert (tx.maxsize, len(tx), bool(rx)) == (2, 1, True)
    assert repr(tx) == (
        "<tideloop.Sender of channel 'frames': 1/2 items, 1 senders (0 waiting), 2 receivers (0 waiting)>"
    )
    rx.close()
    assert repr(rx).startswith("<tideloop.Receiver of channel 'frames': closed, 1/2 items, ")
    assert tx.stats().receivers == 1
    assert Channel().tx.name is None


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"Channel\(maxsize=-1\): expected 0 for no limit"):
        Channel(-1)
    with pytest.raises(TypeError, match=r"Channel\(maxsize=2.5\): expected an integer"):
        Channel(2.5)
    with pytest.raises(TypeError):
        Channel(1, name=3)
    tx, rx = Channel()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'item'"):
        tx.try_send()
    with pytest.raises(TypeError):
        tideloop.Sender(3)
    with pytest.raises(TypeError):
        copy.copy(rx)
    with pytest.raises(TypeError, match="not of 3"):
        tideloop.Receiver.try_recv(3)


def test_the_methods_look_like_functions():
    assert inspect.iscoroutinefunction(tideloop.Sender.send)
    assert inspect.iscoroutinefunction(tideloop.Receiver.recv)
    assert [*inspect.signature(tideloop.Sender.blocking_send).parameters] == ["self", "item", "timeout"]
    assert "ChannelClosed" in tideloop.Receiver.recv.__doc__
    assert isinstance(Channel[int](3), tuple)


async def test_waiting_outside_of_a_loop_is_refused_and_leaves_nothing_behind(loop):
    _tx, rx = Channel()
    outside = asyncio.to_thread(lambda: rx.recv().send(None))
    with pytest.raises(RuntimeError, match="no running event loop"):
        await outside
    assert rx.stats().waiting_receivers == 0
    await loop.shutdown_default_executor()


def test_an_item_that_holds_its_channel_is_garbage_with_it(backend):
    class Item:
        pass

    tx, rx = Channel()
    item = Item()
    item.ends = (tx, rx)
    tx.try_send(item)
    alive = weakref.ref(item)
    del item, tx, rx
    gc.collect()
    assert alive() is None


async def test_a_forgotten_receiver_is_garbage_with_its_channel(loop):
    class Item:
        pass

    marker = Item()
    alive = weakref.ref(marker)

    async def wait(rx, marker):
        await rx.recv()

    tx, rx = Channel()
    waiting = wait(rx, marker)
    waiting.send(None)
    rx.cycle = (waiting, tx)
    del marker, tx, rx, waiting
    gc.collect()
    assert alive() is None


async def test_dropping_an_item_may_use_its_channel(loop):
    class Nosy:
        def __del__(self):
            seen.append(len(tx))
            with pytest.raises(ChannelClosed):
                tx.try_send(1)

    seen = []
    tx, rx = Channel()
    tx.try_send(Nosy())
    rx.close()
    assert seen == [0]
