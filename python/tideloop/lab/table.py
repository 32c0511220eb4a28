"""The result table for a terminal: a block for each scenario, a row for each backend, the best of a column marked."""

from __future__ import annotations

from tideloop.lab.results import Outcome, Results
from tideloop.lab.scenarios import Scenario
from tideloop.lab.summary import best, times_better
from tideloop.lab.wording import interval, losses, number, unit_shown

BOLD, DIM, RED, GREEN, RESET = "\033[1m", "\033[2m", "\033[31m", "\033[32m", "\033[0m"


def render(results: Results, colours: bool = False) -> str:
    """The whole table as text that ends in a newline."""
    blocks = [_block(results, scenario, colours) for scenario in results.scenarios]
    blocks.append(_verdict(results))
    return "\n".join(blocks)


def _block(results: Results, scenario: Scenario, colours: bool) -> str:
    header = ["", scenario.primary.title, "95 % interval", f"vs {scenario.baseline}"]
    header += [metric.title for metric in scenario.metrics[1:]]
    units = ["", unit_shown(scenario.primary.unit), "", ""]
    units += [unit_shown(metric.unit) for metric in scenario.metrics[1:]]
    header = [f"{title}, {unit}" if unit else title for title, unit in zip(header, units, strict=True)]
    columns = [_short(title) for title in header]
    outcomes = results.outcomes_in(scenario)
    rows = [_row(results, scenario, outcome) for outcome in outcomes if outcome.status == "ok"]
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    widths[0] = max([widths[0], *(len(outcome.cell.backend.name) for outcome in outcomes)])
    lines = [_paint(f"{scenario.name}: {scenario.title}", BOLD, colours), _paint(_line(columns, widths), DIM, colours)]
    for row in rows:
        line = _line(row, widths)
        lines.append(_paint(line, GREEN, colours) if row[1].endswith("*") else line)
    for outcome in outcomes:
        if outcome.status != "ok":
            line = f"  {outcome.cell.backend.name.ljust(widths[0])}  {outcome.status}: {outcome.reason}"
            lines.append(_paint(line, RED if outcome.status == "failed" else DIM, colours))
    for note in _notes(outcomes):
        lines.append(_paint(note, DIM, colours))
    for note, reached in _goals(scenario, outcomes):
        lines.append(_paint(note, GREEN if reached else RED, colours))
    return "\n".join(lines) + "\n"


def _row(results: Results, scenario: Scenario, outcome: Outcome) -> list[str]:
    figures = {figure.metric: figure for figure in outcome.figures}
    mine = figures[scenario.primary.name]
    name = outcome.cell.backend.name + ("!" if mine.unranked else "")
    cells = [name]
    for metric in scenario.metrics:
        figure = figures.get(metric.name)
        everyone = results.figures(scenario.name, metric.name)
        leader = best(everyone)
        # A mark says something only where somebody is behind.
        told_apart = leader is not None and any(other.median != leader.median for other in everyone)
        mark = "*" if told_apart and figure is leader and metric.unit != "sleeps" else " "
        cells.append("-" if figure is None else number(figure.median, figure.unit) + mark)
        if metric is scenario.primary:
            cells += [interval(mine), _versus(results, scenario, outcome)]
    return cells


def _versus(results: Results, scenario: Scenario, outcome: Outcome) -> str:
    figures = {figure.library: figure for figure in results.figures(scenario.name, scenario.primary.name)}
    base = figures.get(scenario.baseline)
    ratio = times_better(figures[outcome.cell.backend.name], base) if base else None
    return "-" if ratio is None else f"{ratio:.2f}x"


def _notes(outcomes: list[Outcome]) -> list[str]:
    return [
        f"  ! {outcome.cell.backend.name} {outcome.figures[0].unranked}: less work than asked, not ranked"
        for outcome in outcomes
        if outcome.figures and outcome.figures[0].unranked
    ]


def _goals(scenario: Scenario, outcomes: list[Outcome]) -> list[tuple[str, bool]]:
    """What is said of each goal of a scenario: the figure, and whether it is reached."""
    told = []
    for metric in (metric for metric in scenario.metrics if metric.goal is not None):
        for figure in (figure for outcome in outcomes for figure in outcome.figures if figure.metric == metric.name):
            assert metric.goal is not None
            reached = figure.median <= metric.goal
            word = "reached" if reached else "not reached"
            goal, found = number(metric.goal, metric.unit), number(figure.median, metric.unit)
            told.append((f"  goal: {metric.title} at most {goal}: {found}, {word} ({interval(figure)})", reached))
    return told


def _verdict(results: Results) -> str:
    lines = ["* best of its column; vs: how many times better than the baseline, above 1 is better."]
    if not any(outcome.status == "ok" and outcome.cell.backend.name == "tideloop" for outcome in results.outcomes):
        lines.append("tideloop did not run here, so nothing is said about it.")
    elif behind := losses(results):
        lines += ["Where tideloop is not first:", *(f"  {sentence}" for sentence in behind)]
    else:
        lines.append("tideloop is first in every column.")
    return "\n".join(lines) + "\n"


def _short(title: str) -> str:
    for long, short in (
        ("95th percentile", "p95"),
        ("99th percentile", "p99"),
        ("median ", "p50 "),
        (", closed loop", ""),
        ("sleeps that ended before their time", "early wakes"),
        ("time until all cancelled tasks ended", "settle time"),
        ("CPU time of the process", "CPU"),
        ("CPU time of the client", "client CPU"),
        ("server CPU time per request", "server CPU/request"),
    ):
        title = title.replace(long, short)
    return title


def _line(cells: list[str], widths: list[int]) -> str:
    first, *rest = (
        cell.ljust(width) if index == 0 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  " + "  ".join([first, *rest]).rstrip()


def _paint(text: str, colour: str, colours: bool) -> str:
    return f"{colour}{text}{RESET}" if colours else text
