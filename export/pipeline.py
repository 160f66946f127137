"""The way from a checkpoint to a bundle: read, trace, match weights, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from foveate.export.checkpoint import Checkpoint
from foveate.export.families import find_family
from foveate.export.graph_file import write_graph
from foveate.export.manifest import build_manifest
from foveate.export.processor import copy_processor, require_processor
from foveate.export.targets import find_target
from foveate.export.trace import read_parameters, trace_stage
from foveate.export.weights import (
    WEIGHTS_FILE,
    match_weights,
    merge_parameters,
    plan_placements,
    write_weights,
)
from foveate.pruning.plan import PruningPlan
from foveate.runtime.bundle import Bundle
from foveate.runtime.bundle_writer import BundleWriter
from foveate.runtime.errors import UsageError

LAYOUTS: Final = ("fused", "segmented")

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)`: what is being done, and how far it is (graphs, then bytes)."""


def _silent(what: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class ExportOptions:
    """What to export besides the checkpoint itself."""

    plan: PruningPlan
    layouts: tuple[str, ...] = LAYOUTS
    positions: str = "compact"
    target: str = "onnxruntime"

    def __post_init__(self) -> None:
        if not self.layouts:
            raise UsageError("no layout to export", wanted=f"one or more of {', '.join(LAYOUTS)}")
        for layout in self.layouts:
            if layout not in LAYOUTS:
                raise UsageError("unknown layout", found=repr(layout), wanted=f"one of {', '.join(LAYOUTS)}")
        if self.positions not in ("compact", "original"):
            raise UsageError("unknown positions", found=repr(self.positions), wanted="compact or original")


def export_model(
    checkpoint: Path,
    output: Path,
    *,
    plan: PruningPlan,
    layouts: Sequence[str] = LAYOUTS,
    positions: str = "compact",
    target: str = "onnxruntime",
    overwrite: bool = False,
    progress: Progress = _silent,
) -> Bundle:
    """Writes a bundle of pruned graphs for a Hugging Face checkpoint, and returns it opened.

    Args:
        checkpoint: folder with `config.json`, `*.safetensors` and the processor's files.
        output: the bundle to be; written whole or not at all.
        plan: where and how to prune (`foveate.pruning.plan.parse_plan`).
        layouts: "fused" and/or "segmented"; they share one weights file.
        positions: of visual tokens after the encoder's cut: "compact" or "original".
        target: operator set, see `foveate.export.targets`.
        overwrite: replace an existing bundle.
        progress: called as `progress(what, done, total)`.

    Raises:
        CheckpointError: the checkpoint does not fit its configuration, or its kind is unknown.
        UsageError: an option does not exist or does not fit the model.
        ExportError: tracing failed, or the disk is full.
    """
    options = ExportOptions(plan, tuple(layouts), positions, target)
    source = Checkpoint(checkpoint)
    name, family = find_family(source.config)
    config = family.Config.read(source.config)
    require_processor(checkpoint, config.image_token_id)
    find_target(target).check_sizes(config.text.num_heads, config.text.head_dim)
    by_layout = {
        k: v for k, v in family.stages(config, plan, find_target(target)).items() if k in options.layouts
    }
    stages = tuple({stage.name: stage for graphs in by_layout.values() for stage in graphs}.values())

    # All complaints about the checkpoint come before the slow part.
    parameters = merge_parameters(read_parameters(stage) for stage in stages)
    loaders = match_weights(
        parameters, source, family, config, family.tied_weights(config), family.constants(config)
    )
    placements, size = plan_placements(parameters)
    with BundleWriter(output, overwrite=overwrite, expected_bytes=size) as writer:
        graphs = writer.path / "onnx"
        graphs.mkdir()
        for i, stage in enumerate(stages):
            progress(f"tracing {stage.name}", i, len(stages))
            write_graph(
                trace_stage(stage, find_target(target).OPSET), graphs / f"{stage.name}.onnx", placements
            )
        progress("tracing", len(stages), len(stages))
        write_weights(
            graphs / WEIGHTS_FILE, placements, loaders, lambda done: progress("writing weights", done, size)
        )
        copy_processor(checkpoint, writer.path / "processor")
        manifest = build_manifest(name, config, source, options, by_layout)
        return writer.finish(manifest, lambda done, total: progress("hashing", done, total))
