"""Spawning many children leaves neither a zombie nor a descriptor behind."""

from __future__ import annotations

import asyncio
import os
import subprocess

import pytest
import tideloop

from tests.conftest import open_fds
from tests.peers import settled

AT_ONCE = 8


def zombies() -> list[str]:
    """Children of this process that have ended and were not waited for."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat") as file:
                # The name of the program, in parentheses, may hold anything.
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state == "Z" and int(parent) == os.getpid():
            found.append(name)
    return found


async def spawn(loop, count):
    """Run `count` trivial children, some at a time, in the ways that there are to end."""

    async def one(number):
        match number % 6:
            case 0:
                child = await asyncio.create_subprocess_exec("true")
                assert await child.wait() == 0
            case 1:
                child = await asyncio.create_subprocess_exec("echo", stdout=subprocess.PIPE)
                assert await child.communicate() == (b"\n", None)
            case 2:
                child = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE)
                child.kill()
                assert await child.wait() == -9
            case 3:
                with pytest.raises(FileNotFoundError):
                    await asyncio.create_subprocess_exec("/nonexistent/program", stdin=subprocess.PIPE)
            case 4:
                assert (await tideloop.run_process(["cat"], input=b"x")).stdout == b"x"
            case 5:
                async with tideloop.Process(["cat"], grace=0) as process:
                    await process.stop()

    async def several(numbers):
        for number in numbers:
            await one(number)

    numbers = iter(range(count))
    await asyncio.gather(*(several(numbers) for _ in range(AT_ONCE)))
    await settled(loop, 10)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(300, id="300"),
        pytest.param(10_000, id="10000", marks=[pytest.mark.soak, pytest.mark.limit(300.0)]),
    ],
)
async def test_spawning_leaves_nothing(loop, backend, count):
    if backend.name == "uvloop":
        pytest.skip("copies this process for each child, which takes too long")
    await spawn(loop, AT_ONCE)
    before = open_fds()
    await spawn(loop, count)
    assert zombies() == []
    assert len(open_fds()) == len(before)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # noqa: ASYNC222
