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

# ruff: noqa: N802, N803

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from doubles import cudart_names as names
from doubles.cudart_memory import OK, Graph, Memory, Misuse, Stream
from doubles.cudart_names import cudaError_t

__all__ = ["Cudart", "Misuse", "install"]


class Cudart(Memory):
    """One machine with GPUs. Its attributes are those of the module `cuda.bindings.runtime`."""

    # --- streams and events ---------------------------------------------------------------------------------

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        if error := self._missing():
            return error, None
        handle = self._handle()
        self._streams[handle] = Stream()
        return OK, handle

    def cudaStreamDestroy(self, stream: Any) -> tuple[Any, ...]:
        if int(stream) not in self._streams or not int(stream):
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        self._drain(self._streams.pop(int(stream)))
        return (OK,)

    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any, ...]:
        self.calls.append("cudaStreamSynchronize")
        if error := self._unrecordable():
            return (error,)
        self._drain(self._stream(int(stream)))
        return (OK,)

    def cudaDeviceSynchronize(self) -> tuple[Any, ...]:
        if error := self._missing() or self._unrecordable():
            return (error,)
        for stream in self._streams.values():
            self._drain(stream)
        return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        handle = self._handle()
        self._events.add(handle)
        return OK, handle

    def cudaEventDestroy(self, event: Any) -> tuple[Any, ...]:
        if int(event) not in self._events:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        self._events.remove(int(event))
        return (OK,)

    def cudaEventRecord(self, event: Any, stream: Any) -> tuple[Any, ...]:
        self._stream(int(stream))
        known = int(event) in self._events
        return (OK if known else cudaError_t.cudaErrorInvalidResourceHandle,)

    def cudaEventSynchronize(self, event: Any) -> tuple[Any, ...]:
        if error := self._unrecordable():
            return (error,)
        return self.cudaDeviceSynchronize()

    def cudaEventElapsedTime(self, start: Any, end: Any) -> tuple[Any, ...]:
        """No clock here: 1 ms between any two."""
        return OK, 1.0

    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> tuple[Any, ...]:
        self._stream(int(stream))
        return (OK,)

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
        return (OK,)

    def cudaStreamEndCapture(self, stream: Any) -> tuple[Any, ...]:
        self.calls.append("cudaStreamEndCapture")
        queue = self._stream(int(stream))
        if queue.recording is None:
            return cudaError_t.cudaErrorStreamCaptureUnmatched, None
        work, queue.recording = queue.recording, None
        if queue.broken:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return OK, self._graph(work)

    def cudaStreamIsCapturing(self, stream: Any) -> tuple[Any, ...]:
        queue = self._stream(int(stream))
        states = names.cudaStreamCaptureStatus
        if queue.recording is None:
            return OK, states.cudaStreamCaptureStatusNone
        return OK, (
            states.cudaStreamCaptureStatusInvalidated
            if queue.broken
            else states.cudaStreamCaptureStatusActive
        )

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        found = self._graphs.get(int(graph))
        if found is None or not found.alive:
            return cudaError_t.cudaErrorInvalidValue, None
        return OK, self._graph(found.work)

    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> tuple[Any, ...]:
        self.calls.append("cudaGraphLaunch")
        found = self._graphs.get(int(graphExec))
        if found is None or not found.alive:
            return (cudaError_t.cudaErrorInvalidValue,)
        self.launches += 1
        for work in found.work:
            self.enqueue(int(stream), work)
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec: Any) -> tuple[Any, ...]:
        return self._destroy(graphExec)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        return self._destroy(graph)

    def _graph(self, work: list[Callable[[], None]]) -> int:
        handle = self._handle()
        self._graphs[handle] = Graph(work)
        return handle

    def _destroy(self, handle: Any) -> tuple[Any, ...]:
        found = self._graphs.get(int(handle))
        if found is None or not found.alive:
            return (cudaError_t.cudaErrorInvalidValue,)
        found.alive = False
        return (OK,)

    # --- the machine ----------------------------------------------------------------------------------------

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        if error := self._missing():
            return error, None
        return OK, self._devices

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        if error := self._missing():
            return (error,)
        if not 0 <= device < self._devices:
            return (cudaError_t.cudaErrorInvalidDevice,)
        self._device = device
        return (OK,)

    def cudaGetDevice(self) -> tuple[Any, ...]:
        if error := self._missing():
            return error, None
        return OK, self._device

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        if error := self._missing():
            return error, None
        return OK, names.cudaDeviceProp(b"Double of a GPU\0\0", 9, 0, self._memory, 132)

    def cudaDeviceGetAttribute(self, attr: Any, device: int) -> tuple[Any, ...]:
        values = {
            names.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor: 9,
            names.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor: 0,
            names.cudaDeviceAttr.cudaDevAttrMultiProcessorCount: 132,
        }
        return OK, values[attr]

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return OK, self._driver or 0

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return OK, 13050

    def cudaGetErrorName(self, error: Any) -> tuple[Any, ...]:
        return OK, error.name.encode()

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return OK, f"the double's words for {error.name}".encode()

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (OK,)


def install(monkeypatch: Any, double: Cudart | None = None) -> Cudart:
    """Put a double in the place of `cuda.bindings.runtime`, as long as `monkeypatch` says."""
    import sys

    import cuda.bindings

    made = double or Cudart()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made)
    monkeypatch.setattr(cuda.bindings, "runtime", made, raising=False)
    return made
