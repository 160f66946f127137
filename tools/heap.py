"""What memory allocation says of itself: bytes that are handed out, apart from pages that are only kept."""

from __future__ import annotations

import ctypes
import gc

_FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Info(ctypes.Structure):
    """`struct mallinfo2`."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _FIELDS)


def handed_out(*, collect: bool = False) -> int | None:
    """Bytes that malloc has given to anybody in this process and not got back; None where it does not tell.

    Resident memory also grows where nothing is lost: each thread has an arena of its own, which keeps what
    was freed. What grows here is lost. Python's small objects are not in it: `sys.getallocatedblocks` counts
    them. glibc 2.33 or newer tells.

    Args:
        collect: let Python free its cycles first.
    """
    if collect:
        gc.collect()
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    ask.restype = _Info
    info = ask()
    return int(info.uordblks) + int(info.hblkhd)
