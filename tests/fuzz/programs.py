"""Random programs for two connected ends: what each does, when, and how its callbacks answer.

A program is a pure function of its seed. It holds no sockets and knows no loop; `tests.fuzz.play` plays it.

An operation is a tuple, its name first:

    ("write", size, kind)      kind: bytes, bytearray (changed afterwards) or memoryview
    ("writelines", sizes)      ("limits", high, low)       ("protocol", kind)      ("raise", kind)
    ("eof",) ("pause",) ("resume",) ("close",) ("abort",) ("info",) ("misuse",)
    ("file", size)             loop.sendfile(), which goes on while other operations happen
    ("steal",)                 the application closes the transport's socket itself
    ("tls",)                   both ends upgrade; ("tls-alone",) only this one, so that no handshake can succeed
    ("send", size) ("receive", size) ("shut",) ("hang up",) ("reset",)      what a plain socket can do
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

CALLBACKS = ("made", "data", "eof", "pause", "resume", "lost")
"""The callbacks in which an end can answer with operations of its own."""

Operation = tuple
Answers = dict[str, list[list[Operation]]]


@dataclass(frozen=True)
class Step:
    """One end does one thing, and the loop is then left alone for as long as `pace` says.

    pace: "now" not at all, "turn" one turn, "settle" until nothing more happens.
    """

    end: int
    operation: Operation
    pace: str


@dataclass(frozen=True)
class Program:
    """Everything that a run needs to know.

    link: "pair" (a socketpair), "tcp" (a server and a client), "raw" (the second end is a plain socket) or "tls".
    comparable: whether every loop must show the same callbacks in the same order.
    """

    seed: int
    link: str
    kinds: tuple[str, str]
    keep_open: tuple[bool, bool]
    send_buffer: int | None
    steps: list[Step]
    ending: list[Step]
    answers: tuple[Answers, Answers]
    comparable: bool = field(default=False)


def generate(seed: int) -> Program:
    """The program of a seed."""
    rng = random.Random(seed)
    comparable = rng.random() < 0.35
    link = "pair" if comparable else rng.choices(["pair", "tcp", "raw", "tls"], [30, 35, 29, 6])[0]
    largest = rng.choice([10, 3_000, 40_000]) if comparable else rng.choice([10, 3_000, 70_000, 400_000])
    choose = _Operations(rng, link, largest, comparable)
    paces = ["settle"] if comparable else ["now", "now", "turn", "settle"]
    steps = [Step(end := rng.randrange(2), choose.step(end), rng.choice(paces)) for _ in range(rng.randint(1, 14))]
    plain = "plain" if link == "tls" else None
    answers = [choose.answers(0), choose.answers(1)]
    if comparable:
        # Two ends that answer each other are a race: how much happens between two polls differs between loops.
        answers[rng.randrange(2)] = {}
    return Program(
        seed=seed,
        link=link,
        kinds=(plain or rng.choice(["plain", "buffered"]), plain or rng.choice(["plain", "buffered"])),
        keep_open=(rng.random() < 0.4, rng.random() < 0.4),
        send_buffer=None if comparable or rng.random() < 0.5 else 4096,
        steps=steps,
        ending=[
            Step(end, choose.ending(end), rng.choice([*paces[:1], "settle"]))
            for end in rng.choice([(0,), (1,), (0, 1)])
        ],
        answers=(answers[0], answers[1]),
        comparable=comparable,
    )


class _Operations:
    """Draws operations that fit the program."""

    def __init__(self, rng: random.Random, link: str, largest: int, comparable: bool) -> None:
        self.rng = rng
        self.link = link
        self.largest = largest
        self.comparable = comparable

    def step(self, end: int) -> Operation:
        """Something that an end does by itself."""
        if self.link == "raw" and end == 1:
            return self.rng.choice(
                [("send", self.size()), ("receive", self.size()), ("receive", self.size())] * 3
                + [("shut",), ("hang up",), ("reset",)]
            )
        if self.link != "tls" and not self.comparable:
            chance = self.rng.random()
            if chance < 0.02 and self.link != "raw":
                return self.rng.choice([("tls",), ("tls-alone",)])
            if chance < 0.06:
                return ("file", self.size())
            if chance < 0.065:
                return ("steal",)
        return self.call()

    def call(self) -> Operation:
        """One call of the transport."""
        rng = self.rng
        name = rng.choices(
            ["write", "writelines", "eof", "pause", "resume", "limits", "close", "abort", "protocol", "info", "misuse"],
            [40, 8, 6, 10, 12, 8, 5, 3, 5, 3, 3],
        )[0]
        if name == "write":
            return (name, self.size(), rng.choice(["bytes", "bytearray", "memoryview"]))
        if name == "writelines":
            # Empty pieces at the end stay in the queue of asyncio in some versions, for ever.
            least = int(self.comparable)
            return (name, tuple(max(self.size() // 4, least) for _ in range(rng.randrange(5))))
        if name == "limits":
            high = rng.choice([None, 0, 1, 100, 5_000, 1 << 20])
            return (name, high, rng.choice([None, None, 0, 10, 20_000]))
        if name == "protocol":
            return (name, "plain" if self.link == "tls" else rng.choice(["plain", "buffered"]))
        return (name,)

    def ending(self, end: int) -> Operation:
        """How an end leaves."""
        if self.link == "raw" and end == 1:
            return self.rng.choice([("shut",), ("hang up",), ("reset",)])
        return self.rng.choice([("close",), ("close",), ("eof",), ("abort",)])

    def answers(self, end: int) -> Answers:
        """What an end does inside of its callbacks, one list for each of the first few calls."""
        rng = self.rng
        if (self.link == "raw" and end == 1) or rng.random() < 0.3:
            return {}
        return {name: [self.answer() for _ in range(rng.randint(1, 3))] for name in CALLBACKS if rng.random() < 0.35}

    def answer(self) -> list[Operation]:
        rng = self.rng
        operations = [self.call() for _ in range(rng.choices([0, 1, 2, 3], [40, 40, 15, 5])[0])]
        if rng.random() < 0.1:
            operations.append(("raise", rng.choice(["Exception", "BaseException", "CancelledError"])))
        return operations

    def size(self) -> int:
        rng = self.rng
        return rng.choice([0, 1, rng.randint(1, self.largest), rng.randint(1, self.largest), self.largest])
