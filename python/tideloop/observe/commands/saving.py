"""Files that the commands write."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from tideloop.observe.commands.console import Fails

__all__ = ["save"]


def save(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all. Raises Fails."""
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe
            path.write_bytes(content)
            return
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(number, "wb") as file:
                file.write(content)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise Fails(f"cannot write {str(path)!r}: {error.strerror or error}") from None
