"""The GPU that the double of TensorRT pretends to run on: the double of the CUDA runtime, if installed.

Without it memory is any memory of the process and work runs as soon as it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_capability: tuple[int, int] | None = None


def set_capability(pair: tuple[int, int] | None) -> None:
    """Another GPU from here on; None for the runtime double's."""
    global _capability
    _capability = pair


def capability() -> tuple[int, int]:
    return _capability or (9, 0)


def cudart() -> Any:
    """The double of the CUDA runtime, or None (the real one runs no work of Python's)."""
    found = sys.modules.get("cuda.bindings.runtime")
    return found if type(found).__name__ == "Cudart" else None


def enqueue(stream: int, work: Callable[[], None]) -> None:
    """Run `work` in the stream's order, or record it if the stream is capturing."""
    runtime = cudart()
    work() if runtime is None else runtime.enqueue(stream, work)


def capturing(stream: int) -> bool:
    runtime = cudart()
    return runtime is not None and bool(runtime.capturing(stream))


def synchronise(stream: int) -> None:
    """Wait for a stream, as an engine does that has to know a length."""
    runtime = cudart()
    if runtime is not None:
        runtime.cudaStreamSynchronize(stream)


def require(address: int, size: int, kind: str) -> None:
    """Raises the runtime's `Misuse` unless these bytes may be touched; host memory may be anybody's."""
    runtime = cudart()
    if runtime is not None and size and (kind == "device" or runtime.region(address) is not None):
        runtime.require(address, size, kind)


def take(size: int) -> int | None:
    """Device memory for a context: its address, 0 where nobody counts, None if there is too little."""
    runtime = cudart()
    if runtime is None or not size:
        return 0
    error, address = runtime.cudaMalloc(size)
    return None if int(error) else int(address)


def give_back(address: int) -> None:
    runtime = cudart()
    if runtime is not None and address:
        runtime.cudaFree(address)
