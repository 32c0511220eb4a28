"""The screen of ``tideloop top``, with textual (the extra ``top``): a tab for each table, rows that sort and scroll."""

from __future__ import annotations

import threading
import time
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import DataTable, Footer, Static, TabbedContent, TabPane

from tideloop.observe.client import Client, Snapshot, Unreachable
from tideloop.observe.commands.panels import Panel, headline, panels

__all__ = ["Top"]


class Top(App[int]):
    """Looks at a process every `interval` seconds, from a thread of its own: a slow answer freezes nothing."""

    CSS = """
    #headline { padding: 0 1; text-style: bold; }
    #trouble { padding: 0 1; color: $error; display: none; }
    TabbedContent { height: 1fr; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("p", "pause", "Pause"),
        Binding("s", "sort", "Sort by the next column"),
        *(
            Binding(str(number), f"show('{name}')", name.capitalize())
            for number, name in enumerate(("loops", "coroutines", "tasks", "limits", "blocks"), 1)
        ),
    ]

    def __init__(self, client: Client, before: Snapshot, interval: float) -> None:
        super().__init__()
        self._client = client
        self._shown = (before, before)
        self._interval = interval
        self._paused = False
        self._sorts: dict[str, int] = {}
        self._ended = False

    def show(self) -> int:
        """Run until the user quits; returns the exit code."""
        return self.run() or 0

    def compose(self) -> ComposeResult:
        """One line on top, the tables in tabs, the keys below."""
        yield Static(id="headline", markup=False)
        yield Static(id="trouble", markup=False)
        with TabbedContent(initial="tab-loops"):
            for panel in panels(*self._shown):
                with TabPane(panel.name.capitalize(), id=f"tab-{panel.name}"):
                    yield DataTable[Text](id=panel.name, cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Show what is known, and begin to look."""
        self.title = "tideloop top"
        self.draw()
        # A daemon: who quits does not wait for an answer that does not come.
        threading.Thread(target=self._watch, name="tideloop top", daemon=True).start()

    def on_unmount(self) -> None:
        """Let the thread end."""
        self._ended = True

    class Told(Message):
        """What the process has said: a snapshot, or why there is none."""

        def __init__(self, told: Snapshot | str) -> None:
            super().__init__()
            self.told = told

    def on_top_told(self, message: Told) -> None:
        """The thread has asked."""
        self.take(message.told)

    def _watch(self) -> None:
        """In the thread."""
        while not self._ended:
            due = time.monotonic() + self._interval
            while not self._ended and (left := due - time.monotonic()) > 0:
                time.sleep(min(left, 0.1))
            if self._ended or self._paused:
                continue
            try:
                told: Snapshot | str = self._client.snapshot()
            except Unreachable as error:
                told = str(error)
            except Exception:
                if self._ended:  # the connection is closed by who ends
                    return
                raise
            if not self._ended:
                # It waits for nothing: the screen may be about to end.
                self.post_message(self.Told(told))

    def take(self, told: Snapshot | str) -> None:
        """Show a snapshot, or why there is none."""
        trouble = self.query_one("#trouble", Static)
        trouble.display = isinstance(told, str)
        if isinstance(told, str):
            trouble.update(told)
        else:
            self._shown = (self._shown[1], told)
            self.draw()

    def draw(self) -> None:
        """Fill the tables; the row and the place that somebody looks at stay."""
        self.query_one("#headline", Static).update(headline(*self._shown))
        for panel in panels(*self._shown):
            table = self.query_one(f"#{panel.name}", DataTable)
            row, offset = table.cursor_row, table.scroll_offset
            table.clear(columns=True)
            by = self._sorts.get(panel.name, panel.sort)
            for number, name in enumerate(panel.head):
                table.add_column(f"{name} ▾" if number == by else name)
            for cells in panel.sorted(by):
                table.add_row(*(Text(cell.text, no_wrap=True) for cell in cells))
            table.move_cursor(row=min(row, max(len(panel.rows) - 1, 0)), scroll=False)
            table.scroll_to(offset.x, offset.y, animate=False)

    def action_show(self, name: str) -> None:
        """A key for each tab."""
        self.query_one(TabbedContent).active = f"tab-{name}"
        self.query_one(f"#{name}", DataTable).focus()

    def action_pause(self) -> None:
        """Keep what is shown, or go on."""
        self._paused = not self._paused
        self.sub_title = "paused" if self._paused else ""
        self.notify("paused" if self._paused else "going on", timeout=2)

    def action_sort(self) -> None:
        """Sort the table that is shown by its next column."""
        name = self.query_one(TabbedContent).active.removeprefix("tab-")
        panel = self._panel(name)
        self._sorts[name] = (self._sorts.get(name, panel.sort) + 1) % len(panel.head)
        self.draw()

    def _panel(self, name: str) -> Panel:
        return next(panel for panel in panels(*self._shown) if panel.name == name)
