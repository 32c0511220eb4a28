"""adopt(): asyncio's own functions, made to use other primitives than asyncio's."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

__all__ = ["adopt"]


def adopt(original: Callable[..., Any], **names: object) -> Any:
    """Copy a Python function so that it finds other objects under some of its global names.

    A class that inherits asyncio's behaviour unchanged, in each Python version's own wording, needs no
    more than that its helpers are ours.
    """
    assert isinstance(original, types.FunctionType)
    copy = types.FunctionType(
        original.__code__,
        {**original.__globals__, **names},
        original.__name__,
        original.__defaults__,
        original.__closure__,
    )
    copy.__kwdefaults__ = original.__kwdefaults__
    copy.__annotations__ = original.__annotations__
    copy.__doc__ = original.__doc__
    copy.__qualname__ = original.__qualname__
    copy.__module__ = "tideloop"
    return copy
