"""Which of CPython's tests cannot concern tideloop, each with its reason.

"It fails" is no reason. A reason says why the test can only be about the stock implementation.
"""

from __future__ import annotations

import fnmatch

__all__ = ["EXCLUDED", "reason_for"]

# Test, or pattern of tests, as module.Class.test -> reason.
EXCLUDED: dict[str, str] = {}


def reason_for(test: str) -> str | None:
    """Why a test is excluded; None if it is not."""
    for pattern, reason in EXCLUDED.items():
        if fnmatch.fnmatchcase(test, pattern):
            return reason
    return None
