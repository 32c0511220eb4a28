"""``tideloop top``: what the loops of a running program do, live."""

from __future__ import annotations

import shutil
import sys
import time

from tideloop.observe.client import Client, Snapshot
from tideloop.observe.commands.console import OK, Parser, Style, client_of, command, dump, positive, table, wait
from tideloop.observe.commands.panels import headline, panels

__all__ = ["main"]

_ROWS = 12
"""Of each table, where all of them are shown below each other."""


def main(argv: list[str]) -> int:
    """Run the command; returns 0."""
    return command("top", _top, argv)


def _top(argv: list[str]) -> int:
    parser = Parser("top", "What the loops of a running program do, live.", "it went wrong")
    parser.add_argument("--once", action="store_true", help="look once, print, end")
    parser.add_argument("--interval", type=positive, default=1.0, help="seconds from one look to the next (1)")
    parser.add_argument("--plain", action="store_true", help="the screen that needs no package")
    asked = parser.parse_args(argv)
    if not (asked.once or asked.json or sys.stdout.isatty()):
        parser.error("the output is no terminal; --once prints once, --json for programs")
    with client_of(asked.pid) as client:
        before = client.snapshot()
        if asked.json:
            dump(before.to_json())
            return OK
        if asked.once:
            wait(asked.interval, f"looking at process {client.pid}")
            print("\n".join(lines(before, client.snapshot(), Style(sys.stdout))))
            return OK
        if not asked.plain:
            try:
                from tideloop.observe.commands.screen import Top
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] not in ("textual", "rich"):
                    raise
            else:
                return Top(client, before, asked.interval).show()
        return _refresh(client, before, asked.interval, asked.plain)


def lines(before: Snapshot, after: Snapshot, style: Style, rows: int = _ROWS) -> list[str]:
    """Everything as text; the first `rows` of each table."""
    shown = [style.bold(headline(before, after))]
    for panel in panels(before, after):
        if not panel.rows:
            continue
        chosen = [[cell.text for cell in row] for row in panel.sorted()[:rows]]
        shown += ["", *table(panel.head, chosen, style, panel.align, known=True)]
        if len(panel.rows) > rows:
            shown.append(style.dim(f"… {len(panel.rows) - rows} more {panel.name}"))
    return shown


def _refresh(client: Client, before: Snapshot, interval: float, wanted: bool) -> int:
    """A screen of text, again and again, until it is interrupted or the process ends."""
    style = Style(sys.stdout)
    hint = "Ctrl-C ends" + ("" if wanted else "; pip install 'tideloop[top]' for tables that sort and scroll")
    sys.stdout.write("\033[?1049h\033[?25l")
    try:
        while True:
            time.sleep(interval)
            after = client.snapshot()
            size = shutil.get_terminal_size()
            rows = max((size.lines - 12) // 5, 3)
            shown = lines(before, after, style, rows)[: size.lines - 1]
            sys.stdout.write("\033[H\033[J" + "\n".join(shown) + "\n" + style.dim(hint[: size.columns - 1]))
            sys.stdout.flush()
            before = after
    except KeyboardInterrupt:
        return OK
    finally:
        sys.stdout.write("\033[?25h\033[?1049l")
        sys.stdout.flush()
