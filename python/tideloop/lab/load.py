"""Where the native load client is: in the virtual environment, on PATH, or where TIDELOOP_LOAD says."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

NAME = "tideloop-load.exe" if sys.platform == "win32" else "tideloop-load"


def find_load_client() -> str | None:
    """The path of the client, or None when it is not built."""
    installed = (str(Path(sys.prefix) / folder / NAME) for folder in ("bin", "Scripts"))
    for candidate in (*installed, shutil.which(NAME), os.environ.get("TIDELOOP_LOAD")):
        if candidate and Path(candidate).is_file() and os.access(candidate, os.X_OK):
            return candidate
    return None
