"""The screens of ``tideloop top``: textual's, driven by its pilot, and the plain one, in a pseudo-terminal."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from textual.widgets import DataTable, Static, TabbedContent
from tideloop.observe.client import Client, find
from tideloop.observe.commands.screen import Top

from tests.observe import documents as d

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="over UNIX sockets")


def snapshots():
    functions = [d.function("slow", busy=1.0), d.function("quick [b]", busy=0.5, live=9)]
    each = [d.task(number, f"[red]task {number}[/]") for number in range(40)]
    before = d.snapshot(0.0, tasks=d.tasks(*each, functions=functions))
    functions = [d.function("slow", busy=1.5), d.function("quick [b]", busy=2.5, live=9)]
    gauge = d.gauge("limiter", capacity=3, waiting=4)
    return before, d.snapshot(
        2.0, tasks=d.tasks(*each, functions=functions), blocks=d.blocks(d.block()), gauges=d.gauges(gauge)
    )


def drive(steps, interval=1000.0, client=None):
    """Run the screen on what snapshots() tells; `steps(app, pilot)` drives it."""
    before, after = snapshots()

    async def driven():
        app = Top(client, before, interval)
        async with app.run_test(size=(150, 30)) as pilot:
            if client is None:
                app.take(after)
            await pilot.pause()
            await steps(app, pilot)
        return app

    return asyncio.run(driven())


def column(app, name, number=0):
    table = app.query_one(f"#{name}", DataTable)
    return [str(table.get_row_at(row)[number]) for row in range(table.row_count)]


def heads(app, name):
    return [str(column.label) for column in app.query_one(f"#{name}", DataTable).ordered_columns]


def test_what_the_screen_shows():
    async def steps(app, pilot):
        assert "app.py (4711), Python 3.14.1, up 2 min, 40 tasks" in str(app.query_one("#headline", Static).content)
        assert column(app, "loops") == ["MainThread"]
        assert column(app, "coroutines") == ["quick [b]", "slow"], "the busiest first"
        assert column(app, "coroutines", 5) == ["100 %", "25 %"]
        assert column(app, "tasks")[0] == "[red]task 0[/]", "names are no commands"
        assert column(app, "limits") == ["limiter api"]
        assert column(app, "blocks") == ["fetch (app.py:12)"]
        app.take("process 4711 is not observed any more: it has ended")
        trouble = app.query_one("#trouble", Static)
        assert (trouble.display, str(trouble.content)) == (True, "process 4711 is not observed any more: it has ended")
        app.take(snapshots()[1])
        assert trouble.display is False

    drive(steps)


def test_the_keys():
    async def steps(app, pilot):
        await pilot.press("2")
        assert app.query_one(TabbedContent).active == "tab-coroutines"
        assert heads(app, "coroutines")[5] == "busy ▾"
        await pilot.press("s")
        assert heads(app, "coroutines")[5:7] == ["busy", "waits to run ▾"]
        for _ in range(3):
            app.action_sort()
        assert heads(app, "coroutines")[0] == "coroutine ▾"
        assert column(app, "coroutines") == ["quick [b]", "slow"]
        app.action_sort()
        assert column(app, "coroutines") == ["quick [b]", "slow"], "nine are more than two"
        await pilot.press("q")

    assert drive(steps).return_code == 0


def test_the_row_that_somebody_looks_at_stays():
    async def steps(app, pilot):
        app.action_show("tasks")
        table = app.query_one("#tasks", DataTable)
        await pilot.pause()
        table.move_cursor(row=39)
        await pilot.pause()
        app.take(snapshots()[1])
        await pilot.pause()
        assert table.cursor_row == 39
        assert table.scroll_offset.y > 0

    drive(steps)


def test_it_asks_the_process_again_and_again(process, answers):
    async def steps(app, pilot):
        answers["/v1/loops"] = d.loops(program="another.py")
        while "another.py" not in str(app.query_one("#headline", Static).content):
            await pilot.pause(0.02)
        answers["/v1/loops"] = (500, b"ill")
        while not app.query_one("#trouble", Static).display:
            await pilot.pause(0.02)
        await pilot.press("p")

    with Client(find(os.getpid())) as client:
        drive(steps, 0.05, client)


PLAIN = """
import sys
from pathlib import Path
from tideloop.observe import client
client._folders = lambda user: iter([Path(sys.argv[1])])
{without}
from tideloop.cli import main
sys.exit(main(["top", "--interval", "0.01", *sys.argv[2:]]))
"""
WITHOUT = "sys.modules['textual'] = None"


@pytest.mark.parametrize(("without", "arguments"), [(WITHOUT, ()), ("", ("--plain",))], ids=["no textual", "asked for"])
def test_the_plain_screen(process, folder, without, arguments):
    ours, theirs = os.openpty()
    program = PLAIN.format(without=without)
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, str(folder / "tideloop"), *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
    )
    os.close(theirs)
    shown = b""
    try:
        while shown.count(b"app.py (4711)") < 3:
            shown += os.read(ours, 65_536)
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 0
        while b"\033[?1049l" not in shown:
            shown += os.read(ours, 65_536)
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    text = shown.decode()
    assert text.startswith("\033[?1049h"), "on a screen of its own"
    assert "MainThread" in text
    assert ("pip install 'tideloop[top]'" in text) is bool(without)
