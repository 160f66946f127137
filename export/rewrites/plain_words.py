"""Small things that mean the same in words that TensorRT's parser knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import onnx_ir as ir

# Attributes that say what holds anyway; the parser looks whether they are there, not what they say.
_DEFAULTS: Final = {"qk_matmul_output_mode": 0, "softcap": 0.0, "is_causal": 0}


def drop_defaults(model: ir.Model) -> None:
    """Takes attributes of `Attention` away that say nothing."""
    for node in model.graph:
        if node.op_type == "Attention" and node.domain == "":
            for name, default in _DEFAULTS.items():
                if name in node.attributes and node.attributes[name].value == default:
                    node.attributes.pop(name)


def compare_booleans(model: ir.Model) -> None:
    """`Equal` of two booleans becomes `Not(Xor)`."""
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_type != "Equal" or node.domain != "" or not _booleans(node):
            continue
        graph, old = node.graph, node.outputs[0]
        assert isinstance(graph, ir.Graph)
        differ = ir.node("Xor", node.inputs, name=f"{node.name}.Xor")
        same = ir.node("Not", [differ.outputs[0]], name=f"{node.name}.Not")
        for made in (differ, same):
            graph.insert_before(node, made)
            made.outputs[0].type, made.outputs[0].shape = ir.TensorType(ir.DataType.BOOL), old.shape
        same.outputs[0].name, old.name = old.name, None
        old.replace_all_uses_with(same.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _booleans(node: ir.Node) -> bool:
    return any(value is not None and is_boolean(value) for value in node.inputs)


def is_boolean(value: ir.Value) -> bool:
    """Whether a value is boolean, also where the tracer has left no type: then its maker tells."""
    while value.dtype is None and (maker := value.producer()) is not None:
        if maker.op_type in _TELL:
            return True
        if maker.op_type == "Cast":
            return bool(maker.attributes["to"].as_int() == ir.DataType.BOOL.value)
        if maker.op_type == "Constant":
            tensor = ir.convenience.get_const_tensor(value)
            return tensor is not None and tensor.dtype == ir.DataType.BOOL
        source = maker.inputs[_CARRIES[maker.op_type]] if maker.op_type in _CARRIES else None
        if source is None:
            return False
        value = source
    return value.dtype == ir.DataType.BOOL


# Operators whose result is boolean, and those whose result is of the type of their n-th input.
_TELL: Final = frozenset(
    {"And", "Or", "Not", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "IsNaN"}
)
_CARRIES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Expand", "Identity"), 0),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Concat"), 0),
    "Where": 1,
}
