"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foveate.runtime.arrays import Array, Arrays
from foveate.runtime.backend import NO_BINDINGS
from foveate.runtime.cache import allocate_numpy
from foveate.runtime.errors import BackendError, MissingDependencyError
from foveate.runtime.manifest import Stage, TensorSpec

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]

_PROVIDERS = ("CPUExecutionProvider",)


class Backend:
    """Opens stages as inference sessions; `threads` limits the threads of one operator (None: all cores)."""

    name = "onnxruntime"

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads

    def open(self, path: Path, name: str, stage: Stage) -> Runner:
        """Load a graph. Raises `BackendError`, or `MissingDependencyError` without onnxruntime."""
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError.of("onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=list(_PROVIDERS))
        except Exception as error:  # onnxruntime's exceptions have no common root
            mend = "check the bundle with foveate inspect --full, or export it again"
            raise BackendError(f"stage '{name}' cannot be loaded", found=_brief(error), mend=mend) from error
        return Runner(session, name, stage)

    def allocate(self, shape: Sequence[int], dtype: str) -> Array:
        """Zeroed host memory."""
        return allocate_numpy(shape, dtype)


class Runner:
    """One session with its IO binding. Not for use by several threads at once."""

    def __init__(self, session: onnxruntime.InferenceSession, name: str, stage: Stage) -> None:
        self.name = name
        self.stage = stage
        self._session = session
        self._io = session.io_binding()
        # Holds the memory that is bound by address, too.
        self._bound: Arrays = NO_BINDINGS
        # Outputs that are bound to memory. They come first: results are in the order of the first binding.
        self._placed: list[str] = []

    def run(self, feeds: Arrays, bindings: Arrays = NO_BINDINGS) -> dict[str, Array]:
        """See `foveate.runtime.backend.Runner.run`."""
        if bindings is not self._bound:
            self._bind(bindings)
        for spec in self.stage.inputs:
            if spec.name not in bindings:
                self._feed(spec, feeds)
        wanted = [spec.name for spec in self.stage.outputs if spec.name not in bindings]
        for name in wanted:
            # Anew for each run: a binding keeps the shape of its first output, and kept counts differ.
            self._io.bind_output(name)
        try:
            self._session.run_with_iobinding(self._io)
        except Exception as error:
            raise BackendError(
                f"stage '{self.name}' failed", found=f"{_brief(error)}; inputs {_shapes(feeds)}"
            ) from error
        values = dict(zip([*self._placed, *wanted], self._io.get_outputs(), strict=True))
        return {name: values[name].numpy() for name in wanted}

    def _bind(self, bindings: Arrays) -> None:
        self._io = self._session.io_binding()
        takes = {spec.name for spec in self.stage.inputs}
        gives = {spec.name for spec in self.stage.outputs}
        for name, memory in bindings.items():
            place = ("cpu", 0, memory.dtype.type, memory.shape, memory.ctypes.data)
            if name in takes:
                self._io.bind_input(name, *place)
            if name in gives:
                self._io.bind_output(name, *place)
        self._bound = bindings
        self._placed = [name for name in bindings if name in gives]

    def _feed(self, spec: TensorSpec, feeds: Arrays) -> None:
        value = feeds.get(spec.name)
        if value is None:
            raise BackendError(f"stage '{self.name}' lacks input '{spec.name}'", found=_shapes(feeds))
        value = np.ascontiguousarray(value, dtype=spec.dtype)
        if value.ndim != len(spec.shape) or any(
            isinstance(want, int) and want != have
            for want, have in zip(spec.shape, value.shape, strict=False)
        ):
            raise BackendError(
                f"stage '{self.name}': input '{spec.name}' is misshapen",
                found=str(list(value.shape)),
                wanted=str(list(spec.shape)),
            )
        self._io.bind_cpu_input(spec.name, value)  # keeps `value` alive


def _shapes(feeds: Arrays) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())


def _brief(error: Exception) -> str:
    """The first line of onnxruntime's message, which can fill a screen."""
    return str(error).strip().split("\n")[0][:400]
