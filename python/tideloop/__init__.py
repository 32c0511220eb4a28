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
        LifoQueue,
        Lock,
        PriorityQueue,
        Queue,
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
    from tideloop.adaptive import AIMD, AdaptiveLimiter, AdaptiveLimiterStats, Gradient2, Vegas
    from tideloop.limits import (
        Claim,
        KeyedLimiter,
        KeyedLimiterStats,
        Limiter,
        LimiterClosed,
        LimiterFull,
        LimiterStats,
        ResourceLimits,
        ResourceStats,
        WaitTimes,
        WeightError,
    )
    from tideloop.rates import Charge, KeyedRateLimiter, Rate, RateLimiter, RateLimiterStats, rate
    from tideloop.sync import ConditionStats, EventStats, LockStats, SemaphoreStats

__all__ = [
    "AIMD",
    "Acceleration",
    "AdaptiveLimiter",
    "AdaptiveLimiterStats",
    "Barrier",
    "BoundedSemaphore",
    "Charge",
    "Claim",
    "Condition",
    "ConditionStats",
    "Event",
    "EventLoop",
    "EventStats",
    "Gradient2",
    "Guest",
    "KeyedLimiter",
    "KeyedLimiterStats",
    "KeyedRateLimiter",
    "LifoQueue",
    "Limiter",
    "LimiterClosed",
    "LimiterFull",
    "LimiterStats",
    "Lock",
    "LockStats",
    "Outcome",
    "PriorityQueue",
    "Queue",
    "Rate",
    "RateLimiter",
    "RateLimiterStats",
    "ResourceLimits",
    "ResourceStats",
    "Runner",
    "Semaphore",
    "SemaphoreStats",
    "TaskGroup",
    "Timeout",
    "Vegas",
    "WaitTimes",
    "WeightError",
    "accelerate",
    "create_task",
    "decelerate",
    "gather",
    "guest",
    "install",
    "new_event_loop",
    "qt",
    "rate",
    "run",
    "shield",
    "sleep",
    "timeout",
    "timeout_at",
    "wait",
    "wait_for",
]

# Where the names that are imported when they are first asked for are defined; the others are in accelerated.
_LAZY = {
    "Acceleration": "acceleration",
    "accelerate": "acceleration",
    "decelerate": "acceleration",
    "Claim": "limits",
    "KeyedLimiter": "limits",
    "KeyedLimiterStats": "limits",
    "Limiter": "limits",
    "LimiterClosed": "limits",
    "LimiterFull": "limits",
    "LimiterStats": "limits",
    "ResourceLimits": "limits",
    "ResourceStats": "limits",
    "WaitTimes": "limits",
    "WeightError": "limits",
    "ConditionStats": "sync",
    "EventStats": "sync",
    "LockStats": "sync",
    "SemaphoreStats": "sync",
    "AIMD": "adaptive",
    "AdaptiveLimiter": "adaptive",
    "AdaptiveLimiterStats": "adaptive",
    "Gradient2": "adaptive",
    "Vegas": "adaptive",
    "Charge": "rates",
    "KeyedRateLimiter": "rates",
    "Rate": "rates",
    "RateLimiter": "rates",
    "RateLimiterStats": "rates",
    "rate": "rates",
}


def __getattr__(name: str) -> object:
    """Import the primitives when they are first asked for: most programs only want the loop."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"tideloop.{_LAZY.get(name, 'accelerated')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
