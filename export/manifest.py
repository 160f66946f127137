"""What the exporter knows, as the manifest that the runtime reads."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.checkpoint import Checkpoint
from foveate.export.config import config_sha256, read_json
from foveate.export.decoder_specs import cache_groups, plan_segments
from foveate.export.families import Family
from foveate.export.precision import STAGES, LinearLayer, PrecisionPlan
from foveate.export.precision.typed import typed_stage
from foveate.export.skipping import as_planned, token_grid
from foveate.export.stage import Stage, TensorSpec
from foveate.runtime import manifest as records
from foveate.runtime.manifest import Manifest

if TYPE_CHECKING:
    from foveate.export.pipeline import ExportOptions

_TOOLS: Final = ("torch", "onnx", "onnx-ir", "onnxscript", "transformers", "onnxruntime")


def build_manifest(
    name: str,
    family: Family,
    config: Any,
    source: Checkpoint,
    options: ExportOptions,
    layouts: Mapping[str, tuple[Stage, ...]],
    layers: Sequence[LinearLayer] = (),
) -> Manifest:
    """Returns the manifest of an export, still without the files' hashes."""
    half = options.precision.half("decoder")
    stages = {stage.name: typed_stage(stage, half) for graphs in layouts.values() for stage in graphs}
    segments = plan_segments(config.text.num_layers, options.plan.decoder)
    grid = token_grid(family, config)
    text = as_planned(config, options.plan, grid).text
    return Manifest(
        foveate=importlib.metadata.version("foveate"),
        family=name,
        source=records.Source(
            name=source.path.resolve().name,
            path=str(source.path),
            config_sha256=config_sha256(source.config),
            weights_sha256=source.weights_sha256(),
        ),
        model=_model(family, config, source),
        pruning=_cuts(options),
        positions=options.positions,  # type: ignore[arg-type]  # checked by ExportOptions
        target=options.target,
        precision=_precision(options.precision, layers),
        layouts={name: tuple(stage.name for stage in graphs) for name, graphs in layouts.items()},
        stages={name: _stage(stage) for name, stage in stages.items()},
        cache=records.CacheRecord(
            dtype=half or "float32",  # type: ignore[arg-type]  # one of `words.HALVES`
            num_kv_heads=config.text.num_kv_heads,
            head_dim=config.text.head_dim,
            groups=cache_groups(segments),
            positions=config.text.masked,
            text_heads=_text_heads(text),
            text_slots=text.window is not None,
        ),
        window=records.WindowRecord(size=text.window, grid=grid) if grid and text.window else None,
        versions=_versions(),
    )


def _precision(plan: PrecisionPlan, layers: Sequence[LinearLayer]) -> records.PrecisionRecord:
    """The stages' words, and the layers that do not follow them."""
    stages = {stage: plan.word(stage) for stage in STAGES}
    deviating = {
        layer.name: records.LayerRecord(
            kernel=plan.kernel(layer),  # type: ignore[arg-type]  # checked by PrecisionPlan
            error=plan.errors.get(layer.name),
        )
        for layer in layers
        if plan.kernel(layer) != plan.usual(layer)
    }
    return records.PrecisionRecord(
        stages=stages,  # type: ignore[arg-type]
        layers=deviating,
        measured=plan.measured,
        reason=plan.reason,
    )


def _text_heads(text: DecoderConfig) -> tuple[int, ...]:
    """Per layer; empty where all heads hold all tokens."""
    heads = tuple(text.text_heads(layer) for layer in range(text.num_layers))
    return heads if any(heads) else ()


def _cuts(options: ExportOptions) -> tuple[records.CutRecord, ...]:
    """The plan, with the adapters that gave its methods their weights."""
    adapters = {method: adapter.sha256() for method, adapter in options.adapters.items()}
    return tuple(
        records.CutRecord.model_validate({**cut, "adapter": adapters.get(str(cut["method"]))})
        for cut in options.plan.to_list()
    )


def _model(family: Family, config: Any, source: Checkpoint) -> records.ModelRecord:
    text, n = config.text, family.candidates(config)
    return records.ModelRecord(
        hidden_size=text.hidden_size,
        num_layers=text.num_layers,
        num_heads=text.num_heads,
        num_kv_heads=text.num_kv_heads,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        max_positions=text.max_positions,
        vision_width=config.feature_width,
        image_token_id=config.image_token_id,
        video_token_id=getattr(config, "video_token_id", None),
        bos_token_id=config.bos_token_id,
        eos_token_ids=_eos_token_ids(config, source),
        pad_token_id=config.pad_token_id,
        position_axes=text.rope.axes,
        vision=family.runtime_facts(config),
        visual_tokens=n if isinstance(n, int) else None,
    )


def _eos_token_ids(config: Any, source: Checkpoint) -> tuple[int, ...]:
    """`generation_config.json` knows best when generation stops; config.json is the fallback."""
    path = source.path / "generation_config.json"
    value = read_json(path).get("eos_token_id") if path.exists() else None
    if value is None:
        ids: tuple[int, ...] = config.eos_token_ids
        return ids
    return tuple(value) if isinstance(value, list) else (int(value),)


def _stage(stage: Stage) -> records.Stage:
    return records.Stage(
        file=f"onnx/{stage.name}.onnx",
        inputs=tuple(_tensor(spec) for spec in stage.inputs),
        outputs=tuple(_tensor(spec) for spec in stage.outputs),
    )


def _tensor(spec: TensorSpec) -> records.TensorSpec:
    return records.TensorSpec(name=spec.name, dtype=spec.dtype, shape=spec.shape)  # type: ignore[arg-type]


def _versions() -> dict[str, str]:
    versions = {}
    for tool in _TOOLS:
        try:
            versions[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
