"""``tideloop record``: saves what the flight recorder of a running program has."""

from __future__ import annotations

import json
from pathlib import Path

from tideloop.observe.commands.console import OK, Fails, Parser, client_of, command, positive
from tideloop.observe.commands.saving import save
from tideloop.observe.wording import count, kib

__all__ = ["main"]

_LEVEL = 2


def main(argv: list[str]) -> int:
    """Run the command; returns 0 if the file is written."""
    return command("record", _record, argv)


def _record(argv: list[str]) -> int:
    parser = Parser(
        "record", "Saves the flight recorder's trace, for Perfetto.", "there is none, or it cannot be saved", json=False
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="TRACE.json", help="where to")
    parser.add_argument("--seconds", type=positive, default=None, help="only the last so many; else all there is")
    asked = parser.parse_args(argv)
    with client_of(asked.pid) as client:
        levels = [loop.get("level") or 0 for loop in client.loops()["loops"]]
        if levels and max(levels) < _LEVEL:
            raise Fails(f"no loop of process {client.pid} has a flight recorder; start it with TIDELOOP_OBSERVE=trace")
        trace = client.record(asked.seconds)
    try:
        document = json.loads(trace)
        events = document["traceEvents"] if isinstance(document, dict) else document
        known = f"{count(len(events))} events, "
    except (ValueError, KeyError, TypeError):
        raise Fails(f"process {client.pid} answered with something else than a trace: {trace[:60]!r}") from None
    save(asked.output, trace)
    print(f"{asked.output}: {known}{kib(len(trace))}; open it at https://ui.perfetto.dev or chrome://tracing")
    return OK
