"""tideloop as the guest of Qt applications: PySide6 and PyQt6, offscreen, each program a process of its own."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

from tests.real import peers
from tests.real.qt_programs import PROGRAMS

ENVIRONMENT = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "QT_LOGGING_RULES": "*=false"}


@pytest.fixture(params=["PySide6", "PyQt6"], scope="module")
def binding(request):
    if importlib.util.find_spec(request.param) is None:
        peers.absent(f"there is no {request.param}")
    try:
        # The binding may be there and Qt's own libraries not.
        peers.run((sys.executable, "-c", f"import {request.param}.QtWidgets"))
    except AssertionError as error:
        peers.absent(f"{request.param} does not load: {str(error).strip().splitlines()[-1]}")
    return request.param


EXAMPLE = str(peers.ROOT / "examples" / "qt_window.py")


def run(*arguments, **environment):
    # Only our own part in debug mode: some bindings warn on their own in Python's.
    command = (sys.executable, "-W", "error", *arguments)
    return peers.run(command, env={**ENVIRONMENT, **environment})


@pytest.mark.parametrize("selector", ["default", "polling"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name, binding, selector):
    assert run("-m", "tests.real.qt_programs", name, binding, TIDELOOP_SELECTOR=selector) == ""


@pytest.mark.parametrize("binding", ["PySide6"], indirect=True)
def test_the_example(binding):
    assert run(EXAMPLE, "--demo").splitlines() == [
        "sent      hello",
        "received  HELLO",
        "sent      from a window",
        "received  FROM A WINDOW",
        "sent      goodbye",
        "received  GOODBYE",
        "connection closed",
    ]
