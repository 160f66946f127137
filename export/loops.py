"""The loops of `foveate.pruning.greedy` in ONNX, line by line.

Functions, because only onnxscript's function compiler makes a `Loop`; the exporter inlines them. Literals in
a body are explicit constants, or the compiler would add `CastLike`. Carried tensors keep their shape and
nothing is written in place: TensorRT asks for the former.
"""
# onnxscript's tensor annotations are no types to mypy.
# mypy: disable-error-code="type-arg,misc,no-any-return"

from __future__ import annotations

from typing import Any

import onnxscript
from onnxscript import FLOAT, INT64, script
from onnxscript.values import Opset

from foveate.pruning import greedy

op: Any = onnxscript.opset18
_DOMAIN: Any = Opset("foveate.loops", 1)
_TAKEN = greedy.TAKEN
_EXHAUSTED = greedy.EXHAUSTED


@script(_DOMAIN, default_opset=op)
def spread_rounds(similarity: FLOAT[...], first: INT64[...], count: INT64[...]) -> INT64[...]:
    size = op.Shape(similarity, start=2)
    place = op.Range(op.Constant(value_int=0), op.Squeeze(size), op.Constant(value_int=1))  # n
    row_shape = op.Concat(op.Constant(value_ints=[1, 1]), size, axis=0)
    flat = op.Shape(similarity, start=0, end=2)
    taken = op.Expand(size, flat)  # b n
    closest = op.Expand(op.Constant(value_float=-_TAKEN), flat)  # b n
    pick = op.Unsqueeze(first, op.Constant(value_ints=[1]))  # b 1
    for number in range(op.ReduceMax(count, keepdims=0)):
        chosen = op.Equal(place, pick)  # b n
        taken = op.Where(chosen, number, taken)
        index = op.Expand(op.Unsqueeze(pick, op.Constant(value_ints=[2])), row_shape)  # b 1 n
        row = op.Squeeze(op.GatherElements(similarity, index, axis=1), op.Constant(value_ints=[1]))  # b n
        closest = op.Where(chosen, op.Constant(value_float=_TAKEN), op.Max(closest, row))
        pick = op.ArgMin(closest, axis=1, keepdims=1)
    return taken


@script(_DOMAIN, default_opset=op)
def map_rounds(kernel: FLOAT[...], count: INT64[...]) -> INT64[...]:
    size = op.Shape(kernel, start=2)
    place = op.Range(op.Constant(value_int=0), op.Squeeze(size), op.Constant(value_int=1))  # n
    row_shape = op.Concat(op.Constant(value_ints=[1, 1]), size, axis=0)
    flat = op.Shape(kernel, start=0, end=2)
    taken = op.Expand(size, flat)  # b n
    column = op.Unsqueeze(op.Expand(place, flat), op.Constant(value_ints=[2]))  # b n 1
    own = op.Squeeze(op.GatherElements(kernel, column, axis=2), op.Constant(value_ints=[2]))  # b n
    floor = op.Mul(own, op.Constant(value_float=_EXHAUSTED))
    later = op.Sub(own, op.Constant(value_float=_TAKEN))
    gain = op.Identity(own)
    rest = op.Identity(kernel)
    pick = op.ArgMax(own, axis=1, keepdims=1)  # b 1
    for number in range(op.ReduceMax(count, keepdims=0)):
        taken = op.Where(op.Equal(place, pick), number, taken)
        index = op.Expand(op.Unsqueeze(pick, op.Constant(value_ints=[2])), row_shape)  # b 1 n
        row = op.Squeeze(op.GatherElements(rest, index, axis=1), op.Constant(value_ints=[1]))  # b n
        best = op.GatherElements(gain, pick, axis=1)  # b 1
        least = op.GatherElements(floor, pick, axis=1)
        root = op.Sqrt(op.Add(op.Max(best, least), op.Constant(value_float=1e-30)))
        row = op.Where(op.Greater(best, least), op.Div(row, root), op.Constant(value_float=0.0))
        upright = op.Unsqueeze(row, op.Constant(value_ints=[2]))
        rest = op.Sub(rest, op.Mul(upright, op.Unsqueeze(row, op.Constant(value_ints=[1]))))
        gain = op.Sub(gain, op.Mul(row, row))
        score = op.Where(op.Greater(gain, floor), gain, later)
        pick = op.ArgMax(
            op.Where(op.Less(taken, size), op.Constant(value_float=-2 * _TAKEN), score), axis=1, keepdims=1
        )
    return taken
