"""What the machine is and has: for the report, and to tell whether earlier results are of the same one."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from foveate.tools.bench import device, machine
from foveate.tools.cache import sources_hash

PACKAGES: Final = (
    *("foveate", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "polygraphy"),
    *("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "cuda-bindings", "torch", "transformers"),
)


def examine() -> dict[str, Any]:
    """The facts; what cannot be found out is absent."""
    found = {name: _version(name) for name in PACKAGES}
    return {
        **machine.examine().model_dump(mode="json"),
        "python": machine.versions()["python"],
        "packages": {name: value for name, value in found.items() if value},
        "gpus": [each.model_dump(mode="json") for each in device.gpus()],
        "code": code(),
    }


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Short, and equal for equal machines and packages; the code is not in it."""
    parts = (facts["processor"], facts["python"], facts["packages"], facts["gpus"])
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def code() -> str:
    """The beginning of the hash of our own sources."""
    return sources_hash("export", "pruning", "runtime", "tools")[:12]


def _version(name: str) -> str:
    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return ""
