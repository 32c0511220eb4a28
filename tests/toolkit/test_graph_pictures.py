"""Pictures of graphs and of their runs, and the bar for people who watch."""

from __future__ import annotations

import asyncio
import io
import itertools
import re
import sys
from xml.etree import ElementTree

import pytest
from tideloop import Graph
from tideloop.graphs import pictures
from tideloop.graphs.progress import Bar

from tests.toolkit.harness import run
from tests.toolkit.work import Boom

SVG = "{http://www.w3.org/2000/svg}"


def sleeps(seconds):
    return lambda *_: asyncio.sleep(seconds)


def example():
    g = Graph(name="a <b> & c")
    g.node(sleeps(1), name="first")
    g.node(sleeps(2), ["first"], name='the "second" <one>')
    g.node(sleeps(0.5), ["first"], name="third")

    def broken():
        raise Boom("no")

    g.node(broken, ["third"])
    g.node(sleeps(1), ["broken"], name="never")
    g.node(sleeps(1), name="waits", limit="one")
    g.node(sleeps(1), name="waits too", limit="one")
    return g


def ended(kind, graph, **options):
    return run(kind, graph.run(on_error="skip_downstream", **options))


def limited():
    g = example()
    g._limits = Graph(limits={"one": 1})._limits
    return g


def test_mermaid_of_a_graph():
    text = example().to_mermaid()
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "flowchart LR"
    assert 'n0["first"]' in lines
    assert 'n1["the #34;second#34; #60;one#62;"]' in lines
    assert {line for line in lines if "-->" in line} == {"n0 --> n1", "n0 --> n2", "n2 --> n3", "n3 --> n4"}


def test_mermaid_of_a_run(kind):
    text = ended(kind, limited()).to_mermaid()
    for number, state in enumerate(["succeeded", "succeeded", "succeeded", "failed", "skipped", "succeeded"]):
        assert re.search(rf"^    n{number}\[.*\]:::{state}$", text, re.MULTILINE)
    for state in ("succeeded", "failed", "skipped"):
        assert f"classDef {state} fill:#" in text


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_the_picture_of_a_run(kind):
    results = ended(kind, limited())
    root = ElementTree.fromstring(results.to_svg(width=700))
    assert root.tag == f"{SVG}svg"
    assert root.get("width") == "700"
    assert root.find(f"{SVG}title").text == "a <b> & c"
    assert root.find(f"{SVG}desc").text == 'Critical path: first → the "second" <one>'
    nodes = {}
    for group in root.iter(f"{SVG}g"):
        name = group.find(f"{SVG}title").text.split(":")[0]
        nodes[name] = [dict(rect.items()) for rect in group.iter(f"{SVG}rect")]
    assert set(nodes) == {"first", 'the "second" <one>', "third", "broken", "waits", "waits too"}
    bars = {name: next(rect for rect in rects if rect["class"] != "wait") for name, rects in nodes.items()}
    assert bars["first"]["class"] == bars['the "second" <one>']["class"] == "critical"
    assert bars["third"]["class"] == "succeeded"
    assert bars["broken"]["class"] == "failed"
    # Lengths are in proportion: the whole is 3 s.
    assert float(bars["first"]["width"]) == pytest.approx((700 - 24) / 3, rel=0.01)
    assert float(bars["third"]["width"]) == pytest.approx((700 - 24) / 6, rel=0.01)
    # Who had to wait for its limit shows that.
    waited = [rect for name in ("waits", "waits too") for rect in nodes[name] if rect["class"] == "wait"]
    assert [float(rect["width"]) for rect in waited] == pytest.approx([(700 - 24) / 3], rel=0.01)
    # Nothing is drawn over anything else, or outside.
    boxes = sorted((rect["y"], float(rect["x"]), float(rect["x"]) + float(rect["width"])) for rect in bars.values())
    for (row, _, end), (next_row, start, _) in itertools.pairwise(boxes):
        assert row != next_row or start >= end - 0.11
    assert all(start >= 12 and end <= 700 for _, start, end in boxes)
    labels = [text.text for text in root.iter(f"{SVG}text")]
    assert "first" in labels
    assert "critical path" in labels


def test_colours_can_be_read_on_light_and_on_dark_ground():
    style = pictures._STYLE
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for text in (light, dark):
        colours = dict(re.findall(r"--(\w+): (#\w{6})", text))
        assert contrast(colours["ink"], colours["paper"]) >= 7
        assert contrast(colours["soft"], colours["paper"]) >= 4.5
        for kind in ("done", "critical", "failed", "cancelled"):
            assert contrast(colours["on"], colours[kind]) >= 4
            assert contrast(colours[kind], colours["paper"]) >= 3
    for colour in pictures._COLOURS.values():
        fill, stroke, words = re.findall(r"#\w{6}", colour)
        assert contrast(words, fill) >= 7
        assert contrast(stroke, fill) >= 3


def test_the_picture_of_nothing(kind):
    root = ElementTree.fromstring(ended(kind, Graph()).to_svg())
    assert not list(root.iter(f"{SVG}g"))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_is_for_terminals_only(kind, monkeypatch):
    for stream, shown in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        ended(kind, limited(), progress=True)
        assert bool(stream.getvalue()) is shown
    written = stream.getvalue()
    assert written.endswith("7/7, 1 failed, 1 skipped\n")
    assert written.startswith("\r\x1b[Ka <b> & c [....")
    # It looks now and then, not at each node: every tenth of the three seconds.
    assert 25 <= written.count("\r") <= 40


def test_the_bar_counts_what_runs(kind, monkeypatch):
    g = Graph(name="g")
    g.node(len, [g.input("given")], name="needed")
    g.node(len, ["needed"], name="left out")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    run(kind, g.run({"given": "value"}, only="needed", progress=True))
    last = stream.getvalue().rpartition("\r")[2]
    assert last.endswith(" 1/1\n")
    assert "#]" in last


def test_nobody_sees_a_bar_on_a_stream_that_is_closed(kind, monkeypatch):
    g = Graph()
    g.node(lambda: 1, name="one")
    stream = Terminal()
    stream.close()
    # What was closed says so, rather than that it is no terminal.
    monkeypatch.setattr(Terminal, "isatty", io.StringIO.isatty)
    monkeypatch.setattr(sys, "stderr", stream)
    assert run(kind, g.run(progress=True))["one"] == 1


def test_the_bar_fits(kind):
    results = ended(kind, limited())
    for columns in (200, 60, 30, 10, 1):
        line = Bar(results._run).line(columns)
        assert len(line) < max(columns, 1) or line == ""
    assert "[####" in Bar(results._run).line(80)
