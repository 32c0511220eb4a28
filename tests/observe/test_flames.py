"""Flame graphs of blocks: the weights are the seconds that were blocked, in each format."""

import itertools
import json
import xml.etree.ElementTree as ET

import pytest
from tideloop.observe.flame_pictures import picture
from tideloop.observe.flames import Flame, Frame, grow, samples, speedscope
from tideloop.observe.stacks import culprit, inside, owner

from tests.observe import documents as d

SVG = "{http://www.w3.org/2000/svg}"
MAIN, FETCH, PARSE = ["/srv/app.py", 40, "main"], ["/srv/app.py", 12, "fetch"], ["/srv/app.py", 22, "parse"]
MATCH = ["/usr/lib/python3.14/re/__init__.py", 167, "match"]
FIND = ["/venv/lib/python3.14/site-packages/web/route.py", 9, "find"]


def taken():
    return samples(
        [
            d.block(1, duration=1.0, stack=[FETCH, MAIN], stacks=[[FETCH, MAIN], [MATCH, PARSE, MAIN]]),
            d.block(2, duration=3.0, stack=[MATCH, PARSE, MAIN], cause="c"),
            d.block(3, duration=0.5, loop=2, stack=[], stacks=[]),
            d.block(4, duration=0.25, loop=9, stack=[FIND]),
        ],
        {1: "MainThread", 2: "worker"},
    )


def weights(flame):
    return {call.frame.function: call.seconds for call in flame.calls.values()}


def test_a_block_is_shared_out_among_its_stacks():
    root = grow(taken(), "app.py")
    assert root.seconds == 4.75
    assert weights(root) == {"MainThread": 4.0, "worker": 0.5, "loop 9": 0.25}
    main = root.calls[Frame("MainThread", "", 0)].calls[Frame("main", "/srv/app.py", 40)]
    assert weights(main) == {"fetch": 0.5, "parse": 3.5}
    assert main.causes == {"syscall": 1.0, "c": 3.0}
    assert weights(root.calls[Frame("worker", "", 0)]) == {"fetch": 0.5}, "where there is no stack, the step"
    assert root.depth() == 5


def test_speedscope():
    document = json.loads(speedscope(taken(), "app.py (4711)"))
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    frames = document["shared"]["frames"]
    assert all(set(frame) <= {"name", "file", "line", "col"} and frame["name"] for frame in frames)
    assert [profile["name"] for profile in document["profiles"]] == [
        "MainThread, blocked",
        "worker, blocked",
        "loop 9, blocked",
    ]
    for profile in document["profiles"]:
        assert set(profile) == {"type", "name", "unit", "startValue", "endValue", "samples", "weights"}
        assert (profile["type"], profile["unit"], profile["startValue"]) == ("sampled", "seconds", 0)
        assert len(profile["samples"]) == len(profile["weights"])
        assert profile["endValue"] == sum(profile["weights"])
        assert all(0 <= number < len(frames) for stack in profile["samples"] for number in stack)
    stack = document["profiles"][0]["samples"][1]
    assert [frames[number]["name"] for number in stack] == ["main", "parse", "match"], "the outermost first"
    assert 0 <= document["activeProfileIndex"] < len(document["profiles"])


def bars(svg):
    """Of each frame that is drawn: its title's lines, its class, its left edge and width."""
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        title, rect = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        yield title.text.split("\n"), rect.get("class"), float(rect.get("x")), float(rect.get("width"))


def test_the_picture_is_as_wide_as_it_took_and_says_so():
    svg = picture(grow(taken(), "app"))
    drawn = {title[0]: (title[1:], kind, left, width) for title, kind, left, width in bars(svg)}
    assert {name: kind for name, (_, kind, _, _) in drawn.items()} == {
        "MainThread": "loop",
        "worker": "loop",
        "loop 9": "loop",
        "main": "program",
        "fetch": "program",
        "parse": "program",
        "match": "python",
        "find": "package",
    }
    assert drawn["match"][0] == [
        "/usr/lib/python3.14/re/__init__.py:167",
        "3.5 s, 74 % of the blocked time",
        "c 3.0 s, syscall 500 ms",
    ]
    full = 1200 - 24
    assert drawn["MainThread"][3] == pytest.approx(full * 4.0 / 4.75, abs=0.1)
    assert drawn["parse"][3] == pytest.approx(full * 3.5 / 4.75, abs=0.1)
    ends = sorted((drawn[loop][2], drawn[loop][2] + drawn[loop][3]) for loop in ("MainThread", "worker", "loop 9"))
    assert all(end <= start + 0.2 for (_, end), (start, _) in itertools.pairwise(ends)), "none over another"


def test_the_picture_follows_the_readers_colours_and_takes_any_name():
    taken = samples([d.block(stack=[["<a> & \x00 'b'", 1, '"</svg>\ud800']])], {1: "]]>"})
    svg = picture(grow(taken, "<title>"))
    assert "prefers-color-scheme: dark" in svg
    ((loop, *_), (frame, *_)) = [title for title, *_ in bars(svg)]
    assert (loop, frame) == ("]]>", '"</svg>\ufffd')


def test_a_deep_and_a_wide_graph_stay_small():
    root = grow(samples([d.block(stack=[["a.py", line, "f"] for line in range(2000)])], {}), "deep")
    assert len(list(bars(picture(root)))) == 400
    wide = Flame(Frame("wide", "", 0), 1.0)
    wide.calls = {(frame := Frame(f"f{n}", "", 0)): Flame(frame, 1e-4) for n in range(10_000)}
    assert list(bars(picture(wide))) == [], "what is narrower than a third of a pixel"


@pytest.mark.parametrize(
    ("file", "whose"),
    [
        ("/srv/app.py", "program"),
        ("/home/lib/python/app.py", "program"),
        ("<frozen importlib._bootstrap>", "python"),
        ("/usr/lib/python3.14/asyncio/runners.py", "python"),
        ("/opt/py/lib/python3.13t/ssl.py", "python"),
        ("/venv/lib/python3.11/site-packages/web/app.py", "package"),
        ("/usr/lib/python3/dist-packages/web/app.py", "package"),
        ("/src/python/tideloop/program.py", "package"),
        ("<string>", "program"),
    ],
)
def test_whose_code_it_is(file, whose):
    assert owner(file) == whose


def test_what_runs_the_loop_is_not_shown():
    runs = ["/venv/lib/python3.14/site-packages/tideloop/loop/event_loop.py", 128, "run_forever"]
    stock = ["/usr/lib/python3.14/asyncio/base_events.py", 680, "BaseEventLoop._run_once"]
    for frame in (runs, stock):
        assert inside([MATCH, PARSE, frame, MAIN]) == [MATCH, PARSE]
        assert inside([frame, MAIN]) == [frame, MAIN], "the loop itself is what takes long"
    assert inside([MATCH, PARSE]) == [MATCH, PARSE]
    assert inside([]) == []


def test_who_is_to_blame():
    assert culprit([MATCH, PARSE, MAIN]) == tuple(PARSE)
    assert culprit([MATCH, FIND]) == tuple(MATCH)
    runs = ["/srv/python/tideloop/loop/event_loop.py", 128, "run_forever"]
    assert culprit([MATCH, FIND, runs, MAIN]) == tuple(MATCH), "who runs the loop is not"
    assert culprit([]) is None
