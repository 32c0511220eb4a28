"""Count words with the system's own tools: a child that is fed and read at once, and one that takes too long."""

import asyncio
import sys
from collections.abc import AsyncIterator

import tideloop


async def text(lines: int) -> AsyncIterator[bytes]:
    """What the child reads, made while it reads."""
    for number in range(lines):
        yield b"line %d of many\n" % number


async def main() -> None:
    counted = await tideloop.run_process(["wc", "-w"], input=text(100_000), check=True)
    print(int(counted.text), "words")

    async with tideloop.Process(["sort", "-rn"]) as sort:
        await sort.write(b"3\n10\n2\n")
        sort.close_stdin()
        print(*[line.decode().strip() async for _, line in sort.lines()])

    try:
        await tideloop.run_process("echo begun; sleep 1000", shell=True, timeout=0.5)
    except tideloop.ProcessTimeout as late:
        print(late)


if __name__ == "__main__":
    asyncio.run(main()) if "--loop=asyncio" in sys.argv else tideloop.run(main())
