"""The example of docs/queues.md does what it says, and the benchmark's tables can be made."""

from __future__ import annotations

import asyncio
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_thread_pipeline():
    example = ROOT / "examples" / "thread_pipeline.py"
    done = subprocess.run([sys.executable, "-W", "error", example, "300"], capture_output=True, text=True, timeout=25)
    assert done.returncode == 0, done.stderr
    assert f"sum of squares below 300: {sum(n * n for n in range(300))}; notes: first, second, third" in done.stdout


async def test_every_cell_of_the_benchmark_runs(loop):
    tables = runpy.run_path(str(ROOT / "benches" / "toolkit_queues.py"))["tables"]()
    assert len(tables) == 4
    for bodies in tables.values():
        for name, body in bodies.items():
            assert await asyncio.wait_for(body(200), 20) > 0, name
