"""Scheduling workloads: what one callback, timer, task step or wake-up costs in CPU time.

    python benches/micro.py [--backends asyncio,uvloop,tideloop] [--repetitions 7] [--json | --markdown]

Workloads are in benches/workloads.py. All backends run in one process, interleaved A B C ... C B A, the garbage
collector on and run before each sample. A sample is CPU time of the process (``time.process_time``) per
operation, set-up excluded; the table shows medians in nanoseconds with the quartile spread, and the ratio to
asyncio; a cell with ``!`` has tideloop slower than zuvloop. Below stand the geometric means of the ratios over
asyncio and over zuvloop, of the rows above the line. One process shares caches and allocator state between
backends; ``tideloop lab`` measures in separate processes, as the last two rows do here.

Backends: asyncio, uvloop, rloop, zuvloop, tideloop, tideloop-stock (stock tasks on our loop), and
tideloop+accelerate (with ``tideloop.accelerate()`` in force during the sample). Those that are not installed or
not in this build are left out, and said so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from workloads import PRIMITIVES, WHOLE_PROCESSES, WORKLOADS

BACKENDS = ("asyncio", "uvloop", "rloop", "zuvloop", "tideloop", "tideloop-stock", "tideloop+accelerate")

UNITS = dict.fromkeys(WHOLE_PROCESSES, "ns") | {"bytes_per_sleeper": "B"}

Samples = dict[str, dict[str, list[float]]]


class Backend(NamedTuple):
    name: str
    new_event_loop: Callable[[], asyncio.AbstractEventLoop]
    accelerated: bool = False

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        if not self.accelerated:
            yield
            return
        tideloop: Any = __import__("tideloop")
        with tideloop.accelerate():
            yield


class Missing(Exception):
    """A backend that is not here, and why."""


def load(name: str) -> Backend:
    if name == "asyncio":
        return Backend(name, asyncio.SelectorEventLoop)
    try:
        module: Any = __import__(name.partition("-")[0].partition("+")[0])
    except ImportError as error:
        raise Missing(error) from None
    if name == "tideloop-stock":
        try:
            module.EventLoop(tasks="stock").close()
        except TypeError:
            raise Missing("this build has stock tasks only: see tideloop") from None
        return Backend(name, lambda: module.EventLoop(tasks="stock"))
    if name == "tideloop+accelerate":
        if not hasattr(module, "accelerate"):
            raise Missing("this build has no tideloop.accelerate()")
        return Backend(name, module.new_event_loop, accelerated=True)
    return Backend(name, module.new_event_loop)


def load_all(names: list[str]) -> dict[str, Backend]:
    found = {}
    for name in names:
        try:
            found[name] = load(name)
        except Missing as why:
            print(f"{name}: left out ({why})", file=sys.stderr)
    return found


def sample(backend: Backend, name: str) -> float:
    """One run of a workload: nanoseconds (or bytes) per operation."""
    gc.collect()
    body = (WORKLOADS | PRIMITIVES | WHOLE_PROCESSES)[name]
    with backend.in_force(), asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        done: tuple[int, float] = runner.run(body(runner.get_loop()))  # type: ignore[arg-type]
    operations, seconds = done
    return seconds / operations * 1e9


def sample_apart(backend: Backend, name: str) -> float:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--backends", backend.name, "--workloads", name, "--sample"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{name} on {backend.name} failed:\n{done.stderr}")
    return float(done.stdout)


def measure(backends: dict[str, Backend], wanted: list[str], repetitions: int) -> Samples:
    samples: Samples = {name: {backend: [] for backend in backends} for name in wanted}
    order = list(backends.values())
    for repetition in range(repetitions + 1):
        for name in wanted:
            for backend in order:
                if name in WHOLE_PROCESSES:
                    if repetition:
                        samples[name][backend.name].append(sample_apart(backend, name))
                    continue
                value = sample(backend, name)
                if repetition:  # the first round warms up
                    samples[name][backend.name].append(value)
        order.reverse()
        print(f"\r{repetition}/{repetitions} rounds", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return samples


# --- what the samples say ------------------------------------------------------------------------


def ratio(row: dict[str, list[float]], base: str, backend: str) -> float | None:
    """How many times faster than `base`."""
    if base not in row:
        return None
    return statistics.median(row[base]) / statistics.median(row[backend])


def spread(values: list[float]) -> float:
    """Half the quartile range, relative to the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / middle


def means(samples: Samples, base: str) -> dict[str, float]:
    """Geometric means of the ratios to `base` over WORKLOADS, by backend."""
    rows = [row for name, row in samples.items() if name in WORKLOADS and base in row]
    if not rows:
        return {}
    return {
        backend: statistics.geometric_mean([ratio(row, base, backend) or 1.0 for row in rows]) for backend in rows[0]
    }


def slower_than_zuvloop(row: dict[str, list[float]], backend: str) -> bool:
    against = ratio(row, "zuvloop", backend)
    return backend.startswith("tideloop") and against is not None and against < 1.0


def cell(row: dict[str, list[float]], backend: str) -> str:
    over = ratio(row, "asyncio", backend)
    mark = "!" if slower_than_zuvloop(row, backend) else ""
    figure = f"{statistics.median(row[backend]):,.0f} ±{spread(row[backend]) * 100:.0f}%"
    return figure + (f" {over:.2f}x{mark}" if over else mark)


def table(samples: Samples) -> list[list[str]]:
    """Head, rows and means as text, workload by workload; those that are reported apart come last."""
    backends = list(next(iter(samples.values())))
    rows = [["per operation", *backends]]
    for name in [n for n in samples if n in WORKLOADS]:
        rows.append([f"{name}, ns", *[cell(samples[name], backend) for backend in backends]])
    for base in ("asyncio", "zuvloop"):
        if found := means(samples, base):
            rows.append([f"geometric mean over {base}", *[f"{found[backend]:.2f}x" for backend in backends]])
    for name in [n for n in samples if n not in WORKLOADS]:
        unit = UNITS.get(name, "ns")
        rows.append([f"({name}, {unit})", *[cell(samples[name], backend) for backend in backends]])
    return rows


def versions(backends: dict[str, Backend]) -> str:
    said = [f"CPython {platform.python_version()}"]
    for name in sorted({name.partition("-")[0].partition("+")[0] for name in backends} - {"asyncio"}):
        try:
            said.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            said.append(f"{name} of this tree")
    return ", ".join(said)


def method(repetitions: int) -> str:
    return f"medians of {repetitions} ± half the quartile range; CPU time, life_100k wall time"


def show(samples: Samples) -> None:
    rows = table(samples)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]))


def show_markdown(samples: Samples, said: str, repetitions: int) -> None:
    command = "python benches/" + " ".join(["micro.py", *sys.argv[1:]])
    print(f"`{command}`: {said}; {method(repetitions)}. `!`: slower than zuvloop.\n")
    head, *rows = table(samples)
    print("| " + " | ".join(head) + " |")
    print("|---|" + "---:|" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def main() -> int:
    everything = [*WORKLOADS, *PRIMITIVES, *WHOLE_PROCESSES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--workloads", default=",".join(everything), help="; ".join(everything))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="all samples")
    parser.add_argument("--markdown", action="store_true", help="the table of docs/tasks.md")
    parser.add_argument("--sample", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    wanted = options.workloads.split(",")
    if unknown := [name for name in wanted if name not in everything]:
        parser.error(f"unknown workloads: {', '.join(unknown)}")
    if unknown := [name for name in options.backends.split(",") if name not in BACKENDS]:
        parser.error(f"unknown backends: {', '.join(unknown)}; there are {', '.join(BACKENDS)}")
    if options.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    backends = load_all(options.backends.split(","))
    if not backends:
        parser.error("none of these backends is here")
    if options.sample:
        print(sample(next(iter(backends.values())), wanted[0]))
        return 0
    samples = measure(backends, wanted, options.repetitions)
    if options.json:
        record = {"versions": versions(backends), "ns_per_operation": samples}
        record["means"] = {base: means(samples, base) for base in ("asyncio", "zuvloop")}
        json.dump(record, sys.stdout, indent=1)
    elif options.markdown:
        show_markdown(samples, versions(backends), options.repetitions)
    else:
        print(f"{versions(backends)}; {method(options.repetitions)}")
        show(samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
