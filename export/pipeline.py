"""The way from a checkpoint to a bundle: read, trace, match weights, write."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir
from torch import Tensor

from foveate.export.adapter import Adapter, as_trained, weights_of
from foveate.export.blocks.text_models import rope_constants, tied_weights
from foveate.export.checkpoint import Checkpoint
from foveate.export.decoder_specs import plan_segments
from foveate.export.decoder_stages import fused_stage, segment_stages
from foveate.export.embed_stage import embed_stage
from foveate.export.families import Facts, Family, find_family
from foveate.export.graph_file import write_graph
from foveate.export.manifest import build_manifest
from foveate.export.methods import build_method
from foveate.export.precision import (
    AUTO,
    LinearLayer,
    PrecisionPlan,
    dialect,
    find_layers,
    nothing_to_choose,
    parse_precision,
)
from foveate.export.precision.form import Form
from foveate.export.precision.forms import find_forms, plan_forms
from foveate.export.precision.layers import stage_of
from foveate.export.precision.rewrite import halve_table, rewrite
from foveate.export.precision.settle import require_taken, settle
from foveate.export.precision.storage import store
from foveate.export.precision.typed import type_graph
from foveate.export.processor import copy_processor, require_processor
from foveate.export.skipping import as_planned, token_grid
from foveate.export.stage import Stage
from foveate.export.targets import LAYOUTS, default_layouts, find_target
from foveate.export.trace import read_parameters, trace_stage
from foveate.export.vision_stage import model_shape, vision_stage
from foveate.export.weights import (
    WEIGHTS_FILE,
    Parameter,
    match_weights,
    merge_parameters,
    plan_placements,
    write_weights,
)
from foveate.pruning.plan import PruningPlan, parse_plan
from foveate.runtime.bundle import Bundle
from foveate.runtime.bundle_writer import BundleWriter
from foveate.runtime.errors import UsageError
from foveate.runtime.manifest import Manifest

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)`: what is being done, and how far it is (graphs, then bytes)."""


Chooser = Callable[[Bundle, Sequence[LinearLayer], Mapping[str, str]], PrecisionPlan]
"""Called as `choose(bundle, layers, words)`: an fp32 bundle of the same graphs, which is gone afterwards,
their linear layers, and the word that was asked for each stage ("auto" among them)."""


def _silent(what: str, done: int, total: int) -> None: ...


def _warn(note: str) -> None:
    warnings.warn(note, RuntimeWarning, stacklevel=3)


@dataclass(frozen=True)
class ExportOptions:
    """What to export besides the checkpoint itself."""

    plan: PruningPlan
    positions: str
    layouts: tuple[str, ...] = LAYOUTS
    target: str = "onnxruntime"
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    precision: PrecisionPlan = field(default_factory=lambda: PrecisionPlan({}))

    def __post_init__(self) -> None:
        if not self.layouts:
            raise UsageError("no layout to export", wanted=f"one or more of {', '.join(LAYOUTS)}")
        for layout in self.layouts:
            if layout not in LAYOUTS:
                raise UsageError("unknown layout", found=repr(layout), wanted=f"one of {', '.join(LAYOUTS)}")


def export_model(
    checkpoint: Path,
    output: Path,
    *,
    plan: PruningPlan | Sequence[str] | None = None,
    layouts: Sequence[str] | None = None,
    positions: str | None = None,
    target: str = "onnxruntime",
    dtype: str | PrecisionPlan | None = None,
    choose: Chooser | None = None,
    adapters: Sequence[Path] = (),
    depth: int | None = None,
    overwrite: bool = False,
    progress: Progress = _silent,
    warn: Callable[[str], None] = _warn,
) -> Bundle:
    """Writes a bundle of pruned graphs for a Hugging Face checkpoint, and returns it opened.

    Args:
        checkpoint: folder with `config.json`, `*.safetensors` and the processor's files.
        output: the bundle to be; written whole or not at all.
        plan: where and how to prune, made or in words (`foveate.pruning.plan.parse_plan`); None takes the
            family's default.
        layouts: "fused" and/or "segmented"; they share one weights file. None takes the target's default.
        positions: of visual tokens after the encoder's cut: "compact" or "original"; None takes the family's
            default.
        target: operator set, see `foveate.export.targets`.
        dtype: precision in words (`foveate.export.precision.parse_precision`), or decided layer by layer;
            None takes the target's default.
        choose: decides layer by layer, given the same graphs in fp32, for which there must be room beside
            `output` meanwhile. Not asked where all is fp32, or where `dtype` has decided.
        adapters: weights of the trained methods in the plan, a file for each.
        depth: decoder layers of the model that the plan's schedule was made for; others are refused.
        overwrite: replace an existing bundle.
        progress: called as `progress(what, done, total)`.
        warn: told of each stage that could not be what `dtype` asked for; the manifest says it, too.

    Raises:
        CheckpointError: the checkpoint does not fit its configuration, or its kind is unknown.
        UsageError: an option does not exist or does not fit the model.
        ExportError: tracing failed, the disk is full, or no layer takes the precision that was asked for.
    """
    source = Checkpoint(checkpoint)
    name, family = find_family(source.config)
    config = family.Config.read(source.config)
    _check_depth(depth, config.text.num_layers)
    if not isinstance(plan, PruningPlan):
        plan = parse_plan(family.FACTS.default_plan if plan is None else plan, config.text.num_layers)
    trained = _read_adapters(source, adapters)
    plan = as_trained(plan, trained)
    lowering = find_target(target)
    layouts = default_layouts(target) if layouts is None else tuple(layouts)
    options = ExportOptions(plan, _positions(name, family.FACTS, positions), layouts, target, trained)
    require_processor(checkpoint, config.image_token_id)
    lowering.check_sizes(config.text.num_heads, config.text.head_dim)
    by_layout = {k: v for k, v in plan_stages(family, config, plan, lowering).items() if k in options.layouts}
    stages = tuple({stage.name: stage for graphs in by_layout.values() for stage in graphs}.values())

    # All complaints about the checkpoint and the options come before the slow part.
    by_graph = {stage.name: read_parameters(stage) for stage in stages}
    parameters = merge_parameters(by_graph.values())
    given = computed_weights(family, config) | _trained_weights(plan, options.adapters, parameters)
    loaders = match_weights(parameters, source, family, config, tied_weights(config.text), given)
    content = _Content(target, find_layers(by_graph), parameters, loaders)
    request = _Request.of(dtype, choose, content)

    def manifest(precision: PrecisionPlan) -> Manifest:
        decided = replace(options, precision=precision)
        return build_manifest(name, family, config, source, decided, by_layout, content.layers)

    with BundleWriter(output, overwrite=overwrite, expected_bytes=request.size(content)) as writer:
        copy_processor(checkpoint, writer.path / "processor")
        for method, adapter in options.adapters.items():
            adapter.write(writer.path / "adapters" / f"{method}.safetensors")
        models = {}
        for i, stage in enumerate(stages):
            progress(f"tracing {stage.name}", i, len(stages))
            models[stage.name] = trace_stage(stage, lowering)
        progress("tracing", len(stages), len(stages))
        found = request.decide(content, models, writer.path, manifest, progress)
        precision, notes = settle(found, content.layers)
        for note in notes:
            warn(note)
        content.write(writer.path / "onnx", models, precision, progress)
        return writer.finish(manifest(precision), lambda done, total: progress("hashing", done, total))


@dataclass(frozen=True)
class _Content:
    """What the graphs' weights are, and how they are written under a precision."""

    target: str
    layers: tuple[LinearLayer, ...]
    parameters: Mapping[str, Parameter]
    loaders: Mapping[str, Callable[[], Tensor]]

    def forms(self, precision: PrecisionPlan) -> dict[str, Form]:
        """Of the weights that do not stay as they are."""
        return plan_forms(precision, self.layers, self.target)

    def stored(
        self, precision: PrecisionPlan
    ) -> tuple[dict[str, Parameter], dict[str, Callable[[], Tensor]]]:
        """Parameters of the file and their loaders."""
        table = precision.table()
        return store(self.parameters, self.loaders, self.forms(precision), half_table=table)

    def size(self, precision: PrecisionPlan) -> int:
        """Bytes of the weights file."""
        return plan_placements(self.stored(precision)[0])[1]

    def write(
        self, folder: Path, models: Mapping[str, ir.Model], precision: PrecisionPlan, progress: Progress
    ) -> None:
        """Writes graphs and weights; under anything but fp32 the `models` are rewritten in place."""
        stored, loaders = self.stored(precision)
        placements, size = plan_placements(stored)
        forms = self.forms(precision)
        folder.mkdir()
        for name, model in models.items():
            rewrite(model, forms)
            if table := precision.table():
                halve_table(model, table)
            if half := precision.half(stage_of(name)):
                type_graph(model, half)
            write_graph(model, folder / f"{name}.onnx", placements)
        write_weights(
            folder / WEIGHTS_FILE, placements, loaders, lambda done: progress("writing weights", done, size)
        )


@dataclass(frozen=True)
class _Request:
    """The precision that was asked for: decided, or to be chosen."""

    words: Mapping[str, str]
    decided: PrecisionPlan | None
    choose: Chooser | None

    @staticmethod
    def of(dtype: str | PrecisionPlan | None, choose: Chooser | None, content: _Content) -> _Request:
        """Raises UsageError for words, layers and kernels that do not exist, ExportError for words that no
        layer takes."""
        decided = dtype if isinstance(dtype, PrecisionPlan) else None
        target = content.target
        if isinstance(dtype, PrecisionPlan):
            words = dtype.stages
        else:
            words = parse_precision(dialect(target).default if dtype is None else dtype, target)
        if choose is None or nothing_to_choose(words, target):
            decided = decided or PrecisionPlan(words, target=target)
        wanted = decided or PrecisionPlan({k: v for k, v in words.items() if v != AUTO}, target=target)
        wanted.check(content.layers, find_forms(target), target)
        require_taken(wanted, content.layers, words)
        if decided is not None:
            decided.check_ranges(content.layers)
        return _Request(words, decided, choose)

    def size(self, content: _Content) -> int:
        """Bytes on the disk while it is decided and written: at most, where that is open."""
        if self.decided is not None:
            return content.size(settle(self.decided, content.layers)[0])
        return 2 * content.size(PrecisionPlan({}))

    def decide(
        self,
        content: _Content,
        models: Mapping[str, ir.Model],
        folder: Path,
        manifest: Callable[[PrecisionPlan], Manifest],
        progress: Progress,
    ) -> PrecisionPlan:
        """What to write. A choice is made on an fp32 bundle inside `folder`, which is removed again."""
        if self.decided is not None:
            return self.decided
        assert self.choose is not None
        plain = PrecisionPlan({})
        with BundleWriter(folder / "fp32") as writer:
            content.write(writer.path / "onnx", models, plain, progress)
            shutil.copytree(folder / "processor", writer.path / "processor")
            bundle = writer.finish(manifest(plain))
        try:
            found = self.choose(bundle, content.layers, self.words)
        finally:
            shutil.rmtree(folder / "fp32", ignore_errors=True)
        found.check(content.layers, find_forms(content.target), content.target)
        found.check_ranges(content.layers)
        require_taken(found, content.layers, self.words)
        return found


def _read_adapters(source: Checkpoint, paths: Sequence[Path]) -> dict[str, Adapter]:
    """Adapters by method, each of this model; raises CheckpointError or UsageError."""
    adapters: dict[str, Adapter] = {}
    for path in paths:
        adapter = Adapter.read(path)
        adapter.check_model(source)
        if adapter.method in adapters:
            raise UsageError(
                f"two adapters for '{adapter.method}'",
                found=f"{adapters[adapter.method].path} and {path}",
                wanted="one adapter for each trained method",
            )
        adapters[adapter.method] = adapter
    return adapters


def _trained_weights(
    plan: PruningPlan, adapters: Mapping[str, Adapter], parameters: Mapping[str, Parameter]
) -> dict[str, Tensor]:
    """The methods' own parameters, as the graphs hold them."""
    own = {name: value for name, value in parameters.items() if name.startswith("cuts.")}
    found = weights_of(plan, adapters, {name: value.source_shape for name, value in own.items()})
    return {name: value.t() if own[name].transposed else value for name, value in found.items()}


def _positions(name: str, facts: Facts, wanted: str | None) -> str:
    modes = facts.position_modes
    if wanted is not None and wanted not in modes:
        raise UsageError(
            f"family {name} does not know these positions", found=repr(wanted), wanted=" or ".join(modes)
        )
    return wanted or modes[0]


def computed_weights(family: Family, config: Any) -> dict[str, Tensor]:
    """Parameters of the graphs that no checkpoint holds: frequencies, tables."""
    return {**rope_constants(config.text), **family.constants(config)}


def plan_stages(
    family: Family, config: Any, plan: PruningPlan, target: ModuleType
) -> dict[str, tuple[Stage, ...]]:
    """The graphs of each layout, in the order in which they run.

    Raises:
        UsageError: a cut lies outside the decoder, or asks for what the model does not have.
    """
    _check_cuts(config.text.num_layers, plan)
    segments = plan_segments(config.text.num_layers, plan.decoder)
    embed, shape = embed_stage(family, config), model_shape(family, config)
    config = as_planned(config, plan, token_grid(family, config))
    reads_text = plan.encoder is not None and build_method(plan.encoder).needs_text
    return {
        "fused": (
            vision_stage(family, config, plan, gather=True),
            embed,
            fused_stage(config.text, segments, target, shape, final_hidden=reads_text),
        ),
        "segmented": (
            vision_stage(family, config, plan, gather=False),
            embed,
            *segment_stages(config.text, segments, target, shape, final_hidden=reads_text),
        ),
    }


def _check_depth(wanted: int | None, num_layers: int) -> None:
    """A schedule searched for another decoder would fit by accident, and mean nothing."""
    if wanted is not None and wanted != num_layers:
        raise UsageError(
            "the schedule is for a decoder of another depth",
            found=f"{num_layers} layers",
            wanted=f"{wanted} layers, as the schedule says",
            mend="search one for this model: foveate search",
        )


def _check_cuts(num_layers: int, plan: PruningPlan) -> None:
    for cut in plan.decoder:
        if not 1 <= (cut.layer or 0) < num_layers:
            raise UsageError(
                f"{cut.method}@{cut.layer} does not lie inside the decoder",
                found=f"layer {cut.layer} of {num_layers}",
                wanted=f"1 to {num_layers - 1}: the cut acts after that many layers",
            )
