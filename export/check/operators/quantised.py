"""Quantising and dequantising, the only way to eight and four bits."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from foveate.export.check.place import Place
from foveate.export.check.rule import FLOATS, IMPORTERS, QUANTISED, Operator, Rule, name_of

_INT4_BLOCKS: Final = (64, 128)
_SCHEMES: Final = "TensorRT documentation, Quantization Schemes"
_FOUR_BITS = frozenset({ir.DataType.INT4, ir.DataType.FLOAT4E2M1})


def _zero_point(place: Place) -> str | None:
    """Zero points in external data are not read; our own graphs have none at all."""
    point = place.number(2)
    if point is None or not np.asarray(point).astype(np.float32).any():
        return None
    return "the zero point is not zero"


def _scale(place: Place) -> str | None:
    scale = place.number(1)
    if scale is None or (np.asarray(scale).astype(np.float32) > 0).all():
        return None
    return "a scale is not positive"


def _blocks(place: Place) -> str | None:
    """A scale is one number, a row along one axis, or of the data's rank and cut along one axis only."""
    data, scale = place.dims(0), place.dims(1)
    if data is None or scale is None or len(scale) <= 1:
        return None
    if len(scale) != len(data):
        return f"the scale has {len(scale)} axes, the data {len(data)}"
    cut = [axis for axis, (a, b) in enumerate(zip(data, scale, strict=True)) if a != b]
    return None if len(cut) <= 1 else f"the scale is coarser along {len(cut)} axes"


def _int4_blocks(place: Place) -> str | None:
    """Blocked scales of int4: 64 or 128 numbers each, and no shorter block at the end."""
    quantised = place.dtype(0) if place.node.op_type == "DequantizeLinear" else place.node.outputs[0].dtype
    data, scale = place.dims(0), place.dims(1)
    if quantised != ir.DataType.INT4 or data is None or scale is None or len(scale) != len(data):
        return None
    size = int(place.attribute("block_size", 0))
    if len(scale) < 2 and not size:  # one scale for all
        return None
    if size not in _INT4_BLOCKS:
        return f"blocks hold {size} numbers"
    axis = int(place.attribute("axis", 1))
    if not -len(data) <= axis < len(data):
        return f"axis {axis} of {len(data)}"
    length, blocks = data[axis], scale[axis]
    if isinstance(length, int) and isinstance(blocks, int) and length != size * blocks:
        return f"{length} numbers in {blocks} blocks of {size}"
    return None


def _odd_count(place: Place) -> str | None:
    dims = place.dims(0)
    if place.dtype(0) not in _FOUR_BITS or dims is None or not all(isinstance(d, int) for d in dims):
        return None
    count = int(np.prod([d for d in dims if isinstance(d, int)], dtype=np.int64))
    return f"{count} numbers of four bits" if count % 2 else None


def _quantised_type(place: Place) -> str | None:
    dtype = place.node.outputs[0].dtype
    return None if dtype is None or dtype in QUANTISED else f"it makes {name_of(dtype)}"


_COMMON = (
    Rule("zero-point", _zero_point, "zero points must be zero", "quantise symmetrically"),
    Rule(
        "scale",
        _scale,
        "scales must be positive",
        "clamp them to a small positive number",
        IMPORTERS,
        "source",
    ),
    Rule(
        "blocks",
        _blocks,
        "scales go by tensor, along one axis, or in blocks of one axis",
        "use one block axis",
        IMPORTERS,
        "source",
    ),
    Rule(
        "int4-blocks",
        _int4_blocks,
        "int4 comes in whole blocks of 64 or 128",
        "quantise in such blocks, or leave the layer in half precision",
        _SCHEMES,
    ),
)

ROWS = (
    Operator(
        ("QuantizeLinear",),
        FLOATS,
        constants=(1,),
        mend="scales must be constants: measure them on prompts",
        rules=(
            *_COMMON,
            Rule("type", _quantised_type, "it makes int8, int4, fp8 or fp4", "set output_dtype"),
        ),
    ),
    Operator(
        ("DequantizeLinear",),
        QUANTISED,
        constants=(1,),
        mend="uint8 becomes int8 by subtracting 128; scales must be constants",
        rules=(
            *_COMMON,
            Rule(
                "pairs",
                _odd_count,
                "two numbers of four bits share a byte, so that their count must be even",
                "pad an axis",
                IMPORTERS,
                "source",
            ),
        ),
    ),
)
