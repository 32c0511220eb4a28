"""What is wrong with tasks: they wait for each other, pile up, hang, spin, or have failed unseen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tideloop.observe.verdicts.finding import Finding
from tideloop.observe.verdicts.window import Window, grown
from tideloop.observe.wording import count, percent, place, plural, rate, seconds, whose

__all__ = ["cycles", "deadlocks", "leaks", "spinning", "stuck", "unretrieved"]

Task = Mapping[str, Any]

PILE, HEAP = 50, 1000
"""Live tasks of one coroutine function that only grow in number: a warning, a problem."""
FEW_ENDED = 0.05
"""Of those that were created: fewer have ended where tasks leak."""
LEFT_BEHIND = 60.0
"""Seconds after which a task whose like has long ended is looked at."""
ENDED = 20
"""Others of its coroutine function that must have ended, so that it is the exception."""
EXCEPTION = 0.1
"""Live ones for each that has ended, at the most."""
OFTEN = 2000.0
"""Steps in a second of a task that spins."""
NEVER_IDLE = 0.05
"""Of the time: a task that spins waits for less than this."""
NAMED = 3
"""Tasks that a sentence names."""


def deadlocks(window: Window) -> Iterator[Finding]:
    """Tasks that wait for each other in a circle, in both snapshots."""
    for before, after in window.task_lists():
        earlier = {frozenset(cycle) for cycle in cycles(before["tasks"])}
        steps = {task["id"]: task.get("steps") for task in before["tasks"]}
        by_number = {task["id"]: task for task in after["tasks"]}
        for cycle in cycles(after["tasks"]):
            # One that takes steps waits with a timeout.
            moved = any(by_number[number].get("steps") != steps.get(number) for number in cycle)
            if moved or frozenset(cycle) not in earlier:
                continue
            named = [_named(by_number[number]) for number in cycle]
            says = (
                f"{named[0]} waits for itself, and will for ever."
                if len(named) == 1
                else f"{' waits for '.join([*named, named[0]])}: none of them will ever go on."
            )
            yield Finding(
                "deadlock",
                "problem",
                says,
                "one of them must not wait for the next; cancelling them goes round, too, and raises RecursionError",
                {"tasks": [by_number[number]["name"] for number in cycle]},
            )


def cycles(tasks: Sequence[Task]) -> list[list[int]]:
    """The circles among those that wait for tasks, each once and beginning with its lowest number.

    A task that waits for several waits for all of them, so that a circle through any of them is one.
    """
    waits_for = {task["id"]: task.get("waits_for") or () for task in tasks}
    found: list[list[int]] = []
    done: set[int] = set()
    for root in sorted(waits_for):
        # A walk in depth, with the way that led here; each task is entered once.
        way: list[int] = []
        depth: dict[int, int] = {}
        stack = [(root, iter(waits_for[root]))] if root not in done else []
        while stack:
            number, others = stack[-1]
            if number not in depth:
                depth[number] = len(way)
                way.append(number)
            for other in others:
                if other in depth:
                    circle = way[depth[other] :]
                    lowest = circle.index(min(circle))
                    found.append(circle[lowest:] + circle[:lowest])
                elif other in waits_for and other not in done:
                    stack.append((other, iter(waits_for[other])))
                    break
            else:
                stack.pop()
                way.pop()
                del depth[number]
                done.add(number)
    return found


def leaks(window: Window) -> Iterator[Finding]:
    """Tasks of one coroutine function that are created and hardly ever end."""
    for before, after in window.task_lists():
        was_live = {task["id"] for task in before["tasks"]}
        functions = {_key(function): function for function in before["functions"]}
        for function in after["functions"]:
            earlier = functions.get(_key(function))
            # Those without a name are many, counted together.
            if (
                earlier is None
                or function["live"] < PILE
                or function["live"] <= earlier["live"]
                or not _key(function)[0]
            ):
                continue
            tasks = [task for task in after["tasks"] if _key(task) == _key(function)]
            created, ended = _turnover(earlier, function, tasks, was_live)
            if ended > FEW_ENDED * created or not _rarely_end(function):
                continue
            oldest = max((task.get("age") or 0.0 for task in tasks), default=0.0)
            waits = Counter(task.get("waiting_on") or "" for task in tasks).most_common(1)
            on = f" Most of them wait on {waits[0][0]}." if waits and waits[0][0] else ""
            spawned = _spawned(tasks)
            yield Finding(
                "leak",
                "problem" if function["live"] >= HEAP else "warning",
                f"Tasks of {whose(function)} pile up: {count(function['live'])} are alive, "
                f"{count(function['live'] - earlier['live'])} more than {seconds(window.seconds)} ago, and of "
                f"{count(created)} new ones {count(ended) if ended else 'none'} ended"
                + (f"; the oldest is {seconds(oldest)} old." if oldest else ".")
                + on
                + (f" They are spawned at {spawned}." if spawned else ""),
                "await them, give what they wait for a timeout, or bound them (tideloop.Background(limit=...))",
                {
                    "coroutine": function["coroutine"],
                    "file": function.get("file"),
                    "line": function.get("line"),
                    "live": function["live"],
                    "growth": (function["live"] - earlier["live"]) / window.seconds,
                    "created": created,
                    "ended": ended,
                    "oldest": oldest,
                },
            )


def _turnover(earlier: Task, function: Task, tasks: Sequence[Task], was_live: set[int]) -> tuple[float, float]:
    """How many were created and have ended in between; from the tasks themselves where nobody counts."""
    created = grown(earlier, function, "created")
    if created is None:
        new = sum(task["id"] not in was_live for task in tasks)
        return new, max(earlier["live"] + new - function["live"], 0)
    return created, sum(grown(earlier, function, how) or 0.0 for how in ("ok", "failed", "cancelled"))


def _rarely_end(function: Task) -> bool:
    """Since the start, where that is counted; a service that has just got many clients is none that leaks."""
    created = function.get("created")
    return not created or function["live"] >= (1 - FEW_ENDED) * created or function["live"] >= HEAP


def stuck(window: Window) -> Iterator[Finding]:
    """Tasks that have long been alive where all others of their coroutine function have ended."""
    for before, after in window.task_lists():
        earlier = {task["id"]: task for task in before["tasks"]}
        functions = {_key(function): function for function in after["functions"]}
        left: defaultdict[tuple[Any, ...], list[Task]] = defaultdict(list)
        for task in after["tasks"]:
            was = earlier.get(task["id"])
            if was is None or (task.get("age") or 0.0) < LEFT_BEHIND or task.get("state") != "waiting":
                continue
            if task.get("steps") is not None and task["steps"] != was.get("steps"):
                continue
            left[_key(task)].append(task)
        for key, tasks in left.items():
            function = functions.get(key)
            ended = sum(function.get(how) or 0 for how in ("ok", "failed", "cancelled")) if function else 0
            if function is None or ended < ENDED or function["live"] > EXCEPTION * ended:
                continue
            tasks.sort(key=lambda task: -task["age"])
            first = tasks[0]
            on = f" and waits on {first['waiting_on']}" if first.get("waiting_on") else ""
            more = f"; {plural(len(tasks) - 1, 'more is', 'more are')} like it" if len(tasks) > 1 else ""
            yield Finding(
                "stuck",
                "warning",
                f"{_named(first)} is {seconds(first['age'])} old{on}, while {count(ended)} others of it have "
                f"ended{more}.",
                "give what it waits for a timeout (asyncio.timeout, tideloop.fail_after)",
                {
                    "tasks": [task["name"] for task in tasks[:NAMED]],
                    "count": len(tasks),
                    "oldest": first["age"],
                    "ended": ended,
                    "waiting_on": first.get("waiting_on"),
                },
            )


def spinning(window: Window) -> Iterator[Finding]:
    """Tasks that wake themselves again and again: loops around ``sleep(0)``."""
    for before, after in window.task_lists():
        earlier = {task["id"]: task for task in before["tasks"]}
        for task in after["tasks"]:
            was = earlier.get(task["id"], {})
            steps, idle = grown(was, task, "steps"), grown(was, task, "idle")
            if steps is None or idle is None:
                continue
            often, waited = steps / window.seconds, idle / window.seconds
            if often < OFTEN or waited >= NEVER_IDLE:
                continue
            yield Finding(
                "spinning",
                "problem",
                f"{_named(task)} spins: {rate(often)} steps, of which it waited {percent(waited)} of the time.",
                "wait for an event or a queue instead of asking again and again with sleep(0)",
                {"task": task["name"], "coroutine": task["coroutine"], "steps_per_second": often, "idle": waited},
            )


def unretrieved(window: Window) -> Iterator[Finding]:
    """Tasks that have failed and whose exception nobody has asked for."""
    if window.after.tasks is None:
        return
    for loop in window.after.tasks["loops"]:
        failures: defaultdict[tuple[str, str], list[Task]] = defaultdict(list)
        for failure in loop.get("unretrieved") or ():
            failures[failure["coroutine"], failure["exception"]].append(failure)
        for (coroutine, exception), tasks in failures.items():
            named = ", ".join(repr(task["task"]) for task in tasks[:NAMED])
            more = f" and {plural(len(tasks) - NAMED, 'other')}" if len(tasks) > NAMED else ""
            oldest = max(task.get("age") or 0.0 for task in tasks)
            yield Finding(
                "unretrieved",
                "warning",
                f"{plural(len(tasks), 'task')} of {coroutine} failed and nobody has asked why: {exception} "
                f"(task {named}{more}" + (f", {seconds(oldest)} ago)." if oldest else ")."),
                "await the task, or spawn it in a tideloop.Background or a group",
                {"coroutine": coroutine, "exception": exception, "count": len(tasks), "oldest": oldest},
            )


def _key(what: Task) -> tuple[Any, ...]:
    """Of a task and of its coroutine function alike. Lines are not: a task's may be where it is."""
    return what["coroutine"], what.get("file")


def _named(task: Task) -> str:
    return f"Task {task['name']!r} in {whose(task)}"


def _spawned(tasks: Sequence[Task]) -> str:
    places = Counter(tuple(task["spawned_at"]) for task in tasks if task.get("spawned_at"))
    if not places:
        return ""
    ((file, line, *_), _), *_ = places.most_common(1)
    return place(file, line)
