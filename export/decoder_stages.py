"""The decoder as graphs: segments between the cuts, run one by one (segmented) or as one graph (fused).

A cut after layer `L` ends a segment. Both layouts are made of the same `Segment`; they differ in who carries
the kept rows over the cut: the host, or the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType

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
from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.methods import build_method
from foveate.export.stage import Stage, StageModule, TensorSpec, budget_inputs
from foveate.pruning.budget import Budget
from foveate.pruning.evidence import DecoderEvidence
from foveate.pruning.plan import CutSpec
from foveate.pruning.selection import Selection, remap


@dataclass(frozen=True)
class SegmentPlan:
    """Layers `first..last-1`; `cut` is what happens after them (None for the last segment)."""

    index: int
    first: int
    last: int
    cut: CutSpec | None


def plan_segments(num_layers: int, cuts: Sequence[CutSpec]) -> tuple[SegmentPlan, ...]:
    """Splits the layers at the cuts. The cuts are ascending and inside the decoder (`check_cuts`)."""
    ends = [cut.layer or 0 for cut in cuts] + [num_layers]
    starts = [0, *ends[:-1]]
    return tuple(
        SegmentPlan(i, first, last, cuts[i] if i < len(cuts) else None)
        for i, (first, last) in enumerate(zip(starts, ends, strict=True))
    )


def cache_groups(segments: Sequence[SegmentPlan]) -> tuple[tuple[int, ...], ...]:
    """Layers that share a cache length: one group per segment."""
    return tuple(tuple(range(s.first, s.last)) for s in segments)


# Arrays of a chunk with an entry for each token, which a cut shortens all alike.
_COMPANIONS = ("position_ids", "token_role", "block", "deepstack")


@dataclass(frozen=True)
class Chunk:
    """A chunk of tokens on its way through the decoder.

    Attributes:
        hidden: `[b, s, d]`.
        length: `[b]` valid tokens.
        companions: those of `_COMPANIONS` that the graph has: positions `[b, s]` or `[b, s, axes]`, roles and
            image numbers `[b, s]`, DeepStack rows `[b, s, levels * d]`.
        query_index: `[b, t]`, rows of the text that says what is relevant; None without a cut.
    """

    hidden: Tensor
    length: Tensor
    companions: dict[str, Tensor]
    query_index: Tensor | None = None

    @staticmethod
    def of(feeds: dict[str, Tensor], hidden: Tensor) -> Chunk:
        """A graph's inputs as a chunk."""
        companions = {name: feeds[name] for name in _COMPANIONS if name in feeds}
        return Chunk(hidden, feeds["length"], companions, feeds.get("query_index"))

    def gather(self, kept: Tensor, selection: Selection) -> Chunk:
        """The chunk behind a cut: survivors with all that belongs to them, query rows under new numbers."""
        assert self.query_index is not None
        return Chunk(
            gather_rows(self.hidden, kept),
            selection.count,
            {name: gather_rows(value, kept) for name, value in self.companions.items()},
            remap(self.query_index, selection),
        )


class Segment(nn.Module):
    """Runs one segment's layers and, where a cut follows, chooses who survives it."""

    def __init__(self, config: DecoderConfig, plan: SegmentPlan, target: ModuleType) -> None:
        super().__init__()
        self.config, self.plan = config, plan
        self.method = build_method(plan.cut) if plan.cut else None

    def forward(
        self, trunk: LanguageModel, chunk: Chunk, feeds: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], Selection | None]:
        """Returns the new hidden `[b, s, d]`, the caches by output name, and the selection before a cut."""
        state = self._state(trunk, chunk, feeds)
        hidden, projections = chunk.hidden, None
        caches: dict[str, Tensor] = {}
        for i in range(self.plan.first, self.plan.last):
            layer = trunk.layers[str(i)]
            assert isinstance(layer, Layer)
            past = LayerCache(feeds[f"past_key_{i}"], feeds[f"past_value_{i}"])
            hidden, present, projections = layer(hidden, state, past)
            if i < self.config.deepstack_levels:
                d = self.config.hidden_size
                hidden = hidden + chunk.companions["deepstack"][:, :, i * d : (i + 1) * d]
            caches |= {f"present_key_{i}": present.key, f"present_value_{i}": present.value}
        if self.plan.cut is None:
            return hidden, caches, None
        assert projections is not None
        return hidden, caches, self._select(hidden, chunk, projections, feeds)

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
        return trunk.state(position_ids, chunk.length, cache_length, masks)

    def _layers(self, trunk: LanguageModel) -> list[Layer]:
        layers = [trunk.layers[str(i)] for i in range(self.plan.first, self.plan.last)]
        return [layer for layer in layers if isinstance(layer, Layer)]

    def _select(
        self, hidden: Tensor, chunk: Chunk, projections: Projections, feeds: dict[str, Tensor]
    ) -> Selection:
        assert self.method is not None
        assert chunk.query_index is not None
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        evidence = DecoderEvidence(
            query=_split_heads(projections.query, heads),
            key=_split_heads(projections.key, kv_heads),
            query_plain=_split_heads(projections.query_plain, heads),
            key_plain=_split_heads(projections.key_plain, kv_heads),
            hidden=hidden,
            token_role=chunk.companions["token_role"],
            query_index=chunk.query_index,
            length=chunk.length,
            scale=self.config.attention_scale,
        )
        suffix = f"l{self.plan.last}"
        budget = Budget(feeds[f"keep_ratio_{suffix}"], feeds[f"keep_tokens_{suffix}"])
        chosen: Selection = self.method(evidence, budget, feeds.get(f"seed_{suffix}"))
        return chosen


def _split_heads(x: Tensor, heads: int) -> Tensor:
    b, s, width = x.shape
    return x.reshape(b, s, heads, width // heads).transpose(1, 2)  # b s (h e) -> b h s e


class _DecoderStage(StageModule):
    """What both layouts share: parameters under checkpoint names, and the language-model head."""

    def __init__(
        self,
        config: DecoderConfig,
        segments: Sequence[SegmentPlan],
        target: ModuleType,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        super().__init__(inputs, outputs)
        self.language_model = LanguageModel(config, target, segments[0].first, segments[-1].last)
        self.segments = nn.ModuleList(Segment(config, plan, target) for plan in segments)
        if segments[-1].cut is None:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def logits(self, hidden: Tensor, logits_index: Tensor) -> Tensor:
        """Logits `[b, m, v]` of the wanted rows only: a whole prompt's would cost more than a layer."""
        # torch.where, not clamp: TensorRT's Clip takes no integers.
        wanted = gather_rows(hidden, torch.where(logits_index < 0, 0, logits_index))
        result: Tensor = self.lm_head(self.language_model.norm(wanted))
        return result


class FusedDecoder(_DecoderStage):
    """All segments in one graph; the kept rows are gathered inside it."""

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        chunk = Chunk.of(feeds, feeds["hidden"])
        logits_index = feeds["logits_index"]
        results: dict[str, Tensor] = {}
        for segment in self.segments:
            assert isinstance(segment, Segment)
            hidden, caches, selection = segment(self.language_model, chunk, feeds)
            results |= caches
            chunk = replace(chunk, hidden=hidden)
            if selection is not None:
                results |= _selection_outputs(segment.plan, selection)
                chunk = chunk.gather(longest_kept(selection), selection)
                logits_index = remap(logits_index, selection)
        results["logits"] = self.logits(chunk.hidden, logits_index)
        return results


class SegmentDecoder(_DecoderStage):
    """One segment as a graph of its own; nothing inside has a data-dependent shape."""

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        segment = self.segments[0]
        assert isinstance(segment, Segment)
        hidden = feeds["hidden"]
        if "kept_index" in feeds:
            hidden = gather_rows(hidden, feeds["kept_index"])
        results: dict[str, Tensor]
        hidden, results, selection = segment(self.language_model, Chunk.of(feeds, hidden), feeds)
        if selection is None:
            return results | {"logits": self.logits(hidden, feeds["logits_index"])}
        return results | {"hidden_out": hidden} | _selection_outputs(segment.plan, selection)


def _selection_outputs(plan: SegmentPlan, selection: Selection) -> dict[str, Tensor]:
    return {f"order_l{plan.last}": selection.order, f"count_l{plan.last}": selection.count}


# --- the graphs' interfaces ---------------------------------------------------------------------------------


def fused_stage(config: DecoderConfig, segments: Sequence[SegmentPlan], target: ModuleType) -> Stage:
    """The whole decoder as one graph."""
    inputs = (
        TensorSpec("hidden", "float32", ("batch", "sequence", config.hidden_size)),
        *_token_inputs(config, segments[0], "sequence"),
        TensorSpec("length", "int64", ("batch",)),
        *(spec for s in segments for spec in _past_inputs(config, s)),
        *(_evidence_inputs("sequence") if len(segments) > 1 else ()),
        *(spec for s in segments for spec in _budget_inputs(s)),
        TensorSpec("logits_index", "int64", ("batch", "wanted")),
        *(spec for s in segments for spec in _cache_specs(config, s, "past")),
    )
    outputs = [TensorSpec("logits", "float32", ("batch", "wanted", config.vocab_size))]
    axis = "sequence"
    for s in segments:
        outputs += _cache_specs(config, s, "present")
        outputs += _selection_specs(s, axis)
        axis = f"kept_l{s.last}"
    return _stage("decoder", FusedDecoder, config, segments, target, inputs, tuple(outputs))


def segment_stages(
    config: DecoderConfig, segments: Sequence[SegmentPlan], target: ModuleType
) -> tuple[Stage, ...]:
    """The decoder as one graph per segment."""
    return tuple(_segment_stage(config, s, target) for s in segments)


def _segment_stage(config: DecoderConfig, plan: SegmentPlan, target: ModuleType) -> Stage:
    axis = "kept" if plan.index else "sequence"
    inputs = (
        TensorSpec("hidden", "float32", ("batch", "sequence", config.hidden_size)),
        *((TensorSpec("kept_index", "int64", ("batch", axis)),) if plan.index else ()),
        *_token_inputs(config, plan, axis),
        TensorSpec("length", "int64", ("batch",)),
        *_past_inputs(config, plan),
        *(_evidence_inputs(axis) if plan.cut else ()),
        *_budget_inputs(plan),
        *(() if plan.cut else (TensorSpec("logits_index", "int64", ("batch", "wanted")),)),
        *_cache_specs(config, plan, "past"),
    )
    head = (
        TensorSpec("hidden_out", "float32", ("batch", axis, config.hidden_size))
        if plan.cut
        else TensorSpec("logits", "float32", ("batch", "wanted", config.vocab_size))
    )
    outputs = (head, *_cache_specs(config, plan, "present"), *_selection_specs(plan, axis))
    return _stage(f"decoder_{plan.index}", SegmentDecoder, config, (plan,), target, inputs, outputs)


def _stage(
    name: str,
    module: type[_DecoderStage],
    config: DecoderConfig,
    segments: Sequence[SegmentPlan],
    target: ModuleType,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> Stage:
    return Stage(name, inputs, outputs, lambda: module(config, segments, target, inputs, outputs))


def _token_inputs(config: DecoderConfig, plan: SegmentPlan, axis: str) -> tuple[TensorSpec, ...]:
    """What comes with each token: position, image number, DeepStack rows for the segments that add them."""
    axes, levels = config.rope.axes, config.deepstack_levels
    position = ("batch", axis) if axes == 1 else ("batch", axis, axes)
    deepstack = TensorSpec("deepstack", "float32", ("batch", axis, levels * config.hidden_size))
    return (
        TensorSpec("position_ids", "int64", position),
        *((TensorSpec("block", "int64", ("batch", axis)),) if config.masked else ()),
        *((deepstack,) if plan.first < levels else ()),
    )


def _past_inputs(config: DecoderConfig, plan: SegmentPlan) -> tuple[TensorSpec, ...]:
    """What is known about a segment's caches."""
    position = TensorSpec(f"past_position_{plan.index}", "int64", ("batch", f"capacity_{plan.index}"))
    return (
        TensorSpec(f"cache_length_{plan.index}", "int64", ("batch",)),
        *((position,) if config.masked else ()),
    )


def _evidence_inputs(axis: str) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("token_role", "int64", ("batch", axis)),
        TensorSpec("query_index", "int64", ("batch", "query")),
    )


def _budget_inputs(plan: SegmentPlan) -> tuple[TensorSpec, ...]:
    if plan.cut is None:
        return ()
    return budget_inputs(plan.cut, f"_l{plan.last}")


def _cache_specs(config: DecoderConfig, plan: SegmentPlan, when: str) -> tuple[TensorSpec, ...]:
    shape = ("batch", config.num_kv_heads, f"capacity_{plan.index}", config.head_dim)
    return tuple(
        TensorSpec(f"{when}_{part}_{i}", "float32", shape)
        for i in range(plan.first, plan.last)
        for part in ("key", "value")
    )


def _selection_specs(plan: SegmentPlan, axis: str) -> tuple[TensorSpec, ...]:
    if plan.cut is None:
        return ()
    return (
        TensorSpec(f"order_l{plan.last}", "int64", ("batch", axis)),
        TensorSpec(f"count_l{plan.last}", "int64", ("batch",)),
    )
