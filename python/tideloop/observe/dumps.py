"""Traces that are written to files by themselves: ``tideloop.observe.dump_traces()``.

A native thread writes them (``crates/py/src/observe/dumps.rs``), which needs neither a loop nor the GIL. What Python
has to do with it is here: checking what was asked for, forks, and the end of the interpreter.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys

from tideloop._tideloop import dumps_begin, dumps_forked, dumps_resume, dumps_stop, signal_handler

__all__ = ["dump_traces", "stop_dumping_traces"]

_hooked = False


def dump_traces(
    folder: str | os.PathLike[str],
    *,
    on_block: bool = True,
    on_signal: int | None = None,
    seconds: float | None = None,
    most: int = 16,
) -> None:
    """Write what the loops that are traced did of late to files in ``folder``, from now on.

    With ``on_block`` a block is written when it is seen, while it lasts, and again, to the same file, when it has
    ended: ``trace-PID-block-NUMBER.json``; one that begins within a second of another one is passed over. With
    ``on_signal``, a signal that nobody handles, whenever it comes, also while C code holds the GIL:
    ``trace-PID-signal-NUMBER.json``. The files are Chrome trace JSON of all loops that were made with
    ``observe="trace"``, of the last ``seconds`` or of all that is kept; without such a loop there are none. The last
    ``most`` files of this process are kept. What cannot be written is told to standard error.

    Once for a process; the second time replaces what was said the first time. A forked child does the same, from its
    first loop on; its signal is the same one. ``TIDELOOP_TRACE_DUMPS=FOLDER``, with ``TIDELOOP_TRACE_SIGNAL=SIGUSR2``
    if there is to be one, does this when the first loop that is traced runs.

    Raises NotADirectoryError for a folder that is none; ValueError for a signal that is none or that somebody handles,
    for a negative number of seconds, and for less than one file; NotImplementedError for a signal where there are none.
    """
    global _hooked
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"folder is {os.fspath(folder)!r}; expected a directory")
    if seconds is not None and not seconds >= 0:
        raise ValueError(f"seconds is {seconds!r}; expected a number of at least 0, or None")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"most is {most!r}; expected a number of at least 1")
    stop_dumping_traces()
    if on_signal is not None:
        _check_signal(on_signal)
    dumps_begin(os.path.abspath(folder), bool(on_block), on_signal, seconds, most)
    if not _hooked:
        _hooked = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=lambda: dumps_stop(False),
                after_in_parent=lambda: dumps_resume(True),
                after_in_child=dumps_forked,
            )
        atexit.register(dumps_stop, True)


def stop_dumping_traces() -> None:
    """Write no more traces; what was begun is written first. The signal does what it does by itself again."""
    dumps_stop(True)


def _check_signal(number: int) -> None:
    if sys.platform == "win32":
        raise NotImplementedError("on_signal: Windows has no signals that a process could be sent")
    if number not in signal.valid_signals():
        raise ValueError(f"on_signal is {number!r}; expected a signal")
    if signal.getsignal(number) is not signal.SIG_DFL or signal_handler(number) != 0:
        raise ValueError(f"on_signal is {number!r}, which somebody handles already, or which is ignored")


def dump_if_asked() -> None:
    """A loop that is traced runs in this process for the first time: does what the environment says."""
    folder = os.environ.get("TIDELOOP_TRACE_DUMPS")
    if _hooked or not folder:
        # In a forked child.
        dumps_resume(False)
        return
    asked = os.environ.get("TIDELOOP_TRACE_SIGNAL")
    number = getattr(signal, asked, None) if asked else None
    if asked and not isinstance(number, signal.Signals):
        raise ValueError(f"TIDELOOP_TRACE_SIGNAL is {asked!r}; expected a signal's name, such as 'SIGUSR2'")
    dump_traces(folder, on_signal=number)
