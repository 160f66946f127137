"""Verifying a bundle: find its checkpoint, climb the ladder, write down what was found.

report = verify(Path("bundle"))
report.passed, report.first_divergence
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from foveate.runtime.backends import CPU
from foveate.runtime.bundle import Bundle, Check
from foveate.runtime.errors import CheckpointError, ParityError, UsageError
from foveate.runtime.manifest import Manifest
from foveate.tools.parity.ladder import DEFAULTS, Ladder, Settings
from foveate.tools.parity.report import ParityReport
from foveate.tools.parity.rounded import runnable

KEYS = ("P0", "P1", "P2", "P3", "P4", "P5")
_TOOLS = ("foveate", "torch", "transformers", "onnx", "onnxruntime", "numpy")


def verify(
    bundle: Path,
    checkpoint: Path | None = None,
    *,
    rungs: Sequence[str] = KEYS,
    settings: Settings = DEFAULTS,
    check: Check = "full",
    record: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> ParityReport:
    """Compare a bundle with its checkpoint, rung by rung.

    Args:
        bundle: folder that `foveate export` wrote.
        checkpoint: its source; None takes the one that the manifest names, if it is still there.
        rungs: which to run; a verdict is recorded only if all of them were.
        settings: how much to test.
        check: how to verify the bundle's files first.
        record: write `parity.json` and the manifest's summary, of the ladder on the CPU.
        say: called with the name of each rung as it starts.

    Raises:
        BundleError: the bundle cannot be opened.
        CheckpointError: no checkpoint, or not the one that the bundle was made of.
        UsageError: an unknown rung.
    """
    unknown = [key for key in rungs if key not in KEYS]
    if unknown:
        raise UsageError(f"unknown rung {unknown[0]!r}", wanted=", ".join(KEYS))
    opened = Bundle.open(bundle, check=check)
    source = find_checkpoint(opened.manifest, checkpoint)
    from foveate.tools.parity.rungs import climb

    with _quiet():
        say("loading the reference")
        with _on(settings.backend, opened) as run:
            ladder = _build(run, source, settings)
            ladder.written = opened
            found = climb(ladder, tuple(rungs), say)
    report = ParityReport(bundle.name, opened.manifest.source.name, found, _versions())
    # What the bundle's own record says was found where everybody can find it again: on a CPU.
    if record and set(rungs) == set(KEYS) and settings.backend == CPU:
        opened.record_parity(report.passed, report.summary(), report.to_json())
    return report


def _on(backend: str, bundle: Bundle) -> contextlib.AbstractContextManager[Bundle]:
    """The bundle as a backend runs it: CPUs have no bfloat16."""
    return runnable(bundle) if backend == CPU else contextlib.nullcontext(bundle)


def _build(bundle: Bundle, source: Path, settings: Settings) -> Ladder:
    from foveate.tools.parity.families import find_oracle
    from foveate.tools.parity.prompts import Front
    from foveate.tools.parity.reference import Reference

    try:
        oracle = find_oracle(bundle.manifest.family)(source)
    except (OSError, ValueError, ImportError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError("transformers cannot load the checkpoint", found=text) from error
    return Ladder(bundle, Reference(oracle), Front(oracle), settings)


def find_checkpoint(manifest: Manifest, given: Path | None = None) -> Path:
    """The checkpoint that a bundle was exported from, recognised by its configuration and weights.

    Without `given`, the manifest's own (possibly stale) path is tried, then the built-in model.

    Raises:
        CheckpointError: none is there, or `given` is another one.
    """
    if given is not None:
        if problem := difference(manifest, given):
            raise CheckpointError(
                f"{given} is not the checkpoint of this bundle",
                found=problem,
                wanted=f"the checkpoint '{manifest.source.name}' as it was exported",
                mend="name the right one with --checkpoint, or export it again",
            )
        return given
    from foveate.tools.demo import CHECKPOINT

    reasons = []
    for path in (Path(manifest.source.path), CHECKPOINT):
        if not path.is_dir():
            reasons.append(f"nothing at {path}")
            continue
        problem = difference(manifest, path)
        if not problem:
            return path
        reasons.append(f"{path}: {problem}")
    raise CheckpointError(
        f"the checkpoint '{manifest.source.name}' of this bundle is not where it was",
        found=reasons[0],
        mend="name it with --checkpoint PATH",
    )


def difference(manifest: Manifest, path: Path) -> str:
    """What tells a checkpoint from the manifest's; empty when nothing does. Raises CheckpointError."""
    from foveate.export.checkpoint import Checkpoint
    from foveate.export.config import config_sha256

    found = Checkpoint(path)
    if config_sha256(found.config) != manifest.source.config_sha256:
        return "another config.json"
    if found.weights_sha256() != manifest.source.weights_sha256:
        return "other weights"
    return ""


def require_parity(report: ParityReport) -> None:
    """Raises ParityError when the ladder was not climbed, saying where the two sides part first."""
    if report.passed:
        return
    found = report.first_divergence
    if found is None:
        raise ParityError("no rung was run, so nothing is known about this bundle")
    key, check = found
    place = f" at {check.where}" if check.where else ""
    raise ParityError(
        f"{report.bundle} is not what {report.checkpoint} computes: {key} {check.status.value}{place}",
        found=f"{check.name}: {check.detail}" if check.detail else check.name,
        mend="export the checkpoint again; if it stays, the report in parity.json says where to look",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers' progress bars and advice are of no use here."""
    from transformers.utils import logging as messages

    loggers = [logging.getLogger(name) for name in ("transformers", "torch")]
    levels = [logger.level for logger in loggers]
    bars = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()  # type: ignore[no-untyped-call]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            messages.enable_progress_bar()  # type: ignore[no-untyped-call]


def _versions() -> dict[str, str]:
    found = {}
    for tool in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[tool] = importlib.metadata.version(tool)
    return found
