"""One GPU: its memory, its stream, and the way between it and the host."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import weakref
from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from foveate.runtime.arrays import Array, host_dtype
from foveate.runtime.cuda.blocks import Heap
from foveate.runtime.cuda.driver import api, call
from foveate.runtime.cuda.memory import DeviceArray, packed, rows_of
from foveate.runtime.cuda.stream import Stream
from foveate.runtime.errors import BackendError, UsageError

# Page-locked memory for what goes back and forth in a step; larger arrays go without.
_STAGING_BYTES = 8 << 20
_ALIGN = 256


class Device:
    """A GPU as one backend uses it, with a stream of its own.

    All methods enqueue and return, but for those that say that they wait. Not for several threads at once;
    one after another is fine.

    Raises:
        MissingDependencyError: cuda.bindings is not installed.
        BackendError: there is no driver, or no GPU of this number.
    """

    def __init__(self, index: int = 0) -> None:
        count = call("cudaGetDeviceCount")
        if not 0 <= index < count:
            wanted = f"0 to {count - 1}" if count else "a GPU"
            raise UsageError("there is no such GPU", found=str(index), wanted=wanted)
        self.index = index
        self._threads = threading.local()
        self.activate()
        self.stream = Stream()
        self._heap = Heap(self.stream, keep=self.total_bytes // 16)
        self._staging = self.pinned((_STAGING_BYTES,), "uint8")
        self._staged = 0

    # --- what it is -----------------------------------------------------------------------------------------

    @cached_property
    def name(self) -> str:
        """As NVIDIA sells it."""
        name = call("cudaGetDeviceProperties", self.index).name
        return bytes(name).partition(b"\0")[0].decode() if isinstance(name, bytes) else str(name)

    @cached_property
    def compute_capability(self) -> tuple[int, int]:
        """(9, 0) for Hopper, say."""
        kinds = api().cudaDeviceAttr
        major, minor = (
            call("cudaDeviceGetAttribute", kind, self.index)
            for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        )
        return int(major), int(minor)

    @cached_property
    def driver_version(self) -> int:
        """The newest CUDA that the driver knows: 13000 is 13.0."""
        return int(call("cudaDriverGetVersion"))

    @property
    def free_bytes(self) -> int:
        """Memory that nobody has; what this device keeps for later counts as free."""
        return int(call("cudaMemGetInfo")[0]) + self._heap.spare_bytes

    @cached_property
    def total_bytes(self) -> int:
        """All memory."""
        return int(call("cudaMemGetInfo")[1])

    @property
    def used_bytes(self) -> int:
        """Memory that was allocated here and is held."""
        return self._heap.used_bytes

    def activate(self) -> None:
        """Make CUDA's calls of this thread mean this GPU; every thread starts with the first one."""
        if not getattr(self._threads, "active", False):
            call("cudaSetDevice", self.index)
            self._threads.active = True

    # --- memory ---------------------------------------------------------------------------------------------

    def allocate(self, shape: Sequence[int], dtype: str, *, zero: bool = True) -> DeviceArray:
        """Memory of its own, in zeros, or of any content.

        Raises:
            DeviceMemoryError: there is no such room.
        """
        self.activate()
        block = self._heap.take(prod(shape) * host_dtype(dtype).itemsize)
        made = DeviceArray(self, block.address, shape, dtype, block)
        if zero:
            self.clear(made)
        return made

    def wrap(self, address: int, shape: Sequence[int], dtype: str, owner: object) -> DeviceArray:
        """Memory of somebody else, whom the array keeps alive."""
        return DeviceArray(self, address, shape, dtype, owner)

    def pinned(self, shape: Sequence[int], dtype: str) -> Array:
        """Page-locked memory of the host, of any content: copies from and to it need no help of the host.

        Whoever writes to it again first waits until earlier copies are done.
        """
        kind = host_dtype(dtype)
        size = max(1, prod(shape) * kind.itemsize)
        address = int(call("cudaHostAlloc", size, api().cudaHostAllocDefault))
        memory = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(memory, _free_pinned, address).atexit = False
        values: Array = np.frombuffer(memoryview(memory), kind, prod(shape)).reshape(tuple(shape))
        return values

    def clear(self, memory: DeviceArray) -> None:
        """Fill with zeros."""
        self.activate()
        for each in rows_of(memory.shape, memory.strides, memory.strides, memory.itemsize):
            place, stream = memory.address + each.target, self.stream.handle
            if each.height == 1:
                call("cudaMemsetAsync", place, 0, each.width, stream)
            else:
                call("cudaMemset2DAsync", place, each.target_pitch, 0, each.width, each.height, stream)

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """From memory to memory of the GPU, of one shape and type, which do not overlap."""
        _require_same(target, source.shape, source.dtype)
        self._copy(target, source.address, source.strides, "cudaMemcpyDeviceToDevice")

    def write(self, target: DeviceArray, values: Array) -> None:
        """From the host, of one shape and type; `values` may be changed as soon as this returns."""
        values = np.ascontiguousarray(values)
        _require_same(
            target, values.shape, target.dtype if _fits(values, target.dtype) else str(values.dtype)
        )
        if not values.size:
            return
        staged = self._stage(values.nbytes)
        if staged is not None:
            source = staged.view(values.dtype).reshape(values.shape)
            source[...] = values
        else:
            source = values  # CUDA itself has copied pageable memory aside when the call returns
        self._copy(
            target, source.ctypes.data, packed(values.shape, target.itemsize), "cudaMemcpyHostToDevice"
        )

    def upload(self, values: Array, dtype: str | None = None) -> DeviceArray:
        """New memory with these values; `dtype` names theirs where numpy has no word for it."""
        target = self.allocate(values.shape, dtype or str(values.dtype), zero=False)
        self.write(target, values)
        return target

    def download(self, *memory: DeviceArray) -> list[Array]:
        """To the host, in arrays of their own. Waits once for all of them."""
        kinds = [host_dtype(each.dtype) for each in memory]
        starts = np.cumsum([0, *(-(-each.nbytes // _ALIGN) * _ALIGN for each in memory)])
        staged = self._stage(int(starts[-1]))
        landed: list[Array] = [
            np.empty(each.shape, kind)
            if staged is None
            else staged[start : start + each.nbytes].view(kind).reshape(each.shape)
            for each, kind, start in zip(memory, kinds, starts, strict=False)
        ]
        for each, target in zip(memory, landed, strict=True):
            there = DeviceArray(self, target.ctypes.data, each.shape, each.dtype, target)
            self._copy(there, each.address, each.strides, "cudaMemcpyDeviceToHost")
        self.wait()
        return landed if staged is None else [each.copy() for each in landed]

    def wait(self) -> None:
        """Until everything that was enqueued is done."""
        self.stream.synchronize()
        self._staged = 0

    def _stage(self, size: int) -> Array | None:
        """So much of the page-locked memory; None when it is too small. Waits when it is in use."""
        if size > len(self._staging) or not size:
            return None
        if self._staged + size > len(self._staging):
            self.wait()
        start = self._staged
        self._staged = -(-(start + size) // _ALIGN) * _ALIGN
        return self._staging[start : start + size]

    def _copy(self, target: DeviceArray, source: int, strides: Sequence[int], kind: str) -> None:
        self.activate()
        way, stream = getattr(api().cudaMemcpyKind, kind), self.stream.handle
        for each in rows_of(target.shape, target.strides, strides, target.itemsize):
            to, of = target.address + each.target, source + each.source
            if each.height == 1:
                call("cudaMemcpyAsync", to, of, each.width, way, stream)
            else:
                pitches = (each.target_pitch, of, each.source_pitch)
                call("cudaMemcpy2DAsync", to, *pitches, each.width, each.height, way, stream)

    # --- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for all work and give everything back that nobody holds; may be called twice."""
        stream, self.stream = self.stream, _CLOSED
        if stream is _CLOSED:
            return
        stream.synchronize()
        self._heap.close()
        self._staging = np.empty(0, np.uint8)
        stream.close()

    def __del__(self) -> None:
        # As the process ends, CUDA gives everything back itself, and may be gone before this is.
        if not sys.is_finalizing():
            with contextlib.suppress(Exception):
                self.close()


_CLOSED: Any = None


def _free_pinned(address: int) -> None:
    call("cudaFreeHost", address)


def _fits(values: Array, dtype: str) -> bool:
    return values.dtype == host_dtype(dtype)


def _require_same(target: DeviceArray, shape: Sequence[int], dtype: str) -> None:
    if target.shape != tuple(shape) or target.dtype != dtype:
        raise BackendError(
            "memory of another shape or type was copied",
            found=f"{list(shape)} of {dtype}",
            wanted=f"{list(target.shape)} of {target.dtype}",
        )
