"""The example of docs/queues.md does what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_thread_pipeline():
    example = ROOT / "examples" / "thread_pipeline.py"
    done = subprocess.run([sys.executable, "-W", "error", example, "300"], capture_output=True, text=True, timeout=25)
    assert done.returncode == 0, done.stderr
    assert f"sum of squares below 300: {sum(n * n for n in range(300))}; notes: first, second, third" in done.stdout
