"""multiprocessing's three ways to start a child, with and without a loop that runs in the parent."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import multiprocessing
import sys

import pytest
import tideloop

from tests.real import processes

METHODS = ["spawn", "fork", "forkserver"]
EXPECTED = [(number, (b"child %d" % number)[::-1], sum(range(number))) for number in range(4)]

# Python 3.12 and later warn of fork in a process with threads, which a loop with an executor is.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")


@pytest.fixture(params=METHODS)
def context(request):
    return multiprocessing.get_context(request.param)


@pytest.mark.limit(60)
def test_children_run_loops_of_their_own(context):
    async def main():
        """The parent's loop runs meanwhile, and reads what the children send."""
        loop = asyncio.get_running_loop()
        children, results = [], []
        for number in range(4):
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=processes.work_and_send, args=(number, theirs))
            child.start()
            theirs.close()
            arrived = loop.create_future()
            loop.add_reader(
                ours.fileno(), lambda ours=ours, arrived=arrived: arrived.done() or arrived.set_result(ours.recv())
            )
            children.append((child, ours, arrived))
        for child, ours, arrived in children:
            results.append(await arrived)
            loop.remove_reader(ours.fileno())
            ours.close()
            await asyncio.to_thread(child.join)
            assert child.exitcode == 0
            child.close()
        return results

    assert tideloop.run(main()) == EXPECTED


@pytest.mark.limit(60)
def test_a_process_pool_as_executor(context):
    async def main():
        loop = asyncio.get_running_loop()
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            calls = (loop.run_in_executor(pool, functools.partial(processes.work, number)) for number in range(4))
            results = await asyncio.gather(*calls)
            pids = {await loop.run_in_executor(pool, processes.pid) for _ in range(5)}
        return results, pids

    results, pids = tideloop.run(main())
    assert list(results) == EXPECTED
    assert 1 <= len(pids) <= 2


@pytest.mark.limit(60)
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_closes_nothing_of_its_parent():
    """The child ends its own copy of a running loop by ending; the parent's connections go on."""

    async def main():
        async def answer(reader, writer):
            while data := await reader.read(100):
                writer.write(data)
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for number in range(10):
                child = multiprocessing.get_context("fork").Process(target=processes.work, args=(number,))
                child.start()
                writer.write(b"message %d" % number)
                assert await reader.readexactly(9) == b"message %d" % number
                await asyncio.to_thread(child.join)
                assert child.exitcode == 0
                child.close()
            writer.close()
            await writer.wait_closed()

    tideloop.run(main())
