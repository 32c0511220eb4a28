"""``tideloop flame``: a flame graph of what has blocked the loops of a running program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tideloop.observe.client import Client
from tideloop.observe.commands.console import OK, Fails, Parser, client_of, command, positive, wait
from tideloop.observe.commands.saving import save
from tideloop.observe.flame_pictures import picture
from tideloop.observe.flames import grow, samples, speedscope
from tideloop.observe.wording import loop_names, plural, printable, seconds

__all__ = ["main"]

_ENDINGS = (".svg", ".speedscope.json")


def main(argv: list[str]) -> int:
    """Run the command; returns 0 if the file is written, 1 if nothing was blocked."""
    return command("flame", _flame, argv)


def _flame(argv: list[str]) -> int:
    parser = Parser(
        "flame",
        "A flame graph of what has blocked a program's loops, in seconds of blocked loops.",
        "nothing was blocked, or the file cannot be written",
        json=False,
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="x.svg or x.speedscope.json")
    parser.add_argument(
        "--seconds", type=positive, help="only what blocks in the next so many; else the last 64 blocks"
    )
    asked = parser.parse_args(argv)
    if not asked.output.name.endswith(_ENDINGS):
        parser.error(f"--output is {str(asked.output)!r}; expected a name that ends in {' or '.join(_ENDINGS)}")
    with client_of(asked.pid) as client:
        loops = client.loops()
        names = loop_names(loops)
        blocks = _next_ones(client, asked.seconds) if asked.seconds else client.blocks()["blocks"]
        title = printable(f"{loops.get('program') or 'process'} ({client.pid})")
        if not blocks:
            said = f"in {asked.seconds:g} s" if asked.seconds else f"in {seconds(loops.get('uptime'))}"
            raise Fails(f"no loop of process {client.pid} was blocked {said}, so there is nothing to draw")
    taken = samples(blocks, names)
    root = grow(taken, title)
    content = picture(root) if asked.output.suffix == ".svg" else speedscope(taken, title)
    save(asked.output, content.encode(errors="replace"))
    print(f"{asked.output}: {plural(len(blocks), 'block')}, {seconds(root.seconds)} in all")
    return OK


def _next_ones(client: Client, length: float) -> list[Mapping[str, Any]]:
    """The blocks of the next seconds, also where they are more than the process keeps."""
    known = {block["id"] for block in client.blocks()["blocks"] if block["ended"]}
    found: dict[int, Mapping[str, Any]] = {}

    def look() -> bool:
        found.update({block["id"]: block for block in client.blocks()["blocks"] if block["id"] not in known})
        return False

    wait(length, f"looking at process {client.pid}", look)
    look()
    return list(found.values())
