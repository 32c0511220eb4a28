"""A bar chart as inline SVG for the report: no script, no library, colours from the page's style."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tideloop.lab.summary import Figure
from tideloop.lab.wording import interval, number

WIDTH, LEFT, RIGHT, ROW, BAR = 720, 96, 120, 26, 16


def bars(figures: Sequence[Figure], label: str) -> str:
    """Horizontal bars from zero, each with its interval as a whisker and its median as text."""
    height = ROW * len(figures) + 6
    longest = max([figure.median for figure in figures] + [figure.ci_high or 0 for figure in figures]) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / longest
    rows = [_row(figure, ROW * index + ROW // 2 + 3, scale) for index, figure in enumerate(figures)]
    title = f"<title>{escape(label)}</title>"
    axis = f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="2" y2="{height - 2}"/>'
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{title}{"".join(rows)}{axis}</svg>'


def _row(figure: Figure, y: int, scale: float) -> str:
    kind = "unranked" if figure.unranked else "ours" if figure.library == "tideloop" else "bar"
    length = max(figure.median, 0) * scale
    end = length
    whisker = ""
    if figure.ci_low is not None and figure.ci_high is not None:
        low, high = LEFT + max(figure.ci_low, 0) * scale, LEFT + max(figure.ci_high, 0) * scale
        path = f"M{low:.1f} {y - 4}v8M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - 4}v8"
        whisker = f'<path class="whisker" d="{path}"/>'
        end = max(end, high - LEFT)
    hint = f"<title>{escape(figure.library)}: {interval(figure)}</title>"
    return (
        f'<text class="name" x="{LEFT - 8}" y="{y + 4}">{escape(figure.library)}</text>'
        f'<rect class="{kind}" x="{LEFT}" y="{y - BAR // 2}" width="{length:.1f}" height="{BAR}" rx="2">{hint}</rect>'
        f'{whisker}<text class="value" x="{LEFT + end + 8:.1f}" y="{y + 4}">{number(figure.median, figure.unit)}</text>'
    )
