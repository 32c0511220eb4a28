"""One failure told to several callers: each gets an exception of his own."""

from __future__ import annotations

import contextlib
import copy
import copyreg

__all__ = ["LoadCancelled", "WorkFailed", "own_copy"]


class LoadCancelled(RuntimeError):
    """What a caller waited for was cancelled, though the caller was not: by what ran it, or by itself."""


class WorkFailed(RuntimeError):
    """What a caller waited for was done by another process, and failed there."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        """Module and name of the exception's type, such as ``builtins.ValueError``."""
        self.text = text
        """What it said."""

    def __str__(self) -> str:
        return f"failed in another process: {self.kind.removeprefix('builtins.')}: {self.text}"


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
    with contextlib.suppress(Exception):  # of a frozen dataclass, too
        made = _another(error)
        if type(made) is type(error):
            made.__cause__ = error.__cause__
            made.__context__ = error.__context__
            made.__suppress_context__ = error.__suppress_context__
            return made.with_traceback(error.__traceback__)
    return error


def _another(error: BaseException) -> BaseException | None:
    kind = type(error)
    try:
        made = copy.copy(error)
    except Exception:
        # Mostly its __init__ wants other arguments than those that it has handed on.
        native = next(base for base in kind.__mro__ if not base.__flags__ & 1 << 9)
        if native.__basicsize__ != BaseException.__basicsize__ or copyreg._slotnames(kind):  # type: ignore[attr-defined]
            return None
        made = kind.__new__(kind, *error.args)
        made.__dict__.update(error.__dict__)
    # Its __init__ may have made others of them: f"no {key}" of "no 7".
    made.args = error.args
    if isinstance(notes := getattr(error, "__notes__", None), list):
        made.__notes__ = list(notes)
    return made
