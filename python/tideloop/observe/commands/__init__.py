"""The commands that look at a running program: ``tideloop top``, ``tasks``, ``blocked``, ``doctor`` and others.

Each module has ``main(argv)``, which returns the exit code: 0 all is well, 1 it is not (or there is nothing to
show), 2 wrong usage, 3 the process cannot be reached. They know the process by what `tideloop.observe.client` is told.
"""

from __future__ import annotations

import importlib

__all__ = ["run"]


def run(command: str, argv: list[str]) -> int:
    """Run one of the commands; returns its exit code."""
    module = importlib.import_module(f"tideloop.observe.commands.{command}")
    code: int = module.main(argv)
    return code
