"""Who awaits whom: ``tideloop.observe.tree(loop)``, on every Python.

A task awaits a future. If that is a task, it is clear whom it waits for. If it stands for others (a TaskGroup's end,
``gather()``, ``wait()``), their end is what ends it, by a callback that each of them has: so the callbacks of each task
are asked what they know. Since Python 3.14 asyncio notes who awaits a task, which is asked as well.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tideloop.observe.tasks import Place

__all__ = ["TaskNode", "TaskTree", "tree"]


class TaskNode(NamedTuple):
    """A task in the tree."""

    name: str
    coroutine: str
    stack: tuple[Place, ...]
    """Where it awaits, the innermost coroutine first."""
    awaits: tuple[TaskNode, ...]
    """The tasks whose end it awaits."""
    cycle: bool
    """It is among those that await it, and so shown without what it awaits: none of them will ever end."""

    def __repr__(self) -> str:
        # Without those below, of which there may be thousands, each in the one before.
        return f"<tideloop.observe.TaskNode {self.name}: {self.coroutine}, awaits {len(self.awaits)}>"


class TaskTree(NamedTuple):
    """The tasks of a loop below those that nobody awaits, or that only await each other.

    ``str()`` draws it, a hundred levels at most.
    """

    roots: tuple[TaskNode, ...]

    def __repr__(self) -> str:
        return f"<tideloop.observe.TaskTree of {len(self.roots)} roots>"

    def __str__(self) -> str:
        return "\n".join(line for root in self.roots for line in _lines(root, "", "", 1))


_DEEP = 100
"""Levels that are drawn."""


def _lines(node: TaskNode, first: str, rest: str, level: int) -> Iterator[str]:
    place = f" ({node.stack[0].file}:{node.stack[0].line})" if node.stack else ""
    yield f"{first}{node.name}: {node.coroutine}{place}{' (a cycle)' if node.cycle else ''}"
    if level == _DEEP and node.awaits:
        yield f"{rest}└─ … {len(node.awaits)} further down"
        return
    for index, below in enumerate(node.awaits):
        is_last = index == len(node.awaits) - 1
        yield from _lines(below, rest + ("└─ " if is_last else "├─ "), rest + ("   " if is_last else "│  "), level + 1)


def _ask(known: object, name: str) -> Any:
    """An attribute of anybody's object, which may raise what it likes; None: it has none."""
    try:
        return getattr(known, name, None)
    except Exception:
        return None


def _known_by(callback: Any, depth: int = 0) -> Iterator[object]:
    """What a callback of a future has at hand: what it is bound to, closes over, or is given."""
    if depth > 2:
        return
    if isinstance(callback, functools.partial):
        yield from callback.args
        yield from _known_by(callback.func, depth + 1)
        return
    owner = _ask(callback, "__self__")
    if owner is not None:
        yield owner
    closure = _ask(callback, "__closure__")
    for cell in closure if type(closure) is tuple else ():
        try:
            inside = cell.cell_contents
        except ValueError:
            continue
        yield inside
        if callable(inside) and not issubclass(type(inside), type):
            yield from _known_by(inside, depth + 1)


def _awaiters(task: asyncio.Task[Any], by_future: dict[int, asyncio.Task[Any]]) -> Iterator[object]:
    """Whoever may await a task."""
    yield from getattr(task, "_asyncio_awaited_by", None) or ()
    for entry in getattr(task, "_callbacks", None) or ():
        callback, context = entry if isinstance(entry, tuple) else (entry, None)
        # A task of ours hangs on what it awaits as the callback's context.
        yield context
        for known in _known_by(callback):
            yield by_future.get(id(known))
            # asyncio's and our groups know the task that will wait for them to end.
            for name in ("_parent_task", "_parent"):
                parent = _ask(known, name)
                if issubclass(type(parent), asyncio.Task) and _is_leaving(known):
                    yield parent


def _is_leaving(group: object) -> bool:
    """Whether the block of a group has ended, so that its task waits for the others."""
    return _ask(group, "_exiting") is True or _ask(group, "_stage") == "leaving"


def awaited_tasks(
    tasks: Sequence[asyncio.Task[Any]], go_on: Callable[[], object] = lambda: None
) -> dict[asyncio.Task[Any], list[asyncio.Task[Any]]]:
    """Of each of these tasks that awaits others of them: which ones; `go_on` is called before each is looked at."""
    by_future: dict[int, asyncio.Task[Any]] = {}
    # Known by their addresses, they must not leave these to others meanwhile.
    waiters: list[object] = []
    for task in tasks:
        go_on()
        waiter = getattr(task, "_fut_waiter", None)
        # Whoever awaits a task does not await what that one does.
        if waiter is not None and not isinstance(waiter, asyncio.Task):
            by_future[id(waiter)] = task
            waiters.append(waiter)
    here = {id(task) for task in tasks}
    found: dict[asyncio.Task[Any], dict[asyncio.Task[Any], None]] = {}

    def note(awaiter: object, awaited: asyncio.Task[Any]) -> None:
        if awaiter is not None and id(awaiter) in here and awaiter is not awaited:
            assert isinstance(awaiter, asyncio.Task)
            found.setdefault(awaiter, {})[awaited] = None

    for task in tasks:
        go_on()
        waiter = getattr(task, "_fut_waiter", None)
        for target in (waiter, *(getattr(waiter, "_children", None) or ())):
            if isinstance(target, asyncio.Task) and id(target) in here:
                note(task, target)
        for awaiter in _awaiters(task, by_future):
            if awaiter is not None:
                note(by_future.get(id(awaiter), awaiter), task)
    return {awaiter: list(below) for awaiter, below in found.items()}


def tree(loop: asyncio.AbstractEventLoop) -> TaskTree:
    """The tasks of a loop that are not done, each below the one that awaits it. From any thread, of any loop.

    A task that is awaited by several is below each of them, in a tree of up to about 10,000.
    """
    from tideloop.observe.tasks import MOST, all_tasks, qualified, stack_of

    tasks = sorted(all_tasks(loop)[:MOST], key=lambda task: (len(task.get_name()), task.get_name()))
    awaits = awaited_tasks(tasks)
    drawn: set[asyncio.Task[Any]] = set()
    made = itertools.count()

    def node(task: asyncio.Task[Any], below: Iterable[TaskNode], cycle: bool) -> TaskNode:
        coroutine = qualified(task.get_coro())
        return TaskNode(task.get_name(), coroutine, stack_of(task), tuple(below), cycle)

    def enter(task: asyncio.Task[Any]) -> tuple[asyncio.Task[Any], Iterator[asyncio.Task[Any]], list[TaskNode]]:
        drawn.add(task)
        return task, iter(awaits.get(task, ()) if next(made) < MOST else ()), []

    def grown(root: asyncio.Task[Any]) -> TaskNode:
        # Without a call for each level: there may be as many as there are tasks.
        path, above = [enter(root)], {root}
        while True:
            task, awaited, below = path[-1]
            for other in awaited:
                if other not in above:
                    path.append(enter(other))
                    above.add(other)
                    break
                below.append(node(other, (), True))
            else:
                path.pop()
                above.discard(task)
                done = node(task, below, False)
                if not path:
                    return done
                path[-1][2].append(done)

    awaited = {other for below in awaits.values() for other in below}
    roots = [grown(task) for task in tasks if task not in awaited]
    # Those that are left await each other.
    roots += [grown(task) for task in tasks if task not in drawn]
    return TaskTree(tuple(roots))
