"""A flame graph as one SVG: the callers above, what they called below, as wide as it took long.

Every frame says its all when the pointer rests on it. The colours follow the reader's light or dark setting.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from tideloop.observe.flames import Flame
from tideloop.observe.wording import percent, seconds

__all__ = ["picture"]

_STYLE = """
:root { --paper: #ffffff; --ink: #1b2127; --soft: #5b6670; --edge: #ffffff; --on: #20160d;
  --program: #f0a868; --package: #e9d08f; --python: #cfd6dc; --loop: #a9cbe6; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14191f; --ink: #e6ebef; --soft: #9caab6; --edge: #14191f; --on: #f6efe8;
    --program: #9c5a1e; --package: #77621f; --python: #46525d; --loop: #2f5f85; }
}
text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.soft { fill: var(--soft); } .on { fill: var(--on); pointer-events: none; }
.paper { fill: var(--paper); } rect { stroke: var(--edge); } .paper, .key { stroke: none; }
.program { fill: var(--program); } .package { fill: var(--package); } .python { fill: var(--python); }
.loop { fill: var(--loop); } g:hover > rect { stroke: var(--ink); }
"""
_ROW, _TOP, _SIDE, _LETTER, _NARROW = 19, 58, 12, 6.4, 0.3
"""Pixels: a row's height, the space above the rows and at the sides, a letter's width, the least width of a frame."""
_DEEPEST = 400

_KEY = (("loop", "loop"), ("program", "the program"), ("package", "packages"), ("python", "Python's library"))


def picture(root: Flame, width: int = 1200) -> str:
    """The flame graph of `root`, whose own name is the title."""
    depth = min(root.depth() - 1, _DEEPEST)
    height = _TOP + depth * _ROW + _SIDE
    scale = (width - 2 * _SIDE) / (root.seconds or 1.0)
    title = f"{root.frame.function}: {seconds(root.seconds)} blocked"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" aria-label="{_text(title)}">',
        f"<title>{_text(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        f'<text x="{_SIDE}" y="20">{_text(_short(title, width - 2 * _SIDE))}</text>',
        *_key(),
        *_rows(root, scale),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _rows(root: Flame, scale: float) -> Iterator[str]:
    waiting = [(root, float(_SIDE), -1)]
    while waiting:
        flame, left, level = waiting.pop()
        if level >= 0:
            yield _bar(flame, left, _TOP + level * _ROW, flame.seconds * scale, flame.seconds / (root.seconds or 1.0))
        if level + 1 >= _DEEPEST:
            continue
        for call in sorted(flame.calls.values(), key=lambda call: call.frame):
            if call.seconds * scale >= _NARROW:
                waiting.append((call, left, level + 1))
            left += call.seconds * scale


def _bar(flame: Flame, left: float, top: int, width: float, share: float) -> str:
    label = flame.frame.label()
    causes = ", ".join(
        f"{cause} {seconds(took)}" for cause, took in sorted(flame.causes.items(), key=lambda cause: -cause[1])
    )
    where = f"\n{flame.frame.file}:{flame.frame.line}" if flame.frame.file else ""
    says = f"{flame.frame.function}{where}\n{seconds(flame.seconds)}, {percent(share)} of the blocked time\n{causes}"
    bar = (
        f'<g><title>{_text(says)}</title><rect class="{flame.frame.owner() or "loop"}" x="{left:.1f}" y="{top}"'
        f' width="{max(width, _NARROW):.1f}" height="{_ROW - 1}" rx="2"/>'
    )
    if words := _short(label, width - 6):
        bar += f'<text class="on" x="{left + 4:.1f}" y="{top + 13}">{_text(words)}</text>'
    return bar + "</g>"


def _key() -> Iterator[str]:
    x = _SIDE
    for kind, words in _KEY:
        yield f'<rect class="{kind} key" x="{x}" y="32" width="10" height="10" rx="2"/>'
        yield f'<text class="soft" x="{x + 15}" y="41">{_text(words)}</text>'
        x += 34 + int(len(words) * _LETTER)


def _short(words: str, room: float) -> str:
    """As much as there is room for; nothing if that is too little to be told from others."""
    letters = int(room / _LETTER)
    if len(words) <= letters:
        return words
    return words[: letters - 1] + "…" if letters >= 4 else ""


def _text(words: str) -> str:
    """As it may stand in XML, which knows no way to write most control characters."""
    return escape("".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in words))
