"""Large pages for memory that is read again and again: weights.

A decoding step reads all weights once. In pages of 4 KB it waits for the table of pages again and again; in
pages of 2 MB it does not (`docs/memory.md` has the figures). Linux can gather memory that is in use into
large pages in place, whether or not programs were started so that they get them by themselves.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from foveate.runtime.errors import UsageError

SWITCH: Final = "FOVEATE_HUGE_PAGES"
"""An environment variable: with 1, the CPU backend gathers whenever it has loaded a graph."""

_LARGE: Final = 2 << 20
_SMALL: Final = mmap.PAGESIZE
_COLLAPSE: Final = 25  # MADV_COLLAPSE, Linux 6.1
_MAPS: Final = Path("/proc/self/maps")


def wanted() -> bool:
    """Whether the environment asks for it; raises `UsageError` for a value that says neither yes nor no."""
    value = os.environ.get(SWITCH, "")
    if value not in ("", "0", "1"):
        raise UsageError(
            f"{SWITCH} has no such value",
            found=repr(value),
            wanted="1 (gather weights into large pages), or 0 or nothing (leave them)",
            mend=f"set it to 1, or unset {SWITCH}",
        )
    return value == "1"


def gather() -> int:
    """Move this process's anonymous memory into large pages, where all of a page is in use.

    It takes 1 to 4 seconds for each GB. Memory does not grow by it: what is not wholly resident is left
    alone. Where the system does not do it (another system, an older kernel, no memory in one piece), nothing
    happens.

    Returns:
        Bytes that are in large pages for certain.
    """
    if not _MAPS.is_file() or _LARGE % _SMALL:
        return 0
    libc = ctypes.CDLL(None)
    gathered = 0
    for start, stop in anonymous(_MAPS.read_text()):
        for first, last in _resident(libc, start, stop):
            if not libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _COLLAPSE):
                gathered += last - first
    return gathered


def anonymous(maps: str) -> Iterator[tuple[int, int]]:
    """Private writable memory without a file in a text of `/proc/self/maps`, as whole large pages of it."""
    for line in maps.splitlines():
        span, rights, _, _, inode, *name = line.split(maxsplit=5)
        if rights != "rw-p" or inode != "0" or (name and name[0].strip() != "[heap]"):
            continue
        start, stop = (int(end, 16) for end in span.split("-"))
        start, stop = -(-start // _LARGE) * _LARGE, stop // _LARGE * _LARGE
        if start < stop:
            yield start, stop


def _resident(libc: ctypes.CDLL, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Runs of large pages in `start` to `stop` of which every small one is in memory."""
    pages = np.zeros((stop - start) // _SMALL, np.uint8)
    place = ctypes.c_void_p(pages.ctypes.data)
    if libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), place):
        return  # it went away meanwhile
    full = (pages & 1).reshape(-1, _LARGE // _SMALL).all(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], full, [False]])))
    for first, last in edges.reshape(-1, 2).tolist():
        yield start + first * _LARGE, start + last * _LARGE
