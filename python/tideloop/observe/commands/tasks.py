"""``tideloop tasks``: the tasks of a running program; who waits for whom."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from tideloop.observe.commands import trees
from tideloop.observe.commands.console import OK, Parser, Style, client_of, command, dump, table
from tideloop.observe.wording import count, loop_names, natural, place, plural, printable, seconds

__all__ = ["main"]

_OLD = 2.0
"""Seconds; what was collected earlier is told to be old."""

_SORTS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "busy": lambda task: -(task.get("busy") or 0.0),
    "age": lambda task: -(task.get("age") or 0.0),
    "steps": lambda task: -(task.get("steps") or 0),
    "longest": lambda task: -(task.get("longest") or 0.0),
    "name": lambda task: natural(task["name"]),
    "state": lambda task: (task["state"], task["coroutine"]),
}


def main(argv: list[str]) -> int:
    """Run the command; returns 0."""
    return command("tasks", _tasks, argv)


def _tasks(argv: list[str]) -> int:
    parser = Parser("tasks", "The tasks of a running program.", "it went wrong")
    parser.add_argument("--tree", action="store_true", help="who waits for whom")
    parser.add_argument("--stacks", action="store_true", help="with the tree: where each task is")
    parser.add_argument("--all", action="store_true", help="with the tree: a line for each, also where many are alike")
    parser.add_argument("--functions", action="store_true", help="by coroutine function in place of tasks")
    parser.add_argument(
        "--sort", choices=sorted(_SORTS), help="the table's order (busy; age where that is not counted)"
    )
    asked = parser.parse_args(argv)
    for option in ("stacks", "all"):
        if getattr(asked, option) and not asked.tree:
            parser.error(f"--{option} goes with --tree")
    if asked.sort and (asked.tree or asked.functions):
        parser.error("--sort orders the table of tasks, without --tree and --functions")
    with client_of(asked.pid) as client:
        loops, document = client.loops(), client.tasks()
    if asked.json:
        dump(document)
        return OK
    style = Style(sys.stdout)
    names = loop_names(loops)
    for number, loop in enumerate(document["loops"]):
        if number:
            print()
        name = names.get(loop["id"], f"loop {loop['id']}")
        print(style.bold(printable(f"{name}: {plural(len(loop['tasks']), 'task')}")) + _caveats(document, loop))
        if asked.tree:
            shown = trees.lines(loop["tasks"], stacks=asked.stacks, every=asked.all)
        elif asked.functions:
            shown = _functions(loop, style)
        else:
            shown = _table(loop, asked.sort, style)
        print("\n".join(shown))
    if not document["loops"]:
        print(f"process {printable(str(loops['pid']))} has no loop that tells its tasks")
    return OK


def _caveats(document: Mapping[str, Any], loop: Mapping[str, Any]) -> str:
    age = document.get("age") or 0.0
    old = f", as it was {seconds(age)} ago (something keeps the GIL)" if age > _OLD else ""
    return old + (", the first ones" if loop.get("truncated") else "")


_TIMES = ("busy", "scheduled", "idle", "longest")


def _table(loop: Mapping[str, Any], sort: str | None, style: Style) -> list[str]:
    tasks = loop["tasks"]
    timed = any(task.get("busy") is not None for task in tasks)
    key = _SORTS[sort or ("busy" if timed else "age")]
    tasks = sorted(tasks, key=lambda task: (key(task), natural(task["name"])))
    head = ["task", "coroutine", "state", "age", "steps", *_TIMES, "waits on"]
    rows = [
        [
            str(task["name"]),
            f"{task['coroutine']} ({place(task.get('file'), task.get('line'))})",
            task["state"],
            seconds(task.get("age")),
            count(task.get("steps")),
            *(seconds(task.get(part)) for part in _TIMES),
            task.get("waiting_on") or "-",
        ]
        for task in tasks
    ]
    return table(head, rows, style, "<<<>>>>>><", known=True)


def _functions(loop: Mapping[str, Any], style: Style) -> list[str]:
    parts = ("live", "created", "ok", "failed", "cancelled")
    times = ("busy", "scheduled", "longest")
    functions = sorted(loop["functions"], key=lambda each: (-(each.get("busy") or 0.0), -each["live"]))
    rows = [
        [
            each["coroutine"] or "all others",
            *(count(each.get(part)) for part in parts),
            *(seconds(each.get(part)) for part in times),
            place(each.get("file"), each.get("line")) or "-",
        ]
        for each in functions
    ]
    head = ["coroutine", *parts, *times, "where"]
    return table(head, rows, style, "<>>>>>>>><", known=True)
