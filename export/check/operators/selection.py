"""Choosing and addressing elements: sorting, gathering, scattering."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from foveate.export.check.conditions import attribute_in, dtype_in
from foveate.export.check.place import Place
from foveate.export.check.rule import (
    ANY,
    BOOL,
    FLOATS,
    HEADER,
    IMPORTERS,
    INTS,
    NUMBERS,
    WIDE_FLOATS,
    Operator,
    Rule,
    Severity,
)

# One less than the limit of the layer behind TopK.
LARGEST_TOPK: Final = 3839
_LAST_AXES: Final = 4


def _constant_k(place: Place) -> str | None:
    k = place.number(1)
    if k is None:
        return None
    if k.size != 1 or k.dtype.kind != "i":
        return f"K is {k.size} numbers" if k.size != 1 else "K is no whole number"
    number, length = int(k.item()), place.dim(0, place.attribute("axis", -1))
    most = min(LARGEST_TOPK, length) if isinstance(length, int) else LARGEST_TOPK
    return None if 1 <= number <= most else f"K is {number}" + (f", the axis {length}" if length else "")


def _open_k(place: Place) -> str | None:
    """A computed K is at most the axis, where that is static."""
    length = place.dim(0, place.attribute("axis", -1))
    if place.number(1) is not None or (isinstance(length, int) and length <= LARGEST_TOPK):
        return None
    return f"K is computed, and its axis is {length if length is not None else 'of unknown length'}"


def _axis_too_far(place: Place) -> str | None:
    rank, axis = place.rank(0), int(place.attribute("axis", -1))
    if rank is None or (-rank <= axis < rank and rank - (axis % rank) <= _LAST_AXES):
        return None
    return f"axis {axis} of {rank}"


def _reduces(place: Place) -> str | None:
    reduction = place.attribute("reduction", "none")
    return None if reduction == "none" else f"reduction is {reduction!r}"


_INDICES = Rule(
    "indices",
    dtype_in(1, INTS),
    "indices must be int32 or int64",
    "cast the indices",
    IMPORTERS,
    "source",
)

ROWS = (
    Operator(("Gather",), ANY, on_host=True, rules=(_INDICES,)),
    Operator(("GatherElements", "GatherND"), ANY, rules=(_INDICES,)),
    Operator(
        ("ScatterND",),
        NUMBERS,
        typed=(0, 2),
        equal=(0, 2),
        mend="cast to numbers of one type; truth values as int32",
        rules=(
            _INDICES,
            Rule(
                "reduction",
                _reduces,
                "anything but plain writing is not taken",
                "write with reduction none, or add up by a product with a one-hot matrix",
            ),
        ),
    ),
    Operator(
        ("Scatter", "ScatterElements"),
        NUMBERS,
        typed=(0, 2),
        equal=(0, 2),
        mend="cast to numbers of one type; truth values as int32",
        rules=(
            _INDICES,
            Rule(
                "reduction",
                _reduces,
                "it becomes a plugin that libnvinfer_plugin must bring",
                "write with reduction none, or ship the plugin's library",
                IMPORTERS,
                "source",
                Severity.WARNING,
            ),
        ),
    ),
    Operator(
        ("TopK",),
        NUMBERS,
        sizes=(1,),
        rules=(
            Rule(
                "sorted",
                attribute_in("sorted", 1, (1,)),
                "only sorted results are given",
                "set sorted to 1",
            ),
            Rule(
                "k",
                _constant_k,
                f"K must lie between 1 and its axis or {LARGEST_TOPK}; more fail at run time, or crash",
                "sort in parts, or rank by comparing all pairs",
            ),
            Rule(
                "open-k",
                _open_k,
                f"more than {LARGEST_TOPK} fail at run time",
                f"keep that axis at or below {LARGEST_TOPK} in the profile",
                HEADER,
                "doc",
                Severity.WARNING,
            ),
            Rule(
                "axis",
                _axis_too_far,
                "only the last four axes can be sorted",
                "transpose or flatten before it",
                HEADER,
            ),
        ),
    ),
    Operator(
        ("NonZero",),
        FLOATS | INTS | BOOL | {ir.DataType.INT8},
        source=IMPORTERS,
        mark="source",
        rules=(
            Rule(
                "input",
                dtype_in(0, WIDE_FLOATS | BOOL | {ir.DataType.INT32}),
                "the layer behind it names float32, float16, int32 and bool only",
                "feed it a bool mask",
                HEADER,
                "doc",
                Severity.WARNING,
            ),
        ),
    ),
    Operator(("NonMaxSuppression",), WIDE_FLOATS, constants=(2, 3, 4)),
)
