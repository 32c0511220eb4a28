"""timeout() and timeout_at(): asyncio's, with a native core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tideloop import stock
from tideloop._tideloop import TimeoutCore, function

__all__ = ["Timeout", "timeout", "timeout_at"]

if TYPE_CHECKING:
    from asyncio import Timeout, timeout, timeout_at
else:

    class Timeout(TimeoutCore, stock.Timeout):
        __doc__ = stock.Timeout.__doc__
        __module__ = "tideloop"

        __aenter__ = function("Timeout.__aenter__", stock.Timeout.__aenter__)
        __aexit__ = function("Timeout.__aexit__", stock.Timeout.__aexit__)

    timeout = function("timeout", stock.timeout)
    timeout_at = function("timeout_at", stock.timeout_at)
