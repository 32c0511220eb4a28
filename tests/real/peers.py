"""Packages that may be missing, and programs that the tests run and end."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

REQUIRED = os.environ.get("TIDELOOP_REAL") == "required"
"""Whether a missing package or server fails its tests instead of skipping them."""

ROOT = Path(__file__).parents[2]
PYTHON = (sys.executable, "-X", "dev", "-W", "error")
"""How the tests run Python programs: warnings are errors there, too."""

PATIENCE = 20.0
"""Seconds until a program that does not do what it should is given up."""


def absent(what: str) -> NoReturn:
    """Fails if everything must be there, skips otherwise."""
    if REQUIRED:
        pytest.fail(f"TIDELOOP_REAL=required, but {what}", pytrace=False)
    pytest.skip(what, allow_module_level=True)


def package(name: str) -> Any:
    """Imports a package; without it the whole test module is skipped, or fails if everything must be there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if REQUIRED:
            raise
        pytest.skip(f"no {name}: {error}", allow_module_level=True)


class Program:
    """A running program whose output is collected."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="output of a program")
        self._reader.start()

    @property
    def output(self) -> str:
        """What it has printed so far, errors included."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, *texts: str) -> str:
        """The first line that contains one of the texts. Fails if the program ends without it or takes too long."""

        def find() -> str:
            return next((line for line in self._lines if any(text in line for text in texts)), "")

        with self._changed:
            in_time = self._changed.wait_for(lambda: self._ended or find(), timeout=PATIENCE)
            if found := find():
                return found
            what = "the program ended" if in_time else f"{PATIENCE:.0f} s passed"
            pytest.fail(f"{what} without {' or '.join(texts)!r}:\n{''.join(self._lines)}", pytrace=False)

    def end(self, number: int | None = None) -> int:
        """Sends a signal, if any, and waits for the end; returns the exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._reader.join()
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


@contextlib.contextmanager
def program(command: Sequence[str], **options: Any) -> Iterator[Program]:
    """Runs a program; whatever happens it is dead and reaped at the end."""
    options.setdefault("cwd", ROOT)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    ) as process:
        running = Program(process)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            running.end()


def run(command: Sequence[str], **options: Any) -> str:
    """Runs a program to its end, which must be a good one, and returns what it printed."""
    options = {"cwd": ROOT, "timeout": PATIENCE, "stdin": subprocess.DEVNULL, **options}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout
