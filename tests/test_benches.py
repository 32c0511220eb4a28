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


# --- the toolkit's ---------------------------------------------------------------------------------

TOOLKIT = MICRO.with_name("toolkit.py")
GOALS = [
    *(
        "queue",
        "thread",
        "semaphore",
        "crowd",
        "rate",
        "amap",
        "group",
        "cache_hit",
        "batched_load",
        "pool",
        "policy",
        "offload",
        "spawn",
        "adaptive",
    ),
    *("shared", "graph_nodes", "graph_chains"),
]
ROWS = [
    *GOALS,
    *("hand_over", "put_get", "priority", "give_up", "cache_miss", "cache_join", "weighted", "keyed", "rate_free"),
    *("group_limit", "group_cancel", "timeout", "shared_crowd", "shared_rate", "iterate", "process", "checkpoint"),
    "graph_tasks",
]


def toolkit(*arguments: str, fails: bool = False) -> str:
    return bench(TOOLKIT, *arguments, fails=fails)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_toolkit(row):
    said = toolkit(
        *("--rows", row, "--backends", "asyncio,tideloop", "--repetitions", "2", "--scale", "0.004", "--json")
    )
    found = json.loads(said)
    assert found["rows"].keys() == {row}
    cells = found["rows"][row]
    columns = ["simulated"] if row == "adaptive" else ["asyncio", "tideloop"]
    contenders = list(dict.fromkeys(cell.split("@")[0] for cell in cells))
    assert list(cells) == [f"{contender}@{column}" for contender in contenders for column in columns]
    assert any("tideloop." in contender or "AdaptiveLimiter" in contender for contender in contenders)
    for samples in cells.values():
        assert len(samples) == 2
        assert all(value > 0 for sample in samples for value in sample.values())


def test_what_has_a_goal_is_run_if_nothing_is_said():
    found = json.loads(toolkit("--repetitions", "1", "--backends", "asyncio", "--scale", "0.001", "--json"))
    assert list(found["rows"]) == GOALS


def test_tables_of_the_toolkit_can_be_pasted():
    said = toolkit(
        *("--rows", "queue,rate", "--backends", "asyncio,tideloop"),
        *("--repetitions", "2", "--scale", "0.004", "--markdown"),
    )
    first, _, title, _, head, rule, reference, *_ = said.splitlines()
    assert first.startswith("`python benches/toolkit.py --rows queue,rate")
    assert "medians of 2" in first
    assert title.startswith("**queue: two tasks")
    assert (head, rule) == ("| ns | asyncio | tideloop |", "| --- | ---: | ---: |")
    assert reference.startswith("| asyncio.Queue | ")
    assert reference.count("(1.00x)") == 2
    assert "| ns, finish / ideal | asyncio | tideloop |" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--rows", "nothing"), "unknown rows: nothing"),
        (("--backends", "nothing"), "unknown backends: nothing"),
        (("--repetitions", "0"), "at least 1"),
    ],
)
def test_a_wrong_argument_of_the_toolkit_s_is_refused(arguments, complaint):
    assert complaint in toolkit(*arguments, fails=True)


# --- of connections --------------------------------------------------------------------------------

SOCKETS = MICRO.with_name("sockets.py")


def test_what_is_asked_of_connections_is_held_against_what_was_measured():
    pytest.importorskip("uvloop")
    said = bench(SOCKETS, "--rows", "slow_reader,threadsafe.1", "--libraries", "uvloop", "--repetitions", "2")
    first, _, head, *rows = said.splitlines()
    assert first.startswith("`python benches/sockets.py --rows slow_reader")
    assert "medians of 2 blocks" in first
    assert head.split()[-2:] == ["asked", "reached"]
    threadsafe, to_uvloop, slow_reader = (row.split() for row in rows)
    assert threadsafe[:2] == ["threadsafe.1", "tideloop"]
    assert to_uvloop[:2] == ["to", "uvloop"]
    assert to_uvloop[-2] == "3.00"
    assert slow_reader[:2] == ["slow_reader", "tideloop"]
    assert slow_reader[-4:] == ["at", "most", "1", "yes"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--rows", "nothing"), "unknown rows: nothing"),
        (("--libraries", "rloop"), "unknown libraries: rloop"),
        (("--repetitions", "0"), "at least 1"),
    ],
)
def test_a_wrong_argument_of_that_of_connections_is_refused(arguments, complaint):
    assert complaint in bench(SOCKETS, *arguments, fails=True)
