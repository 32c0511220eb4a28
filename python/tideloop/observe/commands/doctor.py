"""``tideloop doctor``: what is wrong with a running program, in sentences."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

from tideloop.observe.client import Client, Snapshot
from tideloop.observe.commands.console import FOUND, OK, Parser, Style, client_of, command, dump, positive, wait
from tideloop.observe.verdicts import Finding, examine
from tideloop.observe.wording import count, percent, plural, printable, seconds

__all__ = ["main"]

_WIDE = 100


def main(argv: list[str]) -> int:
    """Run the command; returns 0 if nothing is wrong, 1 if something is."""
    return command("doctor", _doctor, argv)


def _doctor(argv: list[str]) -> int:
    parser = Parser("doctor", "What is wrong with a running program, in sentences.", "something was found")
    parser.add_argument("--seconds", type=positive, default=5.0, help="how long to look at it (5)")
    asked = parser.parse_args(argv)
    with client_of(asked.pid) as client:
        before, after = _look(client, asked.seconds)
        found = examine(before, after)
        wrong = [finding for finding in found if finding.severity != "note"]
        if asked.json:
            dump(
                {
                    "pid": client.pid,
                    "program": after.loops.get("program"),
                    "seconds": after.clock - before.clock,
                    "healthy": not wrong,
                    "findings": [finding.to_json() for finding in wrong],
                    "notes": [finding.to_json() for finding in found if finding.severity == "note"],
                }
            )
        else:
            print("\n".join(_report(client.pid, before, after, found, Style(sys.stdout))))
    return FOUND if wrong else OK


def _look(client: Client, length: float) -> tuple[Snapshot, Snapshot]:
    before = client.snapshot()
    wait(length, f"looking at process {client.pid}")
    return before, client.snapshot()


def _report(pid: int, before: Snapshot, after: Snapshot, found: Sequence[Finding], style: Style) -> list[str]:
    loops = after.loops
    lines = [
        style.bold(printable(f"{loops.get('program') or 'process'} ({pid})"))
        + f", Python {printable(str(loops.get('python')))}, up {seconds(loops.get('uptime'))}, "
        + f"{plural(len(loops['loops']), 'loop')}, looked at for {seconds(after.clock - before.clock)}"
    ]
    marks = {"problem": style.red("PROBLEM"), "warning": style.yellow("WARNING"), "note": style.dim("note   ")}
    room = min(style.width or _WIDE, _WIDE) - 9
    for finding in found:
        said = textwrap.wrap(printable(finding.says), max(room, 30), break_long_words=False, break_on_hyphens=False)
        lines += ["", f"{marks[finding.severity]}  {said[0]}", *(" " * 9 + line for line in said[1:])]
        if finding.do:
            lines += [
                style.dim(" " * 9 + ("do: " if line == 0 else "    ") + text)
                for line, text in enumerate(textwrap.wrap(finding.do, max(room - 4, 30)))
            ]
    lines += ["", _sum(found, after, style)]
    return lines


def _sum(found: Sequence[Finding], after: Snapshot, style: Style) -> str:
    tally = [
        plural(number, severity)
        for severity in ("problem", "warning")
        if (number := sum(finding.severity == severity for finding in found))
    ]
    if tally:
        return ", ".join(tally)
    busy = [loop["metrics"]["utilization"]["second"] for loop in after.loops["loops"] if loop.get("metrics")]
    tasks = sum(len(loop["tasks"]) for loop in after.tasks["loops"]) if after.tasks else None
    seen = [f"loops busy for {percent(max(busy))} of the time"] if busy else []
    seen += [f"{count(tasks)} tasks"] if tasks is not None else []
    return style.green("nothing found") + (f": {', '.join(seen)}" if seen else "")
