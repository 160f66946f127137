"""Whether an attention's mask says nothing but "every slot up to my own": found by running it.

A mask that is made of lengths and shapes alone is a candidate; a window of fixed size would be one, too. So
the nodes that make the mask are run on two small batches, and the outcome is compared with the rule itself.
A number that these batches are too small for, a window of thousands say, would not show: a mask with such a
number in it is never taken for the causal one.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

_ROWS, _SLOTS = 3, 11
_SIZES: Final = {"batch": 2, "sequence": _ROWS, "kept": _ROWS}
_LENGTH: Final = "length"
_ENDLESS: Final = 2**31 - 1  # "up to the end" of a Slice; no cache is so long
# What additive masks put where nothing is hidden is zero; far below this it is hidden.
_HIDDEN: Final = -1000.0
# Tokens in the cache before the chunk, and valid rows of the chunk: padding, full rows, an empty cache.
_CASES: Final = (((0, 4), (3, 2)), ((7, 1), (1, 3)))


def causal_group(mask: ir.Value) -> int | None:
    """The segment whose length a causal mask `[b, 1, s, capacity]` counts from; None for every other mask."""
    nodes: dict[ir.Node, None] = {}
    leaves: dict[str, ir.Value] = {}
    if not _collect(mask, nodes, leaves):
        return None
    caches = [name for name in leaves if name.startswith("cache_length_")]
    if len(caches) != 1 or any(_is_out_of_sight(node) for node in nodes):
        return None
    try:
        evaluator = ReferenceEvaluator(_model(mask, list(nodes), leaves))
    except (NotImplementedError, RuntimeError):  # an operator that is not part of a causal mask, then
        return None
    blank = {name: _zeros(value) for name, value in leaves.items()}
    if any(each is None for each in blank.values()):
        return None
    for before, valid in _CASES:
        feeds: dict[str, Any] = dict(blank)
        feeds[caches[0]] = np.array(before, np.int64)
        if _LENGTH in leaves:
            feeds[_LENGTH] = np.array(valid, np.int64)
        outcome: Any = evaluator.run(None, feeds)
        if not _is_causal(np.asarray(outcome[0]), before, valid):
            return None
    return int(caches[0].rpartition("_")[2])


def _collect(value: ir.Value, nodes: dict[ir.Node, None], leaves: dict[str, ir.Value]) -> bool:
    """The nodes behind a value in the order in which they run; false where it hangs on a tensor's content."""
    node = value.producer()
    if node is None:
        name = value.name or ""
        if value.is_graph_input() and (name == _LENGTH or name.startswith("cache_length_")):
            leaves[name] = value
            return True
        return value.is_initializer()
    if node in nodes:
        return True
    if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return False
    for each in node.inputs:
        if each is None:
            continue
        if node.op_type in ("Shape", "Size"):
            leaves[each.name or ""] = each
        elif not _collect(each, nodes, leaves):
            return False
    nodes[node] = None
    return True


def _is_out_of_sight(node: ir.Node) -> bool:
    """Whether a node reads or is a number that the small batches could not tell from none."""
    numbers = [value.const_value for value in node.inputs if value is not None and value.is_initializer()]
    for attribute in node.attributes.values():
        if node.op_type != "Constant":
            continue
        whole = attribute.value.numpy() if attribute.type == ir.AttributeType.TENSOR else attribute.value
        numbers.append(ir.tensor(np.asarray(whole)))
    for number in numbers:
        if number is None:
            return True  # in a file beside the graph, where no mask has its numbers
        size = np.abs(number.numpy().astype(np.float64))
        if np.any((size > _SLOTS) & (size < _ENDLESS)) and not _only_chosen(node, number):
            return True
    return False


def _only_chosen(node: ir.Node, number: ir.TensorProtocol) -> bool:
    """Whether a negative number is but what a mask puts where it hides something."""
    readers = [use.node for use in node.outputs[0].uses()] if node.op_type == "Constant" else [node]
    return bool(np.all(number.numpy() < _HIDDEN)) and all(reader.op_type == "Where" for reader in readers)


def _model(mask: ir.Value, nodes: list[ir.Node], leaves: dict[str, ir.Value]) -> onnx.ModelProto:
    """The mask's own graph; tensors of which only the shape is read are inputs."""
    named = {value.name or "": value for node in nodes for value in node.inputs if value is not None}
    constants = [
        ir.serde.serialize_tensor(value.const_value)
        for name, value in named.items()
        if value.is_initializer() and value.const_value is not None and name not in leaves
    ]
    inputs = [onnx.helper.make_tensor_value_info(n, int(v.dtype or 1), None) for n, v in leaves.items()]
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(node) for node in nodes],
        "mask",
        inputs,
        [onnx.helper.make_tensor_value_info(mask.name or "", int(mask.dtype or 0), None)],
        constants,
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)])


def _zeros(value: ir.Value) -> np.ndarray | None:
    """Nothing of a shape that stands for any; None where an axis has no known name."""
    sizes = []
    for axis in value.shape or (None,):
        name = None if axis is None or isinstance(axis, int) else axis.value
        size = (
            axis
            if isinstance(axis, int)
            else _SLOTS
            if "capacity" in (name or "")
            else _SIZES.get(name or "")
        )
        if size is None:
            return None
        sizes.append(size)
    dtype = np.int64 if value.dtype == ir.DataType.INT64 else np.float32
    return np.zeros(sizes, dtype)


def _is_causal(mask: np.ndarray, before: tuple[int, ...], valid: tuple[int, ...]) -> bool:
    """Whether row `i` of a sequence sees slots `0..before+i`; rows of padding may see anything."""
    if mask.ndim != 4 or mask.shape[0] != len(before) or mask.shape[1:] != (1, _ROWS, _SLOTS):
        return False
    sees = mask if mask.dtype == np.bool_ else mask.astype(np.float32) > _HIDDEN
    if mask.dtype != np.bool_ and np.any(mask[sees] != 0):
        return False  # it also adds something
    for row, (start, length) in enumerate(zip(before, valid, strict=True)):
        for i in range(length):
            wanted = np.arange(_SLOTS) <= start + i
            if not np.array_equal(sees[row, 0, i], wanted):
                return False
    return True
