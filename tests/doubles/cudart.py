"""A double of `cuda.bindings.runtime` over the host's memory: what passes here has NOT run on a GPU.

It does what CUDA documents, and fails where CUDA would fail or quietly do harm:

- work waits in its stream until somebody waits for the stream, so that who reads too early reads rubbish;
- copies have to stay inside blocks that are alive, in the direction that they say, and may not overlap;
- fresh memory holds NaN (bytes 0xFF), freed memory is filled so and never handed out again;
- writes beyond a block's end are found when it is freed or the double is closed;
- page-locked memory is read when the copy is its turn, pageable memory when the copy is asked for;
- between BeginCapture and EndCapture nothing may be taken, freed or waited for: that breaks the recording;
- `close` names every block, stream, event and graph that was not given back.

Device memory has real addresses (256-byte aligned), so that ONNX Runtime's CPU kernels can compute on it.
Use: `install(monkeypatch)`, or the fixture `cudart` of `fixtures.py`.
"""

# ruff: noqa: N802, N803, N818

from __future__ import annotations

import bisect
import ctypes
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
class _Block:
    memory: Any
    address: int
    size: int
    kind: str  # device or host


@dataclass
class _Graph:
    work: list[Callable[[], None]]
    alive: bool = True


@dataclass
class _Stream:
    queue: list[Callable[[], None]] = field(default_factory=list)
    recording: list[Callable[[], None]] | None = None
    broken: bool = False


class _Handle(int):
    """CUDA's handles are opaque and turn into numbers by `int`."""


_OK = cudaError_t.cudaSuccess


class Cudart:
    """One machine with GPUs. Its attributes are those of the module `cuda.bindings.runtime`.

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
        self._blocks: dict[int, _Block] = {}
        self._starts: list[int] = []
        self._graveyard: list[_Block] = []
        self._streams: dict[int, _Stream] = {0: _Stream()}
        self._graphs: dict[int, _Graph] = {}
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
        return sum(block.size for block in self._blocks.values() if block.kind == "device")

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
        return _OK, self._memory - self.used, self._memory

    def _take(self, name: str, size: int, kind: str) -> tuple[Any, ...]:
        self.calls.append(name)
        if error := self._missing() or self._unrecordable():
            return error, None
        if kind == "device" and self.used + size > self._memory:
            return cudaError_t.cudaErrorMemoryAllocation, None
        memory = np.full(size + 2 * GUARD, POISON, np.uint8)
        address = -(-memory.ctypes.data // GUARD) * GUARD
        memory[address - memory.ctypes.data + size :] = CANARY
        block = _Block(memory, address, size, kind)
        self._blocks[address] = block
        bisect.insort(self._starts, address)
        return _OK, _Handle(address)

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
        return (_OK,)

    def _check_guard(self, block: _Block) -> None:
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
        return (_OK,)

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
        return (_OK,)

    def _check_end(self, address: int, size: int, kind: str) -> bool:
        """Whether an end of a copy is pageable memory of the host, which is nobody's block."""
        if kind == "host" and self.region(address) is None:
            return True
        self.require(address, size, kind)
        return False

    def _still(self, address: int, size: int, kind: str, pageable: bool) -> None:
        if kind == "device" or not pageable:
            self.require(address, size, kind)

    # --- streams and events ---------------------------------------------------------------------------------

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        if error := self._missing():
            return error, None
        handle = self._handle()
        self._streams[handle] = _Stream()
        return _OK, handle

    def cudaStreamDestroy(self, stream: Any) -> tuple[Any, ...]:
        if int(stream) not in self._streams or not int(stream):
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        self._drain(self._streams.pop(int(stream)))
        return (_OK,)

    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any, ...]:
        self.calls.append("cudaStreamSynchronize")
        if error := self._unrecordable():
            return (error,)
        self._drain(self._stream(int(stream)))
        return (_OK,)

    def cudaDeviceSynchronize(self) -> tuple[Any, ...]:
        if error := self._missing() or self._unrecordable():
            return (error,)
        for stream in self._streams.values():
            self._drain(stream)
        return (_OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        handle = self._handle()
        self._events.add(handle)
        return _OK, handle

    def cudaEventDestroy(self, event: Any) -> tuple[Any, ...]:
        if int(event) not in self._events:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        self._events.remove(int(event))
        return (_OK,)

    def cudaEventRecord(self, event: Any, stream: Any) -> tuple[Any, ...]:
        self._stream(int(stream))
        known = int(event) in self._events
        return (_OK if known else cudaError_t.cudaErrorInvalidResourceHandle,)

    def cudaEventSynchronize(self, event: Any) -> tuple[Any, ...]:
        if error := self._unrecordable():
            return (error,)
        return self.cudaDeviceSynchronize()

    def cudaEventElapsedTime(self, start: Any, end: Any) -> tuple[Any, ...]:
        """No clock here: 1 ms between any two."""
        return _OK, 1.0

    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> tuple[Any, ...]:
        self._stream(int(stream))
        return (_OK,)

    # --- graphs ---------------------------------------------------------------------------------------------

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> tuple[Any, ...]:
        self.calls.append("cudaStreamBeginCapture")
        if not isinstance(mode, names.cudaStreamCaptureMode):
            raise TypeError(f"mode has to be a names.cudaStreamCaptureMode, not {mode!r}")
        queue = self._stream(int(stream))
        if not int(stream):
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        if queue.recording is not None:
            return (cudaError_t.cudaErrorInvalidValue,)
        queue.recording, queue.broken = [], False
        return (_OK,)

    def cudaStreamEndCapture(self, stream: Any) -> tuple[Any, ...]:
        self.calls.append("cudaStreamEndCapture")
        queue = self._stream(int(stream))
        if queue.recording is None:
            return cudaError_t.cudaErrorStreamCaptureUnmatched, None
        work, queue.recording = queue.recording, None
        if queue.broken:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return _OK, self._graph(work)

    def cudaStreamIsCapturing(self, stream: Any) -> tuple[Any, ...]:
        queue = self._stream(int(stream))
        states = names.cudaStreamCaptureStatus
        if queue.recording is None:
            return _OK, states.cudaStreamCaptureStatusNone
        return _OK, (
            states.cudaStreamCaptureStatusInvalidated
            if queue.broken
            else states.cudaStreamCaptureStatusActive
        )

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        found = self._graphs.get(int(graph))
        if found is None or not found.alive:
            return cudaError_t.cudaErrorInvalidValue, None
        return _OK, self._graph(found.work)

    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> tuple[Any, ...]:
        self.calls.append("cudaGraphLaunch")
        found = self._graphs.get(int(graphExec))
        if found is None or not found.alive:
            return (cudaError_t.cudaErrorInvalidValue,)
        self.launches += 1
        for work in found.work:
            self.enqueue(int(stream), work)
        return (_OK,)

    def cudaGraphExecDestroy(self, graphExec: Any) -> tuple[Any, ...]:
        return self._destroy(graphExec)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        return self._destroy(graph)

    def _graph(self, work: list[Callable[[], None]]) -> int:
        handle = self._handle()
        self._graphs[handle] = _Graph(work)
        return handle

    def _destroy(self, handle: Any) -> tuple[Any, ...]:
        found = self._graphs.get(int(handle))
        if found is None or not found.alive:
            return (cudaError_t.cudaErrorInvalidValue,)
        found.alive = False
        return (_OK,)

    # --- the machine ----------------------------------------------------------------------------------------

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        if error := self._missing():
            return error, None
        return _OK, self._devices

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        if error := self._missing():
            return (error,)
        if not 0 <= device < self._devices:
            return (cudaError_t.cudaErrorInvalidDevice,)
        self._device = device
        return (_OK,)

    def cudaGetDevice(self) -> tuple[Any, ...]:
        if error := self._missing():
            return error, None
        return _OK, self._device

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        if error := self._missing():
            return error, None
        return _OK, names.cudaDeviceProp(b"Double of a GPU\0\0", 9, 0, self._memory, 132)

    def cudaDeviceGetAttribute(self, attr: Any, device: int) -> tuple[Any, ...]:
        values = {
            names.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor: 9,
            names.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor: 0,
            names.cudaDeviceAttr.cudaDevAttrMultiProcessorCount: 132,
        }
        return _OK, values[attr]

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return _OK, self._driver or 0

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return _OK, 13050

    def cudaGetErrorName(self, error: Any) -> tuple[Any, ...]:
        return _OK, error.name.encode()

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return _OK, f"the double's words for {error.name}".encode()

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (_OK,)

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

    def _stream(self, handle: int) -> _Stream:
        if handle not in self._streams:
            raise Misuse(f"there is no stream {handle} (destroyed, or never made)")
        return self._streams[handle]

    def _drain(self, stream: _Stream) -> None:
        while stream.queue:
            stream.queue.pop(0)()

    def _handle(self) -> int:
        self._next += 1
        return _Handle(self._next)


def install(monkeypatch: Any, double: Cudart | None = None) -> Cudart:
    """Put a double in the place of `cuda.bindings.runtime`, as long as `monkeypatch` says."""
    import sys

    import cuda.bindings

    made = double or Cudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made)
    monkeypatch.setattr(cuda.bindings, "runtime", made, raising=False)
    return made
