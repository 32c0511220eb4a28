"""What a function that is asked for many things at once may answer with."""

from __future__ import annotations

import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Generator,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any

__all__ = ["hand_out"]


async def hand_out(
    answer: Any, keys: Sequence[Hashable], tell: Callable[[Iterable[tuple[int, Any]]], None], who: str
) -> None:
    """Call `tell` with pairs of the number of a key that is answered and its answer: a value, an Exception, or a
    CancelledError, as gather(..., return_exceptions=True) has it.

    `answer` is what the function has returned: a sequence with an answer for each key, in order; a mapping; an
    iterator or async iterator of pairs of a key and its answer, which are told as they come; or an awaitable of
    one of these. What was not asked for is passed over.

    Raises TypeError for anything else, ValueError for a sequence of another length, and what the function raises.
    """
    if inspect.isawaitable(answer):
        answer = await answer
    if isinstance(answer, Sequence) and not isinstance(answer, str | bytes):
        if len(answer) != len(keys):
            raise ValueError(
                f"{who} returned {len(answer)} answers for {len(keys)} keys; expected one for each, in order"
            )
        tell(enumerate(answer))
    elif isinstance(answer, Mapping):
        tell((number, answer[key]) for number, key in enumerate(keys) if key in answer)
    elif isinstance(answer, AsyncIterable):
        places = _places(keys)
        try:
            async for pair in answer:
                tell(_answered(pair, places, who))
        finally:
            # What it yields may be no pair; then it has not come to its end.
            if isinstance(answer, AsyncGenerator):
                await answer.aclose()
    elif isinstance(answer, Iterable) and not isinstance(answer, str | bytes):
        places = _places(keys)
        try:
            for pair in answer:
                tell(_answered(pair, places, who))
        finally:
            if isinstance(answer, Generator):
                answer.close()
    else:
        raise TypeError(f"{who} returned {answer!r}; expected a list, a mapping, or (key, value) pairs")


def _places(keys: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    places: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        places.setdefault(key, []).append(number)
    return places


def _answered(pair: Any, places: dict[Hashable, list[int]], who: str) -> Iterator[tuple[int, Any]]:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(f"{who} yielded {pair!r}; expected a pair of a key and its value, or an exception")
    key, value = pair
    for number in places.get(key, ()):
        yield number, value
