"""Files in a pool, as examples/log_files.py shows it, on every loop. Real servers are in tests/real."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tideloop

from tests.conftest import open_fds

EXAMPLE = Path(__file__).parents[2] / "examples" / "log_files.py"
PACKAGE = Path(tideloop.__file__).parent.parent


@pytest.fixture(scope="module")
def log_files():
    spec = importlib.util.spec_from_file_location("log_files", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_line_is_in_its_file_and_few_are_open(runner, tmp_path, log_files):
    log, stats = runner.run(log_files.main(tmp_path, 20, 300))
    for user in range(20):
        written = (tmp_path / f"user{user}.log").read_text().splitlines()
        assert written == [f"line {number}" for number in range(user, 300, 20)]
    assert log.most <= log_files.OPEN
    assert stats.created >= 20
    assert (stats.lent, stats.borrowed, stats.waiting) == (300, 0, 0)


def test_writers_that_are_cancelled_leave_whole_lines_and_no_open_file(runner, tmp_path, log_files):
    async def main():
        log = log_files.Log(tmp_path)
        tasks = [asyncio.create_task(log.write(number % 12, f"line {number}")) for number in range(120)]
        for turn in range(0, 120, 7):
            await asyncio.sleep(0)
            tasks[turn].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await log.aclose()
        assert not [path for path in open_fds().values() if str(tmp_path) in path]
        return [f"line {number}" for number, result in enumerate(results) if result is None]

    done = runner.run(main())
    written = [line for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert sorted(written) == sorted(done)
    assert len(done) < 120


def test_a_file_that_cannot_be_opened_is_the_error_of_its_writer(runner, tmp_path, log_files):
    async def main():
        log = log_files.Log(tmp_path)
        (tmp_path / "user1.log").mkdir()
        with pytest.raises(IsADirectoryError):
            await log.write(1, "nowhere")
        await log.write(2, "here")
        return await log.aclose()

    stats = runner.run(main())
    assert (stats.failed, stats.created, stats.borrowed) == (1, 1, 0)
    assert (tmp_path / "user2.log").read_text() == "here\n"


def test_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), str(tmp_path), "--users", "10", "--lines", "100"],
        capture_output=True,
        text=True,
        timeout=25,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "100 lines in 10 files, at most" in done.stdout
