"""checkpoint(): a place in a computation where others may have their turn. Native: it stands in innermost loops."""

from __future__ import annotations

from tideloop._tideloop import checkpoint

__all__ = ["checkpoint"]
