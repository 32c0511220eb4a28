"""The examples of docs/limits.md run."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "polite_crawler.py"


def test_polite_crawler(backend):
    spec = importlib.util.spec_from_file_location("polite_crawler", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with asyncio.Runner(loop_factory=backend.new_event_loop) as runner:
        crawler = runner.run(module.main(45))
    assert crawler.saved == 45
    assert crawler.most["beta.example"] == 1
    assert max(crawler.most.values()) <= 2
    assert len(crawler.hosts) == 0
    assert crawler.bandwidth.stats()[2:5] == (0, 0, 45)
