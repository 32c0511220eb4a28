"""Records of many files, read by a hundred tasks through a few open files each, which a pool with keys lends."""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import tideloop

FILES, RECORDS, SIZE = 8, 1000, 16


def write(path: Path, number: int) -> None:
    path.write_bytes(b"".join(b"%*d\n" % (SIZE - 1, number * RECORDS + record) for record in range(RECORDS)))


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number}.records") for number in range(FILES)]
        for number, path in enumerate(paths):
            write(path, number)

        # Two files per path and six in all, so that files that are not asked for make room for others.
        async with tideloop.KeyedPool(
            lambda path: path.open("rb"), lambda file: file.close(), max_per_key=2, max=6
        ) as files:

            async def read(wanted: int) -> int:
                async with files.acquire(paths[wanted // RECORDS]) as file:
                    return await record_of(file, wanted % RECORDS)

            wanted = [number * 7919 % (FILES * RECORDS) for number in range(400)]
            found = [number async for number in tideloop.amap(read, wanted, limit=100, ordered=True)]
            stats = files.stats()
            print("all found" if found == wanted else "something is wrong")
            print(
                "at most 6 open:", stats.idle + stats.borrowed <= 6, "and lent more often:", stats.lent > stats.created
            )


async def record_of(file: BinaryIO, record: int) -> int:
    file.seek(record * SIZE)
    await asyncio.sleep(0)  # somebody else's turn; the file is ours meanwhile
    return int(file.read(SIZE))


if __name__ == "__main__":
    asyncio.run(main()) if "--loop=asyncio" in sys.argv else tideloop.run(main())
