"""Plays a seed's program on tideloop, on stock asyncio too where both must show the same, and says what is wrong."""

from __future__ import annotations

import asyncio
import itertools
import logging

from tests.fuzz.play import Outcome, Player
from tests.fuzz.programs import Program, generate

__all__ = ["Judge", "replay_command"]


def replay_command(seed: int) -> str:
    """What to type to see a seed's program again."""
    return f"python -m tests.fuzz transports --replay {seed}"


class Judge:
    """Two loops, tideloop's and asyncio's, on which programs are played."""

    def __init__(self) -> None:
        import tideloop

        self._log = logging.getLogger("asyncio")
        self._level = self._log.level
        # "socket.send() raised exception." is what programs that write to lost connections get to read.
        self._log.setLevel(logging.CRITICAL)
        self._ours = Player(tideloop.new_event_loop())
        self._reference = Player(asyncio.SelectorEventLoop())

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ours.close()
        self._reference.close()
        self._log.setLevel(self._level)

    def faults(self, seed: int) -> list[str]:
        """What is wrong with the seed's program on tideloop; empty if nothing is."""
        return self.play(generate(seed))[1]

    def play(self, program: Program) -> tuple[Outcome, list[str]]:
        """What the program showed on tideloop, and what is wrong with it."""
        outcome = self._ours.play(program)
        faults = list(outcome.faults)
        if program.comparable:
            reference = self._reference.play(program)
            faults += [f"of asyncio: {fault}" for fault in reference.faults]
            faults += _differences(outcome, reference)
        return outcome, faults


def _differences(ours: Outcome, reference: Outcome) -> list[str]:
    faults = []
    for end, (mine, theirs) in enumerate(zip(ours.traces, reference.traces, strict=True)):
        for index, (here, there) in enumerate(itertools.zip_longest(mine, theirs)):
            if here != there:
                faults.append(f"end {end}, event {index}: tideloop shows {here}, asyncio {there}")
                break
    return faults
