"""The decoder as graphs: segments between the cuts, run one by one (segmented) or as one graph (fused).

A cut after layer `L` ends a segment. Both layouts are made of the same `Segment`; they differ in who carries
the kept rows over the cut: the host, or the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn

from foveate.export.blocks.compaction import gather_rows, longest_kept
from foveate.export.blocks.decoder import (
    ChunkState,
    LanguageModel,
    Layer,
    LayerCache,
    Neighbourhood,
    Projections,
    attention_masks,
)
from foveate.export.blocks.linear import Linear
from foveate.export.blocks.neighbours import Sight, Tiles
from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.blocks.visual_skipping import TextRows
from foveate.export.decoder_chunk import Chunk
from foveate.export.decoder_specs import (
    FINAL_HIDDEN,
    SegmentPlan,
    cache_specs,
    cut_inputs,
    head_specs,
    memory_inputs,
    past_inputs,
    role_inputs,
    selection_specs,
    tile_inputs,
    token_inputs,
    total_inputs,
)
from foveate.export.methods import build_method
from foveate.export.stage import Stage, StageModule, TensorSpec
from foveate.pruning.budget import Budget
from foveate.pruning.evidence import DecoderEvidence, ModelShape
from foveate.pruning.method import PruningMethod
from foveate.pruning.selection import Selection, remap

# The caches of a layer.
_PARTS = ("key", "value", "text_key", "text_value")


class Segment(nn.Module):
    """Runs one segment's layers and, where a cut follows, chooses who survives it."""

    def __init__(self, config: DecoderConfig, plan: SegmentPlan, target: ModuleType) -> None:
        super().__init__()
        self.config, self.plan = config, plan

    def forward(
        self, trunk: LanguageModel, chunk: Chunk, feeds: dict[str, Tensor], method: PruningMethod | None
    ) -> tuple[Tensor, dict[str, Tensor], Selection | None]:
        """Returns the new hidden `[b, s, d]`, the caches by output name, and the selection before a cut."""
        state = self._state(trunk, chunk, feeds)
        hidden, projections = chunk.hidden, None
        caches: dict[str, Tensor] = {}
        for i in range(self.plan.first, self.plan.last):
            layer = trunk.layers[str(i)]
            assert isinstance(layer, Layer)
            past = LayerCache(**{part: feeds.get(f"past_{part}_{i}") for part in _PARTS})
            hidden, present, projections = layer(hidden, state, past)
            if i < self.config.deepstack_levels:
                d = self.config.hidden_size
                hidden = hidden + chunk.companions["deepstack"][:, :, i * d : (i + 1) * d]
            held = {f"present_{part}_{i}": getattr(present, part) for part in _PARTS}
            caches |= {name: value for name, value in held.items() if value is not None}
        if method is None:
            return hidden, caches, None
        assert projections is not None
        selection = self._select(method, replace(chunk, hidden=hidden), projections, feeds)
        # A method that merges gives all rows anew, under their old numbers.
        return hidden if selection.features is None else selection.features, caches, selection

    def _state(self, trunk: LanguageModel, chunk: Chunk, feeds: dict[str, Tensor]) -> ChunkState:
        position_ids, cache_length = (
            chunk.companions["position_ids"],
            feeds[f"cache_length_{self.plan.index}"],
        )
        masks: dict[int | None, Tensor] = {}
        if self.config.masked:
            near = Neighbourhood(
                position_ids, chunk.companions["block"], feeds[f"past_position_{self.plan.index}"]
            )
            windows = {layer.self_attn.window for layer in self._layers(trunk)}
            masks = attention_masks(near, chunk.length, cache_length, windows)
        text = self._text(chunk, feeds)
        sight = self._sight(chunk, feeds, text)
        longest = feeds.get(f"total_length_{self.plan.index}")
        return trunk.state(position_ids, chunk.length, cache_length, masks, text, sight, longest)

    def _text(self, chunk: Chunk, feeds: dict[str, Tensor]) -> TextRows | None:
        if self.config.skipping is None:
            return None
        held = feeds.get(f"text_cache_length_{self.plan.index}", torch.zeros_like(chunk.length))
        return TextRows.of(chunk.companions["token_role"], chunk.length, held, chunk.text_index)

    def _sight(self, chunk: Chunk, feeds: dict[str, Tensor], text: TextRows | None) -> Sight | None:
        skipping, group = self.config.skipping, self.plan.index
        memory = (feeds.get(f"past_key_{i}") for i in range(self.plan.first, self.plan.last))
        cache = next((each for each in memory if each is not None), None)
        if skipping is None or skipping.window is None or cache is None:
            return None
        assert text is not None
        assert chunk.visual_tile is not None
        assert chunk.visual_near is not None
        tiles = Tiles(
            chunk.visual_tile,
            chunk.visual_near,
            chunk.companions["visual_place"],
            chunk.companions["cell"],
            feeds[f"past_text_{group}"],
        )
        return Sight.of(
            tiles,
            text,
            chunk.length,
            feeds[f"cache_length_{group}"],
            cache.shape[2],
            skipping.window,
            skipping.both_ways,
        )

    def _layers(self, trunk: LanguageModel) -> list[Layer]:
        layers = [trunk.layers[str(i)] for i in range(self.plan.first, self.plan.last)]
        return [layer for layer in layers if isinstance(layer, Layer)]

    def _select(
        self, method: PruningMethod, chunk: Chunk, projections: Projections, feeds: dict[str, Tensor]
    ) -> Selection:
        assert chunk.query_index is not None
        width = self.config.head_dim
        evidence = DecoderEvidence(
            query=_split_heads(projections.query, width),
            key=_split_heads(projections.key, width),
            query_plain=_split_heads(projections.query_plain, width),
            key_plain=_split_heads(projections.key_plain, width),
            hidden=chunk.hidden,
            token_role=chunk.companions["token_role"],
            query_index=chunk.query_index,
            length=chunk.length,
            scale=self.config.attention_scale,
            entered=chunk.entered if method.needs_entered else None,
            embedded=chunk.companions["embedded"] if method.needs_embedded else None,
        )
        suffix = f"l{self.plan.last}"
        budget = Budget(feeds[f"keep_ratio_{suffix}"], feeds[f"keep_tokens_{suffix}"])
        chosen: Selection = method(evidence, budget, feeds.get(f"seed_{suffix}"))
        return chosen


def _split_heads(x: Tensor, head_dim: int) -> Tensor:
    b, s, width = x.shape
    return x.reshape(b, s, width // head_dim, head_dim).transpose(1, 2)  # b s (h e) -> b h s e


class _DecoderStage(StageModule):
    """What both layouts share: parameters under checkpoint names, the methods, the language-model head."""

    def __init__(
        self,
        config: DecoderConfig,
        segments: Sequence[SegmentPlan],
        target: ModuleType,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        shape: ModelShape | None,
    ) -> None:
        super().__init__(inputs, outputs)
        # By the name of the cut: what a trained method's weights are called in every graph.
        methods = {f"l{plan.last}": build_method(plan.cut, shape) for plan in segments if plan.cut}
        self.cuts = nn.ModuleDict(methods)
        self.language_model = LanguageModel(config, target, segments[0].first, segments[-1].last)
        self.segments = nn.ModuleList(Segment(config, plan, target) for plan in segments)
        if segments[-1].cut is None:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def method_of(self, segment: Segment) -> PruningMethod | None:
        """What chooses behind a segment."""
        name = f"l{segment.plan.last}"
        return cast("PruningMethod", self.cuts[name]) if name in self.cuts else None

    def methods(self) -> Iterable[PruningMethod]:
        """Those of all cuts in this graph."""
        return (cast("PruningMethod", method) for method in self.cuts.values())

    def head(self, hidden: Tensor, logits_index: Tensor) -> dict[str, Tensor]:
        """Logits `[b, m, v]` of the wanted rows only: a whole prompt's would cost more than a layer.

        `final_hidden [b, m, d]`, where the graph gives it, is what the head reads.
        """
        # torch.where, not clamp: TensorRT's Clip takes no integers.
        wanted = gather_rows(hidden, torch.where(logits_index < 0, 0, logits_index))
        final = self.language_model.norm(wanted)
        results = {"logits": self.lm_head(final)}
        return results | ({FINAL_HIDDEN: final} if FINAL_HIDDEN in self.output_names else {})


class FusedDecoder(_DecoderStage):
    """All segments in one graph; the kept rows are gathered inside it."""

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        chunk = Chunk.of(feeds, feeds["hidden"]).at_the_door(self.methods())
        logits_index = feeds["logits_index"]
        results: dict[str, Tensor] = {}
        for segment in self.segments:
            assert isinstance(segment, Segment)
            hidden, caches, selection = segment(self.language_model, chunk, feeds, self.method_of(segment))
            results |= caches
            chunk = replace(chunk, hidden=hidden)
            if selection is not None:
                results |= _selection_outputs(segment.plan, selection)
                chunk = chunk.gather(longest_kept(selection), selection)
                logits_index = remap(logits_index, selection)
        return results | self.head(chunk.hidden, logits_index)


class SegmentDecoder(_DecoderStage):
    """One segment as a graph of its own; nothing inside has a data-dependent shape."""

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        segment = self.segments[0]
        assert isinstance(segment, Segment)
        hidden = feeds["hidden"]
        if "kept_index" in feeds:
            hidden = gather_rows(hidden, feeds["kept_index"])
        results: dict[str, Tensor]
        chunk = Chunk.of(feeds, hidden)
        if segment.plan.index == 0:
            chunk = chunk.at_the_door(self.methods())
        hidden, results, selection = segment(self.language_model, chunk, feeds, self.method_of(segment))
        if selection is None:
            return results | self.head(hidden, feeds["logits_index"])
        return results | {"hidden_out": hidden} | _selection_outputs(segment.plan, selection)


def _selection_outputs(plan: SegmentPlan, selection: Selection) -> dict[str, Tensor]:
    return {f"order_l{plan.last}": selection.order, f"count_l{plan.last}": selection.count}


# --- the graphs' interfaces ---------------------------------------------------------------------------------


def fused_stage(
    config: DecoderConfig,
    segments: Sequence[SegmentPlan],
    target: ModuleType,
    shape: ModelShape | None = None,
    *,
    final_hidden: bool = False,
) -> Stage:
    """The whole decoder as one graph.

    `shape` is what the cuts' methods are built for; `final_hidden` asks for what the head reads, too.
    """
    inputs = (
        TensorSpec("hidden", "float32", ("batch", "sequence", config.hidden_size)),
        *token_inputs(config, segments[0], "sequence"),
        TensorSpec("length", "int64", ("batch",)),
        *(spec for s in segments for spec in past_inputs(config, s)),
        *role_inputs(config, "sequence", cut=len(segments) > 1),
        *tile_inputs(config, "sequence"),
        *(spec for s in segments for spec in cut_inputs(s)),
        TensorSpec("logits_index", "int64", ("batch", "wanted")),
        *(spec for s in segments for spec in cache_specs(config, s, "past")),
    )
    outputs = head_specs(config, final_hidden)
    axis = "sequence"
    for s in segments:
        outputs += cache_specs(config, s, "present")
        outputs += selection_specs(s, axis)
        axis = f"kept_l{s.last}"
    return _stage("decoder", FusedDecoder, config, segments, target, inputs, tuple(outputs), shape)


def segment_stages(
    config: DecoderConfig,
    segments: Sequence[SegmentPlan],
    target: ModuleType,
    shape: ModelShape,
    *,
    final_hidden: bool = False,
) -> tuple[Stage, ...]:
    """The decoder as one graph per segment."""
    return tuple(_segment_stage(config, s, target, shape, final_hidden=final_hidden) for s in segments)


def _segment_stage(
    config: DecoderConfig, plan: SegmentPlan, target: ModuleType, shape: ModelShape, *, final_hidden: bool
) -> Stage:
    axis = "kept" if plan.index else "sequence"
    inputs = (
        TensorSpec("hidden", "float32", ("batch", "sequence", config.hidden_size)),
        *((TensorSpec("kept_index", "int64", ("batch", axis)),) if plan.index else ()),
        *token_inputs(config, plan, axis),
        TensorSpec("length", "int64", ("batch",)),
        *past_inputs(config, plan),
        *(total_inputs(config, plan) if target.HOST_LENGTHS else ()),
        *role_inputs(config, axis, cut=plan.cut is not None),
        *tile_inputs(config, axis),
        *(memory_inputs(config, plan.cut, axis) if plan.cut and plan.index else ()),
        *cut_inputs(plan),
        *(() if plan.cut else (TensorSpec("logits_index", "int64", ("batch", "wanted")),)),
        *cache_specs(config, plan, "past"),
    )
    head = (
        [TensorSpec("hidden_out", "float32", ("batch", axis, config.hidden_size))]
        if plan.cut
        else head_specs(config, final_hidden)
    )
    outputs = (*head, *cache_specs(config, plan, "present"), *selection_specs(plan, axis))
    return _stage(f"decoder_{plan.index}", SegmentDecoder, config, (plan,), target, inputs, outputs, shape)


def _stage(
    name: str,
    module: type[_DecoderStage],
    config: DecoderConfig,
    segments: Sequence[SegmentPlan],
    target: ModuleType,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    shape: ModelShape | None,
) -> Stage:
    return Stage(name, inputs, outputs, lambda: module(config, segments, target, inputs, outputs, shape))
