"""Task churn: many short tasks, all created before the first one runs.

A task's latency runs from its first step to the end of its sleep, not from its creation (the reference's definition).
With so many tasks the first steps alone outlast a short sleep, so a loop that does not sleep at all (uvloop rounds
0.5 ms to zero) would not be noticed; a few sleeps one after another, after the measured part, show it.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter

from tideloop.lab.bodies import expect
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params
from tideloop.lab.summary import percentile

PROBES = 15


def measure(kit: Kit, params: Params) -> dict[str, float]:
    count: int = params["task_count"]
    payload: float = params["payload_sleep"]
    sleep = kit.sleep
    latencies: list[float] = []
    probes: list[float] = []

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
        duration = perf_counter() - start
        for _ in range(PROBES):
            start = perf_counter()
            await sleep(payload)
            probes.append(perf_counter() - start)
        return duration

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
        "probe_sleep_s": median(probes),
        "early_wakes": sum(latency < payload for latency in latencies),
    }
