"""What connections cost beside other loops and the system itself, and what is asked of that: ``make bench-sockets``.

    python benches/sockets.py [--rows tcp_echo,udp_echo.100] [--libraries uvloop,zuvloop] [--repetitions 7]
                              [--order-seed N] [--json | --markdown]

The scenarios are the lab's (``tideloop lab --profile wire``, docs/lab.md), in fresh processes and interleaved as there:
each cell runs once in random order, then each once in another order, and so on. A ratio is taken within each such
block, where everything has met about the same machine; shown are the median over the blocks and its 95 % bootstrap
interval. A ratio is how many times better tideloop is, above 1; the one to ``limit``, the load client's own server
without Python, is the share of the limit that is reached.

A row (``ROWS``) is a figure and what is asked of it. ``yes`` and ``no`` say whether the median is what was asked;
with a question mark the interval has both. Seven blocks of all rows take some eight minutes.
"""

from __future__ import annotations

import argparse
import json
import platform
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from tideloop.lab.backends import BACKENDS
from tideloop.lab.cli import measure
from tideloop.lab.plan import cells_of
from tideloop.lab.progress import Progress
from tideloop.lab.request import Request
from tideloop.lab.results import Results
from tideloop.lab.scenarios import WIRE, Metric, Scenario
from tideloop.lab.summary import median_interval
from tideloop.lab.wording import number, unit_shown

OURS = "tideloop"
# What 3.14 has made faster for all loops is no longer ours to save.
ECHO = 1.15 if sys.version_info < (3, 14) else 1.1


@dataclass(frozen=True)
class Row:
    """A figure of a scenario and what it is to reach."""

    scenario: str
    # Least ratios to other backends.
    ratios: dict[str, float] = field(default_factory=dict)
    # The scenario's first metric, if none is named.
    metric: str | None = None
    # The most that it may be.
    most: float | None = None

    @property
    def definition(self) -> Scenario:
        return SCENARIOS[self.scenario]

    @property
    def measured(self) -> Metric:
        metrics = self.definition.metrics
        return next(metric for metric in metrics if self.metric in (None, metric.name))


SCENARIOS = {scenario.name: scenario for scenario in WIRE.scenarios}
ROWS = (
    *(
        Row(f"tcp_echo.{name}", {"uvloop": times, "zuvloop": 1.0, "limit": 0.95})
        for name, times in (("1k_10", ECHO), ("1k_100", ECHO), ("1k_1000", ECHO), ("100k_10", 1.05))
    ),
    Row("tcp_echo.buffered", {"uvloop": 1.0, "zuvloop": 1.0}),
    Row("tcp_echo.streams", {"uvloop": 1.35, "zuvloop": 1.0}),
    Row("tcp_echo.sock", {"uvloop": 1.9, "zuvloop": 1.0}),
    Row("udp_echo.100", {"uvloop": 1.45, "zuvloop": 1.0, "limit": 0.85}),
    Row("tls_echo.1k_100", {"uvloop": 1.25, "zuvloop": 1.0}),
    Row("http.two", {"uvloop": 1.65, "zuvloop": 1.0}),
    Row("http.pipelined", {"uvloop": 4.0, "zuvloop": 1.0}),
    Row("threadsafe.1", {"uvloop": 3.0, "zuvloop": 1.0}),
    Row("threadsafe.4", {"uvloop": 3.0, "zuvloop": 1.0}),
    Row("executor", {"uvloop": 1.0, "zuvloop": 1.0}),
    Row("conn_churn", {"uvloop": 1.0, "zuvloop": 1.0}),
    Row("tail.callbacks", most=60.0),
    Row("tail.uvicorn", {"uvloop": 1.0}),
    Row("tail.uvicorn", {"uvloop": 1.0, "zuvloop": 1.0}, metric="server_cpu_us_per_request"),
    Row("idle_connections", {"asyncio": 1 / 0.6}),
    Row("slow_reader", most=1.0),
)


@dataclass(frozen=True)
class Estimate:
    """A median over blocks, with its interval."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], seed: str) -> Estimate:
        low, high = median_interval(values, seed) or (min(values), max(values))
        return cls(median(values), low, high)

    def verdict(self, asked: float, most: bool = False) -> str:
        """Whether this reaches what was asked, or is at most that."""
        bounds = (self.middle, self.low, self.high)
        met, *others = (value <= asked if most else value >= asked for value in bounds)
        doubt = "" if all(other == met for other in others) else "?"
        return ("yes" if met else "no") + doubt

    def words(self, form: Callable[[float], str]) -> str:
        return f"{form(self.middle)} ({form(self.low)} to {form(self.high)})"


def blocks(results: Results, row: Row, library: str) -> dict[int, float]:
    """The row's figure in each block in which this backend ran well."""
    return {
        run.job.rep: run.metrics[row.measured.name]
        for run in results.runs
        if run.ok and (run.job.cell.scenario.name, run.job.cell.backend.name) == (row.scenario, library)
    }


def ratio(results: Results, row: Row, library: str) -> Estimate | None:
    """How many times better than that backend ours is; None where they have no block in common."""
    mine, theirs = blocks(results, row, OURS), blocks(results, row, library)
    found = [theirs[rep] / mine[rep] for rep in mine if theirs.get(rep) and mine[rep]]
    if row.measured.better == "higher":
        found = [1 / value for value in found]
    return Estimate.of(found, f"{row.scenario}/{library}") if found else None


def lines(results: Results, row: Row, libraries: Sequence[str]) -> list[list[str]]:
    """A line for what ours needs, and one for each backend that it is held against."""
    metric = row.measured
    values = list(blocks(results, row, OURS).values())
    what = row.scenario if row.metric is None else f"{row.scenario}, {metric.title}"
    if not values:
        return [[what, OURS, "has not run", "", ""]]
    own = Estimate.of(values, row.scenario)
    unit = unit_shown(metric.unit)
    shown = own.words(lambda value: number(value, metric.unit)) + (f" {unit}" if unit else "")
    asked = "" if row.most is None else f"at most {row.most:g}"
    found = [[what, OURS, shown, asked, "" if row.most is None else own.verdict(row.most, most=True)]]
    for library in libraries:
        compared = ratio(results, row, library)
        if library not in row.ratios or compared is None:
            continue
        least = row.ratios[library]
        words = compared.words(lambda value: f"{value:.2f}")
        found.append(["", f"to {library}", f"{words} x", f"{least:.2f}", compared.verdict(least)])
    return found


def table(results: Results, rows: Sequence[Row], libraries: Sequence[str], markdown: bool) -> str:
    head = ["", "", "median (95 % interval)", "asked", "reached"]
    body = [line for row in rows for line in lines(results, row, libraries)]
    if markdown:
        return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---", "---", "---:", "---:", "---"], *body])
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    padded = [[word.ljust(width) for word, width in zip(line, widths, strict=True)] for line in [head, *body]]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def request(rows: Sequence[Row], libraries: Sequence[str], repetitions: int, seed: int) -> Request:
    """What the lab is asked for: each scenario once, with the backends that its rows are about."""
    wanted: dict[str, set[str]] = {}
    for row in rows:
        wanted.setdefault(row.scenario, {OURS}).update(row.ratios.keys() & set(libraries))
    return Request(
        profile=WIRE,
        scenarios=tuple(replace(SCENARIOS[name], only=tuple(sorted(only))) for name, only in wanted.items()),
        backends=tuple(BACKENDS[name] for name in [*libraries, OURS]),
        repetitions=repetitions,
        order_seed=seed,
        output=Path("results/sockets.json"),
        json=False,
        command=" ".join(["python benches/sockets.py", *sys.argv[1:]]),
    )


def listed(parser: argparse.ArgumentParser, given: str, known: Sequence[str], what: str) -> list[str]:
    names = given.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown {what}: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def main() -> int:
    known = list(dict.fromkeys([*(row.definition.group for row in ROWS), *(row.scenario for row in ROWS)]))
    others = list(dict.fromkeys(name for row in ROWS for name in row.ratios))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(known), help="scenarios, or the part of their names before the dot")
    parser.add_argument("--libraries", default=",".join(others), help=f"of {', '.join(others)}")
    parser.add_argument("--repetitions", type=int, default=7, help="blocks")
    parser.add_argument("--order-seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--json", action="store_true", help="every run, as the lab's JSON, instead of the table")
    parser.add_argument("--markdown", action="store_true", help="the table as the documents have it")
    options = parser.parse_args()
    names = listed(parser, options.rows, known, "rows")
    libraries = listed(parser, options.libraries, others, "libraries")
    if options.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    rows = [row for row in ROWS if row.scenario in names or row.definition.group in names]
    asked = request(rows, libraries, options.repetitions, options.order_seed)
    cells = cells_of(asked.scenarios, asked.backends)
    skipped = {cell.key: cell.missing() for cell in cells}
    progress = Progress(sys.stderr, sum(reason is None for reason in skipped.values()) * asked.repetitions)
    for (scenario, library), reason in skipped.items():
        if reason:
            progress.note(f"{scenario} on {library}: left out ({reason})")
    results = measure(asked, progress, skipped)
    if options.json:
        json.dump(results.to_json(), sys.stdout, indent=1)
        print()
    else:
        versions = [f"{package} {version}" for package, version in results.versions().items() if package != OURS]
        said = ", ".join([f"CPython {platform.python_version()}", *versions])
        print(f"`{asked.command}`, {said}: medians of {asked.repetitions} blocks, order seed {asked.order_seed}\n")
        print(table(results, rows, libraries, options.markdown))
    return 0 if all(outcome.status != "failed" for outcome in results.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
