"""What can be compared: event loops and libraries, and why one of them cannot run here."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

# What a backend's program looks like: asyncio code on some loop, trio code, anyio code, threads and blocking calls, or
# no Python at all.
Family = Literal["asyncio", "trio", "anyio", "blocking", "native"]


@dataclass(frozen=True)
class Backend:
    name: str
    family: Family
    module: str
    # The packages whose versions describe this backend.
    packages: tuple[str, ...]
    python: tuple[int, int] = (3, 11)

    def missing(self) -> str | None:
        """Why this backend cannot run here, in one line; None when it can."""
        if sys.version_info < self.python:
            return f"{self.name} needs Python {self.python[0]}.{self.python[1]} or newer"
        for package in self.packages:
            if package != "tideloop" and importlib.util.find_spec(package) is None:
                return f"{package} is not installed"
        if self.module == "tideloop" and not hasattr(importlib.import_module("tideloop"), "new_event_loop"):
            return "this tideloop has no event loop yet (tideloop.new_event_loop is missing)"
        return None

    def versions(self) -> dict[str, str]:
        import importlib.metadata  # takes a while, and no worker needs it

        found = {}
        for package in self.packages:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = "unknown"
        return found

    def loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop]:
        """What `asyncio.Runner` takes; for the asyncio family only."""
        factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(self.module).new_event_loop
        return factory


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("asyncio", "asyncio", "asyncio", ()),
        Backend("uvloop", "asyncio", "uvloop", ("uvloop",)),
        Backend("rloop", "asyncio", "rloop", ("rloop",)),
        Backend("zuvloop", "asyncio", "zuvloop", ("zuvloop",), python=(3, 14)),
        Backend("trio", "trio", "trio", ("trio",)),
        Backend("anyio", "anyio", "asyncio", ("anyio",)),
        Backend("anyio+trio", "anyio", "trio", ("anyio", "trio")),
        Backend("tideloop", "asyncio", "tideloop", ("tideloop",)),
        # The load client's own server: what the system itself costs.
        Backend("limit", "native", "tideloop", ("tideloop",)),
    )
}

# The non-async approaches of the HTTP comparison; they belong to that scenario and are not chosen by --libraries.
BLOCKING: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("sequential", "blocking", "requests", ("requests",)),
        Backend("threads", "blocking", "requests", ("requests",)),
    )
}


def backend_named(name: str) -> Backend:
    return BACKENDS[name] if name in BACKENDS else BLOCKING[name]
