"""TensorRT's own operators as standard ONNX that ONNX Runtime's CPU kernels compute.

Written from the descriptions in the importer's TRT_custom_ops.md and shares nothing with foveate.export, so
that a lowering and its way back cannot be wrong together. What the importer ignores is dropped here too:
nonpad_kv_seqlen never reaches a kernel, and an operator's domain is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EXTRA_ATTRIBUTES = {"TRT_decomposable", "TRT_normalization_op", "nb_rank"}
FLOAT, INT64, BF16 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BFLOAT16


class NotModelledError(NotImplementedError):
    """TensorRT knows this and the double does not: neither a pass nor a failure of the graph."""


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attribute values by name, strings as text."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


class Emit:
    """Appends nodes that stand for one node; every call names its output after that node's."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self.root, self.nodes = node.output[0], list[onnx.NodeProto]()

    def __call__(self, op: str, *inputs: str, out: str | None = None, **attrs: Any) -> str:
        name = out or f"{self.root}/trt{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{name}/{op}", **attrs))
        return name

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        return self("Constant", value=numpy_helper.from_array(np.asarray(value, dtype=dtype)))

    def size(self, tensor: str, axis: int) -> str:
        """Length of an axis as a tensor of shape [1]."""
        return self("Shape", tensor, start=axis, end=axis + 1)

    def range(self, length: str) -> str:
        zero, one = self.const(0), self.const(1)
        return self("Range", zero, self("Squeeze", length, self.const([0])), one)


def cache_update(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """TRT_KVCacheUpdate and TensorScatter: rows [w, w + n) of the cache become the update's, others stay.

    cache [b, g, slots, d], update [b, g, n, d], write_indices [b] (none: zeros). A row beyond the last slot
    is dropped without a word, as TensorRT does.
    """
    if attributes(node).get("update_form", "padded_bhnd") != "padded_bhnd" or len(node.input) > 3:
        raise NotModelledError(f"{node.name}: a packed cache update")
    emit = Emit(node)
    cache, update = node.input[:2]
    slots, rows = emit.size(cache, 2), emit.size(update, 2)
    if len(node.input) > 2 and node.input[2]:
        first = emit("Cast", node.input[2], to=INT64)
    else:
        first = emit(
            "ConstantOfShape", emit.size(cache, 0), value=numpy_helper.from_array(np.zeros(1, "int64"))
        )
    slot = emit("Unsqueeze", emit.range(slots), emit.const([0]))  # [1, slots]
    row = emit("Sub", slot, emit("Unsqueeze", first, emit.const([1])))  # [b, slots]: row of the update
    zero = emit.const(0)
    inside = emit("And", emit("GreaterOrEqual", row, zero), emit("Less", row, rows))
    last = emit("Sub", rows, emit.const([1]))
    near = emit("Max", emit("Min", row, last), zero)
    by_row = emit("Transpose", update, perm=[0, 2, 1, 3])
    spread = emit(
        "GatherND", by_row, emit("Unsqueeze", near, emit.const([2])), batch_dims=1
    )  # [b, slots, g, d]
    spread = emit("Transpose", spread, perm=[0, 2, 1, 3])
    emit("Where", emit("Unsqueeze", inside, emit.const([1, 3])), spread, cache, out=node.output[0])
    return emit.nodes


def attention(node: onnx.NodeProto, dtype: int) -> list[onnx.NodeProto]:
    """TRT_Attention: no scale, softmax(Q Kᵀ + mask) V in float32, grouped heads by their counts.

    q [b, h, s, d], k and v [b, g, t, d]; mask broadcastable to [b, h, s, t], bool (True: look) or additive;
    key lengths [b]: keys from there on do not exist, and lower_right aligns the last row with the last key.
    """
    attrs = attributes(node)
    if any(attrs.get(form, "padded_bhnd") != "padded_bhnd" for form in ("query_form", "kv_form")):
        raise NotModelledError(f"{node.name}: packed queries or keys")
    emit = Emit(node)
    given = [*node.input, *[""] * 6]
    q, k, v = (emit("Cast", name, to=FLOAT) for name in given[:3])
    mask, lengths, kind = given[3], given[5], attrs.get("causal_kind", "none")
    rows, keys = emit.size(q, 2), emit.size(k, 2)
    key = emit("Reshape", emit.range(keys), emit.const([1, 1, 1, -1]))
    row = emit("Reshape", emit.range(rows), emit.const([1, 1, -1, 1]))
    valid = emit("Reshape", emit("Cast", lengths, to=INT64), emit.const([-1, 1, 1, 1])) if lengths else keys
    seen = []
    if lengths:
        seen.append(emit("Less", key, valid))
        exists = emit("Less", emit("Reshape", emit.range(keys), emit.const([1, 1, -1, 1])), valid)
        v = emit("Where", exists, v, emit.const(0.0, np.float32))  # kernels never read past the valid prefix
    if kind == "upper_left":
        seen.append(emit("LessOrEqual", key, row))
    elif kind == "lower_right":
        seen.append(emit("LessOrEqual", key, emit("Add", row, emit("Sub", valid, rows))))

    # Query heads of one group side by side: [b, g, h / g, s, d] against [b, g, 1, t, d].
    groups = emit("Shape", k, start=0, end=2)
    grouped = emit("Concat", groups, emit.const([-1]), emit("Shape", q, start=2, end=4), axis=0)
    whole = emit("Concat", emit("Shape", q, start=0, end=3), keys, axis=0)
    axis = emit.const([2])
    turned = emit("Transpose", emit("Unsqueeze", k, axis), perm=[0, 1, 2, 4, 3])
    scores = emit("Reshape", emit("MatMul", emit("Reshape", q, grouped), turned), whole)
    if mask:
        scores = _masked(emit, scores, mask, attrs)
    for condition in seen:
        scores = emit("Where", condition, scores, emit.const(-np.inf, np.float32))
    if attrs.get("TRT_normalization_op", "softmax") == "softmax":
        scores = emit("Softmax", scores, axis=-1)
    split = emit("Concat", groups, emit.const([-1]), rows, keys, axis=0)
    mixed = emit("MatMul", emit("Reshape", scores, split), emit("Unsqueeze", v, axis))
    shape = emit("Concat", emit("Shape", q, start=0, end=3), emit.size(v, 3), axis=0)
    emit("Cast", emit("Reshape", mixed, shape), to=dtype, out=node.output[0])
    return emit.nodes


def _masked(emit: Emit, scores: str, mask: str, attrs: dict[str, Any]) -> str:
    """Scores under a mask whose type (bool or floating) the caller put into `attrs`."""
    if attrs.get("mask_is_bool"):
        return emit("Where", mask, scores, emit.const(-np.inf, np.float32))
    return emit("Add", scores, emit("Cast", mask, to=FLOAT))


def standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without anything that only TensorRT knows; the original's tensor names are kept.

    Raises:
        NotModelledError: for forms that the double has no reading of.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = min(copy.ir_version, 11)
    del copy.graph.node[:]
    del copy.opset_import[:]
    copy.opset_import.append(helper.make_opsetid("", opset_of(model)))
    known = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {name: kind for name, kind in known.items() if kind}
    for node in model.graph.node:
        copy.graph.node.extend(_standard_node(node, copy, types))
    return copy


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default domain."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def _standard_node(
    node: onnx.NodeProto, copy: onnx.ModelProto, types: dict[str, int]
) -> Sequence[onnx.NodeProto]:
    if node.op_type in ("TensorScatter", "TRT_KVCacheUpdate"):
        return cache_update(node)
    if node.op_type == "TRT_Attention":
        marked = onnx.NodeProto()
        marked.CopyFrom(node)
        if (
            len(node.input) > 3
            and node.input[3]
            and element_type(copy, node.input[3], types) == TensorProto.BOOL
        ):
            marked.attribute.append(helper.make_attribute("mask_is_bool", 1))
        return attention(marked, element_type(copy, node.input[0], types))
    if node.op_type.startswith("TRT_"):
        raise NotModelledError(f"{node.name}: {node.op_type}")
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.domain = ""
    if node.op_type == "Attention":
        del plain.attribute[:]
        plain.attribute.extend(a for a in node.attribute if a.name not in EXTRA_ATTRIBUTES)
        del plain.input[6:]  # nonpad_kv_seqlen: read by nobody
    return [plain]


def element_type(model: onnx.ModelProto, name: str, types: dict[str, int]) -> int:
    """ONNX element type of a tensor, inferred over what has been expanded so far if it is not known yet."""
    if name not in types:
        inferred = onnx.shape_inference.infer_shapes(model)
        for value in inferred.graph.value_info:
            types[value.name] = value.type.tensor_type.elem_type
    return types.get(name, 0)
