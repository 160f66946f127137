"""Finds the engines of a bundle that this machine can run, or says of each why it cannot.

An engine is good for one version of TensorRT, one kind of GPU and one graph. (Two build options loosen that:
`version_compatible` for later versions, `hardware` for other GPUs.) The driver is not asked about: a plan
loads with any that TensorRT runs on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from foveate.runtime.bundle import Bundle
from foveate.runtime.engines import (
    BuildOptions,
    EngineRecord,
    build_command,
    graph_hashes,
    records,
    weights_hash,
)
from foveate.runtime.errors import EngineError


@dataclass(frozen=True)
class Here:
    """What runs the engines: versions as `tensorrt` gives them, and the compute capability, "9.0"."""

    tensorrt: str
    compute_capability: str
    gpu: str


@dataclass(frozen=True)
class Found:
    """Engines of this machine: their folder, and what is known about them."""

    folder: Path
    record: EngineRecord

    def plan(self, stage: str) -> Path:
        """The plan of a stage."""
        return self.folder / self.record.stages[stage].file


def find_engines(bundle: Bundle, here: Here) -> Found:
    """The engines to run a bundle with: of those that fit, the ones that were built last.

    Raises:
        EngineError: none fits, or files of those that do are damaged.
    """
    every = records(bundle.path)
    if not every:
        raise EngineError(
            f"bundle {bundle.path} has no TensorRT engines",
            mend=f"build them on this machine: {build_command(bundle.path)}",
        )
    reasons = {folder: _misfit(record, bundle, here) for folder, record in every}
    fitting = [
        Found(folder, record)
        for folder, record in every
        if isinstance(record, EngineRecord) and not reasons[folder]
    ]
    if not fitting:
        raise _none_fits(bundle, here, every, reasons)
    latest = max(fitting, key=lambda found: found.record.built)
    _require_whole(latest, bundle)
    return latest


def _misfit(record: EngineRecord | str, bundle: Bundle, here: Here) -> str:
    """Why engines cannot be run here; empty if they can."""
    if isinstance(record, str):
        return f"its record is damaged: {record}"
    reasons = []
    if not _version_fits(record, here.tensorrt):
        reasons.append(f"it is for TensorRT {record.tensorrt}")
    built, running = _numbers(record.compute_capability), _numbers(here.compute_capability)
    if not _HARDWARE[record.options.hardware](built, running):
        reasons.append(f"it is for {record.gpu} (compute capability {record.compute_capability})")
    graphs = graph_hashes(bundle.manifest)
    missing = [name for name in graphs if name not in record.stages]
    changed = [n for n, sha in graphs.items() if n in record.stages and record.stages[n].graph_sha256 != sha]
    if missing:
        reasons.append(f"it lacks {', '.join(missing)}")
    if changed:
        reasons.append(f"it was built of other graphs ({', '.join(changed)})")
    elif record.weights_sha256 != weights_hash(bundle.manifest):
        reasons.append("it was built of other weights")
    return ", ".join(reasons)


def _version_fits(record: EngineRecord, version: str) -> bool:
    """Whether a TensorRT of this version loads it: the same but for the build number, or a later one."""
    built, running = _numbers(record.tensorrt), _numbers(version)
    return built[:3] == running[:3] or (record.options.version_compatible and built <= running)


# Of two compute capabilities, the one it was built on and the one here: whether it runs.
_HARDWARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    "none": lambda built, here: built == here,
    "same-capability": lambda built, here: built == here,
    "ampere-plus": lambda built, here: here >= (8, 0),
}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _none_fits(
    bundle: Bundle,
    here: Here,
    every: list[tuple[Path, EngineRecord | str]],
    reasons: dict[Path, str],
) -> EngineError:
    """Says of each what is wrong; the command repeats the profile of the latest that can be read."""
    readable = [record for _, record in every if isinstance(record, EngineRecord)]
    latest = max(readable, key=lambda record: record.built, default=None)
    profile, options = (latest.profile, latest.options) if latest else (None, BuildOptions())
    return EngineError(
        f"no TensorRT engine of bundle {bundle.path} can be run here",
        found="; ".join(f"{folder.name}: {reason}" for folder, reason in reasons.items()),
        wanted=f"TensorRT {here.tensorrt}, {here.gpu} (compute capability {here.compute_capability}), "
        "this bundle's graphs",
        mend=f"build on this machine: {build_command(bundle.path, profile, options)}",
    )


def _require_whole(found: Found, bundle: Bundle) -> None:
    """Raises `EngineError` when a plan is missing or has another size than when it was written."""
    for name, plan in found.record.stages.items():
        path = found.folder / plan.file
        size = path.stat().st_size if path.is_file() else None
        if size == plan.bytes:
            continue
        state = "is missing" if size is None else "is truncated" if size < plan.bytes else "has changed"
        raise EngineError(
            f"the engine of stage '{name}' {state}: {path}",
            found="no file" if size is None else f"{size:,} bytes",
            wanted=f"{plan.bytes:,} bytes",
            mend=f"copy it again, or build it again: {found.record.command(bundle.path)}",
        )
