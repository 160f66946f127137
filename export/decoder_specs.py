"""What the decoder's graphs take and give, segment by segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from foveate.export.blocks.text_models import DecoderConfig
from foveate.export.methods import build_method
from foveate.export.stage import TensorSpec, budget_inputs
from foveate.pruning.plan import CutSpec

# What the head reads; an output of graphs whose encoder method looks at the text through the decoder.
FINAL_HIDDEN: Final = "final_hidden"


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


def head_specs(config: DecoderConfig, final_hidden: bool) -> list[TensorSpec]:
    logits = TensorSpec("logits", "float32", ("batch", "wanted", config.vocab_size))
    final = TensorSpec(FINAL_HIDDEN, "float32", ("batch", "wanted", config.hidden_size))
    return [logits, final] if final_hidden else [logits]


def token_inputs(config: DecoderConfig, plan: SegmentPlan, axis: str) -> tuple[TensorSpec, ...]:
    """What comes with each token: position, image number, DeepStack rows for the segments that add them."""
    axes, levels = config.rope.axes, config.deepstack_levels
    position = ("batch", axis) if axes == 1 else ("batch", axis, axes)
    deepstack = TensorSpec("deepstack", "float32", ("batch", axis, levels * config.hidden_size))
    return (
        TensorSpec("position_ids", "int64", position),
        *((TensorSpec("block", "int64", ("batch", axis)),) if config.masked else ()),
        *((deepstack,) if plan.first < levels else ()),
    )


def role_inputs(config: DecoderConfig, axis: str, *, cut: bool) -> tuple[TensorSpec, ...]:
    """What tells visual rows from text: for cuts, and for layers that visual rows skip a part of."""
    roles = TensorSpec("token_role", "int64", ("batch", axis))
    return (
        *((roles,) if cut or config.skipping else ()),
        *((TensorSpec("text_index", "int64", ("batch", "texts")),) if config.skipping else ()),
        *((TensorSpec("query_index", "int64", ("batch", "query")),) if cut else ()),
    )


def past_inputs(config: DecoderConfig, plan: SegmentPlan) -> tuple[TensorSpec, ...]:
    """What is known about a segment's caches."""
    slots = TensorSpec(f"past_text_{plan.index}", "int64", ("batch", "past_texts"))
    text = TensorSpec(f"text_cache_length_{plan.index}", "int64", ("batch",))
    position = TensorSpec(f"past_position_{plan.index}", "int64", ("batch", f"capacity_{plan.index}"))
    return (
        TensorSpec(f"cache_length_{plan.index}", "int64", ("batch",)),
        *((position,) if config.masked else ()),
        *((text,) if config.has_text_heads else ()),
        *((slots,) if config.window else ()),
    )


def total_inputs(config: DecoderConfig, plan: SegmentPlan) -> tuple[TensorSpec, ...]:
    """How far a segment's caches are filled in the longest row, for targets that read it on the host.

    Layers with masks of their own ask nothing of it.
    """
    masked = config.masked or config.window is not None
    return () if masked else (TensorSpec(f"total_length_{plan.index}", "int32", (1,)),)


def tile_inputs(config: DecoderConfig, axis: str) -> tuple[TensorSpec, ...]:
    """Which visual rows are neighbours, where they see nothing else of their image."""
    if config.window is None:
        return ()
    return (
        TensorSpec("visual_tile", "int64", ("batch", "tiles", "tile_rows")),
        TensorSpec("visual_near", "int64", ("batch", "tiles", "near_rows")),
        TensorSpec("visual_place", "int64", ("batch", axis)),
        TensorSpec("cell", "int64", ("batch", axis, 3)),
    )


def memory_inputs(config: DecoderConfig, cut: CutSpec, axis: str) -> tuple[TensorSpec, ...]:
    """What a method wants to know of the decoder's input, where an earlier graph read that."""
    method = build_method(cut)
    embedded = TensorSpec("embedded", "float32", ("batch", axis, config.hidden_size))
    return (
        *((embedded,) if method.needs_embedded else ()),
        *((TensorSpec("entered", "int64", ("batch",)),) if method.needs_entered else ()),
    )


def cut_inputs(plan: SegmentPlan) -> tuple[TensorSpec, ...]:
    if plan.cut is None:
        return ()
    return budget_inputs(plan.cut, f"_l{plan.last}")


def cache_specs(config: DecoderConfig, plan: SegmentPlan, when: str) -> tuple[TensorSpec, ...]:
    """Keys and values of a segment's layers; of the heads that hold text only, in memory of their own."""
    specs = []
    for i in range(plan.first, plan.last):
        few = config.text_heads(i)
        for kind, heads in (("", config.num_kv_heads - few), ("text_", few)):
            shape = ("batch", heads, f"{kind}capacity_{plan.index}", config.head_dim)
            specs += [
                TensorSpec(f"{when}_{kind}{part}_{i}", "float32", shape) for part in ("key", "value") if heads
            ]
    return tuple(specs)


def selection_specs(plan: SegmentPlan, axis: str) -> tuple[TensorSpec, ...]:
    if plan.cut is None:
        return ()
    return (
        TensorSpec(f"order_l{plan.last}", "int64", ("batch", axis)),
        TensorSpec(f"count_l{plan.last}", "int64", ("batch",)),
    )
