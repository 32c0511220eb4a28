"""A program that blocks its loop in several ways; prints what it is told of that. Run by test_watchdog.py."""

import asyncio
import contextvars
import gc
import json
import logging
import os
import re
import sys
import threading
import time

import captured  # beside this file
import tideloop

request = contextvars.ContextVar("request", default="none")
LONG = 0.25
ALIVE = [[] for _ in range(300_000)]


def sleeps():
    captured.block(LONG, lambda: time.sleep(0.05))


def computes():
    def bit():
        for _ in range(10_000):
            pass

    captured.block(LONG, bit, time.thread_time)


def matches():
    # Each further letter doubles it: until it takes long enough on this machine.
    captured.forget()
    for length in range(18, 40):
        started = time.thread_time()
        re.match(r"(a+)+$", "a" * length + "b")
        if time.thread_time() - started > LONG and captured.is_there():
            return


def waits():
    lock = threading.Lock()
    lock.acquire()
    captured.block(LONG, lambda: lock.acquire(timeout=LONG))


def collects():
    # Many living objects, which each collection looks at: next to nothing of the time is spent elsewhere.
    captured.block(LONG, gc.collect, time.thread_time)


WAYS = {"sleeps": sleeps, "computes": computes, "matches": matches, "waits": waits, "collects": collects}


async def main(names):
    told = []

    @tideloop.observe.on_block
    def blocked(block):
        told.append(
            {
                "duration": block.duration,
                "cause": block.cause,
                "stack": block.stack,
                "stacks": len(block.stacks),
                "innermost": [stack[0] for stack in block.stacks],
                "task": block.task.get_name(),
                "request": request.get(),
                "has_context": block.context is not None,
                "captured": block.captured,
            }
        )

    spent = {}

    async def block(way):
        request.set(f"request of {way}")
        before = captured.standing()
        WAYS[way]()
        spent[way] = [after - then for then, after in zip(before, captured.standing(), strict=True)]

    gc.disable()
    for name in names:
        await asyncio.create_task(block(name), name=name)
        await asyncio.sleep(0.01)
    tideloop.observe.off_block(blocked)
    return [each | {"spent": spent[each["task"]]} for each in told if each["task"] in spent]


def threads():
    """How many threads this process has, as the system counts them."""
    return len(os.listdir("/proc/self/task"))


async def fork():
    """Forks in a running loop, and runs another one in the child."""
    before = threads()
    child = os.fork()
    if child == 0:
        inherited = threads()
        events = asyncio.events
        events._set_running_loop(None)
        with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
            (seen,) = runner.run(main(["sleeps"]))
        os._exit(0 if inherited == 1 and (seen["cause"], seen["stack"][1][2]) == ("syscall", "block") else 1)
    _, status = os.waitpid(child, 0)  # noqa: ASYNC222  nothing else runs here
    return before, os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, format="%(name)s %(levelname)s %(message)s")
    with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
        if sys.argv[1] == "fork":
            print(json.dumps(runner.run(fork())))
        else:
            print(json.dumps(runner.run(main(sys.argv[1:]))))
