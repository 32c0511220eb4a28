"""docs/testing.md and its example: the code runs, and what it shows of a failure is what is shown."""

from __future__ import annotations

import asyncio
import re
import textwrap

import tideloop
import tideloop.testing

from tests.testing.conftest import ROOT

pytest_plugins = ["pytester"]

PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
RIGHT, CARELESS, PLAIN = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(FAILURE,) = re.findall(r"^```\n(cancel_everywhere: .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
EXAMPLE = (ROOT / "examples" / "tested_seats.py").read_text(encoding="utf-8")
HEAD = "import asyncio\nimport pytest\nimport tideloop\nfrom tested_seats import Seats\n\n\n"


def test_the_example(plugged, kind):
    path = plugged.path / "tested_seats.py"
    path.write_text(EXAMPLE, encoding="utf-8")
    result = plugged.runpytest_inprocess(*["--tideloop"] * (kind == "tideloop"), path)
    result.assert_outcomes(passed=3)


def test_the_page_s_tests(plugged, kind):
    (plugged.path / "tested_seats.py").write_text(EXAMPLE, encoding="utf-8")
    plugged.makepyfile(test_seats=HEAD + RIGHT)
    result = plugged.runpytest_inprocess(*["--tideloop"] * (kind == "tideloop"))
    result.assert_outcomes(passed=2)


def test_the_failure_that_it_shows(plugged, kind):
    (plugged.path / "tested_seats.py").write_text(EXAMPLE, encoding="utf-8")
    careless = RIGHT.replace("Seats(2)", "CarelessSeats(2)") + "\n\n" + CARELESS
    plugged.makepyfile(test_seats=HEAD + careless)
    result = plugged.runpytest_inprocess(*["--tideloop"] * (kind == "tideloop"))
    result.assert_outcomes(passed=1, failed=1)
    # The lines of contextlib's own are left out on the page.
    shown = [line.replace("[", "[[]") for line in FAILURE.splitlines()]
    result.stdout.fnmatch_lines(shown)


def test_the_lines_without_pytest():
    exec(textwrap.dedent(PLAIN), {"asyncio": asyncio, "tideloop": tideloop})
