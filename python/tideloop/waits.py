"""wait(), wait_for(), shield() and TaskGroup: asyncio's, in native code.

Each Python version has its own wording of them, and its patch releases differ too. A function of asyncio's
that says anything we do not know stays as it is.
"""

from __future__ import annotations

import dis
import sys
from itertools import pairwise
from types import CodeType
from typing import TYPE_CHECKING, Any

from tideloop import stock
from tideloop._tideloop import TaskGroupCore, function

__all__ = ["TaskGroup", "shield", "wait", "wait_for"]

_WAIT = """
    ALL_COMPLETED FIRST_COMPLETED FIRST_EXCEPTION TypeError ValueError __name__ _release_waiter _wait add
    add_done_callback any call_later cancel cancelled coroutines create_future current_task done events exception
    future_add_to_awaited_by future_discard_from_awaited_by futures get_running_loop iscoroutine isfuture len
    remove_done_callback set set_result type
"""
_WAIT_FOR = """
    CancelledError TimeoutError _cancel_and_wait done ensure_future exceptions result timeout timeouts
"""
_SHIELD = """
    _ensure_future _get_loop add_done_callback cancel cancelled create_future current_task done ensure_future exception
    future_add_to_awaited_by future_discard_from_awaited_by futures remove_done_callback result set_exception set_result
"""
_CREATE_TASK = """
    RuntimeError _aborting _entered _exiting _loop _on_task_done _parent_task _set_task_name _tasks add
    add_done_callback cancel close create_task done future_add_to_awaited_by futures tasks
"""
_ON_TASK_DONE = """
    _abort _aborting _base_error _errors _is_base_error _loop _on_completed_fut _parent_cancel_requested _parent_task
    _tasks append call_exception_handler cancel cancelled discard done exception future_discard_from_awaited_by futures
    set_result
"""
_ENTER = """
    RuntimeError _cancel_on_enter _entered _loop _parent_task cancel current_task events get_running_loop tasks
"""
_EXIT = """
    AssertionError BaseExceptionGroup CancelledError GeneratorExit _abort _aborting _aexit _base_error _errors _exiting
    _is_base_error _loop _on_completed_fut _parent_cancel_requested _parent_task _tasks append cancel cancelling
    create_future exceptions issubclass len uncancel
"""


def _names(code: CodeType) -> set[str]:
    """The globals and attributes that a function and those inside of it mention."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _native(name: str, original: Any, known: str, *helpers: Any) -> Any:
    """The native function of this name, or asyncio's if it says anything beyond ``known``."""
    said = set[str]().union(*(_names(part.__code__) for part in (original, *helpers)))
    return function(name, original) if said <= set(known.split()) else original


def _mentions(code: CodeType, name: str) -> int:
    """How often a function, or one inside of it, mentions a global or an attribute."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    here = [step.argval for step in dis.get_instructions(code)].count(name)
    return here + sum(_mentions(constant, name) for constant in inner)


def _ends_true(code: CodeType) -> bool:
    """Whether a function returns True at its end."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "NOP"]
    if any(step.opname == "RETURN_CONST" and step.argval is True for step in steps):
        return True
    return any(after.opname == "RETURN_VALUE" and before.argval is True for before, after in pairwise(steps))


if TYPE_CHECKING:
    from asyncio import TaskGroup, shield, wait, wait_for
else:
    from asyncio import tasks as _tasks

    # In some versions an exception that comes after the outer future was cancelled counts as retrieved.
    _retrieves = _mentions(stock.shield.__code__, "exception") > 1
    shield = _native("shield, retrieving" if _retrieves else "shield", stock.shield, _SHIELD)

    # Before 3.12 it has no timeout() inside, and waits for what it has cancelled in its own way.
    wait_for = _native("wait_for", stock.wait_for, _WAIT_FOR)

    wait = _native("wait", stock.wait, _WAIT, _tasks._wait, _tasks._release_waiter)

    class TaskGroup(TaskGroupCore, stock.TaskGroup):
        __doc__ = stock.TaskGroup.__doc__
        __module__ = "tideloop"

        __aenter__ = _native("TaskGroup.__aenter__", stock.TaskGroup.__aenter__, _ENTER)
        # Before 3.13 cancellations are looked at before the wait for the tasks, and compared by identity.
        __aexit__ = stock.TaskGroup.__aexit__
        if sys.version_info >= (3, 13):
            _inner = getattr(stock.TaskGroup, "_aexit", __aexit__)
            _name = "TaskGroup.__aexit__, suppressing" if _ends_true(_inner.__code__) else "TaskGroup.__aexit__"
            __aexit__ = _native(_name, __aexit__, _EXIT, _inner)
            del _inner, _name
        create_task = _native("TaskGroup.create_task", stock.TaskGroup.create_task, _CREATE_TASK)
        _on_task_done = _native("TaskGroup._on_task_done", stock.TaskGroup._on_task_done, _ON_TASK_DONE)
