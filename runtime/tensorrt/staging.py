"""Memory for tensors that cross between host and device: page-locked on the one side, a twin on the other."""

from __future__ import annotations

import math
from typing import Final

from foveate.runtime.arrays import Array, host_dtype
from foveate.runtime.cuda import driver
from foveate.runtime.cuda.device import Device

# TensorRT wants addresses that are multiples of it.
ALIGNMENT: Final = 256


def bytes_of(shape: tuple[int, ...], dtype: str) -> int:
    """Size of an array; one byte at least, for empty tensors have an address, too."""
    return max(1, math.prod(shape) * host_dtype(dtype).itemsize)


class Lane:
    """A device's stream, and how often it was waited for: each time, all copies before are done."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.waits = 0

    def wait(self) -> None:
        """Until everything that was enqueued is done."""
        self.device.stream.synchronize()
        self.waits += 1


class Slot:
    """Room for one tensor of up to `size` bytes. Copies are queued on the device's stream.

    Args:
        twin: whether it has memory on the device; what an engine reads on the host has none.
    """

    def __init__(self, device: Device, size: int, *, twin: bool) -> None:
        self.size = size
        self._pinned = device.pinned((size,), "uint8")
        self._here = int(self._pinned.ctypes.data)
        self._twin = device.allocate((size,), "uint8", zero=False) if twin else None
        self._stream = device.stream

    @property
    def address(self) -> int:
        """Where an engine finds it."""
        return self._here if self._twin is None else self._twin.address

    def fill(self, value: Array) -> None:
        """Write to the host's side."""
        self._pinned[: value.nbytes].view(value.dtype)[...] = value.reshape(-1)

    def read(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A copy of the host's side, which the next run overwrites."""
        kind = host_dtype(dtype)
        flat = self._pinned[: math.prod(shape) * kind.itemsize].view(kind)
        return flat.reshape(shape).copy()

    def send(self, size: int) -> None:
        """Queue a copy of the first bytes to the device."""
        self._copy(self.address, self._here, size, "cudaMemcpyHostToDevice")

    def fetch(self, size: int) -> None:
        """Queue a copy of the first bytes from the device."""
        self._copy(self._here, self.address, size, "cudaMemcpyDeviceToHost")

    def _copy(self, to: int, of: int, size: int, direction: str) -> None:
        if self._twin is None:
            return
        kind = getattr(driver.api().cudaMemcpyKind, direction)
        driver.call("cudaMemcpyAsync", to, of, size, kind, self._stream.handle)
