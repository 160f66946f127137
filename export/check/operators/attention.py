"""Attention, caches that are written in place, rotation and normalisation."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from foveate.export.check.conditions import (
    attribute_absent,
    attribute_in,
    dtype_in,
    first,
    input_absent,
    rank_in,
    static,
)
from foveate.export.check.place import Place
from foveate.export.check.rule import (
    DEVELOPER_GUIDE,
    FLOATS,
    HEADER,
    IMPORTERS,
    INTS,
    Operator,
    Rule,
    Severity,
    name_of,
)

_HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_FUSED_HEAD: Final = 256
_EXTRA: Final = ("TRT_decomposable", "TRT_normalization_op", "nb_rank")
_INT64 = frozenset({ir.DataType.INT64})


def _upper_left(place: Place) -> str | None:
    if not place.attribute("is_causal", 0):
        return None
    axis = -2
    rows, keys = place.dim(0, axis), place.dim(1, axis)
    if rows is not None and rows == keys:
        return None
    return f"is_causal is 1 with {rows} queries and {keys} keys"


def mask_type(place: Place) -> str | None:
    """The mask is bool or of the queries' type."""
    mask, query = place.dtype(3), place.dtype(0)
    if mask is None or query is None or mask in (ir.DataType.BOOL, query):
        return None
    return f"the mask is {name_of(mask)}, queries are {name_of(query)}"


def mask_rank(place: Place) -> str | None:
    """The mask has four axes at most."""
    rank = place.rank(3)
    return None if rank is None or rank <= 4 else f"the mask has {rank} axes"


def static_heads(place: Place) -> str | None:
    """Number and width of heads are static in queries, keys and values of four axes."""
    return first(*(static(i, 1, 3) for i in range(3) if place.rank(i) == 4))(place)


def _flat_heads(place: Place) -> str | None:
    for index, name in ((0, "q_num_heads"), (1, "kv_num_heads"), (2, "kv_num_heads")):
        if place.rank(index) == 3 and not place.attribute(name, 0):
            return f"input {index} has 3 axes, and {name} is not given"
    return None


def _heads(place: Place, index: int) -> int | str | None:
    if place.rank(index) == 4:
        return place.dim(index, 1)
    count = place.attribute("kv_num_heads" if index else "q_num_heads", None)
    return None if count is None else int(count)


def head_groups(place: Place) -> str | None:
    """Query heads are a multiple of the key heads."""
    queries, keys = _heads(place, 0), _heads(place, 1)
    if not isinstance(queries, int) or not isinstance(keys, int) or (keys and queries % keys == 0):
        return None
    return f"{queries} query heads, {keys} key heads"


def _must_be_fused(place: Place) -> bool:
    return place.fused and not place.attribute("TRT_decomposable", 0)


def fused_type(place: Place) -> str | None:
    """The type of queries has a fused kernel."""
    wide = _must_be_fused(place) and place.dtype(0) == ir.DataType.FLOAT
    return "queries are float32" if wide else None


def head_width(place: Place) -> str | None:
    """The width of a head has a fused kernel."""
    width = place.dim(0, 3) if _must_be_fused(place) and place.rank(0) == 4 else None
    if not isinstance(width, int) or (width % 8 == 0 and width <= _FUSED_HEAD):
        return None
    return f"heads are {width} wide"


def cache_is_input(place: Place) -> str | None:
    """The cache comes from outside as it is."""
    cache = place.input(0)
    assert cache is not None
    return None if cache.is_graph_input() else f"the cache is {cache.name}, which the graph computes"


def cache_is_output(place: Place) -> str | None:
    """The written cache leaves the graph as it is."""
    written = place.node.outputs[0]
    return None if written.is_graph_output() else f"{written.name} stays inside the graph"


def cache_capacity(place: Place) -> str | None:
    """The cache has a static length."""
    return static(0, 2)(place)


CACHE_RULES = (
    Rule(
        "rank",
        first(rank_in(0, (4,)), rank_in(1, (3, 4))),
        "cache and update must be [b, heads, s, width]",
        "reshape the update before it",
    ),
    Rule(
        "mode",
        attribute_in("mode", "linear", ("linear",)),
        "only writing behind one another is taken",
        "use mode linear and count the places on the host",
    ),
    Rule("axis", attribute_in("axis", -2, (-2,)), "tokens must be the last axis but one", "write axis as -2"),
    Rule(
        "input",
        cache_is_input,
        "a cache must be an input of the graph: it is written in place",
        "feed the cache straight into it",
        HEADER,
    ),
    Rule(
        "output",
        cache_is_output,
        "a written cache must be an output of the graph, at its input's address",
        "make it an output",
        HEADER,
    ),
    Rule(
        "capacity",
        cache_capacity,
        "the cache's length must be static in an engine",
        "fix it: foveate build does from its profile",
        HEADER,
        standard=False,
    ),
)

HEAD_WIDTH = Rule(
    "head-width",
    head_width,
    f"fused kernels want a multiple of 8 up to {_FUSED_HEAD}: without one the build fails",
    "let the attention be decomposed: TRT_decomposable 1, or --attention portable without --fused-only",
    DEVELOPER_GUIDE,
    "field",
    Severity.WARNING,
)
FUSED_TYPE = Rule(
    "fused-type",
    fused_type,
    "fused kernels compute in half precision: without one the build fails",
    "export with --dtype fp16 or bf16, or let the attention be decomposed: without --fused-only",
    DEVELOPER_GUIDE,
    "field",
    Severity.WARNING,
)
GROUPS = Rule(
    "groups", head_groups, "query heads must be a multiple of key heads", "repeat keys and values", IMPORTERS,
    "source",
)  # fmt: skip
MASK_RANK = Rule("mask-rank", mask_rank, "a mask has at most four axes", "flatten its leading axes", HEADER)
MASK_TYPE = Rule(
    "mask-type", mask_type, "a mask is bool or of the queries' type", "cast the mask", IMPORTERS, "source"
)
HEADS = Rule(
    "heads", static_heads, "number and width of heads must be static", "make both axes numbers", HEADER
)

_ATTENTION = (
    Rule(
        "nonpad",
        input_absent(6),
        "nonpad_kv_seqlen is ignored without a word, and the numbers are wrong",
        "give an explicit mask, or make it TRT_Attention with key_value_lengths",
        IMPORTERS,
        "source",
    ),
    Rule(
        "past",
        input_absent(4, 5),
        "caches inside the operator are not taken",
        "write them by TensorScatter before it",
    ),
    Rule(
        "causal",
        _upper_left,
        "its causal mask counts from the top left, which is wrong with more keys than queries",
        "give an explicit mask and set is_causal to 0",
        IMPORTERS,
        "source",
    ),
    Rule(
        "mask-and-causal",
        lambda place: "both are given" if place.attribute("is_causal", 0) and place.input(3) else None,
        "a mask and is_causal exclude each other",
        "put the causal part into the mask",
        HEADER,
    ),
    Rule("softcap", attribute_in("softcap", 0.0, (0.0,)), "scores are not capped", "write the attention out"),
    Rule(
        "softmax-precision",
        attribute_absent("softmax_precision"),
        "its presence alone is refused",
        "leave the attribute out; cast around the operator",
        IMPORTERS,
        "source",
    ),
    Rule(
        "scores",
        attribute_absent("qk_matmul_output_mode"),
        "scores cannot be had from it",
        "compute the scores of the rows that you need beside it",
    ),
    Rule(
        "rank",
        first(*(rank_in(i, (3, 4)) for i in range(3))),
        "queries, keys and values have three or four axes",
        "use [b, heads, s, width]",
    ),
    Rule(
        "flat-heads",
        _flat_heads,
        "three axes need the numbers of heads",
        "use [b, heads, s, width]",
        IMPORTERS,
        "source",
    ),
    HEADS,
    GROUPS,
    MASK_RANK,
    MASK_TYPE,
    HEAD_WIDTH,
    FUSED_TYPE,
    Rule(
        "attributes",
        first(*(attribute_absent(name) for name in _EXTRA)),
        "ONNX and ONNX Runtime refuse TensorRT's own attributes",
        "leave them to the copy that foveate build makes",
        "tested with onnx 1.23 and onnxruntime 1.31",
        "inferred",
        flavoured=False,
    ),
)


def _rotary_heads(place: Place) -> str | None:
    if place.rank(0) != 3:
        return None
    if not place.attribute("num_heads", 0):
        return "input 0 has 3 axes, and num_heads is not given"
    return static(0, 2)(place)


def _rotary_width(place: Place) -> str | None:
    width: object = place.attribute("rotary_embedding_dim", 0)
    if not width and place.rank(0) == 4:
        width = place.dim(0, 3)
    elif not width:
        hidden, heads = place.dim(0, 2), place.attribute("num_heads", 0)
        width = hidden // heads if isinstance(hidden, int) and heads else None
    odd = isinstance(width, int) and (width < 2 or width % 2 == 1)
    return f"{width} numbers of a head are rotated" if odd else None


def _empty_positions(place: Place) -> str | None:
    return "input 3 is given by an empty name" if len(place.node.inputs) > 3 and not place.input(3) else None


def _half(place: Place) -> str | None:
    return f"it runs in {name_of(place.dtype(0))}" if place.dtype(0) in _HALF else None


def _half_stash(place: Place) -> str | None:
    stash = int(place.attribute("stash_type", 1))
    return None if stash == 1 or not _half(place) else f"stash_type is {stash}"


ROWS = (
    Operator(
        ("Attention",),
        FLOATS | {ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN},
        typed=(0, 1, 2),
        equal=(0, 1, 2),
        outputs=1,
        rules=_ATTENTION,
        mend="cast queries, keys and values to one float type",
    ),
    Operator(
        ("TensorScatter",),
        FLOATS,
        typed=(0, 1),
        equal=(0, 1),
        rules=(
            Rule("places", dtype_in(2, INTS), "write_indices must be int32 or int64", "cast them", HEADER),
            *CACHE_RULES,
        ),
        source=HEADER,
        mend="caches are float32, float16 or bfloat16",
    ),
    Operator(
        ("RotaryEmbedding",),
        FLOATS,
        typed=(0, 1, 2),
        equal=(0, 1, 2),
        mend="cast cosines and sines to the type of what they rotate",
        rules=(
            Rule("positions", dtype_in(3, _INT64), "position_ids must be int64", "cast them"),
            Rule(
                "heads",
                _rotary_heads,
                "three axes need num_heads and a static width",
                "use [b, heads, s, width]",
                IMPORTERS,
                "source",
            ),
            Rule(
                "width",
                _rotary_width,
                "an even number of at least two must be rotated",
                "rotate an even part of the head",
                HEADER,
            ),
            Rule(
                "empty-input",
                _empty_positions,
                "an empty name counts as an input here",
                "end the inputs before it",
                IMPORTERS,
                "source",
            ),
        ),
    ),
    Operator(
        ("RMSNormalization",),
        FLOATS,
        typed=(0, 1),
        equal=(0, 1),
        mend="cast the scale to the type of the input",
        rules=(
            Rule(
                "stash",
                _half_stash,
                "the mean of squares overflows in half precision",
                "set stash_type to 1",
                IMPORTERS,
                "source",
                Severity.WARNING,
            ),
        ),
    ),
    Operator(
        ("LayerNormalization",),
        FLOATS,
        typed=None,
        equal=None,
        outputs=1,
        mend="cast scale and bias to the type of the input",
        rules=(
            Rule(
                "half",
                _half,
                "stash_type is ignored, so that sums may overflow",
                "cast to float32 before it and back behind it",
                IMPORTERS,
                "source",
                Severity.WARNING,
            ),
        ),
    ),
)
