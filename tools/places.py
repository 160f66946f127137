"""Places that results go to, looked at before the work whose results these are."""

from __future__ import annotations

import tempfile
from pathlib import Path

from foveate.runtime.errors import UsageError


def require_writable(folder: Path) -> None:
    """Make the folder, and see whether files can be made in it. Raises `UsageError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # ValueError: a zero character in the name
        raise UsageError(
            f"{folder} cannot be written",
            found=str(getattr(error, "strerror", None) or error),
            wanted="a folder in which files can be made",
            mend="name another place; nothing was measured yet",
        ) from error
