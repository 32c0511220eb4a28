"""How handles present themselves: asyncio's words for asyncio's concepts."""

from __future__ import annotations

import asyncio
from asyncio import format_helpers
from typing import Any

__all__ = ["describe", "describe_call"]


def describe(handle: Any) -> str:
    """repr() of a native handle, in asyncio's form."""
    if handle._repr is not None:
        return str(handle._repr)
    return _describe(handle, handle._callback, handle._args)


def describe_call(handle: Any, callback: Any, args: Any) -> str:
    """What a handle ran, as the slow-callback warning says it: a task, or a callback."""
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        return repr(task)
    return _describe(handle, callback, args)


def _describe(handle: Any, callback: Any, args: Any) -> str:
    parts = [handle.__class__.__name__]
    if handle._cancelled:
        parts.append("cancelled")
    if hasattr(handle, "when"):
        parts.append(f"when={handle.when()}")
    if callback is not None:
        parts.append(format_helpers._format_callback_source(callback, args))
    elif not handle._cancelled:
        parts.append("finished")
    if handle._source_traceback:
        frame = handle._source_traceback[-1]
        parts.append(f"created at {frame[0]}:{frame[1]}")
    return f"<{' '.join(parts)}>"
