"""Random task programs do the same on every kind of task; and the fuzzer would notice if they did not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests import task_variants
from tests.fuzz import tasks
from tests.fuzz.task_actions import ACTIONS, KINDS
from tests.fuzz.task_programs import Program, Statement, count, program, shrink

PROGRAMS = 1_000
"""Per kind of task. `python -m tests.fuzz.tasks` runs twenty times as many."""

REFERENCE = task_variants.VARIANTS["asyncio"]


@pytest.mark.parametrize("variant", task_variants.params())
def test_programs_do_the_same_as_on_asyncio(variant):
    with tasks.machine([REFERENCE, variant]) as machine:
        for seed in range(1, 1 + PROGRAMS):
            said = tasks.check(machine, seed)
            assert said is None, said


def test_every_action_runs():
    missing = set(ACTIONS)
    with tasks.machine([REFERENCE]) as machine:
        actions = machine.actions = dict(ACTIONS)

        def watch(name):
            async def watched(*arguments):
                missing.discard(name)
                await ACTIONS[name](*arguments)

            return watched

        for name in ACTIONS:
            actions[name] = watch(name)
        for seed in range(1, 1 + PROGRAMS):
            machine.outcome(0, program(seed, KINDS))
    assert not missing


class WithoutMessages(asyncio.Task):
    """Loses the message of a cancellation."""

    def cancel(self, msg=None):
        return super().cancel()


class OneTurnLate(asyncio.Future):
    """Tells its callbacks a turn later than it should."""

    def add_done_callback(self, callback, *, context=None):
        super().add_done_callback(lambda done: done.get_loop().call_soon(callback, done), context=context)


def loop_of_forgetful_tasks():
    loop = asyncio.SelectorEventLoop()
    loop.set_task_factory(lambda loop, coro, **options: WithoutMessages(coro, loop=loop, **options))
    return loop


def loop_of_late_futures():
    class Loop(asyncio.SelectorEventLoop):
        def create_future(self):
            return OneTurnLate(loop=self)

    return Loop()


@pytest.mark.parametrize("new_event_loop", [loop_of_forgetful_tasks, loop_of_late_futures])
def test_a_defect_is_found_and_its_program_made_small(new_event_loop):
    broken = replace(REFERENCE, name="broken", new_event_loop=new_event_loop)
    with tasks.machine([REFERENCE, broken]) as machine:
        seed = next(s for s in range(1, 500) if machine.difference(program(s, KINDS)))
        found = program(seed, KINDS)
        smallest = shrink(found, lambda candidate: machine.difference(candidate) is not None)
        said = tasks.check(machine, seed)
    assert count(smallest.body) <= min(8, count(found.body))
    assert f"seed {seed}: broken differs from asyncio" in said
    assert str(smallest) in said


def test_one_seed_is_one_program():
    assert program(7, KINDS) == program(7, KINDS)
    assert program(7, KINDS) != program(8, KINDS)


def test_shrinking_keeps_what_fails():
    def holds_a_lock(candidate: Program) -> bool:
        return "lock" in str(candidate)

    seed = next(seed for seed in range(100) if holds_a_lock(program(seed, KINDS)))
    smallest = shrink(program(seed, KINDS), holds_a_lock)
    assert [statement.action for statement in smallest.body] == ["lock"]
    assert count(smallest.body) == 1


def test_shrinking_is_bounded():
    runs = []
    large = Program((Statement("yield_once", (), ()),) * 50)
    assert shrink(large, lambda candidate: runs.append(candidate) or False, tries=20) == large
    assert len(runs) == 20
