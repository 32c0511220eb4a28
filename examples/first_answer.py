"""Groups and scopes: mirrors that race, a report that keeps what failed, and a limit of time for all of it.

python examples/first_answer.py
"""

from __future__ import annotations

import asyncio

import tideloop

MIRRORS = {"near": 0.002, "far": 0.05, "broken": 0.001}


async def ask(mirror: str) -> str:
    """The answer of a mirror, after its delay."""
    await asyncio.sleep(MIRRORS[mirror])
    if mirror == "broken":
        raise ConnectionError(f"{mirror} refuses")
    return f"answer of {mirror}"


async def main() -> list[str]:
    """What there is to tell."""
    lines = [await tideloop.first_ok(*(ask(mirror) for mirror in MIRRORS))]

    # One group, two at once, failures kept beside the results.
    async with tideloop.group(on_error="collect", limit=2, name="mirrors") as g:
        for mirror in MIRRORS:
            g.spawn(ask, mirror, key=mirror, timeout=1)
        async for handle in g.completed():
            error = handle.exception()
            lines.append(f"{handle.key}: {'ok' if error is None else error}")
    assert g.by_key["far"].result() == "answer of far"

    # Everything that is not done in ten milliseconds is given up, tasks included.
    with tideloop.move_on_after(0.01) as scope:
        async with tideloop.group() as g:
            near, far = g.spawn(ask, "near"), g.spawn(ask, "far")
    assert scope.cancelled_caught
    lines.append(f"in time: {near.done() and not near.cancelled()}, {far.done() and not far.cancelled()}")
    return lines


if __name__ == "__main__":
    print("\n".join(tideloop.run(main())))
