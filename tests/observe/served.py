"""Programs that are looked at from outside, each a function; run by test_serving_processes.py."""

import asyncio
import inspect
import os
import sys
import threading
import time
import warnings
from pathlib import Path

import blocks  # beside this file
import tideloop

blocks.LONG = 1.0


async def block():
    """Block the loop in C code that holds the GIL."""
    print("ready", flush=True)
    blocks.matches()
    await asyncio.sleep(0)
    await asyncio.to_thread(sys.stdin.readline)


async def wait():
    """Wait until told to end."""
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)


async def leave():
    """End with an exception."""
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    raise SystemExit(7)


def threads():
    return {task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}


def sockets():
    """Sockets and selectors that are open."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{descriptor}").partition(":")[0])
        except OSError:
            continue
    return sum(link in ("socket", "anon_inode") for link in links)


def fork():
    """Fork, and say of the child what it has of the server."""
    warnings.simplefilter("error")
    before = sockets()
    server = tideloop.observe.serve(web=True)
    had = server.url
    while not {"tideloop-serve", "tideloop-collec"} <= threads():
        pass  # each gives itself its name
    child = os.fork()
    if child == 0:
        from tideloop.observe import serving

        ok = serving._server is None and (server.socket, server.url) == (None, None)
        ok = ok and len(threads()) == 1 and sockets() == before
        server.close()  # the parent's: nothing of it is touched
        os._exit(0 if ok else 1)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), server.url == had, flush=True)
    sys.stdin.readline()


def hang():
    """End while the collector is in Python and does not come back."""
    from tideloop.observe import collected

    inside = threading.Event()

    def tasks():
        inside.set()
        time.sleep(60)

    collected.tasks = tasks
    tideloop.observe.serve()
    print("ready", flush=True)
    inside.wait()
    sys.stdin.readline()
    sys.exit(7)


if __name__ == "__main__":
    program = globals()[sys.argv[1]]
    if inspect.iscoroutinefunction(program):
        with asyncio.Runner(loop_factory=tideloop.EventLoop) as runner:
            runner.run(program())
    else:
        program()
