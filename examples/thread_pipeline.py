"""A pipeline: a thread reads records, a few tasks work on them in batches, one task collects.

    python examples/thread_pipeline.py [records]

The thread is made to wait when the tasks are behind, the tasks when the collector is; closing one end lets what is on
the way arrive and then ends the next stage. Nothing here polls, sleeps or counts items.
"""

from __future__ import annotations

import asyncio
import sys
import threading

import tideloop
from tideloop import Channel, PriorityQueue, Receiver, Sender


def read(records: int, out: Sender[int]) -> None:
    """The source: blocking code, in a thread of its own."""
    with out:
        for record in range(records):
            out.blocking_send(record)


async def work(source: Receiver[int], out: Sender[tuple[int, int]]) -> None:
    """One of several workers."""
    with source, out:
        async for record in source:
            await out.send((record, record * record))


async def collect(source: Receiver[tuple[int, int]], urgent: PriorityQueue[tuple[int, str]]) -> tuple[int, list[str]]:
    """Takes from whichever has something: the results, and notes from elsewhere by their priority."""
    total = 0
    notes: list[str] = []
    while True:
        try:
            chosen = await tideloop.select(urgent, source)
        except tideloop.QueueShutDown:
            return total, notes
        if chosen.source is urgent:
            notes.append(chosen.item[1])
        else:
            total += chosen.item[1]
            if chosen.item[0] == 0:
                # The first result is in: no more notes are taken.
                urgent.shutdown()


async def main(records: int) -> tuple[int, list[str]]:
    raw = Channel[int](64, name="raw")
    done = Channel[tuple[int, int]](64, name="done")
    urgent: PriorityQueue[tuple[int, str]] = PriorityQueue(name="urgent")
    await urgent.put_many([(2, "second"), (1, "first"), (2, "third")])

    thread = threading.Thread(target=read, args=(records, raw.tx))
    thread.start()
    async with asyncio.TaskGroup() as group:
        result = group.create_task(collect(done.rx, urgent))
        for _ in range(3):
            group.create_task(work(raw.rx.clone(), done.tx.clone()))
        # The first handles are closed here: what remains are the workers' own.
        raw.rx.close()
        done.tx.close()
    thread.join()
    print(done.rx.stats())
    return result.result()


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    total, notes = tideloop.run(main(count))
    print(f"sum of squares below {count}: {total}; notes: {', '.join(notes)}")
