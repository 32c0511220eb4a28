"""tideloop: an async runtime for Python with its core in Rust.

``tideloop.run(main())`` instead of ``asyncio.run(main())``, or ``tideloop run app.py`` without an edit.

``tideloop.accelerate()`` puts native primitives in the place of asyncio's; they are here under asyncio's
names as well (``tideloop.Queue``, ``tideloop.sleep``, …) for those who import instead of patching.

Importing the package imports no event loop; each name brings what it needs. (PYTEST_DONT_REWRITE: pytest, which
loads tideloop.testing.plugin, need not complain where the package is there already, as in ``tideloop run -m pytest``.)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tideloop import observe, qt
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
        sleep,
        timeout,
        timeout_at,
        wait,
        wait_for,
    )
    from tideloop.acceleration import Acceleration, accelerate, decelerate
    from tideloop.adaptive import (
        AIMD,
        AdaptiveLimiter,
        AdaptiveLimiterStats,
        AdaptivePermit,
        Gradient2,
        Vegas,
        outcome_of,
    )
    from tideloop.background import (
        Background,
        BackgroundClosed,
        BackgroundStats,
        Drained,
        Restart,
        Survivor,
    )
    from tideloop.batching import Batcher, BatcherStats, batched
    from tideloop.breakers import Breaker, BreakerOpen, BreakerStats
    from tideloop.caching import Cache, Cached, CacheStats, cached
    from tideloop.captures import Capture
    from tideloop.channels import Channel, ChannelClosed, ChannelStats, Receiver, Sender
    from tideloop.checkpoints import checkpoint
    from tideloop.deadlines import Deadline, DeadlineExceeded, deadline, remaining
    from tideloop.failures import LoadCancelled, WorkFailed
    from tideloop.flights import SingleFlight, SingleFlightStats
    from tideloop.gathering import first_ok, gather, race
    from tideloop.graphs import (
        Graph,
        GraphCycle,
        GraphFailed,
        GraphResult,
        GraphRun,
        GraphRunStats,
        GraphStats,
        Node,
        NodeLost,
        NodeResult,
        NodeSkipped,
        graph_run,
    )
    from tideloop.groups import Group, GroupStats, TaskHandle, group
    from tideloop.hedges import Hedge
    from tideloop.keyed_pools import KeyedPool
    from tideloop.lifespan import run
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
    from tideloop.loop import EventLoop, Guest, Runner, guest, install, new_event_loop
    from tideloop.offload import (
        OffloadStats,
        OffloadTimeout,
        blocking,
        check_cancelled,
        offload_limiter,
        offload_stats,
        run_blocking,
    )
    from tideloop.outcome import Outcome
    from tideloop.policies import AttemptTimeout, Policy, PolicyStats, policy
    from tideloop.pools import Lease, Pool, PoolClosed, PoolStats, PoolTimeout
    from tideloop.process_results import ProcessError, ProcessResult, ProcessStats, ProcessTimeout
    from tideloop.process_runs import run_process
    from tideloop.processes import Process
    from tideloop.queues import LifoQueue, PriorityQueue, Queue, QueueShutDown, QueueStats
    from tideloop.rates import (
        Charge,
        Cost,
        KeyedRateLimiter,
        KeyedRateLimiterStats,
        Rate,
        RateClaim,
        RateLimiter,
        RateLimiterStats,
        rate,
    )
    from tideloop.redis_store import RedisStore, StoreUnavailable
    from tideloop.retries import Retry
    from tideloop.scopes import CancelScope, fail_after, move_on_after, shield
    from tideloop.selection import Selected, select
    from tideloop.shared_flights import Codec, SharedSingleFlight
    from tideloop.shared_limits import SharedClaim, SharedLimiter, SharedLimiterStats
    from tideloop.shared_rates import SharedCharge, SharedRateClaim, SharedRateLimiter, SharedRateLimiterStats
    from tideloop.shutdown import on_shutdown, request_shutdown, stopping
    from tideloop.streams import Stream, StreamStats, amap, flat_map, merge, paginate, throttle
    from tideloop.sync import ConditionStats, EventStats, LockStats, SemaphoreStats
    from tideloop.thread_iterators import ThreadIterator, ThreadIteratorStats, iter_in_thread
    from tideloop.worker_processes import WorkerDied

__all__ = [
    "AIMD",
    "Acceleration",
    "AdaptiveLimiter",
    "AdaptiveLimiterStats",
    "AdaptivePermit",
    "AttemptTimeout",
    "Background",
    "BackgroundClosed",
    "BackgroundStats",
    "Barrier",
    "Batcher",
    "BatcherStats",
    "BoundedSemaphore",
    "Breaker",
    "BreakerOpen",
    "BreakerStats",
    "Cache",
    "CacheStats",
    "Cached",
    "CancelScope",
    "Capture",
    "Channel",
    "ChannelClosed",
    "ChannelStats",
    "Charge",
    "Claim",
    "Codec",
    "Condition",
    "ConditionStats",
    "Cost",
    "Deadline",
    "DeadlineExceeded",
    "Drained",
    "Event",
    "EventLoop",
    "EventStats",
    "Gradient2",
    "Graph",
    "GraphCycle",
    "GraphFailed",
    "GraphResult",
    "GraphRun",
    "GraphRunStats",
    "GraphStats",
    "Group",
    "GroupStats",
    "Guest",
    "Hedge",
    "KeyedLimiter",
    "KeyedLimiterStats",
    "KeyedPool",
    "KeyedRateLimiter",
    "KeyedRateLimiterStats",
    "Lease",
    "LifoQueue",
    "Limiter",
    "LimiterClosed",
    "LimiterFull",
    "LimiterStats",
    "LoadCancelled",
    "Lock",
    "LockStats",
    "Node",
    "NodeLost",
    "NodeResult",
    "NodeSkipped",
    "OffloadStats",
    "OffloadTimeout",
    "Outcome",
    "Policy",
    "PolicyStats",
    "Pool",
    "PoolClosed",
    "PoolStats",
    "PoolTimeout",
    "PriorityQueue",
    "Process",
    "ProcessError",
    "ProcessResult",
    "ProcessStats",
    "ProcessTimeout",
    "Queue",
    "QueueShutDown",
    "QueueStats",
    "Rate",
    "RateClaim",
    "RateLimiter",
    "RateLimiterStats",
    "Receiver",
    "RedisStore",
    "ResourceLimits",
    "ResourceStats",
    "Restart",
    "Retry",
    "Runner",
    "Selected",
    "Semaphore",
    "SemaphoreStats",
    "Sender",
    "SharedCharge",
    "SharedClaim",
    "SharedLimiter",
    "SharedLimiterStats",
    "SharedRateClaim",
    "SharedRateLimiter",
    "SharedRateLimiterStats",
    "SharedSingleFlight",
    "SingleFlight",
    "SingleFlightStats",
    "StoreUnavailable",
    "Stream",
    "StreamStats",
    "Survivor",
    "TaskGroup",
    "TaskHandle",
    "ThreadIterator",
    "ThreadIteratorStats",
    "Timeout",
    "Vegas",
    "WaitTimes",
    "WeightError",
    "WorkFailed",
    "WorkerDied",
    "accelerate",
    "amap",
    "batched",
    "blocking",
    "cached",
    "check_cancelled",
    "checkpoint",
    "create_task",
    "deadline",
    "decelerate",
    "fail_after",
    "first_ok",
    "flat_map",
    "gather",
    "graph_run",
    "group",
    "guest",
    "install",
    "iter_in_thread",
    "merge",
    "move_on_after",
    "new_event_loop",
    "observe",
    "offload_limiter",
    "offload_stats",
    "on_shutdown",
    "outcome_of",
    "paginate",
    "policy",
    "qt",
    "race",
    "rate",
    "remaining",
    "request_shutdown",
    "run",
    "run_blocking",
    "run_process",
    "select",
    "shield",
    "sleep",
    "stopping",
    "throttle",
    "timeout",
    "timeout_at",
    "wait",
    "wait_for",
]

# Where the names are that are imported when they are first asked for; all others are in `accelerated`.
_HOMES = {
    "acceleration": ("Acceleration", "accelerate", "decelerate"),
    "background": (
        "Background",
        "BackgroundClosed",
        "BackgroundStats",
        "Drained",
        "Restart",
        "Survivor",
    ),
    "batching": ("Batcher", "BatcherStats", "batched"),
    "caching": ("Cache", "CacheStats", "Cached", "cached"),
    "failures": ("LoadCancelled", "WorkFailed"),
    "flights": ("SingleFlight", "SingleFlightStats"),
    "channels": ("Channel", "ChannelClosed", "ChannelStats", "Receiver", "Sender"),
    "queues": ("LifoQueue", "PriorityQueue", "Queue", "QueueShutDown", "QueueStats"),
    "selection": ("Selected", "select"),
    "gathering": ("first_ok", "gather", "race"),
    "graphs": (
        "Graph",
        "GraphCycle",
        "GraphFailed",
        "GraphResult",
        "GraphRun",
        "GraphRunStats",
        "GraphStats",
        "Node",
        "NodeLost",
        "NodeResult",
        "NodeSkipped",
        "graph_run",
    ),
    "groups": ("Group", "GroupStats", "TaskHandle", "group"),
    "limits": (
        "Claim",
        "KeyedLimiter",
        "KeyedLimiterStats",
        "Limiter",
        "LimiterClosed",
        "LimiterFull",
        "LimiterStats",
        "ResourceLimits",
        "ResourceStats",
        "WaitTimes",
        "WeightError",
    ),
    "sync": (
        "ConditionStats",
        "EventStats",
        "LockStats",
        "SemaphoreStats",
    ),
    "scopes": ("CancelScope", "fail_after", "move_on_after", "shield"),
    "streams": ("Stream", "StreamStats", "amap", "flat_map", "merge", "paginate", "throttle"),
    "adaptive": (
        "AIMD",
        "AdaptiveLimiter",
        "AdaptiveLimiterStats",
        "AdaptivePermit",
        "Gradient2",
        "Vegas",
        "outcome_of",
    ),
    "captures": ("Capture",),
    "process_results": ("ProcessError", "ProcessResult", "ProcessStats", "ProcessTimeout"),
    "process_runs": ("run_process",),
    "processes": ("Process",),
    "shutdown": ("on_shutdown", "request_shutdown", "stopping"),
    "breakers": (
        "Breaker",
        "BreakerOpen",
        "BreakerStats",
    ),
    "deadlines": (
        "Deadline",
        "DeadlineExceeded",
        "deadline",
        "remaining",
    ),
    "hedges": ("Hedge",),
    "lifespan": ("run",),
    "loop": ("EventLoop", "Guest", "Runner", "guest", "install", "new_event_loop"),
    "outcome": ("Outcome",),
    "checkpoints": ("checkpoint",),
    "offload": (
        "OffloadStats",
        "OffloadTimeout",
        "blocking",
        "check_cancelled",
        "offload_limiter",
        "offload_stats",
        "run_blocking",
    ),
    "thread_iterators": ("ThreadIterator", "ThreadIteratorStats", "iter_in_thread"),
    "worker_processes": ("WorkerDied",),
    "policies": (
        "AttemptTimeout",
        "Policy",
        "PolicyStats",
        "policy",
    ),
    "redis_store": ("RedisStore", "StoreUnavailable"),
    "retries": ("Retry",),
    "shared_flights": ("Codec", "SharedSingleFlight"),
    "shared_limits": ("SharedClaim", "SharedLimiter", "SharedLimiterStats"),
    "shared_rates": ("SharedCharge", "SharedRateClaim", "SharedRateLimiter", "SharedRateLimiterStats"),
    "keyed_pools": ("KeyedPool",),
    "pools": (
        "Lease",
        "Pool",
        "PoolClosed",
        "PoolStats",
        "PoolTimeout",
    ),
    "rates": (
        "Charge",
        "Cost",
        "KeyedRateLimiter",
        "KeyedRateLimiterStats",
        "Rate",
        "RateClaim",
        "RateLimiter",
        "RateLimiterStats",
        "rate",
    ),
}
_MODULES = ("loop", "observe", "qt")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is first asked for: most programs only want the loop, and a test run nothing."""
    if name in _MODULES:
        return importlib.import_module(f"tideloop.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"tideloop.{_HOME_OF.get(name, 'accelerated')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
