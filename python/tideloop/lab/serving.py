"""Servers of real loopback sockets: this process is the server, ``tideloop-load`` is the client.

The figure that ranks is the server's CPU time for each request: it says what a machine can serve, and the client's
speed does not enter it. The client promises (crates/load/src/drive.rs) that all its connections are made and answered
once before the first counted request, and that the first connection closes after the last answer; so the window begins
when the last connection is made and ends when the first one is lost. Its warm-up session connects and disconnects
before that: glibc's allocator gets faster for good when the first large buffer is freed, and a server that has never
lost a client measures that instead.

A server of datagrams sees no connections, so there the client says where the window is (``--udp``): it sends a mark, a
datagram of one byte, when all its sockets have been answered once, and another one after the last answer. Both are
echoed like any datagram, and the client waits for that; so the window begins when the first mark has been answered and
ends when the second one has. Every request is larger than a mark, and the warm-up session has none.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import process_time
from typing import Any

from tideloop.lab.bodies import WrongResult
from tideloop.lab.load import find_load_client
from tideloop.lab.scenarios import Params

HOST = "127.0.0.1"
# How often the server looks whether the client has ended, in seconds: too seldom to show in the figures.
LOOK_EVERY = 0.05
LOOKS_AFTER = 40
# The size of the datagram that begins a window and ends it, in bytes (crates/load/src/datagrams.rs).
MARK = 1


@dataclass
class Meter:
    """The server's CPU time between the last connection made and the first one lost, or between two marks."""

    starts_at: int
    made: int = 0
    began: float | None = None
    ended: float | None = None

    def opened(self) -> None:
        self.made += 1
        if self.made == self.starts_at:
            self.began = process_time()

    def closed(self) -> None:
        if self.began is not None and self.ended is None:
            self.ended = process_time()

    def marked(self) -> None:
        """A mark was answered: the first one begins the window, the next one ends it."""
        if self.began is None:
            self.opened()
        else:
            self.closed()

    def seconds(self) -> float:
        if self.began is None or self.ended is None:
            lacks = "beginning" if self.began is None else "end"
            seen = f"{self.made} of {self.starts_at} connections or marks"
            raise WrongResult(f"the window has no {lacks}: the server saw {seen}")
        return self.ended - self.began


def require_load_client() -> str:
    """The path of the load client."""
    binary = find_load_client()
    if binary is None:
        raise WrongResult("tideloop-load is not built; run `make build`")
    return binary


class Client:
    """The load client as a child process."""

    def __init__(self, params: Params, asking: Sequence[str]) -> None:
        """asking: the arguments that say what a request is.

        It makes so many `requests` or, without a number of them, talks for so many `seconds`.
        """
        until = ("--requests", "requests") if "requests" in params else ("--duration", "seconds")
        self._command = [
            *(require_load_client(), "--json"),
            *("--connections", str(params["connections"]), *asking),
            *(until[0], str(params[until[1]]), "--warmup", str(params["warmup_s"])),
        ]
        self._process: subprocess.Popen[str] | None = None

    def start(self, where: int | str) -> None:
        """where: a TCP or UDP port, or the path of a UNIX socket."""
        target = ("--port", str(where)) if isinstance(where, int) else ("--unix", where)
        command = [*self._command, *target]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def result(self) -> dict[str, Any]:
        assert self._process is not None
        out, err = self._process.communicate()
        if self._process.returncode:
            lines = err.strip().splitlines() or [f"tideloop-load ended with code {self._process.returncode}"]
            raise WrongResult(lines[-1])
        report: dict[str, Any] = json.loads(out)
        return report


def sessions(params: Params) -> int:
    """How often the client connects: for its warm-up, and for what is measured."""
    return 2 if params["warmup_s"] else 1


def figures(cpu: float, client: Client, each: int = 1) -> dict[str, float]:
    """The metrics of a run that is over, for the seconds that the server has used.

    each: requests that the client counts as one.
    """
    report = client.result()
    requests = report["requests"] * each
    if not requests:
        raise WrongResult("the server answered no request")
    return {
        "requests": requests,
        "duration_s": report["seconds"],
        "server_cpu_s": cpu,
        "server_cpu_us_per_request": cpu / requests * 1e6,
        "requests_per_sec": report["requests_per_sec"] * each,
        "latency_p50_us": report["latency_p50_us"],
        "latency_p99_us": report["latency_p99_us"],
        "latency_p99_9_us": report["latency_p99_9_us"],
        "latency_max_us": report["latency_max_us"],
    }


async def until_ended(client: Client, sleep: Callable[[float], Awaitable[None]]) -> None:
    """Until the client has ended."""
    while client.running():
        await sleep(LOOK_EVERY)


async def until_over(meter: Meter, client: Client, sleep: Callable[[float], Awaitable[None]]) -> None:
    """Until the client has ended and the server has noticed that its connections are closed."""
    await until_ended(client, sleep)
    for _ in range(LOOKS_AFTER):
        if meter.ended is not None:
            return
        await sleep(LOOK_EVERY)
