"""What the toolkit's primitives cost beside asyncio's and other libraries', and how well adaptive limits follow.

    python benches/toolkit.py [--rows semaphore,crowd | --rows all] [--backends asyncio,uvloop,tideloop]
                              [--repetitions 5] [--scale 1.0] [--json | --markdown]

A row (``toolkit_rows.py``) is an operation; its table has a line for each contender, and a column for each backend,
the loop that it runs on. All cells of a row run in one process and take turns, A B C ... C B A; the garbage collector
is on, and runs before each sample. A sample is CPU time of the process per operation, unless the row says otherwise. A
cell is the median of the samples ± half the range between the quartiles, and how many times more the first
contender, the reference, costs on the same backend. The first round is not counted.

Without ``--rows`` those rows are run that have a goal; it stands in their heads. Contenders and backends that are not
installed are left out, and said so.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import importlib.metadata
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from toolkit_rows import ROWS, Make, Row, Sample  # beside this file

BACKENDS = ("asyncio", "uvloop", "tideloop")
PEERS = (
    "anyio",
    "aiologic",
    "aiolimiter",
    "culsans",
    "janus",
    "aiometer",
    "aiostream",
    "async-lru",
    "aiodataloader",
    "stamina",
    "redis",
)

Cell = tuple[str, str]
"""Contender and backend."""


def new_loop(backend: str) -> asyncio.AbstractEventLoop:
    if backend == "asyncio":
        return asyncio.SelectorEventLoop()
    loop: asyncio.AbstractEventLoop = importlib.import_module(backend).new_event_loop()
    return loop


def left_out(name: str, error: ImportError) -> None:
    print(f"{name}: left out ({error})", file=sys.stderr)


def sample(row: Row, cell: Cell, count: int, seed: int) -> Sample:
    """One run of a cell."""
    contender, backend = cell
    gc.collect()
    if row.simulated is not None:
        return row.simulated(contender, count, seed)

    async def main() -> Sample:
        assert row.body is not None
        return await row.body(row.contenders[contender](), count)

    with asyncio.Runner(loop_factory=lambda: new_loop(backend)) as runner:
        return runner.run(main())


async def made(make: Make) -> None:
    """Makes it where a loop runs, as some want it."""
    make()


def measure(row: Row, backends: Sequence[str], repetitions: int, count: int) -> dict[Cell, list[Sample]]:
    # What is simulated has its own loop, with a clock that nobody waits for.
    columns = backends if row.simulated is None else ("simulated",)
    cells: list[Cell] = []
    for contender, make in row.contenders.items():
        try:
            asyncio.run(made(make))
        except ImportError as error:
            left_out(contender, error)
        else:
            cells += [(contender, column) for column in columns]
    samples: dict[Cell, list[Sample]] = {cell: [] for cell in cells}
    for repetition in range(repetitions + 1):
        for cell in cells:
            taken = sample(row, cell, count, repetition)
            if repetition:
                samples[cell].append(taken)
        cells.reverse()
    return samples


# --- how it is shown -------------------------------------------------------------------------------


def spread(values: list[float]) -> tuple[float, float]:
    """The median, and half the range between the quartiles."""
    if len(values) < 2:
        return values[0], 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, (high - low) / 2


def words(row: Row, samples: list[Sample], base: list[Sample]) -> str:
    found = []
    for metric in row.metrics:
        middle, half = spread([sample[metric.name] for sample in samples])
        text = f"{middle:{metric.form}} ±{half:{metric.form}}"
        if metric.lower_is_better:
            text += f" ({spread([sample[metric.name] for sample in base])[0] / middle:.2f}x)"
        found.append(text)
    return "; ".join(found)


def table(row: Row, samples: dict[Cell, list[Sample]], markdown: bool) -> str:
    columns = list(dict.fromkeys(backend for _, backend in samples))
    contenders = list(dict.fromkeys(contender for contender, _ in samples))
    title = f"{row.name}: {row.what}" + (f"; to reach: {row.goal}" if row.goal else "")
    head = [", ".join(metric.name for metric in row.metrics), *columns]
    lines = [
        [contender] + [words(row, samples[contender, column], samples[row.reference, column]) for column in columns]
        for contender in contenders
    ]
    if markdown:
        rows = [f"| {' | '.join(line)} |" for line in [head, ["---", *["---:"] * len(columns)], *lines]]
        return "\n".join([f"**{title}**", "", *rows, ""])
    widths = [max(len(line[index]) for line in [head, *lines]) for index in range(len(head))]
    rows = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in [head, *lines]]
    return "\n".join([title, *(f"  {line.rstrip()}" for line in rows), ""])


def versions(backends: Sequence[str]) -> list[str]:
    found = [f"{platform.python_implementation()} {platform.python_version()}"]
    for package in (*PEERS, *(backend for backend in backends if backend not in ("asyncio", "tideloop"))):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# --- what is asked for -----------------------------------------------------------------------------


def listed(parser: argparse.ArgumentParser, given: str, known: Sequence[str], what: str) -> list[str]:
    names = given.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown {what}: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def installed(backends: list[str]) -> list[str]:
    found = []
    for backend in backends:
        try:
            importlib.import_module(backend)
        except ImportError as error:
            left_out(backend, error)
        else:
            found.append(backend)
    return found


def main() -> None:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    goals = [row.name for row in ROWS if row.goal]
    parser.add_argument("--rows", default=",".join(goals), help=f"all, or of {', '.join(names)}")
    parser.add_argument("--backends", default=",".join(BACKENDS), help=f"of {', '.join(BACKENDS)}")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of operations")
    parser.add_argument("--json", action="store_true", help="every sample, instead of tables")
    parser.add_argument("--markdown", action="store_true", help="tables as the documents have them")
    options = parser.parse_args()
    wanted = names if options.rows == "all" else listed(parser, options.rows, names, "rows")
    backends = installed(listed(parser, options.backends, BACKENDS, "backends"))
    if options.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    command = " ".join(["python benches/toolkit.py", *sys.argv[1:]])
    if not options.json:
        said = f"{', '.join(versions(backends))}: medians of {options.repetitions} ± half the quartile range"
        print(f"`{command}`, {said}, and the ratio to the first line.\n" if options.markdown else f"{said}\n")
    found: dict[str, dict[str, list[Sample]]] = {}
    for row in ROWS:
        if row.name not in wanted:
            continue
        samples = measure(row, backends, options.repetitions, max(1, int(row.operations * options.scale)))
        found[row.name] = {f"{contender}@{backend}": values for (contender, backend), values in samples.items()}
        if not options.json:
            print(table(row, samples, options.markdown), flush=True)
    if options.json:
        print(json.dumps({"command": command, "versions": versions(backends), "rows": found}, indent=1))


if __name__ == "__main__":
    main()
