"""tideloop: an async runtime for Python with its core in Rust.

``tideloop.run(main())`` instead of ``asyncio.run(main())``, or ``tideloop run app.py`` without an edit.

``tideloop.accelerate()`` puts native primitives in the place of asyncio's; they are here under asyncio's
names as well (``tideloop.Queue``, ``tideloop.sleep``, …) for those who import instead of patching.
"""

import importlib
from typing import TYPE_CHECKING

from tideloop import qt
from tideloop.loop import EventLoop, Guest, Outcome, Runner, guest, install, new_event_loop, run

if TYPE_CHECKING:
    from tideloop.accelerated import (
        Barrier,
        BoundedSemaphore,
        Condition,
        Event,
        Lock,
        Semaphore,
        TaskGroup,
        Timeout,
        create_task,
        gather,
        shield,
        sleep,
        timeout,
        timeout_at,
        wait,
        wait_for,
    )
    from tideloop.acceleration import Acceleration, accelerate, decelerate
    from tideloop.channels import Channel, ChannelClosed, ChannelStats, Receiver, Sender
    from tideloop.queues import LifoQueue, PriorityQueue, Queue, QueueShutDown, QueueStats
    from tideloop.selection import Selected, select

__all__ = [
    "Acceleration",
    "Barrier",
    "BoundedSemaphore",
    "Channel",
    "ChannelClosed",
    "ChannelStats",
    "Condition",
    "Event",
    "EventLoop",
    "Guest",
    "LifoQueue",
    "Lock",
    "Outcome",
    "PriorityQueue",
    "Queue",
    "QueueShutDown",
    "QueueStats",
    "Receiver",
    "Runner",
    "Selected",
    "Semaphore",
    "Sender",
    "TaskGroup",
    "Timeout",
    "accelerate",
    "create_task",
    "decelerate",
    "gather",
    "guest",
    "install",
    "new_event_loop",
    "qt",
    "run",
    "select",
    "shield",
    "sleep",
    "timeout",
    "timeout_at",
    "wait",
    "wait_for",
]

# Where the names are that are imported when they are first asked for; all others are in `accelerated`.
_HOMES = {
    "acceleration": ("Acceleration", "accelerate", "decelerate"),
    "channels": ("Channel", "ChannelClosed", "ChannelStats", "Receiver", "Sender"),
    "queues": ("LifoQueue", "PriorityQueue", "Queue", "QueueShutDown", "QueueStats"),
    "selection": ("Selected", "select"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import the primitives when they are first asked for: most programs only want the loop."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"tideloop.{_HOME_OF.get(name, 'accelerated')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
