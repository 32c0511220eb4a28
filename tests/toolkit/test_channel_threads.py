"""Channels between threads and loops: blocking calls, wake-ups, loops that close, signals, fork."""

from __future__ import annotations

import asyncio
import collections
import os
import signal
import subprocess
import sys
import threading

import pytest
from tideloop import Channel, ChannelClosed


class Threads:
    """Threads that are joined in the end, whose errors are raised then."""

    def __enter__(self):
        self._threads = []
        self._errors = []
        return self

    def start(self, work, *args):
        def run():
            try:
                work(*args)
            except BaseException as error:
                self._errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self):
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), "a thread is stuck"
        if self._errors:
            raise self._errors[0]

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.join()


@pytest.fixture
def threads():
    with Threads() as threads:
        yield threads


def until(condition):
    """Let other threads run until something holds."""
    pause = threading.Event()
    for _ in range(20_000):
        if condition():
            return
        pause.wait(0.0005)
    raise AssertionError("it never came to hold")


# --- blocking ------------------------------------------------------------------------------------


def test_thread_to_thread(threads):
    tx, rx = Channel(2)

    def feed():
        with tx:
            for item in range(500):
                tx.blocking_send(item)

    threads.start(feed)
    assert [rx.blocking_recv() for _ in range(500)] == list(range(500))
    with pytest.raises(ChannelClosed):
        rx.blocking_recv()


async def test_thread_to_loop_and_back(loop, threads):
    there, back = Channel(4), Channel(4)

    def echo():
        with back.tx as tx:
            try:
                while True:
                    tx.blocking_send(there.rx.blocking_recv() + 1)
            except ChannelClosed:
                pass

    threads.start(echo)

    async def feed():
        with there.tx as tx:
            for item in range(300):
                await tx.send(item)

    feeding = asyncio.create_task(feed())
    assert [item async for item in back.rx] == list(range(1, 301))
    await feeding


def test_time_limits():
    tx, rx = Channel(1, name="slow")
    for limit in (0, -1, 0.001):
        with pytest.raises(TimeoutError, match="no item in the channel 'slow' in time"):
            rx.blocking_recv(timeout=limit)
    tx.blocking_send(1, timeout=0)
    with pytest.raises(TimeoutError, match="no room in the channel 'slow' in time"):
        tx.blocking_send(2, 0.001)
    assert tx.stats().waiting_senders == 0
    assert rx.blocking_recv(timeout=1e300) == 1
    assert tx.stats().sent == 1
    with pytest.raises(ValueError, match="expected a number of seconds"):
        rx.blocking_recv(float("nan"))
    with pytest.raises(TypeError):
        rx.blocking_recv("soon")


async def test_blocking_is_refused_where_a_loop_runs(loop):
    tx, rx = Channel(1)
    with pytest.raises(RuntimeError, match=r"blocking_send\(\) would block the event loop .*; await send\(\)"):
        tx.blocking_send(1)
    with pytest.raises(RuntimeError, match=r"await recv\(\)"):
        rx.blocking_recv()
    assert len(rx) == 0


@pytest.mark.parametrize("end", ["tx", "rx"])
def test_closing_wakes_blocked_threads(threads, end):
    channel = Channel(1)
    channel.tx.try_send(0)
    if end == "tx":
        channel.rx.try_recv()

    def blocked(copy):
        with pytest.raises(ChannelClosed):
            copy.blocking_recv() if end == "tx" else copy.blocking_send(1)

    copies = [(channel.rx if end == "tx" else channel.tx).clone() for _ in range(3)]
    for copy in copies:
        threads.start(blocked, copy)
    until(lambda: channel.tx.stats().waiting_receivers + channel.tx.stats().waiting_senders == 3)
    getattr(channel, end).close()


@pytest.mark.parametrize("blocked", ["blocking_send", "blocking_recv"])
def test_a_signal_interrupts_a_blocked_main_thread(blocked):
    class Interrupted(Exception):
        pass

    def interrupt(number, frame):
        raise Interrupted

    full, empty = Channel(1), Channel(1)
    full.tx.try_send(0)
    before = signal.signal(signal.SIGUSR1, interrupt)

    def send_signal():
        until(lambda: full.tx.stats().waiting_senders + empty.rx.stats().waiting_receivers)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    try:
        with Threads() as threads:
            threads.start(send_signal)
            with pytest.raises(Interrupted):
                full.tx.blocking_send(1) if blocked == "blocking_send" else empty.rx.blocking_recv()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert full.tx.stats().waiting_senders == empty.rx.stats().waiting_receivers == 0
    assert full.rx.try_recv() == 0


# --- loops and threads ---------------------------------------------------------------------------


def test_a_burst_from_a_thread_wakes_the_loop_once(backend, threads):
    loop = backend.new_event_loop()
    tx, rx = Channel()
    wakes = []
    inner = loop.call_soon_threadsafe

    class Counting(type(loop)):
        def call_soon_threadsafe(self, *args, **kwargs):
            wakes.append(args)
            return inner(*args, **kwargs)

    def burst():
        for item in range(100):
            tx.blocking_send(item)
        done.set()

    done = threading.Event()

    async def main():
        waiting = asyncio.create_task(collect())
        await asyncio.sleep(0)
        threads.start(burst)
        # The loop is busy meanwhile, and the whole burst is there when it looks.
        assert done.wait(20)
        return await waiting

    async def collect():
        return [await rx.recv() for _ in range(100)]

    try:
        loop.__class__ = Counting
    except TypeError:
        loop.close()
        pytest.skip(f"the class of {backend}'s loops cannot be replaced")
    try:
        assert loop.run_until_complete(main()) == list(range(100))
    finally:
        loop.close()
    assert len(wakes) == 1


def test_sixteen_producers_and_sixteen_consumers(backend, threads):
    """Half of each are threads, half are tasks of two loops; some tasks are cancelled on the way."""
    each, kinds = 60, 8
    tx, rx = Channel(5)
    received = collections.defaultdict(list)

    def make(number):
        return [(number, item) for item in range(each)]

    def produce(number, tx):
        with tx:
            for item in make(number):
                tx.blocking_send(item)

    def consume(number, rx):
        try:
            while True:
                received[number].append(rx.blocking_recv())
        except ChannelClosed:
            rx.close()

    async def send_all(number, tx):
        with tx:
            for item in make(number):
                sending = asyncio.ensure_future(tx.send(item))
                if item[1] % 5 == number % 5:
                    await asyncio.sleep(0)
                    sending.cancel()
                try:
                    await sending
                except asyncio.CancelledError:
                    await tx.send(item)  # it was not sent

    async def receive_all(number, rx):
        step = 0
        while True:
            step += 1
            receiving = asyncio.ensure_future(rx.recv())
            if step % 4 == number % 4:
                await asyncio.sleep(0)
                receiving.cancel()
            try:
                received[number].append(await receiving)
            except asyncio.CancelledError:
                pass  # nothing taken
            except ChannelClosed:
                return

    def run_loop(first, ends):
        async def main():
            await asyncio.gather(
                *(send_all(first + n, end) for n, end in enumerate(ends[0])),
                *(receive_all(first + n, end) for n, end in enumerate(ends[1])),
            )

        with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
            runner.run(main())

    senders = [tx.clone() for _ in range(2 * kinds)]
    receivers = [rx.clone() for _ in range(2 * kinds)]
    tx.close()
    half = kinds // 2
    for n in range(kinds):
        threads.start(produce, n, senders[n])
        threads.start(consume, n, receivers[n])
    for first in (kinds, kinds + half):
        threads.start(run_loop, first, (senders[first : first + half], receivers[first : first + half]))
    threads.join()
    everything = sorted(item for items in received.values() for item in items)
    assert everything == sorted(item for number in range(2 * kinds) for item in make(number))
    for items in received.values():
        for number in range(2 * kinds):
            mine = [item for producer, item in items if producer == number]
            assert mine == sorted(mine), "a consumer saw a producer's items out of order"
    assert rx.stats().sent == rx.stats().received == 2 * kinds * each


def test_an_item_for_a_loop_that_closed_goes_to_the_next(backend):
    tx, rx = Channel()
    first = backend.new_event_loop()
    gone = first.create_task(rx.recv())
    first.run_until_complete(asyncio.sleep(0))
    assert rx.stats().waiting_receivers == 1
    first.close()
    tx.try_send(1)
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        assert runner.run(asyncio.wait_for(rx.recv(), 5)) == 1
        assert rx.stats().waiting_receivers == 0
    gone.get_coro().close()
    gone._log_destroy_pending = False


def test_an_item_on_its_way_to_a_loop_that_closes_goes_to_the_next(backend):
    tx, rx = Channel()
    first = backend.new_event_loop()
    gone = first.create_task(rx.recv())
    first.run_until_complete(asyncio.sleep(0))
    tx.try_send(1)  # told, by a callback that the loop will never run
    first.close()
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        assert runner.run(asyncio.wait_for(rx.recv(), 5)) == 1
    gone.get_coro().close()
    gone._log_destroy_pending = False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_the_items_and_none_of_the_waiters(backend):
    """One receiver waits in the parent and one was just told there; in the child they do not come."""
    program = f"""
import asyncio, os, warnings, {backend.name} as kind
from tideloop import Channel
warnings.simplefilter("ignore")
told, waited = Channel(), Channel()

async def parent():
    receivers = [asyncio.ensure_future(channel.rx.recv()) for channel in (told, waited)]
    await asyncio.sleep(0)
    told.tx.try_send("item")
    child = os.fork()
    if child == 0:
        asyncio._set_running_loop(None)
        waited.tx.try_send("other")
        async def use():
            return [await asyncio.wait_for(channel.rx.recv(), 5) for channel in (told, waited)]
        loop = kind.new_event_loop()
        code = 9
        try:
            code = 0 if loop.run_until_complete(use()) == ["item", "other"] else 8
        finally:
            os._exit(code)
    status = await asyncio.to_thread(os.waitpid, child, 0)
    waited.tx.try_send("mine")
    assert await asyncio.gather(*receivers) == ["item", "mine"]
    assert os.waitstatus_to_exitcode(status[1]) == 0, status

asyncio.Runner(loop_factory=kind.new_event_loop).run(parent())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=25)
    assert done.returncode == 0, done.stderr
