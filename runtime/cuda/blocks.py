"""Taking and giving back a GPU's memory; blocks that were given back are handed out again.

Of blocks of one size, the lowest address goes first. So caches that are made in the same order again get the
same addresses, whatever order the former ones went in, and what was recorded for these (CUDA graphs) holds
on. All work goes through one stream: a block may be handed out while work on its former life is under way.
"""

from __future__ import annotations

import contextlib
import heapq
import sys

from foveate.runtime.cuda.driver import call
from foveate.runtime.cuda.stream import Stream
from foveate.runtime.errors import DeviceMemoryError

_UNIT = 512  # what CUDA rounds to; also aligns


class Block:
    """A piece of memory; comes back to the heap with its last reference."""

    def __init__(self, heap: Heap, address: int, size: int) -> None:
        self._heap, self.address, self.size = heap, address, size

    def __del__(self) -> None:
        # As the process ends, CUDA frees everything itself, and may be gone before this is.
        if not sys.is_finalizing():
            self._heap.give(self.address, self.size)


class Heap:
    """Blocks of one GPU."""

    def __init__(self, stream: Stream, keep: int) -> None:
        """Keeps up to `keep` bytes of blocks that were given back."""
        self._stream, self._keep = stream, keep
        self._spare: dict[int, list[int]] = {}
        self.spare_bytes = self.used_bytes = 0
        self._closed = False

    def take(self, size: int) -> Block:
        """A block of at least so many bytes, of any content.

        Raises:
            DeviceMemoryError: there is no such room, with what was needed and what is free.
        """
        size = max(1, -(-size // _UNIT)) * _UNIT
        if self._spare.get(size):
            address = heapq.heappop(self._spare[size])
            self.spare_bytes -= size
        else:
            address = self._new(size)
        self.used_bytes += size
        return Block(self, address, size)

    def _new(self, size: int) -> int:
        try:
            return int(call("cudaMalloc", size))
        except DeviceMemoryError:
            self.release()
        try:
            return int(call("cudaMalloc", size))
        except DeviceMemoryError as error:
            free, total = call("cudaMemGetInfo")
            raise DeviceMemoryError(
                "the GPU has not enough memory",
                found=f"{free / 1e6:,.1f} MB free of {total / 1e6:,.1f}, {self.used_bytes / 1e6:,.1f} in use",
                wanted=f"{size / 1e6:,.1f} MB more",
                mend="ask for fewer tokens or requests at once, use a smaller --keep-ratio, or end what else "
                "runs on the GPU (nvidia-smi shows it)",
            ) from error

    def give(self, address: int, size: int) -> None:
        """Take a block back. While the stream records, nothing is freed: that would break the recording."""
        self.used_bytes -= size
        if self._closed:
            with contextlib.suppress(Exception):
                call("cudaFree", address)
            return
        heapq.heappush(self._spare.setdefault(size, []), address)
        self.spare_bytes += size
        if self.spare_bytes > self._keep and not self._stream.capturing:
            self.release()

    def release(self) -> None:
        """Give all spare blocks back to CUDA, which waits for the work on them."""
        spare, self._spare, self.spare_bytes = self._spare, {}, 0
        for addresses in spare.values():
            for address in addresses:
                call("cudaFree", address)

    def close(self) -> None:
        """As `release`; blocks that come back later are freed at once."""
        self._closed = True
        self.release()
