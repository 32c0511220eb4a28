"""How figures are put into words: units, intervals, and the sentence that says where tideloop is behind."""

from __future__ import annotations

from tideloop.lab.results import Results
from tideloop.lab.summary import Figure, best, times_better


def number(value: float, unit: str) -> str:
    """A figure with as many digits as a reader can use."""
    value = shown(value, unit)
    if unit == "sleeps":
        return f"{value:,.0f}"
    if unit == "ratio":
        return f"{value:.3f}"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"


def shown(value: float, unit: str) -> float:
    """The value in the unit that is shown: seconds become milliseconds."""
    return value * 1e3 if unit == "s" else value


def unit_shown(unit: str) -> str:
    """The unit that goes with `number`: seconds are shown as milliseconds."""
    return {"s": "ms", "us": "µs", "ratio": "", "sleeps": ""}.get(unit, unit)


def interval(figure: Figure) -> str:
    if figure.ci_low is None or figure.ci_high is None:
        return f"n={figure.n}, no interval"
    return f"{number(figure.ci_low, figure.unit)} to {number(figure.ci_high, figure.unit)}"


def losses(results: Results, ours: str = "tideloop") -> list[str]:
    """A sentence for each metric in which `ours` ran and is not first, or is not ranked."""
    found = []
    for scenario in results.scenarios:
        for metric in scenario.metrics:
            figures = results.figures(scenario.name, metric.name)
            mine = next((figure for figure in figures if figure.library == ours), None)
            first = best(figures)
            if mine is not None and mine.unranked and metric is scenario.primary:
                found.append(f"{scenario.name}: {ours} {mine.unranked} and is not ranked")
            if mine is None or mine.unranked or first is None or first.median == mine.median:
                continue
            ratio = times_better(first, mine)
            by = f" by {ratio:.2f}x" if ratio is not None else ""
            doubt = "; the intervals overlap, so it may be chance" if mine.overlaps(first) else ""
            found.append(f"{scenario.name}, {metric.title}: {first.library} is ahead{by}{doubt}")
    return found
