"""Small graphs from text: a test writes inputs, constants and nodes; outputs are what nobody reads."""

from __future__ import annotations

import onnx
from onnx import parser, shape_inference

_NOT_INFERRED = ("Loop", "GroupNormalization")
# The node that a test is about.
IT = "it"


def graph(inputs: str, nodes: str, constants: str = "", opset: int = 24) -> onnx.ModelProto:
    """A model in onnx's text syntax; a node is named by `[name]` before it."""
    held = f"<{constants}>" if constants else ""
    text = (
        f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "trt" : 1]>\n'
        f"g ({inputs}) => () {held} {{\n{nodes}\n}}"
    )
    model = parser.parse_model(text)
    add_outputs(model)
    return model


def add_outputs(model: onnx.ModelProto) -> None:
    """Makes every value that no node reads an output, with the type that ONNX infers, or the last input's."""
    read = {name for node in model.graph.node for name in node.input}
    leaves = [name for node in model.graph.node for name in node.output if name and name not in read]
    del model.graph.output[:]
    for name in leaves:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    try:
        found = shape_inference.infer_shapes(model)
    except shape_inference.InferenceError:
        return
    for place, value in zip(model.graph.output, found.graph.output, strict=True):
        place.CopyFrom(value)
        if model.graph.node[-1].op_type in _NOT_INFERRED:
            place.type.CopyFrom(model.graph.input[-1].type)
