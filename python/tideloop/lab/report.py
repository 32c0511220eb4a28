"""The report: one HTML file with everything in it, readable from disk, in light and dark, without a network."""

from __future__ import annotations

from html import escape
from importlib import resources
from typing import Any

from tideloop.lab.chart import bars
from tideloop.lab.results import Outcome, Results
from tideloop.lab.scenarios import Scenario
from tideloop.lab.summary import best, times_better
from tideloop.lab.wording import interval, losses, number, unit_shown

METHOD = """\
<p>Each figure is the median over fresh processes, one for each scenario, backend and run. The runs are interleaved:
every cell once in random order, then again, so that a slow minute of the machine hits all backends alike. The interval
is a 95&nbsp;% percentile bootstrap of the median; with fewer than three runs there is none, and with five it is close
to the range of the runs. No run is left out as an outlier. Every run checks its result (all tasks finished, every
echoed byte compared); a run that fails makes its cell a failed one.</p>
<p>Known biases: client and server share this machine, so requests per second depend on both, and CPU time per request
is the figure that ranks. The load is a closed loop: its latencies describe a saturated server and hide stalls. Loopback
has no network card and no loss. Repeated task churn favours loops with cheap tasks, which many services do not need. A
backend that wakes before its time in more than 1&nbsp;% of its sleeps did less work than asked: it is shown and not
ranked. Two medians whose intervals overlap may be in this order by chance.</p>
"""


def render(results: Results, document: dict[str, Any]) -> str:
    style = resources.files("tideloop.lab").joinpath("report.css").read_text(encoding="utf-8")
    parts = [
        _head(results, document["meta"]),
        _short(results),
        *(_section(results, scenario) for scenario in results.scenarios),
        _gaps(results),
        f"<section><h2>Method</h2>{METHOD}</section>",
        _versions(document["meta"]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>tideloop lab report</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">\n<style>\n{style}</style></head>\n<body><main>\n'
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _head(results: Results, meta: dict[str, Any]) -> str:
    runs = f"{results.repetitions} run{'s' * (results.repetitions > 1)} of each cell"
    gil = "" if meta["gil"] else ", free-threaded"
    facts = [
        f"profile {results.profile}, {runs}",
        f"{meta['implementation']} {meta['python']}{gil}",
        f"{meta['cpus']} CPUs",
        meta["timestamp"],
        f"order seed {results.order_seed}",
    ]
    stopped = "" if results.complete else '<p class="warn">Interrupted: not every run was made.</p>'
    facts_line = " · ".join(escape(fact) for fact in facts)
    return (
        f"<header><h1>tideloop lab report</h1><p>{facts_line}</p>"
        f"<p><code>{escape(results.command)}</code></p>{stopped}</header>"
    )


def _short(results: Results) -> str:
    lines = []
    for scenario in results.scenarios:
        first = best(results.figures(scenario.name, scenario.primary.name))
        if first is not None:
            link = f'<a href="#{scenario.name}">{scenario.name}</a>'
            unit = f" {unit_shown(scenario.primary.unit)}".rstrip()
            figure = f"{number(first.median, first.unit)}{unit}"
            lines.append(f"<li>{link}, {scenario.primary.title}: <b>{escape(first.library)}</b> ({figure})</li>")
    return f"<section><h2>First in each scenario</h2><ul>{''.join(lines)}</ul>{_behind(results)}</section>"


def _behind(results: Results) -> str:
    ran = any(o.status == "ok" and o.cell.backend.name == "tideloop" for o in results.outcomes)
    if not ran:
        return '<p class="warn">tideloop did not run here, so nothing is said about it.</p>'
    behind = losses(results)
    if not behind:
        return "<p>tideloop is first in every column.</p>"
    return f"<h3>Where tideloop is not first</h3><ul>{''.join(f'<li>{escape(line)}</li>' for line in behind)}</ul>"


def _section(results: Results, scenario: Scenario) -> str:
    figures = results.figures(scenario.name, scenario.primary.name)
    parameters = ", ".join(f"{name} = {value}" for name, value in scenario.params.items())
    caption = f"{scenario.primary.title}, {unit_shown(scenario.primary.unit)}".removesuffix(", ")
    caption = f"{caption} ({scenario.primary.better} is better)"
    chart = f"<figure>{bars(figures, caption)}<figcaption>{caption}</figcaption></figure>" if figures else ""
    return (
        f'<section id="{scenario.name}"><h2>{scenario.name}</h2><p>{escape(scenario.title)}</p>{chart}'
        f'<div class="wide">{_table(results, scenario)}</div><p class="small">{escape(parameters)}</p></section>'
    )


def _table(results: Results, scenario: Scenario) -> str:
    titles = [f"{metric.title}, {unit_shown(metric.unit)}".removesuffix(", ") for metric in scenario.metrics]
    head = "".join(f"<th>{title}</th>" for title in ("backend", f"vs {scenario.baseline}", *titles))
    rows = "".join(_row(results, scenario, outcome) for outcome in results.outcomes_in(scenario))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _row(results: Results, scenario: Scenario, outcome: Outcome) -> str:
    name = escape(outcome.cell.backend.name)
    if outcome.status != "ok":
        reason = escape(f"{outcome.status}: {outcome.reason}")
        return (
            f'<tr class="{outcome.status}"><th>{name}</th><td colspan="{len(scenario.metrics) + 1}">{reason}</td></tr>'
        )
    mine = {figure.metric: figure for figure in outcome.figures}
    cells = [f"<td>{_versus(results, scenario, outcome)}</td>"]
    for metric in scenario.metrics:
        figure = mine.get(metric.name)
        if figure is None:
            cells.append("<td>not measured</td>")
            continue
        everyone = results.figures(scenario.name, metric.name)
        told_apart = any(other.median != figure.median for other in everyone) and metric.unit != "sleeps"
        mark = ' class="best"' if told_apart and best(everyone) is figure else ""
        spread = f"<small>{interval(figure)}</small>" if figure.ci_low is not None else ""
        cells.append(f"<td{mark}>{number(figure.median, metric.unit)}{spread}</td>")
    note = f"<small>{escape(outcome.figures[0].unranked)}</small>" if outcome.figures[0].unranked else ""
    ours = ' class="us"' if outcome.cell.backend.name == "tideloop" else ""
    return f"<tr{ours}><th>{name}{note}</th>{''.join(cells)}</tr>"


def _versus(results: Results, scenario: Scenario, outcome: Outcome) -> str:
    figures = {figure.library: figure for figure in results.figures(scenario.name, scenario.primary.name)}
    base, mine = figures.get(scenario.baseline), figures.get(outcome.cell.backend.name)
    ratio = times_better(mine, base) if mine and base else None
    return "" if ratio is None else f"{ratio:.2f}x"


def _gaps(results: Results) -> str:
    gaps = [outcome for outcome in results.outcomes if outcome.status != "ok"]
    if not gaps:
        return "<section><h2>Skipped and failed cells</h2><p>None.</p></section>"
    items = "".join(
        f'<li class="{gap.status}">{gap.cell.scenario.name} on {escape(gap.cell.backend.name)}, {gap.status}: '
        f"{escape(gap.reason or '')}</li>"
        for gap in gaps
    )
    return f"<section><h2>Skipped and failed cells</h2><ul>{items}</ul></section>"


def _versions(meta: dict[str, Any]) -> str:
    versions = {meta["implementation"]: meta["python"]} | meta["versions"]
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(version)}</td></tr>" for name, version in versions.items())
    return f"<section><h2>Versions</h2><table><tbody>{rows}</tbody></table></section>"
