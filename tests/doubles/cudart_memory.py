"""The memory of the double of CUDA: blocks, copies between them, and work that waits in streams."""

# ruff: noqa: N802, N803, N818

from __future__ import annotations

import bisect
import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from doubles import cudart_names as names
from doubles.cudart_names import cudaError_t, cudaMemcpyKind

GUARD = 256  # bytes behind every block that nobody may touch
POISON, CANARY = 0xFF, 0xA5


class Misuse(AssertionError):
    """CUDA would have been allowed to do anything: crash, or give wrong numbers."""


@dataclass
class Block:
    memory: Any
    address: int
    size: int
    kind: str  # device or host


@dataclass
class Graph:
    work: list[Callable[[], None]]
    alive: bool = True


@dataclass
class Stream:
    queue: list[Callable[[], None]] = field(default_factory=list)
    recording: list[Callable[[], None]] | None = None
    broken: bool = False


class Handle(int):
    """CUDA's handles are opaque and turn into numbers by `int`."""


OK = cudaError_t.cudaSuccess


class Memory:
    """What the double knows of memory and of the order of work; `Cudart` has the rest.

    Args:
        memory: bytes of each GPU.
        devices: how many there are.
        driver: None for a machine without a driver.
        eager: run work as soon as it is enqueued; for those who have to compute on memory at any time.
    """

    def __init__(
        self, memory: int = 1 << 30, devices: int = 1, driver: int | None = 13000, *, eager: bool = False
    ) -> None:
        self._memory, self._devices, self._driver, self._eager = memory, devices, driver, eager
        self._device = 0
        self._blocks: dict[int, Block] = {}
        self._starts: list[int] = []
        self._graveyard: list[Block] = []
        self._streams: dict[int, Stream] = {0: Stream()}
        self._graphs: dict[int, Graph] = {}
        self._events: set[int] = set()
        self._next = 1000
        self.calls: list[str] = []
        self.launches = 0

    def __getattr__(self, name: str) -> Any:
        """Constants and enumerations of the module; what is not there, the double lacks."""
        if name.startswith("cuda") and hasattr(names, name):
            return getattr(names, name)
        raise AttributeError(f"the double of cuda.bindings.runtime has no '{name}'")

    # --- for the other doubles and for tests ----------------------------------------------------------------

    def region(self, address: int) -> tuple[int, int, str] | None:
        """Start, size and kind ("device", "host") of the living block in which an address is."""
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        block = self._blocks[self._starts[at]]
        inside = address < block.address + max(1, block.size)
        return (block.address, block.size, block.kind) if inside else None

    def require(self, address: int, size: int, kind: str = "device") -> None:
        """Raises `Misuse` unless these bytes lie in one living block of a kind."""
        found = self.region(address)
        if found is None:
            raise Misuse(f"{size} bytes at {address:#x}: no living block (freed, or never taken)")
        if found[2] != kind:
            raise Misuse(f"{size} bytes at {address:#x} are {found[2]} memory, not {kind} memory")
        if address + size > found[0] + found[1]:
            raise Misuse(f"{size} bytes at {address:#x} reach beyond a block of {found[1]} bytes")

    def adopt(self, address: int, size: int, owner: object) -> None:
        """Memory that another library took on the device: a block as long as its owner lives."""
        if not size or address in self._blocks:
            return
        self._blocks[address] = Block(None, address, size, "device")
        bisect.insort(self._starts, address)
        weakref.finalize(owner, self._forget, address).atexit = False

    def _forget(self, address: int) -> None:
        del self._blocks[address]
        self._starts.remove(address)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Have something done in the order of a stream; recorded, if it records."""
        queue = self._stream(stream)
        if queue.recording is not None:
            queue.recording.append(work)
            return
        queue.queue.append(work)
        if self._eager:
            self._drain(queue)

    def capturing(self, stream: int) -> bool:
        """Whether a stream records."""
        return self._stream(stream).recording is not None

    @property
    def used(self) -> int:
        """Bytes of device memory that are taken."""
        mine = (block for block in self._blocks.values() if block.memory is not None)
        return sum(block.size for block in mine if block.kind == "device")

    def live(self) -> list[str]:
        """Everything that was not given back."""
        found = [f"{block.kind} memory of {block.size} bytes" for block in self._blocks.values()]
        found += [f"stream {handle}" for handle in self._streams if handle]
        found += [f"event {handle}" for handle in self._events]
        return found + [f"graph {handle}" for handle, graph in self._graphs.items() if graph.alive]

    def close(self, *, leaks: bool = True) -> None:
        """Raises `Misuse` for work that failed, for what was written beyond a block, and for leaks."""
        for stream in self._streams.values():
            self._drain(stream)
        for block in [*self._blocks.values(), *self._graveyard]:
            self._check_guard(block)
        if leaks and self.live():
            raise Misuse(f"not given back: {', '.join(self.live())}")

    # --- memory ---------------------------------------------------------------------------------------------

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._take("cudaMalloc", size, "device")

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        return self._take("cudaHostAlloc", size, "host")

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        return self._free("cudaFree", devPtr, "device")

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        return self._free("cudaFreeHost", ptr, "host")

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        if error := self._missing():
            return error, None, None
        return OK, self._memory - self.used, self._memory

    def _take(self, name: str, size: int, kind: str) -> tuple[Any, ...]:
        self.calls.append(name)
        if error := self._missing() or self._unrecordable():
            return error, None
        if kind == "device" and self.used + size > self._memory:
            return cudaError_t.cudaErrorMemoryAllocation, None
        memory = np.full(size + 2 * GUARD, POISON, np.uint8)
        address = -(-memory.ctypes.data // GUARD) * GUARD
        memory[address - memory.ctypes.data + size :] = CANARY
        block = Block(memory, address, size, kind)
        self._blocks[address] = block
        bisect.insort(self._starts, address)
        return OK, Handle(address)

    def _free(self, name: str, address: int, kind: str) -> tuple[Any, ...]:
        self.calls.append(name)
        if error := self._unrecordable():
            return (error,)
        for stream in self._streams.values():  # as CUDA does: it waits for the whole device
            self._drain(stream)
        block = self._blocks.get(int(address))
        if block is None or block.kind != kind:
            return (cudaError_t.cudaErrorInvalidValue,)
        self._check_guard(block)
        del self._blocks[block.address]
        self._starts.remove(block.address)
        start = block.address - block.memory.ctypes.data
        block.memory[start : start + block.size] = POISON
        self._graveyard.append(block)
        return (OK,)

    def _check_guard(self, block: Block) -> None:
        if block.memory is None:
            return
        end = block.address - block.memory.ctypes.data + block.size
        if not (block.memory[end:] == CANARY).all():
            raise Misuse(f"something was written behind a block of {block.size} bytes of {block.kind} memory")

    # --- copies ---------------------------------------------------------------------------------------------

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Any) -> tuple[Any, ...]:
        return self._copy("cudaMemcpyAsync", (dst, count, src, count, count, 1), kind, stream)

    def cudaMemcpy2DAsync(
        self,
        dst: int,
        dpitch: int,
        src: int,
        spitch: int,
        width: int,
        height: int,
        kind: Any,
        stream: Any,
    ) -> tuple[Any, ...]:
        if width > dpitch or width > spitch:
            return (cudaError_t.cudaErrorInvalidPitchValue,)
        return self._copy("cudaMemcpy2DAsync", (dst, dpitch, src, spitch, width, height), kind, stream)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: Any) -> tuple[Any, ...]:
        return self.cudaMemset2DAsync(devPtr, count, value, count, 1, stream)

    def cudaMemset2DAsync(
        self,
        devPtr: int,
        pitch: int,
        value: int,
        width: int,
        height: int,
        stream: Any,
    ) -> tuple[Any, ...]:
        self.calls.append("cudaMemset2DAsync" if height > 1 else "cudaMemsetAsync")
        if width > pitch:
            return (cudaError_t.cudaErrorInvalidPitchValue,)
        address, span = int(devPtr), (height - 1) * pitch + width
        self.require(address, span)

        def work() -> None:
            self.require(address, span)
            for row in range(height):
                ctypes.memset(address + row * pitch, value, width)

        self.enqueue(int(stream), work)
        return (OK,)

    def _copy(self, name: str, area: tuple[int, ...], kind: Any, stream: Any) -> tuple[Any, ...]:
        self.calls.append(name)
        target, target_pitch, source, source_pitch, width, height = map(int, area)
        if not isinstance(kind, cudaMemcpyKind):
            raise TypeError(f"kind has to be a cudaMemcpyKind, not {kind!r}")
        spans = ((height - 1) * target_pitch + width, (height - 1) * source_pitch + width)
        ends = {
            cudaMemcpyKind.cudaMemcpyHostToDevice: ("host", "device"),
            cudaMemcpyKind.cudaMemcpyDeviceToHost: ("device", "host"),
            cudaMemcpyKind.cudaMemcpyDeviceToDevice: ("device", "device"),
        }[kind]
        pageable = self._check_end(source, spans[1], ends[0]) | self._check_end(target, spans[0], ends[1])
        if ends == ("device", "device") and source < target + spans[0] and target < source + spans[1]:
            raise Misuse("the source and the target of a copy overlap")
        if pageable and self.capturing(int(stream)):
            self._stream(int(stream)).broken = True
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        rows = range(height)
        early = None
        if pageable and ends[0] == "host":
            early = [ctypes.string_at(source + row * source_pitch, width) for row in rows]

        def work() -> None:
            for row in rows:
                if early is None:
                    self._still(source + row * source_pitch, width, ends[0], pageable)
                self._still(target + row * target_pitch, width, ends[1], pageable)
                data = early[row] if early else ctypes.string_at(source + row * source_pitch, width)
                ctypes.memmove(target + row * target_pitch, data, width)

        self.enqueue(int(stream), work)
        if pageable and ends[1] == "host":
            self._drain(self._stream(int(stream)))  # CUDA returns only when it has landed
        return (OK,)

    def _check_end(self, address: int, size: int, kind: str) -> bool:
        """Whether an end of a copy is pageable memory of the host, which is nobody's block."""
        if kind == "host" and self.region(address) is None:
            return True
        self.require(address, size, kind)
        return False

    def _still(self, address: int, size: int, kind: str, pageable: bool) -> None:
        if kind == "device" or not pageable:
            self.require(address, size, kind)

    # --- inside ---------------------------------------------------------------------------------------------

    def _missing(self) -> cudaError_t | None:
        if self._driver is None:
            return cudaError_t.cudaErrorInsufficientDriver
        return None if self._devices else cudaError_t.cudaErrorNoDevice

    def _unrecordable(self) -> cudaError_t | None:
        """Calls that are not for a stream: while one records they fail and break the recording."""
        recording = [stream for stream in self._streams.values() if stream.recording is not None]
        for stream in recording:
            stream.broken = True
        return cudaError_t.cudaErrorStreamCaptureUnsupported if recording else None

    def _stream(self, handle: int) -> Stream:
        if handle not in self._streams:
            raise Misuse(f"there is no stream {handle} (destroyed, or never made)")
        return self._streams[handle]

    def _drain(self, stream: Stream) -> None:
        while stream.queue:
            stream.queue.pop(0)()

    def _handle(self) -> int:
        self._next += 1
        return Handle(self._next)
