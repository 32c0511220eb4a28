"""The pictures: the reference suite's four file names, and one each for echo and HTTP, as PNG and SVG.

The only module that imports matplotlib.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from tideloop.lab.results import Results, write_file
from tideloop.lab.scenarios import Metric, Scenario
from tideloop.lab.summary import Figure
from tideloop.lab.wording import number, shown, unit_shown

OURS, OTHERS, UNRANKED, INK = "#35a79c", "#9fb3c8", "#e3e8ee", "#243b53"
PNG_DPI = 150


@dataclass(frozen=True)
class Picture:
    file: str
    group: str
    # The first of these that a scenario has.
    metrics: tuple[str, ...]


PICTURES = (
    Picture("task_spawn", "task_spawn", ("tasks_per_sec",)),
    Picture("io_bound_ops", "io_bound", ("ops_per_sec",)),
    Picture("io_bound_latency", "io_bound", ("overshoot_p99_ms", "latency_p95_ms")),
    Picture("cancellation", "cancellation", ("settle_s",)),
    Picture("tcp_echo", "tcp_echo", ("server_cpu_us_per_request",)),
    Picture("http_50", "http_50", ("total_ms",)),
)


def write_all(results: Results, folder: Path) -> list[Path]:
    """Writes every picture that has something to show; returns the files."""
    written = []
    for picture in PICTURES:
        panels = [
            (scenario, metric)
            for scenario in results.scenarios
            if scenario.group == picture.group
            if (metric := _metric(scenario, picture)) and results.figures(scenario.name, metric.name)
        ]
        if panels:
            written += _write(results, folder / picture.file, panels)
    return written


def _metric(scenario: Scenario, picture: Picture) -> Metric | None:
    by_name = {metric.name: metric for metric in scenario.metrics}
    return next((by_name[name] for name in picture.metrics if name in by_name), None)


def _write(results: Results, stem: Path, panels: list[tuple[Scenario, Metric]]) -> list[Path]:
    rows = max(len(results.figures(scenario.name, metric.name)) for scenario, metric in panels)
    style: dict[Any, Any] = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "svg.hashsalt": stem.name}
    written = []
    with matplotlib.rc_context(style):
        size = (6.4 * len(panels), 1.5 + 0.42 * rows)
        figure, axes = pyplot.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
        for ax, (scenario, metric) in zip(axes[0], panels, strict=True):
            _bars(ax, scenario, metric, results.figures(scenario.name, metric.name))
        for suffix in (".png", ".svg"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if suffix == ".svg" else None
            figure.savefig(buffer, format=suffix[1:], dpi=PNG_DPI, metadata=metadata)
            path = stem.with_suffix(suffix)
            write_file(path, buffer.getvalue())
            written.append(path)
        pyplot.close(figure)
    return written


def _bars(ax: Axes, scenario: Scenario, metric: Metric, figures: list[Figure]) -> None:
    values = [shown(figure.median, metric.unit) for figure in figures]
    ends = []
    for row, (figure, value) in enumerate(zip(figures, values, strict=True)):
        colour = UNRANKED if figure.unranked else OURS if figure.library == "tideloop" else OTHERS
        ax.barh(row, value, height=0.66, color=colour, hatch="///" if figure.unranked else None, edgecolor="white")
        end = value
        if figure.ci_low is not None and figure.ci_high is not None:
            low, high = shown(figure.ci_low, metric.unit), shown(figure.ci_high, metric.unit)
            ax.plot([low, high], [row, row], color=INK, linewidth=1.4, solid_capstyle="butt")
            for edge in (low, high):
                ax.plot([edge, edge], [row - 0.14, row + 0.14], color=INK, linewidth=1.4)
            end = max(end, high)
        ends.append(end)
    room = max(ends) * 0.02
    for row, (figure, end) in enumerate(zip(figures, ends, strict=True)):
        note = " (woke early)" if figure.unranked else ""
        ax.text(end + room, row, number(figure.median, metric.unit) + note, va="center", fontsize=9)
    ax.set_yticks(range(len(figures)), [figure.library for figure in figures])
    ax.invert_yaxis()
    ax.set_xlim(0, max(ends) * 1.22)
    ax.set_title(scenario.name, loc="left", fontsize=11, fontweight="bold", pad=20)
    ax.text(0, 1.03, scenario.title, transform=ax.transAxes, fontsize=9)
    runs = max(figure.n for figure in figures)
    spread = "median, 95 % interval" if any(figure.ci_low is not None for figure in figures) else "median"
    unit = f"{metric.title}, {unit_shown(metric.unit)}".removesuffix(", ")
    label = f"{unit}: {metric.better} is better\n{spread}, {runs} run{'s' * (runs > 1)}"
    ax.set_xlabel(label, loc="left", fontsize=9)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(left=False)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    ax.locator_params(axis="x", nbins=6)
