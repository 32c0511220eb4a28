"""Long runs of the transport fuzzer: seed after seed, in a process of its own, so that a crash is a finding too."""

from __future__ import annotations

import faulthandler
import mmap
import pprint
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.endpoint import RAISED
from tests.fuzz.judge import Judge, replay_command
from tests.fuzz.programs import generate

__all__ = ["campaign", "replay", "work"]

ROOT = Path(__file__).parent.parent.parent

_HANGS = 60.0
"""Seconds after which a program hangs."""

_REPORT = 10.0
"""Seconds between two lines of progress."""

_PER_LOOP = 1_000
"""Programs after which the loops are made anew."""

_FOUND = 3
"""The worker's exit code if it has found something, and said so."""


def campaign(minutes: float, seed: int | None) -> int:
    """Fuzz for a while from a seed on, or from a random one. The exit code: 0 if nothing was found."""
    seed = random.SystemRandom().randrange(1 << 48) if seed is None else seed
    print(f"fuzzing transports for {minutes:g} min from seed {seed}", flush=True)
    with tempfile.NamedTemporaryFile() as at:
        at.write(bytes(8))
        at.flush()
        command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz", "transports"]
        worker = subprocess.run(
            [*command, "--minutes", str(minutes), "--seed", str(seed), "--worker", at.name], cwd=ROOT, check=False
        )
        if worker.returncode in (0, _FOUND):
            return int(worker.returncode != 0)
        last = int.from_bytes(Path(at.name).read_bytes(), "little")
    print(f"seed {last}: the process ended with {worker.returncode}; {replay_command(last)}", flush=True)
    return 1


def work(minutes: float, seed: int, at: str) -> int:
    """The worker: plays programs until the time is up, and keeps the seed in the file `at`."""
    with open(at, "r+b") as file, mmap.mmap(file.fileno(), 8) as current:
        started = reported = time.monotonic()
        played = found = 0
        while time.monotonic() - started < minutes * 60:
            with Judge() as judge:
                for _ in range(_PER_LOOP):
                    current[:] = seed.to_bytes(8, "little")
                    faulthandler.dump_traceback_later(_HANGS, exit=True)
                    faults = _faults(judge, seed)
                    if faults:
                        found += 1
                        print(f"seed {seed}: {'; '.join(faults)[:2_000]}\n  {replay_command(seed)}", flush=True)
                    played += 1
                    seed += 1
            now = time.monotonic()
            if now - reported > _REPORT:
                reported = now
                print(f"{now - started:6.0f} s  {played} programs, {found} findings, at seed {seed}", flush=True)
        faulthandler.cancel_dump_traceback_later()
    print(f"{played} programs in {time.monotonic() - started:.0f} s, {found} findings", flush=True)
    return _FOUND if found else 0


def _faults(judge: Judge, seed: int) -> list[str]:
    try:
        return judge.faults(seed)
    except (Exception, *RAISED.values()):  # whatever comes out of a loop is a finding like any other
        return [traceback.format_exc()]


def replay(seed: int) -> int:
    """Show one program, what its ends were told, and what is wrong with it."""
    program = generate(seed)
    pprint.pp(program, width=140)
    with Judge() as judge:
        outcome, faults = judge.play(program)
    for end, trace in enumerate(outcome.traces):
        print(f"end {end}:", *trace, sep="\n    ")
    print("\n".join(faults) or "nothing is wrong")
    return int(bool(faults))
