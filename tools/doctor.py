"""What this machine has and lacks for Foveate, as plain facts; `foveate doctor` prints them."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from foveate.runtime.backends.cuda import INSTALL as CUDA
from foveate.tools import cache, demo
from foveate.tools.extras import BASE, Requirement, requirements

# What an extra is for; the order is the order of the report.
PURPOSE = {
    BASE: "run a bundle on a CPU",
    "export": "read checkpoints, write and verify bundles",
    "gpu": "run bundles on CUDA",
    "tensorrt": "build and run TensorRT engines",
    "serve": "answer over HTTP",
    "video": "read video files",
    "lmms": "run lmms-eval's benchmarks on bundles",
    "test": "run the tests and linters",
}

# Where `pip install "foveate[NAME]"` is not the whole line.
MENDS = {"gpu": CUDA}


@dataclass(frozen=True)
class ExtraReport:
    """One extra: whether everything it asks for is there, what is not, and the line that mends it."""

    name: str
    purpose: str
    complete: bool
    missing: tuple[str, ...]
    mend: str
    packages: tuple[Requirement, ...]


@dataclass(frozen=True)
class Report:
    """All the facts; `ready` says whether a bundle can be run here."""

    ready: bool
    foveate: str
    python: dict[str, str]
    machine: dict[str, Any]
    onnxruntime: dict[str, Any]
    gpu: dict[str, Any]
    tensorrt: dict[str, Any]
    demo: dict[str, Any]
    extras: tuple[ExtraReport, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, for `--json`."""
        return asdict(self)


def examine() -> Report:
    """Look at the machine; raises nothing: what cannot be found out is reported as such."""
    extras = tuple(_extra(name, rows) for name, rows in _ordered(requirements()).items())
    return Report(
        ready=extras[0].complete,
        foveate=version("foveate"),
        python={"version": platform.python_version(), "executable": sys.executable},
        machine=_machine(),
        onnxruntime=_onnxruntime(),
        gpu=_gpu(),
        tensorrt=_tensorrt(),
        demo=_demo(),
        extras=extras,
    )


def _ordered(found: dict[str, tuple[Requirement, ...]]) -> dict[str, tuple[Requirement, ...]]:
    names = [*(name for name in PURPOSE if name in found), *(name for name in found if name not in PURPOSE)]
    return {name: found[name] for name in names}


def _extra(name: str, packages: tuple[Requirement, ...]) -> ExtraReport:
    missing = tuple(
        f"{row.package}{row.wanted}" + (f" (found {row.installed})" if row.installed else "")
        for row in packages
        if not row.satisfied
    )
    target = "foveate" if name == BASE else f"foveate[{name}]"
    mend = MENDS.get(name, f'pip install "{target}"') if missing else ""
    return ExtraReport(name, PURPOSE.get(name, ""), not missing, missing, mend, packages)


def _machine() -> dict[str, Any]:
    kept = cache.cache_folder()
    existing = next(folder for folder in (kept, *kept.parents) if folder.exists())
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": _usable_cores(),
        "memory_bytes": _memory(),
        "free_disk_bytes": {
            str(Path.cwd()): shutil.disk_usage(Path.cwd()).free,
            str(kept): shutil.disk_usage(existing).free,
        },
    }


def _usable_cores() -> int:
    """The cores that this process may use, which a container often limits below the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int | None:
    """Physical memory in bytes, where the system tells it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _onnxruntime() -> dict[str, Any]:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        return {"version": None, "providers": [], "problem": str(error)}
    return {
        "version": onnxruntime.__version__,
        "providers": list(onnxruntime.get_available_providers()),
        "problem": "",
    }


def _gpu() -> dict[str, Any]:
    """GPUs as CUDA tells of them, without taking memory on any; `problem` is why there are none."""
    from foveate.runtime.cuda.driver import api, call
    from foveate.runtime.errors import FoveateError

    found: dict[str, Any] = {"driver": 0, "runtime": 0, "devices": [], "problem": ""}
    try:
        found["driver"], found["runtime"] = call("cudaDriverGetVersion"), call("cudaRuntimeGetVersion")
        kinds = api().cudaDeviceAttr
        ask = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        for index in range(call("cudaGetDeviceCount")):
            about = call("cudaGetDeviceProperties", index)
            capability = ".".join(str(call("cudaDeviceGetAttribute", kind, index)) for kind in ask)
            name = bytes(about.name).partition(b"\0")[0].decode()
            memory = int(about.totalGlobalMem)
            found["devices"].append({"name": name, "capability": capability, "memory_bytes": memory})
    except FoveateError as error:
        found["problem"] = str(error)
    except Exception as error:  # libraries that do not fit each other fail in ways of their own
        found["problem"] = f"{type(error).__name__}: {error}"
    return found


def _tensorrt() -> dict[str, Any]:
    try:
        import tensorrt
    except Exception as error:  # a missing library of it is an OSError or worse
        return {"version": None, "problem": str(error).split("\n")[0]}
    return {"version": str(tensorrt.__version__), "problem": ""}


def _demo() -> dict[str, Any]:
    present = (demo.CHECKPOINT / "config.json").is_file()
    exported = sorted(str(path.parent) for path in cache.cache_folder().glob("demo-*/manifest.json"))
    return {
        "checkpoint": str(demo.CHECKPOINT),
        "present": present,
        "sha256": demo.checkpoint_hash() if present else None,
        "cached_bundles": exported,
    }
