"""Who blocks the loops."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tideloop.observe.stacks import culprit
from tideloop.observe.verdicts.finding import Finding
from tideloop.observe.verdicts.window import Window
from tideloop.observe.wording import percent, place, plural, seconds, whose

__all__ = ["blocked_now", "who_blocks"]

LOOKED_BACK = 600.0
"""Seconds; blocks that ended earlier are not told."""
MUCH = 0.05
"""Of the time, and
"""
LONG = 1.0
"""seconds for one block: from these on it is a problem, else a warning."""

_REMEDIES = {
    "syscall": "await an asynchronous call instead, or call it by tideloop.run_blocking()",
    "python": "compute it in a process (tideloop.run_blocking), or in portions (await tideloop.checkpoint())",
    "c": "call it by tideloop.run_blocking(), in a process if it keeps the GIL, or give it less at a time",
    "gil_wait": "another thread keeps the GIL: find its work, and move it to a process",
    "gc": "the garbage collector takes long: gc.freeze() after the start, fewer cycles, or gc.collect() at quiet times",
    "cpu_starved": "the machine has no processor for it: fewer busy processes, or a larger share for this one",
}
_REMEDIES["cpu"] = _REMEDIES["python"]


def blocked_now(window: Window) -> Iterator[Finding]:
    """A loop that is blocked at this moment, for as long as a block is long."""
    for loop in window.after.loops["loops"]:
        lasts = loop.get("blocked_for")
        if lasts is None:
            continue
        block = next(
            (
                block
                for block in reversed(window.after.blocks["blocks"])
                if block["loop"] == loop["id"] and not block["ended"]
            ),
            None,
        )
        name = window.loop_name(loop["id"])
        evidence: dict[str, Any] = {"loop": name, "blocked_for": lasts}
        says = f"The loop of {name} has been blocked for {seconds(lasts)} and still is"
        remedy = 'see "tideloop blocked"'
        if block is not None:
            frame = _frame(block)
            evidence |= {"frame": list(frame), "cause": block["cause"], "task": block.get("task") or None}
            says += f", by {_at(frame)}" + (f" in task {block['task']!r}" if block.get("task") else "")
            says += f" (cause: {block['cause']})"
            remedy = _REMEDIES.get(block["cause"], remedy)
        yield Finding("blocked", "problem", says + ".", remedy, evidence)


def who_blocks(window: Window) -> Iterator[Finding]:
    """Frames that have blocked a loop in the last minutes, with their share of the time."""
    now = window.after.at
    recent = [block for block in window.after.blocks["blocks"] if block["ended"] and now - block["at"] <= LOOKED_BACK]
    if not recent:
        return
    span = max(now - min(block["at"] for block in recent), window.seconds)
    by_frame: defaultdict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for block in recent:
        by_frame[block["loop"], *_frame(block)].append(block)
    for (loop, *frame), blocks in sorted(by_frame.items(), key=lambda item: -_total(item[1])):
        total, longest = _total(blocks), max(block["duration"] for block in blocks)
        share = min(total / span, 1.0)
        causes = [block["cause"] for block in blocks]
        cause = max(sorted(set(causes)), key=causes.count)
        yield Finding(
            "blocks",
            "problem" if share >= MUCH or longest >= LONG else "warning",
            f"{_at(frame)} has blocked the loop of {window.loop_name(loop)} {plural(len(blocks), 'time')} in the last "
            f"{seconds(span)}, for {seconds(total)} in all ({percent(share)} of the time), {seconds(longest)} at the "
            f"longest (cause: {cause}).",
            _REMEDIES.get(cause, 'see "tideloop blocked" for the stacks'),
            {
                "loop": window.loop_name(loop),
                "frame": frame,
                "count": len(blocks),
                "total": total,
                "longest": longest,
                "share": share,
                "span": span,
                "cause": cause,
            },
        )


def _total(blocks: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(block["duration"] for block in blocks))


def _frame(block: Mapping[str, Any]) -> tuple[str, int, str]:
    frame = culprit(block["stack"])
    return frame or (block.get("file") or "", block.get("line") or 0, whose({"what": block.get("what")}))


def _at(frame: Sequence[Any]) -> str:
    file, line, function = frame
    where = place(file, line)
    return f"{function} ({where})" if where else str(function)
