"""Boolean attention masks become additive ones: a row that sees nothing stays a row of numbers."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from foveate.export.rewrites.plain_words import is_boolean

HIDDEN: Final = -30000.0
"""What is added to hidden scores. Its exponential is 0 in every precision, and behind it there is still room
for the score itself in float16, whose least number is -65504: no row becomes minus infinity altogether."""


def add_masks(model: ir.Model) -> None:
    """Gives each masked `Attention` its mask as numbers `[.., s, slots]`, made once for all that share it."""
    made: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        mask = node.inputs[3] if node.op_type == "Attention" and len(node.inputs) > 3 else None
        if mask is None or node.domain != "" or not is_boolean(mask):
            continue
        if mask not in made:
            made[mask] = _numbers(model.graph, node, mask)
        node.replace_input_with(3, made[mask])


def _numbers(graph: ir.Graph, place: ir.Node, mask: ir.Value) -> ir.Value:
    """0 where `mask` is true, `HIDDEN` elsewhere; stands in front of `place`, the first that reads it."""
    literals = [
        ir.node("Constant", [], {"value": ir.tensor(np.array(value, np.float32))}) for value in (0.0, HIDDEN)
    ]
    chosen = ir.node("Where", [mask, *(each.outputs[0] for each in literals)], name=f"{place.name}.mask")
    for node in (*literals, chosen):
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.insert_before(place, node)
    chosen.outputs[0].shape = mask.shape
    return chosen.outputs[0]
