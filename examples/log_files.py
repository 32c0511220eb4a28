"""Writes a log into one file per user and day, with far fewer files open than there are files.

    python examples/log_files.py FOLDER [--loop tideloop] [--users 40] [--lines 1000]

A KeyedPool keeps a file open as long as it is written to, closes the one that was idle longest when another is needed,
and lends it to one writer at a time, so lines do not mix. Opening and closing happen in threads. Runs on any asyncio
loop.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TextIO

import tideloop

OPEN = 8
"""Files open at a time."""


def pool_in(folder: Path) -> tideloop.KeyedPool[str, TextIO]:
    """A pool of files by name, open for appending."""

    async def create(name: str) -> TextIO:
        return await asyncio.to_thread(open, folder / name, "a", encoding="utf-8")

    async def close(file: TextIO) -> None:
        await asyncio.to_thread(file.close)

    return tideloop.KeyedPool(create, close, max_per_key=1, max=OPEN, max_idle=60, name="log files")


class Log:
    """Appends lines to files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._files = pool_in(folder)
        self.most = 0

    async def write(self, user: int, text: str) -> None:
        """Append a line to a user's file. Cancelled, it is written completely or not at all."""
        async with self._files.acquire(f"user{user}.log") as file:
            stats = self._files.stats()
            self.most = max(self.most, stats.borrowed + stats.idle)
            file.write(text + "\n")

    async def aclose(self) -> tideloop.PoolStats:
        """Close all files; what is written is in them then."""
        stats = self._files.stats()
        await self._files.aclose()
        return stats


async def main(folder: Path, users: int, lines: int) -> tuple[Log, tideloop.PoolStats]:
    """Several writers write lines of all users; each user's lines stay in order."""
    log = Log(folder)

    async def write_all(user: int) -> None:
        for number in range(user, lines, users):
            await log.write(user, f"line {number}")
            await asyncio.sleep(0)

    async with tideloop.group(name="writers") as group:
        for user in range(users):
            group.spawn(write_all, user)
    return log, await log.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--loop", choices=["tideloop", "asyncio"], default="tideloop")
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--lines", type=int, default=1000)
    options = parser.parse_args()
    run = tideloop.run if options.loop == "tideloop" else asyncio.run
    log, stats = run(main(options.folder, options.users, options.lines))
    print(f"{options.lines} lines in {options.users} files, at most {log.most} open", file=sys.stdout)
    print(f"opened {stats.created} times for {stats.lent} lines")
