"""Random task programs as data: how they are drawn from a seed, printed and made smaller.

A program is a tree. A `Statement` names one of the actions in task_statements.py, its arguments, and the
blocks of statements that it runs inside itself (the body of a `try`, the children of a group). Arguments that
mean "a task", "a future" or "a lock" are small numbers which the run maps to what exists by then, so that
every tree is a valid program, and one from which anything has been removed still is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

MAX_DEPTH = 3
SIZES = (8, 16, 32, 48, 64, 80)
"""How many statements a program may have; one is drawn."""

BLOCK_SIZES = (0, 1, 2, 2, 3, 3, 4, 6)
"""How many statements a block inside a statement may have; one is drawn."""

OPENINGS = (0, 1, 1, 2, 3)
"""How many tasks a program makes before anything else; one is drawn."""

Draw = Callable[[random.Random], Any]


class Statement(NamedTuple):
    action: str
    arguments: tuple[Any, ...]
    blocks: tuple[Block, ...]


Block = tuple[Statement, ...]


class Program(NamedTuple):
    """What one run does: a body, whether tasks start eagerly (Python 3.12+), and whether in debug mode."""

    body: Block
    eager: bool = False
    debug: bool = False

    def __str__(self) -> str:
        flags = f"eager={self.eager} debug={self.debug}"
        return "\n".join([flags, *lines(self.body, "  ")])


class Kind(NamedTuple):
    """How a statement of one action is drawn."""

    weight: float
    draws: tuple[Draw, ...]
    blocks: tuple[int, int]


def one_of(*values: Any) -> Draw:
    return lambda rng: values[int(rng.random() * len(values))]


def below(limit: int) -> Draw:
    return lambda rng: int(rng.random() * limit)


def chance(probability: float) -> Draw:
    return lambda rng: rng.random() < probability


def several(draw: Draw, most: int, least: int = 0) -> Draw:
    return lambda rng: tuple([draw(rng) for _ in range(rng.randint(least, most))])


def program(seed: int, kinds: dict[str, Kind]) -> Program:
    """The program of a seed."""
    rng = random.Random(seed)
    # Each program has its own favourites, and lacks some actions: rare combinations become common somewhere.
    names, weights = [], []
    for name, kind in kinds.items():
        factor = rng.choice((0.0, 0.5, 1.0, 1.0, 1.0, 4.0))
        if factor:
            names.append(name)
            weights.append(kind.weight * factor)
    total = 0.0
    bounds = [total := total + weight for weight in weights]
    left = rng.choice(SIZES)

    def statement(depth: int, name: str | None = None) -> Statement:
        nonlocal left
        left -= 1
        name = name or rng.choices(names, cum_weights=bounds)[0]
        kind = kinds[name]
        arguments = tuple([draw(rng) for draw in kind.draws])
        count = rng.randint(*kind.blocks)
        return Statement(name, arguments, tuple([block(depth + 1) for _ in range(count)]))

    def block(depth: int) -> Block:
        made: list[Statement] = []
        most = rng.choice(BLOCK_SIZES) if depth else left
        while left > 0 and len(made) < most:
            if depth < MAX_DEPTH:
                made.append(statement(depth))
            else:
                plain = statement(depth)
                made.append(plain._replace(blocks=tuple(() for _ in plain.blocks)))
        return tuple(made)

    eager, debug = rng.random() < 0.15, rng.random() < 0.03
    first = tuple([statement(0, "spawn") for _ in range(rng.choice(OPENINGS))])
    return Program(first + block(0), eager, debug)


def lines(block: Block, indent: str = "") -> Iterator[str]:
    """A block as indented text."""
    for statement in block:
        yield f"{indent}{statement.action}{statement.arguments if statement.arguments else '()'}"
        for number, inner in enumerate(statement.blocks):
            if len(statement.blocks) > 1:
                yield f"{indent}  [{number}]"
            yield from lines(inner, indent + "    ")


def count(block: Block) -> int:
    """The number of statements in a block and in all blocks below it."""
    return sum(1 + sum(map(count, statement.blocks)) for statement in block)


def smaller(block: Block) -> Iterator[Block]:
    """Blocks with a little less in them, the largest removals first."""
    half = len(block) // 2
    if half:
        yield block[half:]
        yield block[:half]
    for at, statement in enumerate(block):
        before, after = block[:at], block[at + 1 :]
        yield before + after
        for inner in statement.blocks:
            if inner:
                yield before + inner + after
        for number, inner in enumerate(statement.blocks):
            for less in smaller(inner):
                blocks = (*statement.blocks[:number], less, *statement.blocks[number + 1 :])
                yield (*before, statement._replace(blocks=blocks), *after)


def shrink(program: Program, fails: Callable[[Program], bool], tries: int = 2_000) -> Program:
    """The smallest program found that still `fails`, after at most `tries` runs of it."""
    for without in (program._replace(debug=False), program._replace(debug=False, eager=False)):
        if without != program and fails(without):
            program = without
    progress = True
    while progress:
        progress = False
        for body in smaller(program.body):
            if tries == 0:
                return program
            tries -= 1
            if fails(candidate := program._replace(body=body)):
                program, progress = candidate, True
                break
    return program
