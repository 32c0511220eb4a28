"""The harness fails the tests that it should: each case is a run of pytest over one small test."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

OPTIONS = ["-p", "tests.conftest", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]

CASES = {
    "a good test passes": (
        "passed",
        """
async def test(loop):
    await asyncio.sleep(0)
""",
    ),
    "an exception nobody catches": (
        "reached the exception handler",
        """
async def test(loop):
    loop.call_soon(int, "x")
    await asyncio.sleep(0)
""",
    ),
    "one that is expected": (
        "passed",
        """
async def test(loop, handled):
    loop.call_soon(int, "x")
    await asyncio.sleep(0)
    assert len(handled) == 1
""",
    ),
    "a task left behind": (
        "still pending: <Task",
        """
async def test(loop):
    loop.keep = loop.create_task(asyncio.sleep(1000))
""",
    ),
    "a descriptor left open": (
        "still open: fd",
        """
def test(loop):
    os.dup(0)
""",
    ),
    "a socket left to the collector": (
        "unclosed <socket",
        """
def test(loop):
    socket.socket()
""",
    ),
    "a loop that does not end": (
        "the test took longer than",
        """
@pytest.mark.limit(0.2)
def test(loop):
    loop.run_forever()
""",
    ),
    "a callback that does not end": (
        "the test took longer than",
        """
@pytest.mark.limit(0.2)
def test(loop):
    def spin():
        while True:
            pass
    loop.call_soon(spin)
    loop.run_forever()
""",
    ),
    "a known difference that is none": (
        "XPASS(strict)",
        """
@deviates("asyncio", "a claim")
def test(loop):
    pass
""",
    ),
    "a known difference that is one": (
        "xfailed",
        """
@deviates("asyncio", "a claim")
def test(loop):
    assert False
""",
    ),
    "a known difference of another Python": (
        "passed",
        """
@deviates("asyncio", "a claim", when=False)
def test(loop):
    pass
""",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_outcome(tmp_path, case):
    outcome, source = CASES[case]
    file = tmp_path / "test_case.py"
    file.write_text("import asyncio, os, socket\nimport pytest\nfrom tests.backends import deviates\n" + source)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", file, "-k", "asyncio", *OPTIONS],
        capture_output=True,
        text=True,
        timeout=20,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        check=False,
    )
    assert outcome in run.stdout, run.stdout + run.stderr
    assert (run.returncode == 0) is (outcome in ("passed", "xfailed"))
