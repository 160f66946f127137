"""Writing to disks: one writer at a time, nothing left in buffers, and which errors mean a full disk."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

try:
    import fcntl
except ImportError:  # not on Windows: there nobody keeps two writers apart
    fcntl = None  # type: ignore[assignment]

# EFBIG: a size limit of the process or the file system, which for us is the same as a full disk.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def take_lock(path: Path) -> BinaryIO | None:
    """The lock of a file's name: an open file, whose lock the system frees on a kill; None on Windows.

    Raises:
        BlockingIOError: somebody else has it.
        OSError: the file cannot be made.
    """
    while fcntl is not None:
        lock = path.open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(lock, path):
                return lock
        except OSError:
            lock.close()
            raise
        lock.close()  # its holder removed the file between our two steps: again
    return None


def free_lock(lock: BinaryIO | None, path: Path) -> None:
    """Give a lock back, and remove its file."""
    if lock is None:
        return
    # While it is still held: a later one would remove the file of the next writer.
    with suppress(OSError):
        path.unlink()
    lock.close()


def _is_same(lock: BinaryIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    return False


def flush(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_is_full(error: BaseException) -> bool:
    """Looks through the chain of causes, for libraries wrap the system's error in their own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if "No space left on device" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def mebibytes(count: int) -> str:
    """`1,234.5 MiB`."""
    return f"{count / 2**20:,.1f} MiB"
