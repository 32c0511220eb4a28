"""What the release build is optimised for: runs that fill a profile; ``make profile`` calls it (CONTRIBUTING.md).

    PYTHONPATH=… python pgo/train.py

Runs the benches and the lab's scenarios that the figures in ``docs`` are of, tideloop alone and each once, on an
extension that counts. Their times mean nothing here. A part that fails ends it: what has not run would be taken for
what hardly ever runs, and made slow.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

TASKS = ["benches/micro.py", "--backends", "tideloop,tideloop+accelerate", "--repetitions", "1"]
TOOLKIT = ["benches/toolkit.py", "--rows", "all", "--backends", "tideloop", "--repetitions", "1", "--scale", "0.1"]
LAB = ["-m", "tideloop", "lab", "--libraries", "tideloop", "--repetitions", "1"]
PARTS = {
    "tasks, timers and callbacks": TASKS,
    "connections": [*LAB, "--profile", "wire"],
    "connections as programs use them": [*LAB, "--profile", "quick"],
    "the toolkit": TOOLKIT,
    "what observing adds": [*LAB, "--profile", "observe"],
}


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as results:
        for name, arguments in PARTS.items():
            print(f"train: {name}", flush=True)
            output = ["--output", f"{results}/{len(name)}.json"] if "lab" in arguments else []
            ended = subprocess.run(
                [sys.executable, *arguments, *output], cwd=ROOT, capture_output=True, text=True, check=False
            )
            if ended.returncode != 0:
                command = " ".join(["python", *arguments])
                print(
                    f"train: '{command}' ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}", file=sys.stderr
                )
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
