"""Casts between float32 and a half type: putting them in, and taking those out that change nothing."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

# Operators that move the numbers of their first input and touch none.
_MOVES: Final = frozenset(
    {
        *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Identity"),
        *("Expand", "Tile", "Gather", "GatherElements", "GatherND"),
    }
)


def cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, *, before: ir.Node, name: str) -> ir.Value:
    """`value` in another type; a new node in front of `before`. Names of nodes have to differ."""
    node = ir.node("Cast", [value], {"to": dtype.value}, name=name)
    out = node.outputs[0]
    out.type, out.shape = ir.TensorType(dtype), value.shape
    graph.insert_before(before, node)
    return out


def merge_casts(graph: ir.Graph) -> None:
    """Takes out half -> float32 -> the same half, also with data movement in between: no number changes.

    Names of graph outputs stay. Nodes that nobody reads any more are left for a later pass.
    """
    made: dict[tuple[ir.Node, ir.Value], ir.Value] = {}
    for node in list(graph):
        if not _is_cast(node):
            continue
        source = node.inputs[0]
        assert source is not None
        dtype = node.attributes["to"].as_int()
        chain = _movement_behind(source, dtype)
        if chain is None:
            continue
        value, moves = chain
        for move in reversed(moves):
            key = (move, value)
            if key not in made:
                made[key] = _moved(graph, move, value)
            value = made[key]
        _stand_in(graph, node, value)


def _is_cast(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Cast" and node.domain == ""


def _movement_behind(value: ir.Value, dtype: int) -> tuple[ir.Value, list[ir.Node]] | None:
    """The value of type `dtype` that `value` is a cast of, and the movements since, the last first."""
    moves: list[ir.Node] = []
    while (producer := value.producer()) is not None:
        source = producer.inputs[0] if producer.inputs else None
        if source is None or producer.domain != "":
            return None
        if producer.op_type == "Cast":
            narrow = source.dtype is not None and source.dtype.value == dtype
            return (source, moves) if narrow and _widens(producer) else None
        if producer.op_type not in _MOVES:
            return None
        moves.append(producer)
        value = source
    return None


def _widens(node: ir.Node) -> bool:
    """Whether a cast keeps every number: to float32."""
    return bool(node.attributes["to"].as_int() == ir.DataType.FLOAT.value)


def _moved(graph: ir.Graph, move: ir.Node, value: ir.Value) -> ir.Value:
    """The same movement of `value`, behind the old one: what it reads is there by then."""
    inputs = [value, *move.inputs[1:]]
    twin = ir.node(move.op_type, inputs, dict(move.attributes), name=f"{move.name}.half")
    out = twin.outputs[0]
    out.shape = move.outputs[0].shape
    assert value.dtype is not None
    out.type = ir.TensorType(value.dtype)
    graph.insert_after(move, twin)
    return out


def _stand_in(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Puts `value` in the place of a cast's output."""
    old = node.outputs[0]
    if not old.is_graph_output():
        old.replace_all_uses_with(value)
        return
    if value.is_graph_output() or value.is_graph_input() or value.producer() is None:
        return  # a name of its own already
    name = old.name
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    old.name = None
    value.name, value.shape = name, old.shape
