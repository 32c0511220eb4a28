"""What a system lacks: NotImplementedError by name.

asyncio's selector loop on Windows knows no child processes, pipes, UNIX sockets and signal handlers, and
says so without a word. What is lacking is found by looking at the loop that we inherit, not at the
system's name: the day asyncio supplies it, so do we.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import base_events
from collections.abc import Callable
from typing import Any, NoReturn

from tideloop.loop.bases import LoopBase

__all__ = ["AbsentLoop"]

_SYSTEM = {"win32": "Windows"}.get(sys.platform, sys.platform)

# A method, and the one that must not be the base classes' own for it to work.
_NEEDS = {
    "subprocess_exec": "_make_subprocess_transport",
    "subprocess_shell": "_make_subprocess_transport",
    "connect_read_pipe": "_make_read_pipe_transport",
    "connect_write_pipe": "_make_write_pipe_transport",
    "create_unix_connection": "create_unix_connection",
    "create_unix_server": "create_unix_server",
    "add_signal_handler": "add_signal_handler",
    "remove_signal_handler": "remove_signal_handler",
}


class AbsentLoop(LoopBase):
    """The part of the loop that refuses what asyncio's loop lacks on this system."""


def _is_lacking(needed: str) -> bool:
    here = getattr(asyncio.SelectorEventLoop, needed)
    bases = (base_events.BaseEventLoop, asyncio.AbstractEventLoop)
    return any(here is getattr(base, needed, None) for base in bases)


def _refusal(name: str) -> Callable[..., Any]:
    message = f"EventLoop.{name}() is not available on {_SYSTEM}"
    if name.endswith("_signal_handler"):

        def refuse(self: AbsentLoop, *args: Any, **kwargs: Any) -> NoReturn:
            raise NotImplementedError(message)

        return refuse

    async def refuse_later(self: AbsentLoop, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(message)

    return refuse_later


for _name, _needed in _NEEDS.items():
    if _is_lacking(_needed):
        setattr(AbsentLoop, _name, _refusal(_name))
