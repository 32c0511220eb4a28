"""How graphs and their runs look: Mermaid's text, and a timeline as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

__all__ = ["Bar", "mermaid", "timeline"]

_COLOURS = {
    "succeeded": "fill:#d6e9f8,stroke:#2a6f9e,color:#12202b",
    "failed": "fill:#f9d7d3,stroke:#b3261e,color:#2b1210",
    "cancelled": "fill:#f4e6c8,stroke:#8a6100,color:#2b2110",
    "skipped": "fill:#e6e8ea,stroke:#6b747c,color:#22282d,stroke-dasharray:4 3",
}
"""Of a node by its state: dark words on a light ground of their own, whatever is behind."""


def mermaid(names: Sequence[str], needs: Sequence[Sequence[int]], states: Sequence[str] = ()) -> str:
    """A graph as a flow chart in Mermaid's language."""
    lines = ["flowchart LR"]
    for number, name in enumerate(names):
        colour = f":::{states[number]}" if states and states[number] in _COLOURS else ""
        lines.append(f'    n{number}["{_quoted(name)}"]{colour}')
    lines += [f"    n{before} --> n{number}" for number, need in enumerate(needs) for before in need]
    lines += [f"    classDef {state} {colour}" for state, colour in _COLOURS.items() if state in states]
    return "\n".join(lines) + "\n"


def _quoted(name: str) -> str:
    """A name as Mermaid takes it between quotes: what has a meaning there by its number."""
    return "".join(
        char if char.isalnum() or char in " _-.,:/()[]{}" else "#10;" if char == "\n" else f"#{ord(char)};"
        for char in name
    )


class Bar(NamedTuple):
    """A node that ran; times in seconds since the run began."""

    name: str
    state: str
    ready: float
    started: float
    ended: float
    critical: bool


_STYLE = """
:root { --paper: #ffffff; --ink: #1b2127; --soft: #5b6670; --line: #dfe4e8; --done: #3b82b8; --critical: #c2560c;
  --failed: #c0281f; --cancelled: #8a6a14; --wait: #b9c4cd; --on: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14191f; --ink: #e6ebef; --soft: #9caab6; --line: #2b343d; --done: #6fb3e0; --critical: #f2a35e;
    --failed: #f28b82; --cancelled: #d9b65c; --wait: #465361; --on: #0d1116; }
}
text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.soft { fill: var(--soft); } .on { fill: var(--on); }
.paper { fill: var(--paper); } .line { stroke: var(--line); } .wait { fill: var(--wait); }
.succeeded { fill: var(--done); } .critical { fill: var(--critical); }
.failed { fill: var(--failed); } .cancelled { fill: var(--cancelled); }
"""
_ROW, _TOP, _SIDE, _LETTER = 22, 58, 12, 6.6
"""Heights and widths in pixels: of a row, above the rows, at the sides, of a letter."""


def timeline(title: str, bars: Sequence[Bar], took: float, width: int) -> str:
    """Bars along a time axis, each in the first row that is free when it is ready."""
    span = took or 1e-9
    scale = (max(width, 200) - 2 * _SIDE) / span
    rows: list[float] = []
    drawn: list[str] = []
    for bar in sorted(bars, key=lambda bar: (bar.ready, bar.started)):
        row = next((row for row, free in enumerate(rows) if free <= bar.ready), len(rows))
        rows[row : row + 1] = [bar.ended]
        drawn.append(_bar(bar, _TOP + row * _ROW, scale))
    height = _TOP + len(rows) * _ROW + _SIDE
    width = max(width, 200)
    path = " → ".join(bar.name for bar in sorted(bars, key=lambda bar: bar.ended) if bar.critical)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" aria-label="{escape(title)}: {len(bars)} nodes in {_duration(took)}">',
        f"<title>{escape(title)}</title>",
        f"<desc>Critical path: {escape(path)}</desc>",
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        f'<text x="{_SIDE}" y="18">{escape(_short(title, width * 0.6))}: {len(bars)} nodes in {_duration(took)}</text>',
        *_legend({bar.state for bar in bars}, width),
        *_axis(span, scale, height),
        *drawn,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _bar(bar: Bar, top: float, scale: float) -> str:
    kind = "critical" if bar.critical and bar.state == "succeeded" else bar.state
    left, start, end = (_SIDE + time * scale for time in (bar.ready, bar.started, bar.ended))
    length = max(end - start, 1.0)
    words = f"{bar.name}: {bar.state} after {_duration(bar.ended - bar.started)}"
    if bar.started > bar.ready:
        words += f", waited {_duration(bar.started - bar.ready)}"
    if bar.critical:
        words += ", on the critical path"
    parts = [f'<g class="node"><title>{escape(words)}</title>']
    if start - left >= 0.5:
        parts.append(
            f'<rect class="wait" x="{left:.1f}" y="{top + 7}" width="{start - left:.1f}" height="{_ROW - 18}"/>'
        )
    parts.append(f'<rect class="{kind}" x="{start:.1f}" y="{top}" width="{length:.1f}" height="{_ROW - 4}" rx="2"/>')
    if name := _short(bar.name, length - 8):
        parts.append(f'<text class="on" x="{start + 4:.1f}" y="{top + 13}">{escape(name)}</text>')
    return "".join(parts) + "</g>"


def _short(name: str, room: float) -> str:
    """As much of a name as there is room for; nothing if that is too little to be told from others."""
    letters = int(room / _LETTER)
    if len(name) <= letters:
        return name
    return name[: letters - 1] + "…" if letters >= 4 else ""


def _legend(states: set[str], width: int) -> list[str]:
    words = [
        ("critical", "critical path"),
        ("succeeded", "succeeded"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
    ]
    shown = [(kind, word) for kind, word in words if kind == "critical" or kind in states]
    shown.append(("wait", "ready, waiting"))
    parts = []
    x = float(_SIDE)
    for kind, word in shown:
        if x + 16 + len(word) * _LETTER > width:
            break
        parts.append(f'<rect class="{kind}" x="{x:.0f}" y="26" width="10" height="10" rx="2"/>')
        parts.append(f'<text class="soft" x="{x + 14:.0f}" y="35">{word}</text>')
        x += 30 + len(word) * _LETTER
    return parts


def _axis(span: float, scale: float, height: int) -> list[str]:
    """Lines at round times."""
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 8)
    parts = []
    for tick in range(int(span / step + 1e-9) + 1):
        x = _SIDE + tick * step * scale
        parts.append(f'<line class="line" x1="{x:.1f}" y1="52" x2="{x:.1f}" y2="{height - 6}"/>')
        parts.append(f'<text class="soft" x="{x + 2:.1f}" y="51">{_duration(tick * step)}</text>')
    return parts


def _duration(seconds: float) -> str:
    """Seconds as people read them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return "0 s" if seconds == 0 else f"{seconds / 1e-9:.3g} ns"
