"""The native primitives against asyncio's: the same random schedule must give the same story.

A schedule acts at one point of a turn at a time, so every interleaving of waking, cancelling, barging
and leaving is reached sooner or later. A story says who got what in which order and what the primitive
looked like after each action; it must not differ in a single word.
"""

import asyncio
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import tideloop
from tideloop import stock

SEEDS = range(60)
STEPS = 60


def looks(primitive):
    """repr() without what must differ: the address and the module."""
    return re.sub(r"(asyncio\.\w+|tideloop)\.|at 0x[0-9a-f]+ ?", "", repr(primitive))


@dataclass
class Waiting:
    """An action that is a coroutine: somebody does it on his own."""

    begin: Callable


async def play(kit, make, actions, seed):
    """Run a random schedule; returns its story."""
    dice = random.Random(seed)
    primitive = make(kit)
    story = []
    tasks = []

    async def actor(number, action):
        try:
            result = await action(primitive, number)
            story.append((number, "got", result))
        except asyncio.CancelledError:
            story.append((number, "cancelled"))
            raise
        except Exception as error:
            story.append((number, type(error).__name__, str(error)))

    for step in range(STEPS):
        action = dice.choice([*actions, "cancel", "turn", "turn"])
        if action == "turn":
            await asyncio.sleep(0)
        elif action == "cancel":
            pending = [task for task in tasks if not task.done()]
            if pending:
                dice.choice(pending).cancel()
        elif isinstance(action, Waiting):
            tasks.append(asyncio.ensure_future(actor(step, action.begin)))
        else:
            try:
                story.append((step, "did", action(primitive, step)))
            except Exception as error:
                story.append((step, type(error).__name__, str(error)))
        story.append(looks(primitive))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    story.append(looks(primitive))
    return story


async def guarded(lock):
    async with lock:
        await asyncio.sleep(0)
        return "inside"


def queue_actions():
    actions = [
        Waiting(lambda queue, step: queue.put(step)),
        Waiting(lambda queue, step: queue.put(step)),
        Waiting(lambda queue, step: queue.get()),
        Waiting(lambda queue, step: queue.get()),
        lambda queue, step: queue.put_nowait(step),
        lambda queue, step: queue.get_nowait(),
        Waiting(lambda queue, step: queue.join()),
        lambda queue, step: queue.task_done(),
        lambda queue, step: (queue.qsize(), queue.empty(), queue.full()),
    ]
    return actions


def with_shutdown(actions):
    return [
        *actions * 4,
        lambda queue, step: queue.shutdown(),
        lambda queue, step: queue.shutdown(immediate=True),
    ]


LOCK = [
    Waiting(lambda lock, step: lock.acquire()),
    lambda lock, step: lock.release(),
    Waiting(lambda lock, step: guarded(lock)),
    lambda lock, step: lock.locked(),
]
EVENT = [
    Waiting(lambda event, step: event.wait()),
    Waiting(lambda event, step: event.wait()),
    lambda event, step: event.set(),
    lambda event, step: event.clear(),
    lambda event, step: event.is_set(),
]


async def noted(condition):
    async with condition:
        return await condition.wait()


async def looked(condition, step):
    answers = iter([0, None, step + 1])
    async with condition:
        return await condition.wait_for(lambda: next(answers))


async def passed(barrier):
    async with barrier as index:
        return index


async def note(condition, count):
    async with condition:
        condition.notify(count)


CONDITION = [
    Waiting(lambda condition, step: noted(condition)),
    Waiting(lambda condition, step: noted(condition)),
    Waiting(lambda condition, step: looked(condition, step)),
    Waiting(lambda condition, step: guarded(condition)),
    Waiting(lambda condition, step: note(condition, 1)),
    Waiting(lambda condition, step: note(condition, 2)),
    lambda condition, step: condition.notify_all(),
]
BARRIER = [
    Waiting(lambda barrier, step: barrier.wait()),
    Waiting(lambda barrier, step: barrier.wait()),
    Waiting(lambda barrier, step: barrier.wait()),
    Waiting(lambda barrier, step: passed(barrier)),
    Waiting(lambda barrier, step: barrier.reset()),
    lambda barrier, step: (barrier.n_waiting, barrier.broken),
]


class Crew:
    """Task groups, one after another, and what their tasks do: end, fail, linger or swallow a cancellation."""

    def __init__(self, kit):
        self.kit = kit
        self.group = None

    def __repr__(self):
        group = self.group
        if group is None:
            return "nobody"
        flags = [group._entered, group._exiting, group._aborting, group._parent_cancel_requested]
        return f"{group!r} {len(group._tasks)} {flags} {group._on_completed_fut is not None}"

    async def lead(self, step):
        parent = asyncio.current_task()
        try:
            async with self.kit.TaskGroup() as self.group:
                for _ in range(step % 4):
                    await asyncio.sleep(0)
                if step % 13 == 0:
                    raise KeyError(step)
        except BaseExceptionGroup as errors:
            return [repr(error) for error in errors.exceptions], parent.cancelling()
        return parent.cancelling()

    def spawn(self, step):
        if self.group is None:
            return None
        member = self.member(step)
        try:
            keywords = {"name": f"member {step}"} if step % 3 == 0 else {}
            task = self.group.create_task(member, **keywords)
        except RuntimeError:
            member.close()
            raise
        return task.get_name() if step % 3 == 0 else len(task._callbacks)

    async def member(self, step):
        try:
            for _ in range(step % 6):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            if step % 4 == 0:
                return
            if step % 4 == 1:
                raise ValueError("when cancelled") from None
            raise
        if step % 9 == 0:
            raise ValueError(step)


CREW = [
    Waiting(lambda crew, step: crew.lead(step)),
    *[lambda crew, step: crew.spawn(step)] * 5,
]


class Races:
    """Futures that are waited for in every way, and settled."""

    MODES = (asyncio.ALL_COMPLETED, asyncio.FIRST_COMPLETED, asyncio.FIRST_EXCEPTION)

    def __init__(self, kit):
        self.kit = kit
        self.futures = [self.fresh() for _ in range(5)]

    def fresh(self):
        return asyncio.get_running_loop().create_future()

    def __repr__(self):
        return " ".join(f"{future._state} {self.listeners(future)}" for future in self.futures)

    def listeners(self, future):
        """How many wait for it; asyncio's shield() of Python 3.14 adds two callbacks."""
        callbacks = [repr(callback) for callback, _ in future._callbacks or ()]
        return sum("_clear_awaited_by_callback" not in callback for callback in callbacks)

    async def wait(self, step):
        futures = {self.futures[(step + n) % 5]: n for n in range(1 + step % 4)}
        given = [list, tuple, set, dict.fromkeys, iter][step % 5](futures)
        timeout = [None, None, None, 0, 1000][step // 5 % 5]
        done, pending = await self.kit.wait(given, timeout=timeout, return_when=self.MODES[step % 3])
        return sorted(futures[one] for one in done), sorted(futures[one] for one in pending)

    async def shield(self, step):
        return await self.kit.shield(self.futures[step % 5])

    async def wait_for(self, step):
        async def inner():
            try:
                return await self.futures[step % 5]
            except asyncio.CancelledError:
                if step % 4 == 0:
                    return "stayed"
                raise

        awaitable = self.futures[step % 5] if step % 3 else inner()
        return await self.kit.wait_for(awaitable, [None, 1000, 0, 1000][step // 2 % 4])

    def settle(self, step):
        future = self.futures[step % 5]
        if future.done():
            if not future.cancelled():
                future.exception()
            self.futures[step % 5] = self.fresh()
        elif step % 7 == 0:
            future.set_exception(ValueError(step))
            future.exception()
        elif step % 7 == 1:
            future.cancel()
        else:
            future.set_result(step)


RACES = [
    Waiting(lambda races, step: races.wait(step)),
    Waiting(lambda races, step: races.shield(step)),
    Waiting(lambda races, step: races.wait_for(step)),
    *[lambda races, step: races.settle(step)] * 2,
]
CASES = {
    "task group": (Crew, CREW),
    "futures": (Races, RACES),
    "queue": (lambda kit: kit.Queue(), queue_actions()),
    "bounded queue": (lambda kit: kit.Queue(2), queue_actions()),
    "priority queue": (lambda kit: kit.PriorityQueue(2), queue_actions()),
    "lifo queue": (lambda kit: kit.LifoQueue(2), queue_actions()),
    "lock": (lambda kit: kit.Lock(), LOCK),
    "semaphore": (lambda kit: kit.Semaphore(2), LOCK),
    "bounded semaphore": (lambda kit: kit.BoundedSemaphore(2), LOCK),
    "event": (lambda kit: kit.Event(), EVENT),
    "condition": (lambda kit: kit.Condition(), CONDITION),
    "barrier": (lambda kit: kit.Barrier(3), BARRIER),
    "barrier that breaks": (
        lambda kit: kit.Barrier(2),
        [*BARRIER * 3, Waiting(lambda barrier, step: barrier.abort())],
    ),
}
if sys.version_info >= (3, 13):
    CASES["queue that shuts down"] = (lambda kit: kit.Queue(2), with_shutdown(queue_actions()))


@pytest.mark.parametrize("case", CASES)
async def test_the_same_story(loop, case):
    make, actions = CASES[case]
    for seed in SEEDS:
        expected = await play(stock, make, actions, seed)
        assert await play(tideloop, make, actions, seed) == expected, f"seed {seed}"


@pytest.mark.parametrize("case", ["bounded queue", "semaphore", "event", "lock"])
async def test_the_same_story_with_its_insides_shown(loop, case):
    """A program that looks at the waiters and items has them as asyncio's containers from then on."""
    make, actions = CASES[case]

    def look(primitive, step):
        if isinstance(primitive, stock.Queue):
            return list(primitive._queue), len(primitive._getters), len(primitive._putters)
        return len(primitive._waiters or ()), [waiter.done() for waiter in primitive._waiters or ()]

    for seed in SEEDS:
        expected = await play(stock, make, [*actions, look], seed)
        assert await play(tideloop, make, [*actions, look], seed) == expected, f"seed {seed}"
