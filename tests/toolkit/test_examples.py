"""The examples of groups and streams do what they say, on both loops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tideloop

EXAMPLES = Path(__file__).parents[2] / "examples"
PACKAGE = Path(tideloop.__file__).parent.parent


def example(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=25,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("loop", ["asyncio", "tideloop"])
def test_producers_and_consumers(loop):
    letters = sum(len(f"producer{producer}.{item}") for producer in range(3) for item in range(50))
    assert example("producers_consumers.py", "--loop", loop) == f"150 items consumed, {letters} letters\n"


@pytest.mark.parametrize("loop", ["asyncio", "tideloop"])
def test_paginated_fetch(loop):
    total = sum(number**2 for number in range(120))
    said = example("paginated_fetch.py", "--loop", loop)
    assert said == f"120 entries, the sum of their squares is {total}, 13 pages asked for\n"


@pytest.mark.parametrize("loop", ["asyncio", "tideloop"])
def test_paginated_fetch_stops_early(loop):
    said = example("paginated_fetch.py", "--loop", loop, "--until", "25")
    count, pages = said.split()[0], int(said.split()[-4])
    assert count == "25"
    assert pages <= 6  # 25 entries, 16 more that amap holds, a page that is being given out, one ahead


@pytest.mark.parametrize("loop", ["asyncio", "tideloop"])
def test_graph_pipeline(loop, tmp_path):
    counted, path = example("graph_pipeline.py", "--loop", loop, "--svg", str(tmp_path / "run.svg")).splitlines()
    assert counted == "300 times 'page' on 6 pages, 19 nodes"
    assert path.startswith("critical path: fetch /")
    assert path.endswith(" > total")
    assert "fetch /a/2" in (tmp_path / "run.svg").read_text()


def test_first_answer():
    near, *others, last = example("first_answer.py").splitlines()
    assert near == "answer of near"
    assert sorted(others) == ["broken: broken refuses", "far: ok", "near: ok"]
    assert last == "in time: True, False"


@pytest.mark.parametrize("loop", ["asyncio", "tideloop"])
def test_user_directory(loop):
    assert example("user_directory.py", "--loop", loop).splitlines() == [
        "3904 users shown, 8 queries for 98 rows",
        "no user 13, and the database was not asked again",
        "1995 hits, 98 loads, 1908 waited for another's load",
    ]


@pytest.mark.parametrize("loop", ["asyncio", "tideloop"])
@pytest.mark.skipif(sys.platform == "win32", reason="wc, sort and a shell")
def test_word_count(loop):
    words, numbers, late = example("word_count.py", f"--loop={loop}").splitlines()
    assert words == "400000 words"
    assert numbers == "10 3 2"
    assert late == "'echo begun; sleep 1000' was not done in 0.5 s and was ended"


@pytest.mark.parametrize("loop", ["asyncio", "tideloop"])
def test_off_the_loop(loop):
    passed, digests, chain, primes = example("off_the_loop.py", f"--loop={loop}").splitlines()
    assert passed == "a thousand is passed at 45"
    assert len(set(digests.split())) == 2
    assert chain == "longest chain from 2919"
    assert primes == "primes 430"


@pytest.mark.parametrize("loop", ["asyncio", "tideloop"])
def test_crawl_pipeline(loop):
    words = 3 * sum(4 * (number + 1) for number in range(12))
    assert example("crawl_pipeline.py", "--loop", loop).splitlines() == [
        f"36 documents of 3 sites, {words} words",
        "at most 2 of a site at once; 147 nodes",
        "fewer batches than documents: True",
    ]
