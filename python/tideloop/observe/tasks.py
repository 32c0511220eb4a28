"""What a loop's tasks are and do: ``loop.tasks()``. All times are seconds.

Where a task is and what it waits for is asked when somebody asks, of any loop. What it did with its time is counted
by a loop of tideloop's that was made with ``observe="tasks"`` (``crates/py/src/observe/tasks.rs``).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

__all__ = ["CoroutineSeen", "TaskSeen", "TasksSeen"]

_NANO = 1e-9

MOST = 10_000
"""Tasks that are looked at, so that the loop is not blocked by being looked at."""

_DEPTH = 100
_INSIDE = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep for file in (asyncio.__file__, os.path.dirname(__file__))
)
_PROGRAMS = tuple(os.path.join(_INSIDE[1], part) + os.sep for part in ("lab", "testing"))
_MAKER = "__init__"
"""What the interpreter, from 3.13 on, says to be the file of what it puts between a class's call and its __init__."""


class Place(NamedTuple):
    """A line of a coroutine."""

    file: str
    line: int
    """0: not known."""
    function: str


class TaskSeen(NamedTuple):
    """A task that is not done, as it was for a moment. Times are None if its loop does not count them."""

    id: int
    """Tells the task from all others of the process while it lives, and where times are counted from all that were."""
    name: str
    coroutine: str
    """The qualified name of its coroutine."""
    file: str
    line: int
    """Where its coroutine's function begins; 0: not known."""
    state: str
    """``running``, ``ready`` to run, or ``waiting``."""
    steps: int | None
    busy: float | None
    """Its steps took so long."""
    scheduled: float | None
    """It was ready so long and waited behind others."""
    idle: float | None
    """The rest of its age: it waited for something."""
    longest: float | None
    """Its longest step."""
    age: float | None
    waiting_on: str
    """What it awaits, and where; empty: nothing."""
    waits_for: tuple[int, ...]
    """The tasks whose end it awaits."""
    parent: int | None
    """The task that made it, which may have gone."""
    spawned_at: tuple[str, int] | None
    """File and line where it was made."""
    stack: tuple[Place, ...]
    """Where it awaits, or has yet to begin, the innermost coroutine first."""


class CoroutineSeen(NamedTuple):
    """A coroutine function, over all tasks that were made of it."""

    coroutine: str
    """Its qualified name; empty for those beyond the 4,095 first ones, which are counted together."""
    file: str
    line: int
    live: int
    created: int
    ok: int
    failed: int
    cancelled: int
    """Cancelled, or destroyed before the end."""
    steps: int
    busy: float
    scheduled: float
    idle: float
    """Together, as the other times: of ten tasks that have slept for a second this is ten."""
    longest: float


class TasksSeen(NamedTuple):
    """The tasks of a loop."""

    tasks: tuple[TaskSeen, ...]
    """Those that are not done, the oldest first where this is known."""
    coroutines: tuple[CoroutineSeen, ...]
    """The functions whose tasks were counted, the busiest first."""
    truncated: bool
    """There were more than the 10,000 that were looked at."""


class _Counting(Protocol):
    """What a loop has that counts."""

    def _last_task(self) -> int: ...
    def _task_records(self, tasks: Sequence[Any]) -> tuple[int, list[Any]]: ...
    def _task_numbers(self, tasks: Sequence[Any]) -> list[int | None]: ...
    def _forget_other_tasks(self, tasks: Sequence[Any], up_to: int) -> None: ...
    def _task_functions(self) -> list[tuple[Any, list[int]]]: ...


def is_internal(file: str) -> bool:
    """Whether a file is asyncio's or tideloop's, so that what is made there is made for its caller."""
    return file == _MAKER or (file.startswith(_INSIDE) and not file.startswith(_PROGRAMS))


def _attribute(coroutine: object, name: str) -> Any:
    """That of a coroutine, a generator or an asynchronous generator."""
    for prefix in ("cr_", "gi_", "ag_"):
        try:
            return getattr(coroutine, prefix + name)
        except AttributeError:
            continue
    return None


def coroutines_of(task: asyncio.Task[Any]) -> Iterator[object]:
    """What a task awaits, from its own coroutine inwards."""
    inner: Any = task.get_coro()
    for _ in range(_DEPTH):
        if inner is None or asyncio.isfuture(inner):
            return
        yield inner
        following = _attribute(inner, "await")
        inner = following if following is not None else getattr(inner, "gi_yieldfrom", None)


def qualified(coroutine: object) -> str:
    """The name of a coroutine, or of what stands for one; empty of None, which is what a task has when it is over."""
    if coroutine is None:
        return ""
    name = getattr(coroutine, "__qualname__", None)
    return name if isinstance(name, str) else type(coroutine).__qualname__


def _place(coroutine: object) -> Place | None:
    code, frame = _attribute(coroutine, "code"), _attribute(coroutine, "frame")
    if code is None:
        return None
    line = frame.f_lineno if frame is not None else code.co_firstlineno
    return Place(code.co_filename, line or 0, qualified(coroutine))


def stack_of(task: asyncio.Task[Any]) -> tuple[Place, ...]:
    """Where a task awaits, the innermost coroutine first."""
    found = [place for place in map(_place, coroutines_of(task)) if place is not None]
    return tuple(reversed(found))


def waiter_of(task: asyncio.Task[Any]) -> Any:
    """The future that a task awaits; None: it does not."""
    waiter = getattr(task, "_fut_waiter", None)
    return None if waiter is None or waiter.done() else waiter


def _waiting_on(task: asyncio.Task[Any], waiter: Any) -> str:
    """What a task awaits, in words."""
    if waiter is None:
        return ""
    if isinstance(waiter, asyncio.Task):
        return f"task {waiter.get_name()!r}"
    # Not what asyncio's own awaiting is made of, which has no name.
    chain = [inner for inner in coroutines_of(task) if isinstance(getattr(inner, "__qualname__", None), str)]
    what = qualified(chain[-1]) if len(chain) > 1 else type(waiter).__qualname__
    place = next((place for place in map(_place, reversed(chain)) if place and not is_internal(place.file)), None)
    return what if place is None else f"{what} ({os.path.basename(place.file)}:{place.line})"


def all_tasks(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    """The tasks of a loop that are not done, from any thread."""
    return list(asyncio.all_tasks(loop))


class TasksLooked(NamedTuple):
    """The tasks of a loop, which are looked at while they are taken."""

    tasks: Iterator[TaskSeen]
    most: int
    """There are no more than so many."""
    coroutines: tuple[CoroutineSeen, ...]
    truncated: bool


_AT_ONCE = 50
"""Records that are read with one call. All of them would be many objects, for the garbage collector to go through."""


def tasks_of(loop: asyncio.AbstractEventLoop) -> TasksSeen:
    """What there is of a loop's tasks."""
    looked = look_at(loop)
    return TasksSeen(tuple(looked.tasks), looked.coroutines, looked.truncated)


def look_at(
    loop: asyncio.AbstractEventLoop, most: int = MOST, go_on: Callable[[], object] = lambda: None
) -> TasksLooked:
    """Look at the tasks of a loop, up to so many.

    `go_on` is called several times for each task, with next to nothing in between. It may let others run, or raise to
    give it up.
    """
    from tideloop.observe.awaiting import awaited_tasks

    counts = getattr(loop, "_counts_tasks", None)
    counting = cast(_Counting, loop) if counts is not None and counts() else None
    # Those that the loop makes while they are listed, and from then on, are not missing.
    last = 0 if counting is None else counting._last_task()
    found = all_tasks(loop)
    truncated = len(found) > most
    found = found[:most]
    known: Sequence[int | None] = ()
    if counting is not None:
        if not truncated:
            counting._forget_other_tasks(found, last)
        known = counting._task_numbers(found)
    numbers = {id(task): number or id(task) for task, number in zip(found, known or [None] * len(found), strict=True)}
    awaits = awaited_tasks(found, go_on)
    found.sort(key=lambda task: numbers[id(task)])
    tasks = _looking(loop, counting, found, numbers, awaits, go_on)
    return TasksLooked(tasks, len(found), _coroutines(counting), truncated)


def _looking(
    loop: asyncio.AbstractEventLoop,
    counting: _Counting | None,
    found: Sequence[asyncio.Task[Any]],
    numbers: dict[int, int],
    awaits: dict[asyncio.Task[Any], list[asyncio.Task[Any]]],
    go_on: Callable[[], object],
) -> Iterator[TaskSeen]:
    for task, now, row in _with_records(counting, found):
        go_on()
        if task.done():
            # Since the list was made.
            continue
        running = asyncio.current_task(loop)
        waiter = waiter_of(task)
        coroutine = task.get_coro()
        code = _attribute(coroutine, "code")
        # Of a step that runs, of a task that was made since, the clock is behind.
        age = max(now - row[2], row[3] + row[4]) if row else 0
        yield TaskSeen(
            id=numbers[id(task)],
            name=task.get_name(),
            coroutine=qualified(coroutine),
            file=code.co_filename if code is not None else "",
            line=code.co_firstlineno if code is not None else 0,
            state="running" if task is running else "ready" if waiter is None else "waiting",
            steps=row[6] if row else None,
            busy=row[3] * _NANO if row else None,
            scheduled=row[4] * _NANO if row else None,
            idle=(age - row[3] - row[4]) * _NANO if row else None,
            longest=row[5] * _NANO if row else None,
            age=age * _NANO if row else None,
            waiting_on=_waiting_on(task, waiter),
            waits_for=tuple(numbers[id(other)] for other in awaits.get(task, ()) if id(other) in numbers),
            parent=(row[1] or None) if row else None,
            spawned_at=row[7] if row else None,
            stack=stack_of(task),
        )


def _with_records(
    counting: _Counting | None, found: Sequence[asyncio.Task[Any]]
) -> Iterator[tuple[asyncio.Task[Any], int, Any]]:
    """Each task with the time and what is counted of it, if that is so."""
    for first in range(0, len(found), _AT_ONCE):
        some = found[first : first + _AT_ONCE]
        now, rows = (0, [None] * len(some)) if counting is None else counting._task_records(some)
        for task, row in zip(some, rows, strict=True):
            yield task, now, row


def _coroutines(counting: _Counting | None) -> tuple[CoroutineSeen, ...]:
    if counting is None:
        return ()
    found = []
    for key, counts in counting._task_functions():
        live, created, ok, failed, cancelled, steps, busy, scheduled, lived, longest = counts
        name = key if isinstance(key, str) else getattr(key, "co_qualname", getattr(key, "__qualname__", ""))
        found.append(
            CoroutineSeen(
                coroutine=name,
                file=getattr(key, "co_filename", ""),
                line=getattr(key, "co_firstlineno", 0),
                live=live,
                created=created,
                ok=ok,
                failed=failed,
                cancelled=cancelled,
                steps=steps,
                busy=busy * _NANO,
                scheduled=scheduled * _NANO,
                idle=max(lived - busy - scheduled, 0) * _NANO,
                longest=longest * _NANO,
            )
        )
    found.sort(key=lambda function: -function.busy)
    return tuple(found)
