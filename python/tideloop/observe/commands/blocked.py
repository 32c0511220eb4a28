"""``tideloop blocked``: who has blocked the loops of a running program, and where."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tideloop.observe.commands.console import OK, Parser, Style, client_of, command, dump, table
from tideloop.observe.stacks import culprit, inside
from tideloop.observe.wording import ago, frames, loop_names, place, plural, printable, seconds, whose

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run the command; returns 0, whether there were blocks or not."""
    return command("blocked", _blocked, argv)


def _blocked(argv: list[str]) -> int:
    parser = Parser("blocked", "The last blocks of a program's loops, the latest one last.", "it went wrong")
    parser.add_argument("--stacks", action="store_true", help="with the Python stack of each")
    asked = parser.parse_args(argv)
    with client_of(asked.pid) as client:
        loops, blocks = client.loops(), client.blocks()
    if asked.json:
        dump(blocks)
        return OK
    style = Style(sys.stdout)
    names = loop_names(loops)
    if not blocks["blocks"]:
        print(f"no loop of process {printable(str(loops['pid']))} was blocked, in {seconds(loops.get('uptime'))}")
        return OK
    if asked.stacks:
        for block in blocks["blocks"]:
            print(_sentence(block, names, style))
            print(_stack(block))
    else:
        lines = [_row(block, names) for block in blocks["blocks"]]
        print("\n".join(table(_HEAD, lines, style, "<><<<<")))
    now = [block for block in blocks["blocks"] if not block["ended"]]
    total = sum(block["duration"] for block in blocks["blocks"])
    print()
    print(
        f"{plural(len(blocks['blocks']), 'block')}, {seconds(total)} in all"
        + (f", {style.red('blocked now')}" if now else "")
        + ("" if asked.stacks else "; --stacks shows the stacks")
    )
    return OK


_HEAD = ("when", "for", "cause", "loop", "where", "in task")


def _row(block: Mapping[str, Any], names: Mapping[int, str]) -> tuple[str, ...]:
    return (
        _when(block),
        seconds(block["duration"]),
        block["cause"],
        names.get(block["loop"], "an earlier one"),
        where(block),
        block.get("task") or "-",
    )


def where(block: Mapping[str, Any]) -> str:
    """The frame to blame; the coroutine, where there is no stack."""
    frame = culprit(block["stack"])
    if frame is None:
        return whose({"what": block.get("what"), "file": block.get("file"), "line": block.get("line")})
    inside = block["stack"][0]
    called = f" in {inside[2]}" if tuple(inside) != frame else ""
    return f"{frame[2]} ({place(frame[0], frame[1])}){called}"


def _when(block: Mapping[str, Any]) -> str:
    return ago(time.time() - block["at"] - block["duration"]) if block["ended"] else "now"


def _stack(block: Mapping[str, Any]) -> str:
    """The first one that was captured, and when."""
    lines = [*map(printable, frames(inside(block["stack"]), "  "))]
    if not lines:
        return "  its stack is not known"
    if block.get("captured") is not None:
        lines.insert(0, f"  its stack after {seconds(block['captured'])}:")
    return "\n".join(lines)


def _sentence(block: Mapping[str, Any], names: Mapping[int, str], style: Style) -> str:
    what = "has been blocked" if not block["ended"] else "was blocked"
    task = f", task {block['task']!r}" if block.get("task") else ""
    text = f"{_when(block)}: {names.get(block['loop'], 'an earlier loop')} {what} for {seconds(block['duration'])}"
    return style.bold(printable(text)) + printable(f" ({block['cause']}) by {where(block)}{task}")
