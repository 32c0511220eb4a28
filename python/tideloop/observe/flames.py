"""Blocks as a flame graph: where the time went in which loops were blocked, by stack. As a tree, and for speedscope.

A block of a second that was looked at twenty times puts a twentieth of a second on each of the stacks seen. So the
weights are seconds of blocked loops and sum up to the blocks' durations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tideloop.observe.stacks import Owner, inside, owner
from tideloop.observe.wording import place

__all__ = ["Flame", "Frame", "Sample", "grow", "samples", "speedscope"]


class Frame(NamedTuple):
    """A line of a stack, or (without a file) the name of a loop."""

    function: str
    file: str
    line: int

    def label(self) -> str:
        """For people."""
        where = place(self.file, self.line)
        return f"{self.function} ({where})" if where else self.function

    def owner(self) -> Owner | None:
        """Whose code it is; None: it is no code."""
        return owner(self.file) if self.file else None


class Sample(NamedTuple):
    """A stack, the outermost frame first, and the seconds it stands for."""

    frames: tuple[Frame, ...]
    seconds: float
    cause: str


@dataclass(slots=True)
class Flame:
    """A frame in its callers, and what it called."""

    frame: Frame
    seconds: float = 0.0
    causes: dict[str, float] = field(default_factory=dict)
    calls: dict[Frame, Flame] = field(default_factory=dict)

    def depth(self) -> int:
        """How many frames there are above each other."""
        deepest, level = 0, [self]
        while level:
            deepest += 1
            level = [below for flame in level for below in flame.calls.values()]
        return deepest


def samples(blocks: Iterable[Mapping[str, Any]], loops: Mapping[int, str]) -> list[Sample]:
    """What the blocks put on which stacks; below each stack is its loop's name."""
    found = []
    for block in blocks:
        name = loops.get(block["loop"], f"loop {block['loop']}")
        stacks = block.get("stacks") or ([block["stack"]] if block["stack"] else [])
        root = Frame(name, "", 0)
        if not stacks:
            # It is known which step it was, and not where in it.
            place_ = Frame(block.get("what") or "not known", block.get("file") or "", block.get("line") or 0)
            found.append(Sample((root, place_), block["duration"], block["cause"]))
        for stack in stacks:
            frames = tuple(Frame(function, file, line) for file, line, function in reversed(inside(stack)))
            found.append(Sample((root, *frames), block["duration"] / len(stacks), block["cause"]))
    return found


def grow(taken: Iterable[Sample], title: str) -> Flame:
    """All stacks on each other."""
    root = Flame(Frame(title, "", 0))
    for sample in taken:
        flame = root
        flame.seconds += sample.seconds
        for frame in sample.frames:
            flame = flame.calls.setdefault(frame, Flame(frame))
            flame.seconds += sample.seconds
            flame.causes[sample.cause] = flame.causes.get(sample.cause, 0.0) + sample.seconds
    return root


def speedscope(taken: Iterable[Sample], title: str) -> str:
    """The samples as a file of speedscope's (https://www.speedscope.app), one profile for each loop."""
    frames: dict[Frame, int] = {}
    by_loop: dict[str, tuple[list[list[int]], list[float]]] = {}
    for sample in taken:
        loop, *stack = sample.frames
        stacks, weights = by_loop.setdefault(loop.function, ([], []))
        stacks.append([frames.setdefault(frame, len(frames)) for frame in stack])
        weights.append(sample.seconds)
    profiles = [
        {
            "type": "sampled",
            "name": f"{name}, blocked",
            "unit": "seconds",
            "startValue": 0,
            "endValue": sum(weights),
            "samples": stacks,
            "weights": weights,
        }
        for name, (stacks, weights) in by_loop.items()
    ]
    named = [
        {"name": frame.function}
        | ({"file": frame.file} if frame.file else {})
        | ({"line": frame.line} if frame.line else {})
        for frame in frames
    ]
    document = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": "tideloop",
        "name": title,
        "activeProfileIndex": 0,
        "shared": {"frames": named},
        "profiles": profiles,
    }
    return json.dumps(document, indent=1) + "\n"
