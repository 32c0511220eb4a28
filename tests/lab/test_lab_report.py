"""The report and the table: complete, self-contained, and honest about losses."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO

import pytest
from tideloop.lab import report, table
from tideloop.lab.progress import Progress
from tideloop.lab.results import Results
from tideloop.lab.wording import losses

Make = Callable[..., Results]

LOSING = {"asyncio": [3.0, 3.1, 3.2], "uvloop": [1.0, 1.1, 1.2], "tideloop": [2.0, 2.1, 2.2]}


class Balance(HTMLParser):
    """Notes tags that are not closed in order, and everything that would be fetched."""

    VOID = frozenset({"meta", "line", "path", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [f"{tag} {name}" for name, _ in attrs if name in ("src", "srcset", "data", "action")]
        self.fetched += [
            f"{tag} {value}" for name, value in attrs if name == "href" and not (value or "").startswith("#")
        ]
        if tag in ("script", "link", "iframe", "object", "embed"):
            self.fetched.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def html_of(results: Results) -> str:
    return report.render(results, results.to_json())


def test_the_report_fetches_nothing(make_results: Make) -> None:
    html = html_of(make_results(LOSING, {"zuvloop": "not installed"}))
    assert not re.search(r"https?://|url\(|@import", html)
    parser = Balance()
    parser.feed(html)
    assert parser.fetched == []
    assert parser.open == []
    assert "prefers-color-scheme: dark" in html


def test_the_report_says_where_tideloop_is_behind(make_results: Make) -> None:
    html = html_of(make_results(LOSING))
    assert "Where tideloop is not first" in html
    assert "cancellation.each, time until all cancelled tasks ended: uvloop is ahead by 1.91x" in html


def test_an_order_that_may_be_chance_is_called_so(make_results: Make) -> None:
    html = html_of(make_results({"uvloop": [1.0, 1.1, 2.3], "tideloop": [1.05, 2.1, 2.2]}))
    assert "the intervals overlap, so it may be chance" in html


def test_an_unranked_tideloop_is_said_and_not_compared(make_results: Make) -> None:
    results = make_results(LOSING)
    mine = results.outcomes[2]
    early = tuple(replace(figure, unranked="woke early in 9% of its sleeps") for figure in mine.figures)
    results = replace(results, outcomes=(*results.outcomes[:2], replace(mine, figures=early)))
    assert losses(results) == ["cancellation.each: tideloop woke early in 9% of its sleeps and is not ranked"]
    assert "  ! tideloop woke early in 9% of its sleeps" in table.render(results)
    assert 'class="unranked"' in html_of(results)


def test_a_first_place_is_said_too(make_results: Make) -> None:
    results = make_results({"asyncio": [3.0, 3.1], "tideloop": [1.0, 1.1]})
    assert "tideloop is first in every column" in html_of(results)
    assert "tideloop is first in every column" in table.render(results)


@pytest.mark.parametrize(("goal", "word"), [(0.02, "reached"), (0.019, "not reached")])
def test_a_goal_is_told_with_whether_it_is_reached(make_results: Make, goal: float, word: str) -> None:
    results = make_results({"tideloop": [0.01, 0.02, 0.03]})
    (scenario,) = results.scenarios
    metrics = (replace(scenario.primary, goal=goal), *scenario.metrics[1:])
    text = table.render(replace(results, scenarios=(replace(scenario, metrics=metrics),)))
    assert f"at most {goal * 1e3:.2f}: 20.00, {word} (10.00 to 30.00)" in text
    assert "goal" not in table.render(results)


def test_failed_and_skipped_cells_are_shown_with_their_reasons(make_results: Make) -> None:
    results = make_results({"asyncio": [1.0], "rloop": "crashed: <SIGSEGV>"}, {"trio": "trio is not installed"})
    html, text = html_of(results), table.render(results)
    assert "failed: crashed: &lt;SIGSEGV&gt;" in html
    assert "skipped: trio is not installed" in html
    assert "  rloop    failed: crashed: <SIGSEGV>\n" in text
    assert "  trio     skipped: trio is not installed\n" in text
    assert "tideloop did not run here" in text


def test_what_the_user_typed_is_escaped(make_results: Make) -> None:
    html = html_of(make_results(LOSING))
    assert "<b>'" not in html
    assert "--benchmarks &#x27;&lt;b&gt;&#x27;" in html


def test_the_table_is_aligned_marks_the_best_and_has_colours_only_when_asked(make_results: Make) -> None:
    results = make_results(LOSING)
    text = table.render(results)
    rows = text.splitlines()[1:5]
    assert len({len(row.rstrip("* ")) for row in rows[1:]}) == 1
    assert [row.split()[0] for row in rows if "*" in row] == ["uvloop"]
    assert "\033[" not in text
    assert "\033[" in table.render(results, colours=True)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_rewrites_one_line_on_a_terminal() -> None:
    out = Terminal()
    progress = Progress(out, 2, clock=iter(range(9)).__next__)
    for _ in range(2):
        progress.starting(1, "tcp_echo on uvloop")
        progress.finished()
    progress.end()
    assert out.getvalue().count("\r") >= 2
    assert "[2/2] tcp_echo on uvloop, run 1" in out.getvalue()
    assert out.getvalue().count("\n") == 1


def test_progress_elsewhere_is_a_line_for_each_block() -> None:
    out = StringIO()
    progress = Progress(out, 4, clock=lambda: 0.0)
    for rep in (1, 1, 2, 2):
        progress.starting(rep, "x")
        progress.finished()
    progress.end()
    assert "\r" not in out.getvalue()
    assert out.getvalue().splitlines() == [
        "lab: run 1 of each cell, 0 of 4 done",
        "lab: run 2 of each cell, 2 of 4 done",
        "lab: 4 of 4 runs in 0 s",
    ]
