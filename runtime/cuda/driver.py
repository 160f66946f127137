"""Calls of the CUDA runtime through `cuda.bindings`: every error code becomes an error."""

from __future__ import annotations

from typing import Any, Final

from foveate.runtime.errors import BackendError, DeviceMemoryError, MissingDependencyError

PACKAGE: Final = "cuda-bindings"
INSTALL: Final = 'pip install "cuda-bindings>=12.9,<14"'
# By the names of the runtime's error codes: what a user can do.
_MENDS: Final = {
    "cudaErrorInsufficientDriver": "install NVIDIA's driver, or run where there is a GPU; foveate doctor "
    "shows what is there",
    "cudaErrorNoDevice": "run where there is a GPU, or give the container one (docker run --gpus all)",
    "cudaErrorInvalidDevice": "choose a device that nvidia-smi lists",
    "cudaErrorSystemDriverMismatch": "reboot, or install the driver that fits the kernel's module",
}


def api() -> Any:
    """The module `cuda.bindings.runtime`.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingDependencyError(f"the package '{PACKAGE}' is not installed", mend=INSTALL) from error
    return runtime


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; gives what it gives behind its error code.

    Nothing (None), one value, or a tuple of several.

    Raises:
        DeviceMemoryError: the GPU's memory, or page-locked memory, is used up.
        BackendError: any other code.
        MissingDependencyError: cuda.bindings is not installed.
    """
    runtime = api()
    code, *values = getattr(runtime, name)(*arguments)
    if code != runtime.cudaError_t.cudaSuccess:
        raise _error(runtime, name, code)
    return values[0] if len(values) == 1 else tuple(values) or None


def _error(runtime: Any, name: str, code: Any) -> BackendError:
    word, text = code_text(runtime, code)
    found = f"{word}: {text}"
    if word == "cudaErrorMemoryAllocation":
        return DeviceMemoryError(f"{name} found no memory", found=found)
    return BackendError(f"the CUDA call {name} failed", found=found, mend=_MENDS.get(word, ""))


def code_text(runtime: Any, code: Any) -> tuple[str, str]:
    """Name and sentence of an error code."""
    return tuple(  # type: ignore[return-value]
        bytes(getattr(runtime, name)(code)[1]).decode() for name in ("cudaGetErrorName", "cudaGetErrorString")
    )
