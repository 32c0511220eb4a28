"""How handles present themselves: asyncio's words for asyncio's concepts."""

from __future__ import annotations

import asyncio
import sys
from asyncio import format_helpers
from typing import Any

__all__ = ["describe", "describe_call", "describe_source"]


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


def describe_source(callback: Any, args: Any, debug: bool) -> str:
    """A callback, its arguments and where it was defined. From 3.13 on, arguments are shown in debug mode only."""
    if sys.version_info >= (3, 13):
        return format_helpers._format_callback_source(callback, args, debug=debug)
    return format_helpers._format_callback_source(callback, args)


def _describe(handle: Any, callback: Any, args: Any) -> str:
    parts = [handle.__class__.__name__]
    if handle._cancelled:
        parts.append("cancelled")
    if hasattr(handle, "when"):
        parts.append(f"when={handle.when()}")
    if callback is not None:
        loop = handle._loop
        parts.append(describe_source(callback, args, loop is not None and loop.get_debug()))
    elif not handle._cancelled:
        parts.append("finished")
    if handle._source_traceback:
        frame = handle._source_traceback[-1]
        parts.append(f"created at {frame[0]}:{frame[1]}")
    return f"<{' '.join(parts)}>"
