"""Off the loop: lines that a thread reads, hashes of a decorated function, a computation in a process, one that yields.

python examples/off_the_loop.py [--loop asyncio|tideloop]
"""

import argparse
import asyncio
import hashlib
import tempfile
from pathlib import Path

import tideloop


@tideloop.blocking(limit=2)
def digest(path: Path) -> str:
    """What a file contains, in short."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def longest_chain(below: int) -> int:
    """The number below this one that takes the most steps of Collatz's to come to 1."""

    def steps(number: int) -> int:
        count = 0
        while number != 1:
            number = 3 * number + 1 if number % 2 else number // 2
            count += 1
        return count

    return max(range(1, below), key=steps)


async def primes(below: int) -> int:
    """How many primes there are, counted on the loop, which has its turns all the same."""
    found: list[int] = []
    for number in range(2, below):
        if all(number % prime for prime in found if prime * prime <= number):
            found.append(number)
        await tideloop.checkpoint()
    return len(found)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "numbers")
        await tideloop.run_blocking(path.write_text, "".join(f"{number}\n" for number in range(1000)))
        async with tideloop.iter_in_thread(path.open) as lines:
            total = 0
            async for line in lines:
                total += int(line)
                if total > 1000:
                    break
        print("a thousand is passed at", line.strip())
        print("digests", *await asyncio.gather(*(digest(path) for _ in range(3))))
    async with asyncio.TaskGroup() as group:
        chain = group.create_task(tideloop.run_blocking(longest_chain, 3000, kind="process", timeout=60))
        count = group.create_task(primes(3000))
    print("longest chain from", chain.result())
    print("primes", count.result())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=["asyncio", "tideloop"], default="tideloop")
    asyncio.run(main()) if parser.parse_args().loop == "asyncio" else tideloop.run(main())
