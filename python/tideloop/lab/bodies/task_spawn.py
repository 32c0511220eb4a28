"""Task churn: many short tasks, all created before the first one runs.

A task's latency runs from its first step to the end of its sleep, not from its creation (the reference's definition).
"""

from __future__ import annotations

from time import perf_counter

from tideloop.lab.bodies import expect
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params
from tideloop.lab.summary import percentile


def measure(kit: Kit, params: Params) -> dict[str, float]:
    count: int = params["task_count"]
    payload: float = params["payload_sleep"]
    sleep = kit.sleep
    latencies: list[float] = []

    async def job(_: int) -> None:
        start = perf_counter()
        await sleep(payload)
        latencies.append(perf_counter() - start)

    async def main() -> float:
        if warmup := int(count * params.get("warmup", 0)):
            await kit.start_all(job, warmup)
            latencies.clear()
        start = perf_counter()
        await kit.start_all(job, count)
        return perf_counter() - start

    duration = kit.run(main)
    expect("tasks that finished", len(latencies), count)
    latencies.sort()
    p50 = percentile(latencies, 0.50)
    return {
        "tasks": count,
        "payload_sleep_s": payload,
        "duration_s": duration,
        "tasks_per_sec": count / duration,
        "latency_p50_ms": p50 * 1e3,
        "latency_p95_ms": percentile(latencies, 0.95) * 1e3,
        "overshoot_p50_ms": (p50 - payload) * 1e3,
        "early_wakes": sum(latency < payload for latency in latencies),
    }
