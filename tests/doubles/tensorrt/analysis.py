"""What TensorRT works out about a graph before it runs: shape tensors, data-dependent shapes, aliases.

Shape tensors are computed on the host; a layer outside SHAPE_OPS makes its value a device value, and a
shape or a count made from one stops the host until the device is done (tensorrt.md B.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx

INTEGERS = {onnx.TensorProto.INT32, onnx.TensorProto.INT64}
CACHE_OPS = ("TensorScatter", "TRT_KVCacheUpdate")
# Operators whose layers also work on shape tensors.
SHAPE_OPS = {
    *(
        "Constant",
        "ConstantOfShape",
        "Range",
        "Shape",
        "Size",
        "Gather",
        "Identity",
        "Cast",
        "Where",
        "Slice",
    ),
    *("Concat", "CumSum", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Tile", "If"),
    *("Add", "Sub", "Mul", "Div", "Min", "Max", "Mod", "Pow", "Sum", "Neg", "Abs", "Sign", "Floor", "Ceil"),
    *("Round", "Clip", "Sqrt", "Exp", "Log", "Relu", "Equal", "Less", "Greater", "LessOrEqual"),
    *("GreaterOrEqual", "And", "Or", "Not", "Xor", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"),
}
# Inputs whose values are an output's lengths.
LENGTHS = {
    **{"Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "TopK": (1,), "Split": (1,)},
    **{"Slice": (1, 2, 3, 4), "Range": (0, 1, 2), "Pad": (1,), "Resize": (2, 3), "OneHot": (1,)},
}


@dataclass
class Facts:
    """What was found.

    Attributes:
        shape_inputs: graph inputs whose values the host reads.
        unfit: those of them that cannot be shape tensors.
        syncs: nodes that wait for a device value.
        dependent: tensors whose shape is not known before the run.
        aliases: cache output -> cache input.
    """

    shape_inputs: set[str] = field(default_factory=set)
    unfit: set[str] = field(default_factory=set)
    syncs: list[str] = field(default_factory=list)
    dependent: set[str] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)


def analyse(model: onnx.ModelProto) -> Facts:
    graph, facts = model.graph, Facts()
    makers = {name: node for node in graph.node for name in node.output if name}
    inputs = {value.name: value.type.tensor_type for value in graph.input}
    constants = {tensor.name for tensor in graph.initializer}
    read: dict[str, bool] = {}

    def on_host(name: str) -> bool:
        """Whether the host can know its values; the graph inputs behind it then have to be shape tensors."""
        if name in read or not name or name in constants:
            return read.get(name, True)
        if name in inputs:
            kind = inputs[name]
            fits = kind.elem_type in INTEGERS and len(kind.shape.dim) <= 1
            (facts.shape_inputs if fits else facts.unfit).add(name)
            return True
        node = makers.get(name)
        read[name] = True
        if node is not None and node.op_type in ("Shape", "Size"):
            read[name] = node.input[0] not in facts.dependent
        elif node is not None:
            answers = [on_host(given) for given in node.input] if node.op_type in SHAPE_OPS else [False]
            read[name] = all(answers)
        return read[name]

    for node in graph.node:
        lengths = [node.input[i] for i in LENGTHS.get(node.op_type, ()) if i < len(node.input)]
        waits = node.op_type == "NonZero" or not all(list(map(on_host, lengths)))
        if waits:
            facts.syncs.append(node.name or node.output[0])
        if waits or facts.dependent.intersection(node.input):
            facts.dependent.update(name for name in node.output if name)
        if node.op_type in CACHE_OPS:
            facts.aliases[node.output[0]] = node.input[0]
    return facts
