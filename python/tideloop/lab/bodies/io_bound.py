"""Simulated I/O: workers that sleep for exponentially distributed times.

With one shared random generator (the reference) the sequence of sleeps depends on who runs when, and the figures are
mostly those of the generator. With one generator for each worker the work is fixed, so that there is an ideal to
compare with: the longest worker's sum of sleeps.
"""

from __future__ import annotations

from random import Random
from time import perf_counter

from tideloop.lab.bodies import expect
from tideloop.lab.kit import Kit
from tideloop.lab.scenarios import Params
from tideloop.lab.summary import percentile


def measure(kit: Kit, params: Params) -> dict[str, float]:
    return _shared(kit, params) if params["shared_rng"] else _fair(kit, params)


def worker_delays(params: Params, worker: int) -> list[float]:
    """The sleeps of one worker of the fair scenario, in seconds."""
    rng = Random(params["io_seed"] * 1_000_003 + worker)
    rate = 1 / params["mean_io_ms"]
    return [rng.expovariate(rate) / 1000 for _ in range(params["ops_per_worker"])]


def _shared(kit: Kit, params: Params) -> dict[str, float]:
    rng = Random(params["io_seed"])
    rate = 1 / params["mean_io_ms"]
    ops = range(params["ops_per_worker"])
    sleep = kit.sleep
    latencies: list[float] = []

    async def worker(_: int) -> None:
        for _ in ops:
            delay = rng.expovariate(rate) / 1000
            start = perf_counter()
            await sleep(delay)
            latencies.append(perf_counter() - start)

    async def main() -> float:
        start = perf_counter()
        await kit.start_all(worker, params["concurrency"])
        return perf_counter() - start

    duration = kit.run(main)
    return _figures(params, duration, latencies)


def _fair(kit: Kit, params: Params) -> dict[str, float]:
    workers: int = params["concurrency"]
    delays = [worker_delays(params, worker) for worker in range(workers)]
    sleep = kit.sleep
    latencies: list[float] = []
    overshoots: list[float] = []

    async def worker(index: int) -> None:
        for delay in delays[index]:
            start = perf_counter()
            await sleep(delay)
            latency = perf_counter() - start
            latencies.append(latency)
            overshoots.append(latency - delay)

    async def warm(_: int) -> None:
        await sleep(0.001)

    async def main() -> float:
        await kit.start_all(warm, workers)
        start = perf_counter()
        await kit.start_all(worker, workers)
        return perf_counter() - start

    duration = kit.run(main)
    figures = _figures(params, duration, latencies)
    overshoots.sort()
    ideal = max(map(sum, delays))
    return figures | {
        "ideal_s": ideal,
        "efficiency": ideal / duration,
        "overshoot_p50_ms": percentile(overshoots, 0.50) * 1e3,
        "overshoot_p99_ms": percentile(overshoots, 0.99) * 1e3,
        "early_wakes": sum(overshoot < 0 for overshoot in overshoots),
    }


def _figures(params: Params, duration: float, latencies: list[float]) -> dict[str, float]:
    ops = len(latencies)
    expect("operations that finished", ops, params["concurrency"] * params["ops_per_worker"])
    latencies.sort()
    return {
        "workers": params["concurrency"],
        "ops_per_worker": params["ops_per_worker"],
        "mean_delay_ms": params["mean_io_ms"],
        "duration_s": duration,
        "ops": ops,
        "ops_per_sec": ops / duration,
        "latency_mean_ms": sum(latencies) / ops * 1e3,
        "latency_p95_ms": percentile(latencies, 0.95) * 1e3,
        "latency_p99_ms": percentile(latencies, 0.99) * 1e3,
    }
