"""Standard cache and attention nodes become TensorRT's own: lengths in place of masks.

    TensorScatter(cache, rows, length)     ->  TRT_KVCacheUpdate(cache, rows, write_index_g)
    Attention(q, k, v, causal mask)        ->  TRT_Attention(q * scale, k, v, lengths=key_value_length_g)
    Attention(q, k, v, any other mask)     ->  TRT_Attention(q * scale, k, v, mask)

The lengths are ordinary tensors on the device, `[batch]`, so nothing has a data-dependent shape. TensorRT
counts `lower_right` from a sequence's last key: with `key_value_length_g` = tokens in the cache + rows of the
chunk, padding included, row `i` sees what was in the cache and the rows up to its own. `TRT_Attention` has no
scale.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import onnx_ir as ir

from foveate.export.engines.causal import causal_group
from foveate.runtime.errors import ExportError

DOMAIN: Final = "trt"
WRITE_INDEX: Final = "write_index_{}"
KEY_VALUE_LENGTH: Final = "key_value_length_{}"
_HALVES: Final = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_MOVES: Final = ("Reshape", "Transpose")
_MASK: Final = 3  # place among an Attention's inputs


def lower_natively(model: ir.Model, *, fused_only: bool = False) -> None:
    """Rewrites all caches and attentions of a graph in place.

    Raises:
        ExportError: an attention has a form that TensorRT's layer does not have.
    """
    graph = model.graph
    model.opset_imports.setdefault(DOMAIN, 1)
    groups: dict[ir.Value, int | None] = {}
    for node in list(graph):
        if node.op_type == "TensorScatter":
            _replace(graph, node, [_cache_update(graph, node)])
        elif node.op_type == "Attention":
            mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
            if mask is not None and mask not in groups:
                groups[mask] = causal_group(mask)
            group = None if mask is None else groups[mask]
            _replace(graph, node, _attention(graph, node, group, fused_only=fused_only))


def _cache_update(graph: ir.Graph, node: ir.Node) -> ir.Node:
    past, rows, index = node.inputs
    assert index is not None
    group = _group_of(index)
    if group is None:  # heads of text: the graph counts itself
        cast = ir.node("Cast", [index], {"to": ir.DataType.INT32.value}, name=f"{node.name}.index")
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.INT32), index.shape
        graph.insert_before(node, cast)
        where = cast.outputs[0]
    else:
        where = _length_input(graph, WRITE_INDEX.format(group))
    return ir.node(
        "TRT_KVCacheUpdate",
        [past, rows, where],
        {"axis": -2, "mode": "linear"},
        domain=DOMAIN,
        name=node.name,
    )


def _group_of(index: ir.Value) -> int | None:
    """The segment whose `cache_length_g` says where rows are written."""
    name = index.name or ""
    return (
        int(name.rpartition("_")[2]) if index.is_graph_input() and name.startswith("cache_length_") else None
    )


def _attention(graph: ir.Graph, node: ir.Node, group: int | None, *, fused_only: bool) -> list[ir.Node]:
    query, key, value = node.inputs[:3]
    _require_known_form(node)
    assert query is not None
    before, scaled = _scaled(node, query)
    mask = node.inputs[_MASK] if len(node.inputs) > _MASK and group is None else None
    lengths = None if group is None else _length_input(graph, KEY_VALUE_LENGTH.format(group))
    causal = "none" if group is None else "lower_right"
    if node.attributes.get_int("is_causal", 0):
        causal = "upper_left"
    # Query lengths belong to packed queries; trailing inputs that are not there must not be named.
    inputs = [
        scaled,
        key,
        value,
        *((mask,) if mask or lengths else ()),
        *((None, lengths) if lengths else ()),
    ]
    attention = ir.node(
        "TRT_Attention",
        inputs,
        {"causal_kind": causal, "TRT_decomposable": int(not fused_only)},
        domain=DOMAIN,
        name=node.name,
    )
    return [*before, attention]


def _require_known_form(node: ir.Node) -> None:
    """Raises ExportError for what the layer lacks; our own graphs have none of it."""
    extra = [value.name for value in node.inputs[4:] if value is not None]
    rank = None if node.inputs[0] is None or node.inputs[0].shape is None else len(node.inputs[0].shape)
    outputs = [value.name for value in node.outputs[1:] if value.name]
    odd = ["softcap"] if node.attributes.get_float("softcap", 0.0) else []
    odd += ["softmax_precision"] if "softmax_precision" in node.attributes else []
    if extra or outputs or odd or rank != 4:
        raise ExportError(
            f"attention {node.name or ''} has a form that TensorRT's layer does not have",
            found=f"rank {rank}; {', '.join(map(str, [*extra, *outputs, *odd])) or 'no extra parts'}",
            wanted="query, key and value of four axes, a mask at most, one output",
            mend="build with --attention portable",
        )


def _scaled(node: ir.Node, query: ir.Value) -> tuple[list[ir.Node], ir.Value]:
    """New nodes and their result: the query times the attention's scale, in float32.

    A half-precision query is scaled before it was rounded, where it comes from float32; the scale itself,
    rounded to bfloat16, would move near-tied logits.
    """
    scale = _scale(node, query)
    if query.dtype not in _HALVES:
        return _product(node, query, scale)
    source, moves = query, []
    while (producer := source.producer()) is not None and producer.op_type in _MOVES:
        moves.append(producer)
        assert producer.inputs[0] is not None
        source = producer.inputs[0]
    cast = source.producer()
    wide = None if cast is None or cast.op_type != "Cast" else cast.inputs[0]
    if wide is None or wide.dtype != ir.DataType.FLOAT:
        raised, value = _cast(node, query, ir.DataType.FLOAT, "wide")
        made, value = _product(node, value, scale)
        lowered, value = _cast(node, value, query.dtype, "half")
        return [raised, *made, lowered], value
    made, value = _product(node, wide, scale)
    lowered, value = _cast(node, value, query.dtype, "half")
    made.append(lowered)
    for number, move in enumerate(reversed(moves)):
        copy = ir.node(
            move.op_type, [value, *move.inputs[1:]], dict(move.attributes), name=f"{node.name}.move_{number}"
        )
        copy.outputs[0].type, copy.outputs[0].shape = ir.TensorType(query.dtype), move.outputs[0].shape
        value = copy.outputs[0]
        made.append(copy)
    return made, value


def _scale(node: ir.Node, query: ir.Value) -> float:
    given = node.attributes.get_float("scale", 0.0)
    if given:
        return float(given)
    assert query.shape is not None
    return 1 / math.sqrt(int(str(query.shape[-1])))


def _product(node: ir.Node, x: ir.Value, scale: float) -> tuple[list[ir.Node], ir.Value]:
    number = ir.tensor(np.array(scale, np.float32))
    constant = ir.node("Constant", [], {"value": number}, name=f"{node.name}.scale")
    constant.outputs[0].type, constant.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
    product = ir.node("Mul", [x, constant.outputs[0]], name=f"{node.name}.scaled")
    product.outputs[0].type, product.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), x.shape
    return [constant, product], product.outputs[0]


def _cast(node: ir.Node, x: ir.Value, to: ir.DataType, what: str) -> tuple[ir.Node, ir.Value]:
    cast = ir.node("Cast", [x], {"to": to.value}, name=f"{node.name}.{what}")
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(to), x.shape
    return cast, cast.outputs[0]


def _length_input(graph: ir.Graph, name: str) -> ir.Value:
    """An int32 input `[batch]` of the graph, made when it is first asked for."""
    found = next((value for value in graph.inputs if value.name == name), None)
    if found is None:
        found = ir.Value(name=name, shape=ir.Shape(["batch"]), type=ir.TensorType(ir.DataType.INT32))
        graph.inputs.append(found)
    return found


def _replace(graph: ir.Graph, old: ir.Node, new: list[ir.Node]) -> None:
    """Puts nodes in the place of one; the last one gives what it gave, under the same name."""
    given, made = old.outputs[0], new[-1].outputs[0]
    made.name, made.shape, made.type = given.name, given.shape, given.type
    graph.insert_before(old, new)
    given.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove(old, safe=True)
