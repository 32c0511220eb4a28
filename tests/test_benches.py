"""The scheduling benchmark runs, prints what it promises, and says what it leaves out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tideloop

MICRO = Path(__file__).parent.parent / "benches" / "micro.py"
PACKAGE = Path(tideloop.__file__).parent.parent


def micro(*arguments: str, fails: bool = False) -> str:
    return bench(MICRO, *arguments, fails=fails)


def bench(script: Path, *arguments: str, fails: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=25,
        env={"PYTHONPATH": str(PACKAGE), "PATH": ""},
    )
    assert bool(done.returncode) == fails, done.stderr
    return done.stderr if fails else done.stdout


def test_json_has_every_sample_and_the_means():
    said = micro("--backends", "asyncio,tideloop", "--workloads", "sleep0,queue_free", "--repetitions", "2", "--json")
    found = json.loads(said)
    samples = found["ns_per_operation"]
    assert samples.keys() == {"sleep0", "queue_free"}
    assert all(len(values) == 2 and min(values) > 0 for row in samples.values() for values in row.values())
    assert found["means"]["asyncio"].keys() == {"asyncio", "tideloop"}
    assert found["means"]["asyncio"]["asyncio"] == 1.0
    assert found["means"]["zuvloop"] == {}


def test_markdown_says_how_it_was_made():
    said = micro("--backends", "asyncio,tideloop", "--workloads", "timer_cancel", "--repetitions", "2", "--markdown")
    command, _, head, _, *rows = said.splitlines()
    assert command.startswith("`python benches/micro.py --backends asyncio,tideloop --workloads timer_cancel")
    assert "medians of 2" in command
    assert head == "| per operation | asyncio | tideloop |"
    assert [row.split(" | ")[0] for row in rows] == ["| timer_cancel, ns", "| geometric mean over asyncio"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--workloads", "nothing"), "unknown workloads: nothing"),
        (("--backends", "asyncio,nothing"), "unknown backends: nothing"),
        (("--repetitions", "0"), "at least 1"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, complaint):
    assert complaint in micro(*arguments, fails=True)


def test_groups_and_streams_are_compared():
    arguments = ["--repetitions", "1", "--loops", "asyncio,tideloop", "--only", "time limit"]
    said = bench(MICRO.with_name("toolkit_groups.py"), *arguments)
    assert [line.split(" | ")[:3] for line in said.splitlines() if "time limit |" in line] == [
        [f"| {loop}", "a time limit", name]
        for loop in ("asyncio", "tideloop")
        for name in ("asyncio.timeout", "tideloop.fail_after")
    ]
