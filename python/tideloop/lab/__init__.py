"""Compare event loops and async libraries on your own machine: ``tideloop lab`` or ``python -m tideloop.lab``.

Scenarios are data (`scenarios`), every run is a fresh process (`worker`), runs are interleaved in random order
(`plan`), and what comes out is medians with intervals, losses included (`summary`, `table`, `report`).
The method and its biases are in docs/lab.md. Nothing else in tideloop imports this package.
"""

from __future__ import annotations


def main(argv: list[str] | None = None) -> int:
    """The command line of the lab; returns its exit code. `argv` is without the program's name."""
    # Imported late: every worker process imports this package, and none of them needs the command line.
    from tideloop.lab.cli import main as run

    return run(argv)


__all__ = ["main"]
