"""What the nodes of test_dask do: functions that workers import. They leave word of themselves as files in a folder."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

PATIENCE = 30.0


def note(folder: str, name: str) -> int:
    """Leaves word that something has begun here; returns how often it has."""
    before = len(list(Path(folder).glob(f"{name}.*")))
    Path(folder, f"{name}.{time.monotonic_ns()}").write_text(str(os.getpid()))
    return before + 1


def begun(folder: str, name: str = "*") -> list[str]:
    """What has begun, in the order of its names: the first words of the notes."""
    return sorted(path.name.split(".")[0] for path in Path(folder).glob(f"{name}.*"))


def pid(folder: str, name: str) -> int:
    """The process in which something has begun; 0 while it has not."""
    for path in sorted(Path(folder).glob(f"{name}.*")):
        if text := path.read_text():
            return int(text)
    return 0


def held(folder: str, name: str) -> int:
    """Goes on only when there is a file "go"; returns how often it was begun."""
    times = note(folder, name)
    deadline = time.monotonic() + PATIENCE
    while not Path(folder, "go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError("nobody said go")
        time.sleep(0.002)
    return times


def flaky(folder: str, name: str, value: object = None) -> int:
    """Fails the first time."""
    times = note(folder, name)
    if times == 1:
        raise ConnectionError("the first time")
    return times


def broken(*_: object) -> None:
    raise ValueError("broken on a worker")


def number() -> int:
    return 3


def double(value: int) -> int:
    return 2 * value


def add(*values: int) -> int:
    return sum(values)


def where(*_: object) -> int:
    return os.getpid()


def told(value: object) -> str:
    return repr(value)


async def slowly(value: int) -> int:
    await asyncio.sleep(0)
    return value + 1
