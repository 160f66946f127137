"""Arithmetic of literals is done at export: TensorRT wants axes and shapes as constants themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

_MOST: Final = 64  # numbers in a literal that is folded: shapes and axes, no tables


def fold_literals(graph: ir.Graph) -> None:
    """Replaces nodes that only rearrange or cast constants, in a graph and in the bodies inside it."""
    for node in list(graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                fold_literals(attribute.as_graph())
        fold = _FOLDS.get(node.op_type) if node.domain == "" else None
        if fold is None or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
            continue
        given = [_literal(value) for value in node.inputs]
        if not given or any(value is None for value in given):
            continue
        result = fold([value for value in given if value is not None], node)
        if result is not None and result.size <= _MOST:
            _stand_in(graph, node, result)


def _literal(value: ir.Value | None) -> np.ndarray | None:
    """What a `Constant` holds."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer.op_type != "Constant":
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.size > _MOST else tensor.numpy()


def _stand_in(graph: ir.Graph, node: ir.Node, result: np.ndarray) -> None:
    made = ir.node("Constant", [], {"value": ir.tensor(result)}, name=f"{node.name}.folded")
    out, old = made.outputs[0], node.outputs[0]
    out.shape, out.type = ir.Shape(result.shape), ir.TensorType(ir.DataType.from_numpy(result.dtype))
    graph.insert_before(node, made)
    old.replace_all_uses_with(out)
    graph.remove(node, safe=True)


def _reshape(given: Sequence[np.ndarray], node: ir.Node) -> np.ndarray | None:
    x, shape = given
    return None if (shape == 0).any() else x.reshape(shape.tolist())


def _cast(given: Sequence[np.ndarray], node: ir.Node) -> np.ndarray | None:
    dtype = ir.DataType(node.attributes["to"].as_int())
    plain = (ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
    return given[0].astype(dtype.numpy()) if dtype in plain else None


def _squeeze(given: Sequence[np.ndarray], node: ir.Node) -> np.ndarray:
    axes = tuple(given[1].tolist()) if len(given) > 1 else None
    return given[0].squeeze(axes)


def _unsqueeze(given: Sequence[np.ndarray], node: ir.Node) -> np.ndarray:
    return np.expand_dims(given[0], tuple(given[1].tolist()))


def _concat(given: Sequence[np.ndarray], node: ir.Node) -> np.ndarray:
    return np.concatenate(given, axis=node.attributes["axis"].as_int())


_FOLDS: Final[Mapping[str, Callable[[Sequence[np.ndarray], ir.Node], Any]]] = {
    "Reshape": _reshape,
    "Cast": _cast,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Identity": lambda given, node: given[0],
}
