"""ONNX Runtime's TensorRT provider: parts of each graph become engines, built when they are first met.

What TensorRT does not take, and whatever touches the caches, runs on the CUDA provider behind it; see
`foveate.runtime.backends.cuda`. Engines are built for the shapes that come, and kept in the bundle under
`engines/provider`; `foveate build` and backend tensorrt make whole engines beforehand instead.

onnxruntime-gpu 1.31 was built against TensorRT 10 (libnvinfer.so.10): it needs that beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final

from foveate.runtime.backend import BackendOptions
from foveate.runtime.backends import cuda
from foveate.runtime.bundle import Bundle
from foveate.runtime.cuda.device import Device
from foveate.runtime.manifest import Manifest

INSTALL: Final = f'{cuda.INSTALL} && pip install "tensorrt-cu13==10.*"'
# Caches are written in place, and TensorRT would copy them whole. What depends on data stays outside, too.
_ON_CUDA: Final = (
    "TensorScatter",
    "Attention",
    "GroupQueryAttention",
    "MultiHeadAttention",
    "NonZero",
    "TopK",
)
# Weakly typed engines of TensorRT 10 take half precision only when they are told so.
_HALF: Final = {"float16": "trt_fp16_enable", "bfloat16": "trt_bf16_enable"}


def create(bundle: Bundle, layout: str, options: BackendOptions) -> Backend:
    """See `foveate.runtime.backends.Module`."""
    cuda.require_half(bundle.manifest)
    return Backend(Device(options.device), options, bundle.path / "engines" / "provider", bundle.manifest)


class Backend(cuda.Backend):
    """Opens stages as sessions whose first choice is TensorRT, and whose second one is CUDA.

    Args:
        folder: for the engines and the timing cache that onnxruntime keeps.
        manifest: of the bundle.
    """

    name: ClassVar[str] = "tensorrt-provider"
    provider: ClassVar[str] = "TensorrtExecutionProvider"
    install: ClassVar[str] = INSTALL

    def __init__(self, device: Device, options: BackendOptions, folder: Path, manifest: Manifest) -> None:
        super().__init__(device, options)
        self._folder, self._manifest = folder, manifest

    def graphs_wanted(self) -> bool:
        """Never: engines for other lengths may be built at any step."""
        self.note("decoding steps run without CUDA graphs: onnxruntime may build engines at any step")
        return False

    def providers(self, *, graphs: bool) -> list[tuple[str, dict[str, str]]]:
        """TensorRT, and CUDA for what it does not take."""
        return [
            (self.provider, self._trt_options()),
            ("CUDAExecutionProvider", self.cuda_options(graphs=False)),
        ]

    def _trt_options(self) -> dict[str, str]:
        half = _HALF.get(self._manifest.cache.dtype)
        return {
            "device_id": str(self.device.index),
            "user_compute_stream": str(self.device.stream.handle),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(self._folder),
            # Bundles differ in weights where their graphs look alike.
            "trt_engine_cache_prefix": self._manifest.sha256[:16] or "foveate",
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(self._folder),
            "trt_op_types_to_exclude": ",".join(_ON_CUDA),
            **({half: "1"} if half else {}),
        }
