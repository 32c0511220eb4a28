"""run_process(): a program from its start to its end, and what it has left."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from typing import Literal

from tideloop import scopes
from tideloop.captures import Capture
from tideloop.deadlines import remaining
from tideloop.durations import seconds
from tideloop.process_output import StreamName, longest_line
from tideloop.process_results import Command, ProcessResult, ProcessTimeout, shown
from tideloop.processes import Process

__all__ = ["Input", "run_process"]

Input = bytes | bytearray | memoryview | Iterable[bytes] | AsyncIterable[bytes]


async def run_process(
    cmd: Command,
    *,
    input: Input | None = None,
    timeout: float | None = None,  # noqa: ASYNC109  # also ends the child
    grace: float = 5.0,
    capture: Capture | int | None = Capture(),  # noqa: B008  # immutable
    on_line: Callable[[StreamName, bytes], object] | None = None,
    max_line: int = 1 << 20,
    check: bool = False,
    shell: bool = False,
    cwd: str | bytes | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stderr: Literal["pipe", "stdout", "inherit"] = "pipe",
    linger: float = 1.0,
    patience: float = 5.0,
    name: str | None = None,
) -> ProcessResult:
    """Run a program to its end, and return what it has left.

    `input` is what it reads from its stdin: bytes, or an iterable or async iterable of bytes, which is read as fast
    as the child reads. Without it the child's stdin is empty. Whether the child reads all of it is its own business.

    `capture` is how much of each output stream is kept, the last 8 MiB by default; None keeps nothing. The pipes are
    always read. `on_line(stream, line)` is called for each line while the child runs; longer ones than `max_line` bytes
    come in pieces. If it raises, the child is ended, and that is raised.

    Raises ProcessTimeout after `timeout` seconds; inside of a deadline() that is earlier, that raises
    DeadlineExceeded, whose cause has what the child had left as `result`. Either way the
    child and all it has started are ended: SIGTERM, after `grace` seconds SIGKILL. The same happens when it is
    cancelled; the CancelledError then has what the child had left as its attribute `result`. With `check` raises
    ProcessError if the exit status is not 0. The other arguments are those of Process.
    """
    process = Process(
        cmd,
        shell=shell,
        cwd=cwd,
        env=env,
        stdin="null" if input is None else "pipe",
        stderr=stderr,
        capture=capture,
        grace=grace,
        linger=linger,
        patience=patience,
        name=name,
    )
    process._output.call(on_line, longest_line(max_line))
    limit = min(seconds("timeout", timeout) if timeout is not None else math.inf, remaining())
    scope: scopes.CancelScope | None = None
    try:
        if limit == math.inf:
            await _run(process, input, on_line)
        else:
            with scopes.move_on_after(limit) as scope:
                await _run(process, input, on_line)
    except asyncio.CancelledError as error:
        if process.pid is not None:
            error.result = process.result  # type: ignore[attr-defined]
        raise
    if scope is not None and scope.cancelled_caught:
        if process.pid is None:
            raise TimeoutError(f"{shown(process.args)} was not started in {limit:g} s")
        raise ProcessTimeout(process.result, limit)
    return process.result.check() if check else process.result


async def _run(process: Process, input: Input | None, on_line: Callable[[StreamName, bytes], object] | None) -> None:
    """A process from its start to its end, which is sooner if anything fails."""
    await process.__aenter__()
    try:
        if input is None:
            output = process._output
            while not output.over and output.failure is None:
                await process._changes.wait()
            if output.failure is not None:
                raise output.failure
        else:
            await _attend(process, input)
        if on_line is not None:
            for stream, line in process._output.rest():
                on_line(stream, line)
    except BaseException:
        await process.stop()
        raise


async def _attend(process: Process, input: Input) -> None:
    """Feed a process and wait for its end, or for the failure of what it is fed by or told to."""
    output, changes = process._output, process._changes
    feeder = asyncio.get_running_loop().create_task(_feed(process, input))
    try:
        feeder.add_done_callback(lambda feeder: changes.tell())
        while not output.over and output.failure is None:
            if feeder.done() and not feeder.cancelled() and feeder.exception() is not None:
                break
            await changes.wait()
    finally:
        feeder.cancel()
        await asyncio.wait([feeder])
    if output.failure is not None:
        raise output.failure
    if not feeder.cancelled():
        feeder.result()


async def _feed(process: Process, input: Input) -> None:
    try:
        if isinstance(input, bytes | bytearray | memoryview):
            await process.write(input)
        elif isinstance(input, AsyncIterable):
            async for piece in input:
                await process.write(piece)
        else:
            for piece in input:
                await process.write(piece)
    except BrokenPipeError:
        return
    process.close_stdin()
