"""One thing that is wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["SEVERITIES", "Finding"]

SEVERITIES = ("problem", "warning", "note")
"""A problem is bad now; a warning will be, or is now and then; a note says what could not be seen: all may be well."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a verdict says."""

    kind: str
    """Which verdict: ``blocks``, ``leak``, ``limiter``, …; does not change between versions."""
    severity: Literal["problem", "warning", "note"]
    says: str
    """A sentence or two for people, with the numbers."""
    do: str
    """What to do about it."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """The numbers for programs; times in seconds."""

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)
