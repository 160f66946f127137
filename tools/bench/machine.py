"""What the figures depend on besides the settings: processor, memory, versions; and binding to cores."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from foveate.runtime.errors import UsageError
from foveate.tools.bench import device
from foveate.tools.bench.schema import Machine

# Of the flags that Linux lists, those by which kernels for matrix products are chosen.
FEATURES = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve", "bf16"),
)
PACKAGES = ("foveate", "onnxruntime", "numpy", "pillow", "tokenizers", "transformers")
DEVICE_PACKAGES = ("onnxruntime-gpu", "cuda-bindings", "tensorrt")
"""Told where they are there."""


def examine() -> Machine:
    """The machine as the figures see it."""
    facts = _cpuinfo()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=facts.get("model name") or platform.processor() or "unknown",
        features=tuple(name for name in FEATURES if name in flags),
        cores=len(usable_cores()) or os.cpu_count() or 1,
        memory_bytes=_memory(),
        gpus=tuple(
            f"{each.name}, {each.memory_bytes // 2**20} MiB, driver {each.driver}" for each in device.gpus()
        ),
    )


def versions() -> dict[str, str]:
    """Of Python and the packages whose code is measured."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    for name in DEVICE_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def usable_cores() -> tuple[int, ...]:
    """Cores that this process may use; none where the system does not tell."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def choose_cores(threads: int, wanted: str | None) -> tuple[int, ...]:
    """The cores that measured processes are bound to: the wanted ones (`1` or `0,2`), else the last ones.

    The last ones, because systems answer interrupts on the first.

    Raises:
        UsageError: there are not that many, or one of them is not there.
    """
    usable = usable_cores()
    if wanted is not None:
        try:
            cores = tuple(int(part) for part in wanted.split(","))
        except ValueError as error:
            raise UsageError(
                "--cores takes numbers", found=repr(wanted), wanted="such as 1 or 0,2"
            ) from error
        if not usable:
            raise UsageError("this system binds no process to cores", mend="leave --cores out")
    else:
        cores = usable[-threads:] if threads else usable
    strange = [core for core in cores if core not in usable]
    if strange or len(set(cores)) < len(cores):
        raise UsageError(
            "--cores names a core that is not there, or one twice",
            found=", ".join(map(str, cores)),
            wanted=f"some of {', '.join(map(str, usable))}",
        )
    if usable and len(cores) < threads:
        raise UsageError(
            f"{threads} threads do not fit on {len(cores)} cores",
            mend="lower --threads: threads that wait for one another measure the scheduler",
        )
    return cores


def bind(cores: tuple[int, ...]) -> None:
    """Bind this process, and every thread that it will start."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def rss() -> tuple[int, int]:
    """Resident bytes of this process now, and at most so far; zeros where the system does not tell.

    Not by `getrusage`: its peak begins with that of the process that started this one.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0, 0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    now, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, max(now, peak)


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines, where the system has them."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
