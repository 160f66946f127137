"""ONNX Runtime's GPU backends over the doubles: the CPU provider computes on the double's "device" memory.

Everything of `foveate.runtime.backends.cuda` runs but the provider itself: bindings by address, outputs that
stay, the way to the host, buffers of decoding steps. What the CPU provider does not do (record a CUDA graph)
is counted: a run with a graph id >= 0 would be recorded or replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from foveate.runtime.backend import BackendOptions
from foveate.runtime.backends import cuda, cuda_runner
from foveate.runtime.backends.onnxruntime import _untiled_attention
from foveate.runtime.bundle import Bundle
from foveate.runtime.cuda import driver
from foveate.runtime.cuda.device import Device


class CpuRunner(cuda_runner.Runner):
    """Tells the double of CUDA where onnxruntime's outputs are, and counts what would be recorded."""

    recorded = 0

    def _wrapped(self, name: str, value: Any) -> Any:
        memory = super()._wrapped(name, value)
        driver.api().adopt(memory.address, memory.nbytes, value)
        return memory

    def execute(self, io: Any, options: Any, values: Any) -> None:
        self.recorded += options is not self.plain_options
        super().execute(io, options, values)


class CpuBackend(cuda.Backend):
    """The CUDA backend with ONNX Runtime's CPU provider in the place of the CUDA one."""

    provider: ClassVar[str] = "CPUExecutionProvider"
    place: ClassVar[str] = "cpu"
    elsewhere: ClassVar[str] = "nowhere"
    runner: ClassVar[type[cuda_runner.Runner]] = CpuRunner

    def cuda_options(self, *, graphs: bool) -> dict[str, str]:
        """The CPU provider has none of these."""
        super().cuda_options(graphs=graphs)
        return {}

    def _session(self, *args: Any, **options: Any) -> Any:
        with _untiled_attention():  # as the CPU backend has it, so that numbers are the same
            return super()._session(*args, **options)

    def before_run(self) -> None:
        """The CPU provider does not work on the stream: what is enqueued has to be done before."""
        self.device.stream.synchronize()


def create(bundle: Bundle, layout: str, options: BackendOptions) -> CpuBackend:
    """In the place of `foveate.runtime.backends.cuda.create`, for bundles in float32 too."""
    return CpuBackend(Device(options.device), options)


def install(monkeypatch: Any, changes: Mapping[str, Any] | None = None) -> None:
    """Have `--backend cuda` mean this one."""
    monkeypatch.setattr(cuda, "create", create)
