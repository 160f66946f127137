"""What a scheduler did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Statistics:
    """Counts since the start, and the state now.

    Attributes:
        submitted: requests that were taken; each is waiting, reading, decoding or over.
        finished: answered; failed, cancelled, timed_out: ended otherwise.
        waiting, reading, decoding: requests there now.
        steps: decoding steps of the batch; tokens: of all requests, so tokens / steps is how full it is.
        stall: longest time in seconds between two steps in which requests that were being decoded had to wait
            for another one to be read; stall_part: the part of reading that was the longest then.
        cache_bytes: memory of the caches, free slots included.
    """

    submitted: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = 0
    waiting: int = 0
    reading: int = 0
    decoding: int = 0
    steps: int = 0
    tokens: int = 0
    stall: float = 0.0
    stall_part: str = ""
    cache_bytes: int = 0
