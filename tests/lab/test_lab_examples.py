"""The example of `make demo` runs and checks its pages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tideloop.lab.backends import BACKENDS

EXAMPLE = Path(__file__).parents[2] / "examples" / "aiohttp_pages.py"


@pytest.mark.parametrize("loop", ["asyncio", "tideloop"])
def test_the_aiohttp_example(loop: str) -> None:
    pytest.importorskip("aiohttp")
    if reason := BACKENDS[loop].missing():
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--loop", loop, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["pages"] == 1000
    assert figures["loop"].startswith(loop)
