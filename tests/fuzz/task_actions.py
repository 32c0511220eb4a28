"""What the statements of a task program do: every way of making, awaiting, cancelling and joining tasks.

An action is a coroutine function `(world, me, *arguments, *blocks)`; its decorator says how often it is drawn
and from what. Actions write down what they see with `world.note`. Those that can fail let the exception pass:
`attempt`, the groups and the tasks' own bodies catch.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import types
from collections.abc import Callable, Coroutine, Generator
from time import perf_counter
from typing import Any

from tests.fuzz.task_programs import Block, Draw, Kind, below, chance, one_of, several
from tests.fuzz.task_world import CAUGHT, Actions, Halt, Ordered, World, described, plain

NANO = 1e-9
"""A delay that is over in the next turn."""

FAR = 3600.0
"""A delay that is never over."""

INDEX = below(12)
DELAY = one_of(None, NANO, NANO, 0, -1, FAR)
EITHER = chance(0.5)

COLOUR: contextvars.ContextVar[int] = contextvars.ContextVar("colour", default=-1)
SHAPE: contextvars.ContextVar[int] = contextvars.ContextVar("shape", default=-1)
VARIABLES = (COLOUR, SHAPE)

ACTIONS: Actions = {}
KINDS: dict[str, Kind] = {}

FAILURES: tuple[Callable[[], BaseException], ...] = (
    lambda: ValueError("v", 1),
    lambda: LookupError("l"),
    lambda: TimeoutError(),
    lambda: StopAsyncIteration(),
    lambda: StopIteration(7),
    lambda: asyncio.CancelledError("by hand"),
    lambda: asyncio.InvalidStateError("i"),
    lambda: ExceptionGroup("g", [ValueError("in a group")]),
    lambda: Halt("h"),
)
"""Made anew each time: an exception carries its history."""

Action = Callable[..., Coroutine[Any, Any, None]]


def action(weight: float, *draws: Draw, blocks: int | tuple[int, int] = 0) -> Callable[[Action], Action]:
    def register(function: Action) -> Action:
        ACTIONS[function.__name__] = function
        span = (blocks, blocks) if isinstance(blocks, int) else blocks
        KINDS[function.__name__] = Kind(weight, draws, span)
        return function

    return register


# --- passing time --------------------------------------------------------------------------------


@action(10)
async def yield_once(world: World, me: int) -> None:
    await asyncio.sleep(0)


@action(8, below(6))
async def pause(world: World, me: int, turns: int) -> None:
    await world.pause(1 + turns)


@action(4, below(100))
async def sleep_short(world: World, me: int, value: int) -> None:
    world.note(me, "slept", await asyncio.sleep(NANO, value))


@action(1)
async def sleep_for_ever(world: World, me: int) -> None:
    await asyncio.sleep(FAR)


@action(2, several(below(8), 5, 2), EITHER)
async def timers(world: World, me: int, delays: tuple[int, ...], reverse: bool) -> None:
    """Several timers with deadlines of their own, all due before anything else runs."""
    loop = world.loop
    base = loop.time()
    order = {delay: 3e-6 * (1 + delay) for delay in delays}
    for delay, seconds in sorted(order.items(), reverse=reverse):
        handle = loop.call_at(base + seconds, world.note, me, "timer", delay)
        if delay == 5:
            handle.cancel()
    until = perf_counter() + 3e-6 * 9
    while perf_counter() < until or loop.time() <= base + 3e-6 * 9:
        pass


# --- making tasks --------------------------------------------------------------------------------

HOW = one_of(
    "loop", "loop", "loop", "asyncio", "asyncio", "ensure", "context", "own context", "stock", "python", "eager"
)


@action(16, HOW, blocks=1)
async def spawn(world: World, me: int, how: str, body: Block) -> None:
    label, coroutine = world.body(body)
    try:
        world.tasks[label] = start(world, label, coroutine, how)
    except RuntimeError as error:
        world.note(me, "cannot start", label, described(error))
        coroutine.close()


def start(world: World, label: int, coroutine: Coroutine[Any, Any, Any], how: str) -> asyncio.Task[Any]:
    loop, name = world.loop, f"t{label}"
    if how == "asyncio":
        return asyncio.create_task(coroutine, name=name)
    if how == "ensure":
        task = asyncio.ensure_future(coroutine)
        task.set_name(name)
        return task
    if how == "context":
        return loop.create_task(coroutine, name=name, context=contextvars.copy_context())
    if how == "own context":
        current_one = asyncio.current_task()
        # Stock eager tasks refuse a context that is entered, and stay the current task for ever then.
        if current_one is not None and sys.version_info >= (3, 12) and not world.eager:
            return loop.create_task(coroutine, name=name, context=current_one.get_context())
    if how == "stock":
        return asyncio.tasks._CTask(coroutine, loop=loop, name=name)  # type: ignore[attr-defined, no-any-return]
    if how == "python":
        return asyncio.tasks._PyTask(coroutine, loop=loop, name=name)  # type: ignore[attr-defined, no-any-return]
    if how == "eager" and sys.version_info >= (3, 12):
        return world.variant.task(coroutine, loop=loop, name=name, eager_start=True)  # type: ignore[no-any-return]
    return loop.create_task(coroutine, name=name)


@action(1)
async def orphan(world: World, me: int) -> None:
    """A pending task that only its own future knows: the garbage collector will find it."""
    gone = world.loop.create_future()

    async def wait() -> None:
        try:
            await gone
        finally:
            world.report("orphan ended")

    world.loop.create_task(wait(), name="orphan")
    await asyncio.sleep(0)


# --- awaiting tasks and futures --------------------------------------------------------------------


@action(8, INDEX, one_of("plain", "plain", "shield", "wait_for", "timeout", "iter"), DELAY)
async def join(world: World, me: int, index: int, how: str, delay: float | None) -> None:
    task = world.younger(me, index)
    if task is None:
        return world.note(me, "nobody to join")
    if how == "shield":
        result = await asyncio.shield(task)
    elif how == "wait_for":
        result = await asyncio.wait_for(task, delay)
    elif how == "timeout":
        async with asyncio.timeout(delay):
            result = await task
    elif how == "iter":
        result = await wrapped(task)
    else:
        result = await task
    world.note(me, "joined", result)


@types.coroutine
def wrapped(awaitable: Any) -> Generator[Any, Any, Any]:
    """A generator between the task and what it awaits."""
    return (yield from awaitable.__await__())


@action(6, one_of("loop", "loop", "stock", "python", "own"))
async def make_future(world: World, me: int, how: str) -> None:
    loop = world.loop
    if how == "stock":
        future: asyncio.Future[Any] = asyncio.futures._CFuture(loop=loop)  # type: ignore[attr-defined]
    elif how == "python":
        future = asyncio.futures._PyFuture(loop=loop)  # type: ignore[attr-defined]
    elif how == "own":
        future = world.variant.future(loop=loop)
    else:
        future = loop.create_future()
    world.futures.append(future)


@action(6, INDEX, one_of("plain", "plain", "shield", "wait_for"), DELAY)
async def await_future(world: World, me: int, index: int, how: str, delay: float | None) -> None:
    future = world.future(index)
    if future is None:
        return world.note(me, "no future")
    if how == "shield":
        result = await asyncio.shield(future)
    elif how == "wait_for":
        result = await asyncio.wait_for(future, delay)
    else:
        result = await future
    world.note(me, "got", result)


@action(8, INDEX, one_of("result", "result", "result", "exception", "class", "cancel", "late"), below(len(FAILURES)))
async def settle(world: World, me: int, index: int, how: str, which: int) -> None:
    future = world.future(index)
    if future is None:
        return world.note(me, "no future")
    try:
        if how == "result":
            future.set_result(which)
        elif how == "exception":
            future.set_exception(FAILURES[which]())
        elif how == "class":
            future.set_exception(type(FAILURES[which]()))
        elif how == "cancel":
            world.note(me, "cancels a future", future.cancel())
        else:
            world.after(1 + which, future.cancel)
    except (asyncio.InvalidStateError, TypeError) as error:
        world.note(me, "cannot settle", described(error))


@action(1, one_of(None, 42, "future", "foreign", "self"))
async def bad_yield(world: World, me: int, what: Any) -> None:
    """Things that a coroutine must not give to its task."""
    if what == "future":
        what = world.loop.create_future()
    elif what == "foreign":
        what = asyncio.futures.Future(loop=FOREIGN)
        what._asyncio_future_blocking = True
    elif what == "self":
        what = asyncio.current_task()
        what._asyncio_future_blocking = True
    try:
        await raw(what)
    except RuntimeError as error:
        world.note(me, "refused", described(error))


@types.coroutine
def raw(value: Any) -> Generator[Any, Any, Any]:
    return (yield value)


class Foreign(asyncio.AbstractEventLoop):
    """Another loop, never run."""

    def get_debug(self) -> bool:
        return False


FOREIGN = Foreign()  # type: ignore[abstract]  # to checkers only


# --- cancelling ------------------------------------------------------------------------------------


@action(12, INDEX, one_of(None, None, "m1", "m2", 3))
async def cancel(world: World, me: int, index: int, message: Any) -> None:
    task = world.task(index)
    if task is None:
        return world.note(me, "nobody to cancel")
    done = task.cancel() if message is None else task.cancel(message)
    world.note(me, "cancels", world.label(task), done, task.cancelling())


@action(5, INDEX, below(6), EITHER)
async def cancel_later(world: World, me: int, index: int, turns: int, twice: bool) -> None:
    task = world.task(index)
    if task is not None:
        world.after(turns, lambda _: world.note("clock", "cancels", task.cancel(), twice and task.cancel("twice")))


@action(2, one_of("m1", None))
async def cancel_myself(world: World, me: int, message: str | None) -> None:
    task = asyncio.current_task()
    assert task is not None
    world.note(me, "cancels itself", task.cancel(message))


@action(3)
async def uncancel(world: World, me: int) -> None:
    task = asyncio.current_task()
    assert task is not None
    world.note(me, "uncancels", task.cancelling(), task.uncancel())


# --- exceptions ------------------------------------------------------------------------------------


@action(5, below(len(FAILURES)))
async def fail(world: World, me: int, which: int) -> None:
    raise FAILURES[which]()


@action(0.5, one_of(KeyboardInterrupt, SystemExit))
async def leave(world: World, me: int, kind: type[BaseException]) -> None:
    raise kind("out of the loop")


@action(14, one_of("swallow", "swallow", "raise", "raise other", "raise from", "uncancel", "finally"), blocks=2)
async def attempt(world: World, me: int, then: str, body: Block, after: Block) -> None:
    if then == "finally":
        try:
            await world.block(me, body)
        finally:
            if not isinstance(sys.exception(), GeneratorExit):
                world.note(me, "finally")
                await world.block(me, after)
        return
    try:
        await world.block(me, body)
    except CAUGHT as caught:
        world.note(me, "caught", described(caught))
        task = asyncio.current_task()
        if then == "uncancel" and isinstance(caught, asyncio.CancelledError) and task is not None:
            world.note(me, "uncancelled", task.uncancel())
        elif then == "raise":
            raise
        elif then == "raise other":
            raise LookupError("other") from None
        elif then == "raise from":
            raise LookupError("from") from caught
    await world.block(me, after)


@action(4, blocks=1)
async def nest(world: World, me: int, body: Block) -> None:
    """Two frames more."""
    await wrapped(asyncio.ensure_future(asyncio.sleep(0)))
    await world.block(me, body)


# --- deadlines -------------------------------------------------------------------------------------


@action(8, DELAY, below(6), one_of("given", "at", "clock", "clock"), blocks=1)
async def deadline(world: World, me: int, delay: float | None, turns: int, how: str, body: Block) -> None:
    """timeout() that is over soon, at once, never, or after so many turns."""
    now = world.loop.time()
    scope = asyncio.timeout_at(now - 1) if how == "at" else asyncio.timeout(FAR if how == "clock" else delay)

    def over(_: object) -> None:
        try:
            scope.reschedule(now)
        except RuntimeError as error:
            world.note("clock", "too late", described(error))

    if how == "clock":
        world.after(1 + turns, over)
    try:
        async with scope:
            await world.block(me, body)
    except TimeoutError as error:
        world.note(me, "timed out", scope.expired(), described(error))
    else:
        world.note(me, "in time", scope.expired())


@action(5, DELAY, EITHER, blocks=1)
async def wait_for(world: World, me: int, delay: float | None, task: bool, body: Block) -> None:
    label, awaitable = world.body(body)
    waited: Any = awaitable
    if task:
        waited = world.tasks[label] = start(world, label, awaitable, "loop")
    try:
        result = await asyncio.wait_for(waited, delay)
    except TimeoutError as error:
        world.note(me, "waited in vain", described(error))
    else:
        world.note(me, "waited for", result)


# --- many at once ------------------------------------------------------------------------------------


@action(7, several(INDEX, 3), EITHER, below(4), blocks=(0, 3))
async def gather(world: World, me: int, indices: tuple[int, ...], kept: bool, future: int, *bodies: Block) -> None:
    members: list[Any] = [task for index in indices if (task := world.younger(me, index)) is not None]
    if future == 0 and (found := world.future(0)) is not None:
        members.append(found)
    members += [world.body(body)[1] for body in bodies]
    results = await asyncio.gather(*members, return_exceptions=kept)
    world.note(me, "gathered", *[described(r) if isinstance(r, BaseException) else r for r in results])


MODES = (asyncio.FIRST_COMPLETED, asyncio.FIRST_EXCEPTION, asyncio.ALL_COMPLETED)


@action(5, several(INDEX, 4), one_of(*MODES), one_of(None, None, NANO, 0, FAR))
async def wait(world: World, me: int, indices: tuple[int, ...], mode: str, delay: float | None) -> None:
    members = {task for index in indices if (task := world.younger(me, index)) is not None}
    if not members:
        return world.note(me, "nobody to wait for")
    try:
        done, pending = await asyncio.wait(members, return_when=mode, timeout=delay)
    finally:
        # Whose exception it has looked at depends on the order of a set, which is that of addresses.
        for member in members:
            if member.done() and not member.cancelled():
                member.exception()
    world.note(me, "waited", sorted(map(world.label, done)), sorted(map(world.label, pending)))


@action(3, several(INDEX, 4), one_of(None, None, NANO, FAR))
async def as_completed(world: World, me: int, indices: tuple[int, ...], delay: float | None) -> None:
    # Those that have ended would come in the order of a set, which is that of their addresses.
    found = [world.younger(me, index) for index in indices]
    members = {task for task in found if task is not None and not task.done()}
    for next_done in asyncio.as_completed(members, timeout=delay):
        try:
            world.note(me, "next", await next_done)
        except (ValueError, LookupError, TimeoutError) as error:
            world.note(me, "next", described(error))


@action(8, blocks=(1, 4))
async def group(world: World, me: int, body: Block, *children: Block) -> None:
    scope = asyncio.TaskGroup()
    if hasattr(scope, "_tasks"):
        scope._tasks = Ordered()  # type: ignore[assignment]
    scopes = world.groups.setdefault(me, [])
    try:
        async with scope:
            scopes.append(scope)
            for child in children:
                spawn_in(world, me, scope, child)
            await world.block(me, body)
    except BaseExceptionGroup as several_errors:
        world.note(me, "group failed", described(several_errors))
        if several_errors.split(Exception)[1]:
            raise
    else:
        world.note(me, "group ended")
    finally:
        if scope in scopes:
            scopes.remove(scope)


@action(4, INDEX, blocks=1)
async def join_group(world: World, me: int, index: int, body: Block) -> None:
    """A child for a group that an older task, or this one, is in."""
    open_groups = [scope for label, scopes in world.groups.items() if label <= me for scope in scopes]
    if open_groups:
        spawn_in(world, me, open_groups[index % len(open_groups)], body)


def spawn_in(world: World, me: int, scope: asyncio.TaskGroup, body: Block) -> None:
    label, coroutine = world.body(body)
    try:
        world.tasks[label] = scope.create_task(coroutine, name=f"t{label}")
    except RuntimeError as error:
        world.note(me, "group is shut", described(error))
        coroutine.close()


# --- contexts and callbacks ----------------------------------------------------------------------------


@action(4, below(2), below(9), EITHER)
async def context_set(world: World, me: int, which: int, value: int, keep: bool) -> None:
    token = VARIABLES[which].set(value)
    if keep:
        world.tokens.setdefault(me, []).append((which, token))


@action(2)
async def context_reset(world: World, me: int) -> None:
    if tokens := world.tokens.get(me):
        which, token = tokens.pop()
        try:
            VARIABLES[which].reset(token)
        except (ValueError, RuntimeError) as error:
            world.note(me, "cannot reset", type(error).__name__)


@action(4)
async def context_show(world: World, me: int) -> None:
    world.note(me, "context", COLOUR.get(), SHAPE.get())


@action(5, INDEX, EITHER, EITHER, chance(0.1))
async def add_callback(world: World, me: int, index: int, on_task: bool, own_context: bool, broken: bool) -> None:
    future = world.task(index) if on_task else world.future(index)
    if future is None:
        return
    number = len(world.callbacks)

    def callback(done: asyncio.Future[Any]) -> None:
        world.note("callback", number, world.label(done), done.cancelled(), COLOUR.get())
        COLOUR.set(100 + number)
        if broken:
            raise ValueError("a broken callback")

    world.callbacks.append(callback)
    if own_context:
        context = contextvars.copy_context()
        context.run(COLOUR.set, 50 + number)
        future.add_done_callback(callback, context=context)
    else:
        future.add_done_callback(callback)


@action(2, INDEX, INDEX, EITHER)
async def remove_callback(world: World, me: int, index: int, which: int, on_task: bool) -> None:
    future = world.task(index) if on_task else world.future(index)
    if future is not None and world.callbacks:
        callback = world.callbacks[which % len(world.callbacks)]
        world.note(me, "removed", future.remove_done_callback(callback))


@action(4, one_of("soon", "soon", "later", "threadsafe", "context"), chance(0.1))
async def call(world: World, me: int, how: str, broken: bool) -> None:
    number = len(world.handles)

    def callback() -> None:
        world.note("call", number, COLOUR.get(), world.label(asyncio.current_task()) if current() else None)
        if broken:
            raise ValueError("a broken call")

    loop = world.loop
    if how == "later":
        world.handles.append(loop.call_later(NANO, callback))
    elif how == "threadsafe":
        world.handles.append(loop.call_soon_threadsafe(callback))
    elif how == "context":
        context = contextvars.copy_context()
        context.run(COLOUR.set, 200 + number)
        world.handles.append(loop.call_soon(callback, context=context))
    else:
        world.handles.append(loop.call_soon(callback))


def current() -> bool:
    return asyncio.current_task() is not None


@action(2, INDEX)
async def uncall(world: World, me: int, index: int) -> None:
    if world.handles:
        handle = world.handles[index % len(world.handles)]
        handle.cancel()
        world.note(me, "uncalled", handle.cancelled())


# --- synchronisation -----------------------------------------------------------------------------------


@action(5, one_of("set", "clear", "wait", "wait", "is_set"), below(2))
async def event(world: World, me: int, how: str, which: int) -> None:
    found: asyncio.Event = world.thing(asyncio.Event, None, which)
    if how == "wait":
        world.note(me, "event", await found.wait())
    else:
        world.note(me, "event", how, getattr(found, how)())


@action(5, below(2), chance(0.1), blocks=1)
async def lock(world: World, me: int, which: int, wrong: bool, body: Block) -> None:
    found: asyncio.Lock = world.thing(asyncio.Lock, None, which)
    if wrong:
        try:
            found.release()
        except RuntimeError as error:
            world.note(me, "not locked", described(error))
    async with found:
        world.note(me, "locked", which, found.locked())
        await world.block(me, body)
    world.note(me, "unlocked", which, found.locked())


@action(4, one_of("wait", "wait", "notify", "notify_all", "wait_for"), below(3))
async def condition(world: World, me: int, how: str, n: int) -> None:
    found: asyncio.Condition = world.thing(asyncio.Condition, None, 0)
    async with found:
        if how == "wait":
            world.note(me, "notified", await found.wait())
        elif how == "wait_for":
            world.note(me, "predicate", await found.wait_for(lambda: world.turn > 10 + n))
        elif how == "notify":
            found.notify(n)
        else:
            found.notify_all()
        world.note(me, "condition", how)


@action(4, one_of("with", "with", "acquire", "release", "locked"), one_of(1, 2), EITHER, blocks=1)
async def semaphore(world: World, me: int, how: str, size: int, bounded: bool, body: Block) -> None:
    found = world.thing(asyncio.BoundedSemaphore if bounded else asyncio.Semaphore, size, 0)
    if how == "with":
        async with found:
            world.note(me, "permit", size)
            await world.block(me, body)
    elif how == "acquire":
        world.note(me, "acquired", await found.acquire())
    elif how == "release":
        try:
            found.release()
        except ValueError as error:
            world.note(me, "released too often", described(error))
    world.note(me, "semaphore", found.locked())


QUEUES = ("Queue", "LifoQueue", "PriorityQueue")


@action(
    8,
    below(3),
    below(3),
    one_of("put", "put", "get", "get", "put_nowait", "get_nowait", "task_done", "join", "shutdown"),
    below(50),
)
async def queue(world: World, me: int, kind: int, size: int, how: str, item: int) -> None:
    found = world.thing(getattr(asyncio, QUEUES[kind]), size, 0)
    try:
        if how == "put":
            await found.put(item)
        elif how == "get":
            world.note(me, "item", await found.get())
        elif how == "put_nowait":
            found.put_nowait(item)
        elif how == "shutdown":
            # Our queues can be shut down on every Python, asyncio's only on this one.
            if sys.version_info >= (3, 13):
                found.shutdown(item % 2 == 0)
        elif how == "join":
            await found.join()
        else:
            world.note(me, how, getattr(found, how)())
    except (asyncio.QueueEmpty, asyncio.QueueFull, ValueError) as error:
        world.note(me, "queue", how, described(error))
    except Exception as error:
        if type(error).__name__ != "QueueShutDown":
            raise
        world.note(me, "queue is shut", how)
    world.note(me, "queue", how, found.qsize(), found.full(), found.empty())


@action(3, one_of("wait", "wait", "wait", "abort", "reset"))
async def barrier(world: World, me: int, how: str) -> None:
    found: asyncio.Barrier = world.thing(asyncio.Barrier, 2, 0)
    try:
        if how == "wait":
            world.note(me, "place", await found.wait())
        else:
            await getattr(found, how)()
    except asyncio.BrokenBarrierError as error:
        world.note(me, "barrier", described(error))
    world.note(me, "barrier", how, found.n_waiting, found.broken)


# --- generators and coroutines by hand -------------------------------------------------------------------


@action(4, below(4), one_of("all", "break", "aclose", "athrow", "drop"))
async def generator(world: World, me: int, taken: int, then: str) -> None:
    world.late_work = True

    async def numbers() -> Any:
        try:
            for n in range(3):
                await asyncio.sleep(0)
                yield n
        except BaseException as exception:
            world.note(me, "generator", described(exception))
            raise
        finally:
            if then != "drop":
                await world.pause(1)
                world.note(me, "generator closed")

    items = numbers()
    async for n in items:
        world.note(me, "item", n)
        if then != "all" and n == taken:
            break
    if then == "aclose":
        await items.aclose()
    elif then == "athrow":
        try:
            await items.athrow(LookupError("thrown"))
        except (LookupError, StopAsyncIteration) as error:
            world.note(me, "thrown", described(error))


@action(3, below(3), one_of("finish", "throw", "close", "drop"))
async def by_hand(world: World, me: int, steps: int, then: str) -> None:
    """A coroutine that is driven without a task."""

    async def inner() -> int:
        try:
            for _ in range(4):
                await raw(None)
        except LookupError:
            await raw(None)
            return 1
        finally:
            world.note(me, "inner ends")
        return 2

    coroutine = inner()
    try:
        for _ in range(steps):
            coroutine.send(None)
        if then == "throw" and steps:
            coroutine.throw(LookupError("thrown"))
        elif then == "close":
            coroutine.close()
        elif then == "finish":
            while True:
                coroutine.send(None)
    except StopIteration as stop:
        world.note(me, "inner returned", stop.value)
    finally:
        coroutine.close()


# --- looking around --------------------------------------------------------------------------------------


@action(6, INDEX)
async def look(world: World, me: int, index: int) -> None:
    task = world.task(index)
    if task is None:
        return world.note(me, "nobody to look at")
    state = task.done(), task.cancelled(), task.cancelling(), task._must_cancel, task._fut_waiter is None  # type: ignore[attr-defined]
    frames = None if task.done() else sum(frame.f_code.co_filename == __file__ for frame in task.get_stack())
    world.note(me, "sees", *state, plain(repr(task).split(" coro=")[0]), frames)
    for ask in (task.result, task.exception):
        try:
            found = ask()
        except (asyncio.InvalidStateError, asyncio.CancelledError, Halt, Exception) as error:
            world.note(me, "sees", described(error))
        else:
            world.note(me, "sees", described(found) if isinstance(found, BaseException) else found)
    if sys.version_info >= (3, 12):
        world.note(me, "sees", task.get_context().get(COLOUR))
    if sys.version_info >= (3, 14):
        waiters = task._asyncio_awaited_by or ()  # type: ignore[attr-defined]
        world.note(me, "awaited by", sorted(map(world.label, waiters)))


@action(2, INDEX)
async def look_at_future(world: World, me: int, index: int) -> None:
    future = world.future(index)
    if future is not None:
        # Since 3.14 asyncio's shield() adds one to end the note of who awaits whom; ours does that in its other one.
        names = [getattr(callback, "__name__", "") for callback, _ in future._callbacks or ()]
        callbacks = [name for name in names if name != "_clear_awaited_by_callback"]
        text = repr(future).split(" cb=")[0].split(" created at")[0]
        world.note(me, "sees", plain(text), len(callbacks), future._asyncio_future_blocking)


@action(3)
async def look_around(world: World, me: int) -> None:
    world.note(me, "everybody", world.label(asyncio.current_task()), sorted(map(world.label, asyncio.all_tasks())))


@action(2, INDEX, below(4))
async def rename(world: World, me: int, index: int, suffix: int) -> None:
    task = world.task(index)
    if task is not None:
        task.set_name(f"{task.get_name()}{'abcd'[suffix]}")
