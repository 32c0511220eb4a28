"""Compare event loops and async libraries on your own machine: ``tideloop lab`` or ``python -m tideloop.lab``.

Scenarios are data (`scenarios`), every run is a fresh process (`worker`), runs are interleaved in random order
(`plan`), and what comes out is medians with intervals, losses included (`summary`, `table`, `report`).
The method and its biases are in docs/lab.md. Nothing else in tideloop imports this package.
"""

from tideloop.lab.cli import main

__all__ = ["main"]
