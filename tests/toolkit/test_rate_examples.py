"""The examples of rates and adaptive limits do what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tideloop

ROOT = Path(__file__).parents[2]
PACKAGE = Path(tideloop.__file__).parent.parent


def said_by(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=25,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("loop", ["asyncio", "tideloop"])
def test_rate_limited_calls(loop):
    tokens = sum(50 + number % 10 for number in range(60))
    said = said_by("examples/rate_limited_calls.py", "--loop", loop)
    assert said == f"60 calls, {tokens} tokens, 1 refused\nat most 30 in a tenth of a second: True\n"


def test_adaptive_batch():
    for line in said_by("examples/adaptive_batch.py").splitlines():
        servers, limit, rate, of = (float(word.rstrip(",")) for word in line.split() if word[0].isdigit())
        assert servers <= limit <= 2 * servers + 1
        assert 0.85 * of < rate <= 1.02 * of
