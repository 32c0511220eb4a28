"""Which of CPython's tests cannot concern tideloop, each with its reason.

"It fails" is no reason. A reason says why the test can only be about the stock implementation.
"""

from __future__ import annotations

import fnmatch

__all__ = ["EXCLUDED", "reason_for"]

# By mode: test, or pattern of tests, as module.Class.test -> reason.
EXCLUDED: dict[str, dict[str, str]] = {
    "loop": {},
    "tasks": {},
    "stock": {},
    "accelerated": {},
    "streams": {},
}


def reason_for(test: str, mode: str) -> str | None:
    """Why a test is excluded in a mode; None if it is not."""
    for pattern, reason in EXCLUDED[mode].items():
        if fnmatch.fnmatchcase(test, pattern):
            return reason
    return None
