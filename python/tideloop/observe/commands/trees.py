"""Who waits for whom, as a tree in text.

Below a task are the tasks that it waits for, and, marked as spawned, those that it has created and that nobody
waits for. A task for which several wait is shown in full once; circles are cut and told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tideloop.observe.wording import natural, place, plural, printable, seconds

__all__ = ["lines"]

Task = Mapping[str, Any]

MANY = 4
"""Leaves of one coroutine function below one task that wait alike: from so many on they share a line."""
DEEP = 40
"""Levels that are shown."""


class _Branch(NamedTuple):
    task: int
    spawned: bool


def lines(tasks: Sequence[Task], *, stacks: bool = False, every: bool = False) -> list[str]:
    """The tree of one loop's tasks. `every`: a line for each task, also where many are alike."""
    return list(_Tree(tasks, stacks, every).lines())


class _Tree:
    def __init__(self, tasks: Sequence[Task], stacks: bool, every: bool) -> None:
        self._tasks = {task["id"]: task for task in tasks}
        self._stacks = stacks
        self._every = every
        self._below: defaultdict[int, list[_Branch]] = defaultdict(list)
        self._awaited: set[int] = set()
        for task in tasks:
            for other in task.get("waits_for") or ():
                if other in self._tasks:
                    self._below[task["id"]].append(_Branch(other, False))
                    self._awaited.add(other)
        self._roots: list[int] = []
        for task in tasks:
            if task["id"] in self._awaited:
                continue
            if task.get("parent") in self._tasks and task["parent"] != task["id"]:
                self._below[task["parent"]].append(_Branch(task["id"], True))
            else:
                self._roots.append(task["id"])
        self._shown: set[int] = set()

    def lines(self) -> Iterator[str]:
        yield from self._branches([_Branch(root, False) for root in self._roots], None, ())
        # Those that no root leads to wait in a circle.
        for number in self._tasks:
            if number not in self._shown:
                yield from self._branch(number, "", "", ())

    def _branches(self, below: Sequence[_Branch], rest: str | None, above: tuple[int, ...]) -> Iterator[str]:
        """What is below a task; `rest` is what its lines begin with, None for the roots."""
        groups = self._grouped(below)
        for place_, group in enumerate(groups):
            last = place_ == len(groups) - 1
            mark = indent = ""
            if rest is not None:
                mark = rest + ("└─ " if last else "├─ ") + ("spawned " if group[0].spawned else "")
                indent = rest + ("   " if last else "│  ")
            if len(group) > 1:
                yield mark + self._alike([self._tasks[branch.task] for branch in group])
                self._shown.update(branch.task for branch in group)
            else:
                yield from self._branch(group[0].task, mark, indent, above)

    def _branch(self, number: int, first: str, rest: str, above: tuple[int, ...]) -> Iterator[str]:
        task = self._tasks[number]
        if number in above:
            yield f"{first}{_name(task)}  waits in a circle"
            return
        if number in self._shown:
            yield f"{first}{_name(task)}  see above"
            return
        self._shown.add(number)
        yield first + _line(task)
        below = self._below[number]
        if self._stacks:
            bar = "│ " if below else "  "
            yield from (f"{rest}{bar}    {frame}" for frame in _frames(task))
        if len(above) < DEEP:
            yield from self._branches(below, rest, (*above, number))
        elif below:
            yield f"{rest}└─ … {plural(len(below), 'task')} further down"

    def _grouped(self, below: Sequence[_Branch]) -> list[list[_Branch]]:
        """Branches that get a line of their own, one in a list, and those that share one."""
        alike: defaultdict[tuple[Any, ...], list[_Branch]] = defaultdict(list)
        for place_, branch in enumerate(below):
            task = self._tasks[branch.task]
            single = self._every or self._stacks or self._below[branch.task] or branch.task in self._shown
            key = (place_,) if single else (branch.spawned, task["coroutine"], task["state"], task.get("waiting_on"))
            alike[key].append(branch)
        groups: list[list[_Branch]] = []
        for group in alike.values():
            groups += [group] if len(group) >= MANY else [[branch] for branch in group]
        return groups

    def _alike(self, tasks: Sequence[Task]) -> str:
        tasks = sorted(tasks, key=lambda task: natural(task["name"]))
        first = tasks[0]
        names = f"{first['name']} … {tasks[-1]['name']}"
        return printable(f"{len(tasks)} of {_where(first)}  {_state(first)}  ({names})")


def _line(task: Task) -> str:
    age = f"  {seconds(task['age'])}" if task.get("age") is not None else ""
    return printable(f"{_name(task)}  {_where(task)}  {_state(task)}{age}")


def _name(task: Task) -> str:
    return printable(str(task["name"]))


def _where(task: Task) -> str:
    where = place(task.get("file"), task.get("line"))
    return f"{task['coroutine']} ({where})" if where else str(task["coroutine"])


def _state(task: Task) -> str:
    on = task.get("waiting_on")
    return f"waits on {on}" if task["state"] == "waiting" and on else str(task["state"])


def _frames(task: Task) -> list[str]:
    return [printable(f"{function} ({place(file, line)})") for file, line, function in task.get("stack") or ()]
