"""One failure told to several callers: each gets an exception of his own."""

from __future__ import annotations

import contextlib
import copy

__all__ = ["LoadCancelled", "own_copy"]


class LoadCancelled(RuntimeError):
    """What a caller waited for was cancelled, though the caller was not: by what ran it, or by itself."""


def own_copy(error: BaseException) -> BaseException:
    """An exception like `error`, with the traceback that it has by now, its cause, its context and its notes.

    Raising one exception in several tasks would let its traceback grow by the frames of all of them. One that
    cannot be copied, or whose copy is another thing, is handed out itself. StopIteration, which no future takes, is
    the cause of a RuntimeError, as when a coroutine raises it.
    """
    if isinstance(error, StopIteration):
        stopped = RuntimeError(f"raised {error!r}")
        stopped.__cause__ = error
        return stopped
    made = None
    with contextlib.suppress(Exception):
        made = copy.copy(error)
    if type(made) is not type(error):
        return error
    made.__cause__ = error.__cause__
    made.__context__ = error.__context__
    made.__suppress_context__ = error.__suppress_context__
    return made.with_traceback(error.__traceback__)
