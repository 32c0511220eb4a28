"""The figures that README quotes, in one go: ``make bench``.

Scheduling costs (benches/micro.py), the accuracy of short sleeps, import time, and TCP echo through the
lab. Every part interleaves its backends and prints medians with their spread.
"""

from __future__ import annotations

import asyncio
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def sleep_accuracy(delay: float = 0.0005, rounds: int = 400) -> None:
    """How much longer than asked sleep(delay) takes, in one task on an idle loop."""
    import tideloop

    factories = {"asyncio": asyncio.SelectorEventLoop, "tideloop": tideloop.new_event_loop}
    over: dict[str, list[float]] = {name: [] for name in factories}

    async def sample() -> list[float]:
        found = []
        for _ in range(rounds // 4):
            before = time.monotonic()
            await asyncio.sleep(delay)
            found.append((time.monotonic() - before - delay) * 1e6)
        return found

    for _ in range(4):
        for name, factory in factories.items():
            with asyncio.Runner(loop_factory=factory) as runner:
                over[name] += runner.run(sample())
    print(f"sleep({delay}): overshoot in µs over {rounds} sleeps")
    for name, values in over.items():
        low, middle, high = quartiles(values)
        early = sum(value < 0 for value in values)
        print(f"  {name:<10} median {middle:6.0f}   quartiles {low:.0f} to {high:.0f}   early {early}")


def import_time(rounds: int = 15) -> None:
    """Wall time of a fresh interpreter that imports one module."""
    took: dict[str, list[float]] = {"pass": [], "import asyncio": [], "import tideloop": []}
    for _ in range(rounds):
        for statement, values in took.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            values.append((time.perf_counter() - started) * 1e3)
    bare = statistics.median(took.pop("pass"))
    print(f"import time in ms, above a bare interpreter's {bare:.1f}, {rounds} fresh processes each")
    for statement, values in took.items():
        low, middle, high = quartiles(values)
        print(f"  {statement:<16} median {middle - bare:5.1f}   quartiles {low - bare:.1f} to {high - bare:.1f}")
    ratio = (statistics.median(took["import tideloop"]) - bare) / (statistics.median(took["import asyncio"]) - bare)
    print(f"  tideloop / asyncio {ratio:.2f}")


def main() -> int:
    print(f"CPython {platform.python_version()} on {platform.machine()}")
    sleep_accuracy()
    import_time()
    sys.stdout.flush()
    subprocess.run([sys.executable, str(HERE / "micro.py")], check=True)
    echo = ["--benchmarks", "tcp_echo", "--libraries", "asyncio,uvloop,rloop,zuvloop,tideloop", "--repetitions", "9"]
    return subprocess.run([sys.executable, "-m", "tideloop", "lab", *echo, "--output", "results/bench.json"]).returncode


if __name__ == "__main__":
    sys.exit(main())
