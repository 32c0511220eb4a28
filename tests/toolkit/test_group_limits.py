"""group(limit=...) with everything that lets tasks in: the harness, with the tasks of a group as those who come."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
import tideloop

from tests.toolkit import harness
from tests.toolkit.harness import Crowd, Inside, Permits
from tests.toolkit.work import tasks_left


async def visit(limit, inside: Inside) -> None:
    """In a group of its own, whose only task is the one that comes."""
    async with tideloop.group(limit=limit, on_error="collect") as g:
        handle = g.spawn(inside)
    if not handle.cancelled():
        handle.result()


def idle(limiter) -> None:
    in_use = limiter.in_flight if isinstance(limiter, tideloop.AdaptiveLimiter) else limiter.in_use
    harness.demand(in_use == 0 and limiter.waiting == 0, f"not idle: {limiter!r}")
    harness.demand(not getattr(limiter, "_begun", None), f"remembers somebody: {limiter!r}")


def idle_semaphore(semaphore) -> None:
    harness.demand(semaphore._value == 2, f"not idle: {semaphore!r}")


LIMITS = [
    Permits("Limiter", lambda: tideloop.Limiter(2), visit, idle, limit=2, several_loops=True),
    Permits("AdaptiveLimiter", lambda: tideloop.AdaptiveLimiter(min=2, max=2), visit, idle, 2, several_loops=True),
    Permits("Semaphore", lambda: tideloop.Semaphore(2), visit, idle_semaphore, limit=2),
]
each = pytest.mark.parametrize("limit", LIMITS, ids=str)
several = pytest.mark.parametrize("limit", [limit for limit in LIMITS if limit.several_loops], ids=str)


@each
def test_the_block_is_cancelled_at_every_await(kind, limit):
    assert harness.cancel_everywhere(kind, harness.permits_scenario(limit)) >= 5


@each
def test_random_schedules(kind, limit):
    for seed in range(40):
        harness.interleave(kind, limit, seed)


@several
def test_shared_by_threads(backend, limit):
    harness.share(backend.name, limit, visits=20)


@several
def test_loop_closed_with_waiters(backend, limit):
    harness.close_loop(backend.name, limit)


@several
def test_forked_with_waiters(backend, limit):
    harness.fork_with_waiters(backend.name, limit)


def _scenario(limit: Permits, on_error: str, number: bool):
    """Five tasks of one group over two permits. Block and tasks are all victims, whoever made them."""

    async def scenario(attack: harness.Attack) -> None:
        loop = asyncio.get_running_loop()
        before = asyncio.all_tasks()
        subject = 2 if number else limit.make()
        crowd = Crowd(limit)
        groups = []

        async def stay() -> None:
            await asyncio.sleep(0)
            await asyncio.sleep(1)

        async def enter() -> None:
            crowd.inside += 1
            try:
                harness.demand(crowd.inside <= 2, f"{crowd.inside} inside")
                await stay()
            finally:
                crowd.inside -= 1

        async def block() -> int:
            async with tideloop.group(limit=subject, on_error=on_error) as g:
                groups.append(g)
                for _ in range(5):
                    g.spawn(enter)
            return sum(outcome.ok for outcome in g.results)

        loop.set_task_factory(lambda loop, work, **more: asyncio.Task(attack._suffer(work), loop=loop, **more))
        try:
            victim = loop.create_task(block())
            # By its own task or by the task's scope, whose TimeoutError a group passes on in one of its own.
            with contextlib.suppress(asyncio.CancelledError, TimeoutError, ExceptionGroup):
                await asyncio.shield(victim)
            await asyncio.wait({victim})
        finally:
            loop.set_task_factory(None)
        if not victim.cancelled() and isinstance(error := victim.exception(), ExceptionGroup):
            harness.demand(error.split(TimeoutError)[1] is None, f"failed by itself: {error!r}")
        stats = groups[0].stats()
        harness.demand(stats.waiting == stats.running == 0, f"tasks are left: {stats}")
        harness.demand(not tasks_left(before), f"tasks are left: {tasks_left(before)}")
        if number:
            return
        limit.idle(subject)
        async with tideloop.group(limit=subject) as g:
            for _ in range(3):
                g.spawn(enter)
        harness.demand(g.stats().succeeded == 3, f"the limit is damaged: {g.stats()}")
        limit.idle(subject)

    return scenario


@each
@pytest.mark.parametrize("on_error", ["cancel", "collect"])
def test_any_task_is_cancelled_at_every_await(kind, limit, on_error):
    # One suspension of each task for its permit, two for what it does, some for the block.
    assert harness.cancel_everywhere(kind, _scenario(limit, on_error, number=False)) > 12


@pytest.mark.parametrize("on_error", ["cancel", "collect"])
def test_any_task_is_cancelled_at_every_await_with_a_number(kind, on_error):
    assert harness.cancel_everywhere(kind, _scenario(LIMITS[0], on_error, number=True)) > 9


@each
@pytest.mark.parametrize("on_error", ["cancel", "collect"])
def test_random_failures_and_cancellations(kind, limit, on_error):
    """Tasks of several groups that share a limit: fail, spawn others, are cancelled alone or with their group."""

    async def play(dice: random.Random) -> None:
        before = asyncio.all_tasks()
        subject = limit.make()
        inside = 0

        async def work(g) -> None:
            nonlocal inside
            inside += 1
            try:
                harness.demand(inside <= 2, f"{inside} inside")
                await harness._idle_about(dice)
                if dice.random() < 0.1:
                    raise LookupError("by chance")
                if dice.random() < 0.3:
                    with contextlib.suppress(RuntimeError):  # the group is being cancelled
                        g.spawn(work, g)
                await harness._idle_about(dice)
            finally:
                inside -= 1

        async def block() -> None:
            with contextlib.suppress(ExceptionGroup):
                async with tideloop.group(limit=subject, on_error=on_error) as g:
                    for _ in range(dice.randrange(6)):
                        handle = g.spawn(work, g)
                        if dice.random() < 0.3:
                            await asyncio.sleep(0)
                        if dice.random() < 0.2:
                            handle.cancel()
                    if dice.random() < 0.1:
                        g.cancel()
            stats = g.stats()
            harness.demand(stats.waiting == stats.running == 0, f"left with tasks: {stats}")

        await harness._act(dice, 12, block)
        harness.demand(not tasks_left(before), f"tasks are left: {tasks_left(before)}")
        limit.idle(subject)

    for seed in range(40):
        try:
            harness.run(kind, play(random.Random(seed)))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
