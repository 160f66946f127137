"""Which backends there are. Each has a file here with `create`, which is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from foveate.runtime.backend import Backend, BackendOptions
from foveate.runtime.errors import UsageError

if TYPE_CHECKING:
    from foveate.runtime.bundle import Bundle

_DEFAULTS = BackendOptions()


class Module(Protocol):
    """What the file of a backend has."""

    def create(self, bundle: Bundle, layout: str, options: BackendOptions) -> Backend:
        """A backend for a layout of a bundle.

        Raises:
            MissingDependencyError: its packages are not installed, with the line that brings them.
            BackendError: it cannot run here.
            UsageError: it cannot run this bundle, or this layout.
        """
        ...


@dataclass(frozen=True)
class Kind:
    """A backend: its `module`, the `layout` that it takes unless one is asked for, and its purpose."""

    module: str
    layout: str
    purpose: str


CPU: Final = "onnxruntime"
BACKENDS: Final[Mapping[str, Kind]] = {
    CPU: Kind("onnxruntime", "fused", "ONNX Runtime on the CPU"),
    "cuda": Kind("cuda", "segmented", "ONNX Runtime's CUDA provider"),
    "tensorrt-provider": Kind("tensorrt_provider", "segmented", "ONNX Runtime's TensorRT provider"),
    "tensorrt": Kind("tensorrt", "segmented", "TensorRT engines that foveate build made"),
}
# What runs a bundle of each target unless something else is asked for.
_OF_TARGET: Final = {
    "onnxruntime": CPU,
    "portable": CPU,
    "cuda": "cuda",
    "tensorrt": "tensorrt",
}


def choose(bundle: Bundle, backend: str | None = None, layout: str | None = None) -> tuple[str, str]:
    """The backend and the layout for a bundle; what is None is its target's, and then the backend's own.

    A bundle that lacks the backend's own layout is taken in the one that it has.

    Raises:
        UsageError: there is no such backend.
    """
    name = backend or _OF_TARGET.get(bundle.manifest.target, CPU)
    if name not in BACKENDS:
        raise UsageError("there is no such backend", found=name, wanted=", ".join(BACKENDS))
    if layout is None:
        there = bundle.manifest.layouts
        layout = BACKENDS[name].layout
        layout = next(iter(there)) if layout not in there and len(there) == 1 else layout
    return name, layout


def open_backend(name: str, bundle: Bundle, layout: str, options: BackendOptions = _DEFAULTS) -> Backend:
    """Make a backend. Raises `UsageError` for an unknown name, and what its `create` raises."""
    if name not in BACKENDS:
        raise UsageError("there is no such backend", found=name, wanted=", ".join(BACKENDS))
    module: Module = importlib.import_module(f"{__name__}.{BACKENDS[name].module}")
    return module.create(bundle, layout, options)
