"""Child interpreters whose system calls misbehave: see syscalls.c.

In a child that `run_shimmed` starts, `from tests.shim import shim` gives the library's functions, and the names
of the calls that can fail are in `CALLS`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.peers import run_child

CALLS = ("accept", "recv", "send", "sendmsg", "sendfile")

_SOURCE = Path(__file__).with_name("syscalls.c")


@functools.cache
def _library() -> str:
    """The compiled library; it lives as long as this process."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("needs Linux and a C compiler")
    folder = tempfile.TemporaryDirectory(prefix="tideloop-shim-")
    _kept.append(folder)
    target = str(Path(folder.name) / "shim.so")
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", target, _SOURCE, "-ldl"], check=True)
    return target


_kept: list[tempfile.TemporaryDirectory] = []


def run_shimmed(backend, source: str, **environment: str) -> subprocess.CompletedProcess:
    """`run_child` with the library before libc."""
    if backend.name == "uvloop":
        pytest.skip("libuv makes other system calls")
    before = os.environ.get("LD_PRELOAD")  # a sanitizer, which must come first
    return run_child(backend, source, LD_PRELOAD=":".join(filter(None, [before, _library()])), **environment)


class _Shim:
    """The functions of the library that this process was started with."""

    @functools.cached_property
    def _functions(self) -> ctypes.CDLL:
        library = ctypes.CDLL(None)
        library.shim_random.argtypes = [ctypes.c_uint64, ctypes.c_uint]
        library.shim_count.restype = ctypes.c_ulong
        library.shim_received_into.restype = ctypes.c_void_p
        return library

    def fail(self, call: str, code: int, times: int = 1) -> None:
        """Let the next calls fail with an error number."""
        self._functions.shim_fail(CALLS.index(call), code, times)

    def misbehave(self, seed: int, percent: int) -> None:
        """From now on, let a share of the calls be interrupted, find nothing, or do less than asked."""
        self._functions.shim_random(seed, percent)

    def counts(self) -> tuple[int, int, int]:
        """Calls seen, failed, and cut short."""
        return tuple(self._functions.shim_count(what) for what in range(3))

    def received_into(self) -> int:
        """The address of the buffer of the last receive."""
        return self._functions.shim_received_into()


shim = _Shim()
