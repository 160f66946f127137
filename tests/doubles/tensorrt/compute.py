"""What an engine of the double computes with: ONNX Runtime on the CPU, with one thread.

bfloat16, for which the CPU has no kernels, is computed in float32 and rounded after every operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from doubles.tensorrt.expand import standard

LARGEST_K = 3840  # of TopK; more is refused at parsing if K is constant, and fails while running otherwise
BF16, FLOAT = TensorProto.BFLOAT16, TensorProto.FLOAT


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The standard form of a model with types and shapes of its inner tensors, as far as they are known."""
    plain = standard(model)
    try:
        return onnx.shape_inference.infer_shapes(plain, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return plain


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 as bfloat16 bits (uint16), rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def without_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """bfloat16 tensors become float32 ones that hold rounded values; graph inputs and outputs too."""
    graph = model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    if BF16 not in {*types.values(), *(tensor.data_type for tensor in graph.initializer)}:
        return model
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.elem_type == BF16:
            value.type.tensor_type.elem_type = FLOAT
    for tensor in graph.initializer:
        if tensor.data_type == BF16:
            tensor.CopyFrom(_as_float32(tensor))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == BF16:
                attribute.t.CopyFrom(_as_float32(attribute.t))
            if attribute.name == "to" and attribute.i == BF16:
                attribute.i = FLOAT
        rounding = []
        for i, name in enumerate(node.output):
            if types.get(name) == BF16:
                node.output[i] = f"{name}/unrounded"
                rounding.append(helper.make_node("Cast", [node.output[i]], [f"{name}/bf16"], to=BF16))
                rounding.append(helper.make_node("Cast", [f"{name}/bf16"], [name], to=FLOAT))
        graph.node.extend([node, *rounding])
    return model


def _as_float32(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor).astype(np.float32)
    return numpy_helper.from_array(values, tensor.name)


class Computer:
    """Runs one model; made once per engine.

    Arrays of bfloat16 inputs and outputs are uint16.

    Raises:
        RuntimeError: a TopK was asked for none or too many, which on a GPU is an error while it runs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        plain = inferred(model)
        self._bfloat16 = {
            value.name
            for value in (*plain.graph.input, *plain.graph.output)
            if value.type.tensor_type.elem_type == BF16
        }
        constants = {tensor.name for tensor in plain.graph.initializer}
        constants |= {name for node in plain.graph.node if node.op_type == "Constant" for name in node.output}
        counts = {node.input[1] for node in plain.graph.node if node.op_type == "TopK"} - constants
        self._counts = sorted(counts)
        known = {value.name for value in plain.graph.output}
        plain.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in self._counts if name not in known
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._session = ort.InferenceSession(
            without_bfloat16(plain).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        widened = {name: widen(v) if name in self._bfloat16 else v for name, v in feeds.items()}
        found = self._session.run([*outputs, *self._counts], widened)
        for name in self._counts:
            count = int(found.pop(len(outputs)).reshape(-1)[0])
            if not 0 < count <= LARGEST_K:
                raise RuntimeError(f"TopK: K = {count} of {name} is not in 1..{LARGEST_K}")
        return [
            narrow(value) if name in self._bfloat16 else value
            for name, value in zip(outputs, found, strict=True)
        ]
