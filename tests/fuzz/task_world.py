"""One run of a task program: what exists in it, what has happened, and the clock that it goes by.

The clock is the loop's turns: a callback that schedules itself again counts them, and ends the sleeps that the
program asked for in turns. So a trace holds no real time, and says in which turn each thing happened. Real
timers take part where their order is certain: those that are due in the next turn, those that are never due,
and several that all become due while one callback runs.

A run ends when its tasks have; what is still pending after `PATIENCE` turns is cancelled, oldest first.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import re
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import tideloop

from tests.fuzz.task_programs import Block, Program
from tests.task_variants import Variant

PATIENCE = 40
INSISTENCE = 4
"""After `PATIENCE`, everything pending is cancelled once in so many turns."""
LIMIT = 160
"""The turn in which a run is given up: its tasks have resisted thirty cancellations."""

ROUNDS = 5
"""Collections at the end of a run, while the last one has found something to do."""

FUTURES = 2
"""How many there are from the start."""

SECRET = re.compile(r"<[^<>]*>|0x[0-9a-f]+|Task-[0-9]+|/[^ ]*\.py:[0-9]+")

Event = tuple[Any, ...]
Actions = dict[str, Callable[..., Coroutine[Any, Any, None]]]


class Halt(BaseException):
    """Not an Exception, and yet no reason to leave the loop."""


CAUGHT = (Exception, asyncio.CancelledError, Halt, KeyboardInterrupt, SystemExit, BaseExceptionGroup)
"""What a program may catch: everything but GeneratorExit, after which a coroutine must not await."""


def plain(text: str) -> str:
    """A message without addresses, default names and representations of objects."""
    while (found := SECRET.sub("_", text)) != text:
        text = found
    return text


def described(exception: BaseException | None, depth: int = 3) -> Any:
    """An exception as plain data: type, arguments, members, and what it came from."""
    if exception is None:
        return None
    if isinstance(exception, BaseExceptionGroup):
        inner: Any = (exception.message, *[described(member) for member in exception.exceptions])
    else:
        inner = tuple([plain(str(argument)) for argument in exception.args])
    name = type(exception).__name__
    cause, context = exception.__cause__, exception.__context__
    if depth and (cause is not None or context is not None):
        hidden = exception.__suppress_context__
        return name, inner, described(cause, depth - 1), described(context, depth - 1), hidden
    return name, inner


class Ordered(dict[Any, None]):
    """A set in order of insertion, for TaskGroup: in what order it cancels must not depend on addresses."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)

    def __iter__(self) -> Any:
        return iter(list(self.keys()))


class World:
    """What the actions of a program work on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, variant: Variant, actions: Actions) -> None:
        self.loop = loop
        self.variant = variant
        self.actions = actions
        self.trace: list[Event] = []
        self.reports: list[Event] = []
        self.turn = 0
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.futures: list[asyncio.Future[Any]] = []
        self.handles: list[asyncio.Handle] = []
        self.callbacks: list[Callable[..., None]] = []
        self.groups: dict[int, list[asyncio.TaskGroup]] = {}
        self.tokens: dict[int, list[Any]] = {}
        self.things: dict[tuple[Callable[..., Any], Any, int], Any] = {}
        self.eager = False
        """Whether tasks start in the call that makes them."""
        self.late_work = False
        """Whether something that dies after the run may still want the loop: an asynchronous generator."""
        self._due: list[tuple[int, int, Callable[..., object], Any]] = []
        self._asked = 0
        self._first_pending = 0

    # --- what actions say and ask ----------------------------------------------------------------

    def note(self, who: object, what: object, *detail: Any) -> None:
        self.trace.append((self.turn, who, what, *detail))

    def report(self, what: str, *detail: Any) -> None:
        """Something whose moment is the garbage collector's business: compared without its place."""
        self.reports.append((what, *detail))

    def task(self, index: int) -> asyncio.Task[Any] | None:
        """Any task that exists."""
        return self.tasks[index % len(self.tasks)]

    def younger(self, me: int, index: int) -> asyncio.Task[Any] | None:
        """A task that may be waited for. Only younger ones: a circle of waiting tasks overflows the C stack."""
        span = len(self.tasks) - me - 1
        return self.tasks[me + 1 + index % span] if span > 0 else None

    def future(self, index: int) -> asyncio.Future[Any] | None:
        return self.futures[index % len(self.futures)] if self.futures else None

    def thing(self, make: Callable[..., Any], argument: Any, index: int) -> Any:
        """The lock, queue, … number `index` of its kind."""
        key = make, argument, index
        if key not in self.things:
            self.things[key] = make() if argument is None else make(argument)
        return self.things[key]

    def label(self, task: asyncio.Future[Any] | None) -> str:
        """A task by name; those that asyncio makes by itself look all alike."""
        return plain(task.get_name()) if isinstance(task, asyncio.Task) else type(task).__name__

    # --- the clock -------------------------------------------------------------------------------

    def after(self, turns: int, call: Callable[..., object], argument: Any = None) -> None:
        """Call something so many turns from now."""
        self._asked += 1
        heapq.heappush(self._due, (self.turn + turns, self._asked, call, argument))

    async def pause(self, turns: int) -> None:
        """Sleep for so many turns."""
        future = self.loop.create_future()
        self.after(turns, self._wake, future)
        await future

    @staticmethod
    def _wake(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)

    def _tick(self) -> None:
        self.turn += 1
        while self._due and self._due[0][0] <= self.turn:
            _, _, call, argument = heapq.heappop(self._due)
            try:
                call(argument)
            except Exception as error:
                self.note("clock", "failed", described(error))
        tasks = self.tasks
        while self._first_pending < len(tasks):
            task = tasks[self._first_pending]
            if task is not None and not task.done():
                break
            self._first_pending += 1
        else:
            # What asyncio has made by itself ends by itself.
            if all(task.get_name() == "orphan" for task in asyncio.all_tasks(self.loop)):
                # A few turns more, for callbacks of what has just ended.
                self.loop.call_soon(self.loop.call_soon, self.loop.call_soon, self.loop.stop)
                return
        if self.turn > PATIENCE and self.turn % INSISTENCE == 0:
            for task in tasks[self._first_pending :]:
                if task is not None and not task.done():
                    task.cancel()
        if self.turn > LIMIT:
            self.note("run", "given up", [self.label(task) for task in tasks if task is not None and not task.done()])
            # For whoever looks into it: tasks that no program knows, perhaps of the one before.
            self.note("run", "others", sorted(plain(repr(task)) for task in asyncio.all_tasks(self.loop) - {*tasks}))
            self.loop.stop()
            return
        self.loop.call_soon(self._tick)

    # --- bodies ----------------------------------------------------------------------------------

    async def block(self, me: int, statements: Block) -> None:
        """Run statements in the task (or bare coroutine) that goes by the label `me`."""
        for action, arguments, blocks in statements:
            await self.actions[action](self, me, *arguments, *blocks)

    def body(self, statements: Block) -> tuple[int, Coroutine[Any, Any, Any]]:
        """A new label and the coroutine that goes by it."""
        self.tasks.append(None)
        me = len(self.tasks) - 1
        return me, self._body(me, statements)

    async def _main(self, statements: Block) -> None:
        """The first task: a failure ends a statement, not the program."""
        self._enter(0)
        for statement in statements:
            try:
                await self.block(0, (statement,))
            except CAUGHT as exception:
                self.note(0, "goes on", described(exception))

    async def _body(self, me: int, statements: Block) -> int:
        self._enter(me)
        try:
            await self.block(me, statements)
        except GeneratorExit:
            self.report("closed", me)
            raise
        except BaseException as exception:
            if asyncio._get_running_loop() is None:
                # Collected after the run, and a clean-up of its own has failed without its loop.
                self.report("closed", me, described(exception))
                return me
            self.note(me, "raises", described(exception), self.label(asyncio.current_task()))
            raise
        self.note(me, "returns", self.label(asyncio.current_task()))
        return me

    def _enter(self, me: int) -> None:
        """The task of a coroutine that asyncio has made a task of, or is starting eagerly, is known from here on."""
        task = asyncio.current_task()
        if self.tasks[me] is None and not any(task is known for known in self.tasks):
            self.tasks[me] = task
        self.note(me, "starts", self.label(task))

    # --- the run ---------------------------------------------------------------------------------

    def handle_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        who = context.get("task", context.get("future"))
        name = None if who is None else self.label(who)
        self.report(plain(context["message"]), described(context.get("exception")), name, sorted(context))

    def run(self, program: Program) -> None:
        loop = self.loop
        loop.set_exception_handler(self.handle_exception)
        if program.debug:
            loop.set_debug(True)
        factory = loop.get_task_factory()
        if program.eager and sys.version_info >= (3, 12):
            self.eager = True
            loop.set_task_factory(asyncio.create_eager_task_factory(self.variant.task))
        self.tasks.append(None)
        self.futures += [loop.create_future() for _ in range(FUTURES)]

        def start() -> None:
            self.tasks[0] = loop.create_task(self._main(program.body), name="t0")

        loop.call_soon(start)
        loop.call_soon(self._tick)
        while True:
            try:
                loop.run_forever()
                break
            except (KeyboardInterrupt, SystemExit) as exception:
                self.note("run", "left by", described(exception))
        loop.set_task_factory(factory)
        loop.set_debug(False)

    def _ready(self) -> int:
        """Callbacks that are ready."""
        return self.loop._counts()[0] if isinstance(self.loop, tideloop.EventLoop) else len(self.loop._ready)

    def end(self) -> None:
        """Let go of everything; what is then told by dying objects becomes part of the reports."""
        kept: tuple[list[Any] | dict[Any, Any], ...] = (self.tasks, self.futures, self.handles, self.callbacks)
        for container in (*kept, self.groups, self.tokens, self.things):
            container.clear()
        # What dies may wake tasks, and these die only after their turn: nothing may be left for the next program.
        for _ in range(ROUNDS):
            gc.collect()
            if not self.late_work and not self._ready():
                break
            self.late_work = False
            for _ in range(4):
                self.loop.call_soon(self.loop.stop)
                self.loop.run_forever()
        self.loop.set_exception_handler(None)
        self.reports.sort(key=repr)


def run(
    program: Program, variant: Variant, loop: asyncio.AbstractEventLoop, actions: Actions
) -> tuple[list[Event], list[Event]]:
    """The trace and the reports of a program on a loop of `variant`. The garbage collector must be off."""
    world = World(loop, variant, actions)
    world.run(program)
    world.end()
    return world.trace, world.reports
