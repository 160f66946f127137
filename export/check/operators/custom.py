"""TensorRT's own operators, which stand in the copy that is made for the builder only."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from foveate.export.check.conditions import attribute_in, dtype_in, first, rank_in
from foveate.export.check.operators.attention import (
    CACHE_RULES,
    FUSED_TYPE,
    GROUPS,
    HEAD_WIDTH,
    HEADS,
    MASK_RANK,
    MASK_TYPE,
)
from foveate.export.check.place import Place
from foveate.export.check.rule import ANY, CUSTOM_OPS, FLOATS, QUANTISED, Operator, Rule

PREFIX: Final = "TRT_"
_PADDED, _PACKED = "padded_bhnd", "packed_nhd"
_INT32 = frozenset({ir.DataType.INT32})
_ATTRIBUTES: Final = frozenset(
    {
        *("query_form", "kv_form", "causal_kind", "nb_rank"),
        *("TRT_decomposable", "TRT_normalization_op"),
    }
)


def _unknown_attribute(place: Place) -> str | None:
    strange = sorted(set(place.node.attributes) - _ATTRIBUTES)
    return f"{strange[0]} is given" if strange else None


def _mask_and_causal(place: Place) -> str | None:
    causal = place.attribute("causal_kind", "none")
    return f"a mask with causal_kind {causal}" if causal != "none" and place.input(3) else None


def _lengths(place: Place) -> str | None:
    for name, index, form in (("queries", 4, "query_form"), ("keys", 5, "kv_form")):
        if place.attribute(form, _PADDED) == _PACKED and place.input(index) is None:
            return f"packed {name} without lengths"
    return None


def _ranks(place: Place) -> str | None:
    query = 3 if place.attribute("query_form", _PADDED) == _PACKED else 4
    keys = 3 if place.attribute("kv_form", _PADDED) == _PACKED else 4
    return first(rank_in(0, (query,)), rank_in(1, (keys,)), rank_in(2, (keys,)))(place)


_FORMS = (_PADDED, _PACKED)

ROWS = (
    Operator(
        ("TRT_Attention",),
        FLOATS,
        typed=(0, 1, 2),
        equal=(0, 1, 2),
        outputs=1,
        since="11.0",
        older="build with --attention portable",
        source=CUSTOM_OPS,
        mend="cast queries, keys and values to one float type",
        rules=(
            Rule(
                "attributes",
                _unknown_attribute,
                "it has no such attribute: scale and heads are not seen",
                "scale the queries before it, and give four axes",
                CUSTOM_OPS,
            ),
            Rule(
                "causal-kind",
                attribute_in("causal_kind", "none", ("none", "upper_left", "lower_right")),
                "there is no such mask",
                "use none, upper_left or lower_right",
                CUSTOM_OPS,
            ),
            Rule(
                "forms",
                first(attribute_in("query_form", _PADDED, _FORMS), attribute_in("kv_form", _PADDED, _FORMS)),
                "there is no such layout",
                f"use {_PADDED} or {_PACKED}",
                CUSTOM_OPS,
            ),
            Rule(
                "mask-and-causal",
                _mask_and_causal,
                "a mask and a causal kind exclude each other",
                "put the causal part into the mask, or leave the mask out",
                CUSTOM_OPS,
            ),
            Rule("lengths", _lengths, "packed rows need cumulative lengths", "give them", CUSTOM_OPS),
            Rule(
                "length-type",
                first(dtype_in(4, _INT32), dtype_in(5, _INT32)),
                "lengths must be int32",
                "cast them",
                CUSTOM_OPS,
            ),
            Rule("rank", _ranks, "padded rows have four axes, packed ones three", "reshape them", CUSTOM_OPS),
            HEADS,
            GROUPS,
            MASK_RANK,
            MASK_TYPE,
            HEAD_WIDTH,
            FUSED_TYPE,
        ),
    ),
    Operator(
        ("TRT_KVCacheUpdate",),
        FLOATS,
        typed=(0, 1),
        equal=(0, 1),
        source=CUSTOM_OPS,
        mend="caches are float32, float16 or bfloat16",
        rules=(
            Rule(
                "places",
                first(dtype_in(2, _INT32), dtype_in(3, _INT32)),
                "places and lengths must be int32",
                "cast them",
                CUSTOM_OPS,
            ),
            Rule(
                "form",
                attribute_in("update_form", _PADDED, _FORMS),
                "there is no such layout",
                f"use {_PADDED} or {_PACKED}",
                CUSTOM_OPS,
            ),
            *CACHE_RULES,
        ),
    ),
    Operator(
        (
            *("TRT_QuantizedAttention", "TRT_MoE", "TRT_FP8QuantizeLinear", "TRT_FP8DequantizeLinear"),
            *("TRT_INT4QuantizeLinear", "TRT_INT4DequantizeLinear", "TRT_MXFP8DynamicQuantize"),
            *("TRT_MXFP8QuantizeLinear", "TRT_MXFP8DequantizeLinear", "TRT_FP4DynamicQuantize"),
            *("TRT_DynamicQuantize", "TRT_BlockQuantize", "TRT_BlockDequantize"),
        ),
        ANY | QUANTISED,
        source=CUSTOM_OPS,
    ),
    Operator(
        ("TRT_FP4QDQ",),
        None,
        source="NVIDIA Model Optimizer",
        mark="field",
        mend="it is an intermediate of Model Optimizer: let it rewrite the file to the end",
    ),
)
