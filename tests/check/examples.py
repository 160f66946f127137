"""One good node of every operator that the rules know, and how to spoil it.

In the inputs, `{0}`, `{1}` … are the types of the node's inputs; a constant called `c` is the one that must
be constant. `x`, `y` … are inputs; the node is `it`.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from graphs import IT, add_outputs, graph
from onnx_ir import DataType

from foveate.export.check.operators import operators
from foveate.export.check.rule import Operator

TEXT = {
    DataType.FLOAT: "float",
    DataType.FLOAT16: "float16",
    DataType.BFLOAT16: "bfloat16",
    DataType.INT64: "int64",
    DataType.INT32: "int32",
    DataType.BOOL: "bool",
    DataType.INT8: "int8",
    DataType.UINT8: "uint8",
    DataType.UINT16: "uint16",
    DataType.INT4: "int4",
    DataType.FLOAT8E4M3FN: "float8e4m3fn",
}


@dataclass(frozen=True)
class Example:
    """Inputs with open types, the node, constants, and the opset in which it stands."""

    inputs: str
    node: str
    constants: str = ""
    opset: int = 24

    def build(self, row: Operator, change: dict[int, DataType] | None = None) -> onnx.ModelProto:
        """The graph, every type the row's first, but for `change`."""
        count = self.inputs.count("{")
        first = first_type(row)
        types = [TEXT[(change or {}).get(i, first)] for i in range(count)]
        return graph(self.inputs.format(*types), self.node, self.constants, self.opset)


def first_type(row: Operator) -> DataType:
    """A type that the row takes; float32 where it can be, and where nothing is taken."""
    return next((t for t in TEXT if row.dtypes and t in row.dtypes), DataType.FLOAT)


def example(name: str) -> Example:
    """The operator's own example, or one of the plain shapes."""
    if name in SPECIAL:
        return SPECIAL[name]
    row = operators()[name]
    if row.equal is None:
        return Example("{0}[2,3] x, {1}[2,3] y", f"[{IT}] z = {name} (x, y)")
    if row.typed is None:
        return Example("{0}[2,3] x, {1}[2,3] y", f"[{IT}] z = {name} (x, y)")
    if row.initializers:
        return Example("{0}[2,3] x", f"[{IT}] z = {name} (x, c)", "int64[1] c = {1}")
    return Example("{0}[2,3,4,4] x", f"[{IT}] z = {name} (x)")


_IMAGE = "{0}[2,3,8,8] x"
_FLAGS = (
    "then_branch = a () => (float[2] p) { p = Identity (x) }, "
    "else_branch = b () => (float[2] q) { q = Neg (x) }"
)
_BODY = (
    "body = a (int64 i, bool on, float[2] v) => (bool on_out, float[2] v_out) "
    "{ on_out = Identity (on) v_out = Neg (v) }"
)
_CACHE = "{0}[1,2,16,8] x, {1}[1,2,3,8] y, int64[1] w"

SPECIAL = {
    "Clip": Example("{0}[2,3] x, {1} low, {2} high", "[it] z = Clip (x, low, high)"),
    "Where": Example("bool[2,3] x, {0}[2,3] y, {1}[2,3] w", "[it] z = Where (x, y, w)"),
    "CumSum": Example("{0}[2,3] x", "[it] z = CumSum (x, c)", "int64 c = {1}"),
    "Expand": Example("{0}[2,3] x", "[it] z = Expand (x, c)", "int64[3] c = {5, 2, 3}"),
    "Reshape": Example("{0}[2,3] x", "[it] z = Reshape (x, c)", "int64[1] c = {6}"),
    "Tile": Example("{0}[2,3] x", "[it] z = Tile (x, c)", "int64[2] c = {1, 2}"),
    "Slice": Example("{0}[2,3] x", "[it] z = Slice (x, b, e)", "int64[1] b = {0}, int64[1] e = {1}"),
    "Split": Example("{0}[2,3] x", "[it] z, w = Split <axis = 0> (x, c)", "int64[2] c = {1, 1}"),
    "Concat": Example("{0}[2,3] x, {1}[2,3] y", "[it] z = Concat <axis = 0> (x, y)"),
    "ReverseSequence": Example("{0}[2,3] x, int64[3] y", "[it] z = ReverseSequence (x, y)"),
    "Unsqueeze": Example("{0}[2,3] x", "[it] z = Unsqueeze (x, c)", "int64[1] c = {1}"),
    "Squeeze": Example("{0}[2,1] x", "[it] z = Squeeze (x, c)", "int64[1] c = {1}"),
    "Pad": Example("{0}[2,3] x", "[it] z = Pad (x, c)", "int64[4] c = {0, 1, 0, 1}"),
    "DepthToSpace": Example("{0}[2,4,3,3] x", "[it] z = DepthToSpace <blocksize = 2> (x)"),
    "SpaceToDepth": Example("{0}[2,1,4,4] x", "[it] z = SpaceToDepth <blocksize = 2> (x)"),
    "Trilu": Example("{0}[3,3] x", "[it] z = Trilu (x)"),
    "EyeLike": Example("{0}[3,3] x", "[it] z = EyeLike (x)"),
    "OneHot": Example("{0}[3] x, {1}[2] v", "[it] z = OneHot (x, c, v)", "int64 c = {4}"),
    "ConstantOfShape": Example("{0}[2] x", "[it] z = ConstantOfShape (x)"),
    "Constant": Example("float[1] x", "[it] z = Constant <value = float[1] {1.0}> ()"),
    "Range": Example("{0} x, {1} y, {2} w", "[it] z = Range (x, y, w)"),
    "Cast": Example("{0}[2,3] x", "[it] z = Cast <to = 1> (x)"),
    "CastLike": Example("{0}[2,3] x, float[1] y", "[it] z = CastLike (x, y)"),
    "Gather": Example("{0}[2,3] x, int64[2] y", "[it] z = Gather (x, y)"),
    "GatherElements": Example("{0}[2,3] x, int64[2,3] y", "[it] z = GatherElements (x, y)"),
    "GatherND": Example("{0}[2,3] x, int64[2,1] y", "[it] z = GatherND (x, y)"),
    "ScatterND": Example("{0}[4] x, int64[2,1] y, {1}[2] v", "[it] z = ScatterND (x, y, v)"),
    "Scatter": Example("{0}[4] x, int64[2] y, {1}[2] v", "[it] z = Scatter (x, y, v)", opset=10),
    "ScatterElements": Example("{0}[4] x, int64[2] y, {1}[2] v", "[it] z = ScatterElements (x, y, v)"),
    "TopK": Example("{0}[2,3] x", "[it] z, i = TopK (x, c)", "int64[1] c = {2}"),
    "NonMaxSuppression": Example(
        "{0}[1,6,4] x, {1}[1,2,6] y",
        "[it] z = NonMaxSuppression (x, y, c, i, s)",
        "int64[1] c = {3}, float[1] i = {0.5}, float[1] s = {0.1}",
    ),
    "Gemm": Example("{0}[2,3] x, {1}[3,4] y", "[it] z = Gemm (x, y)"),
    "MatMul": Example("{0}[2,3] x, {1}[3,4] y", "[it] z = MatMul (x, y)"),
    "Einsum": Example("{0}[2,3] x, {1}[3,4] y", '[it] z = Einsum <equation = "ij,jk->ik"> (x, y)'),
    "Conv": Example(_IMAGE + ", {1}[4,3,2,2] y", "[it] z = Conv (x, y)"),
    "ConvTranspose": Example(_IMAGE + ", {1}[3,4,2,2] y", "[it] z = ConvTranspose (x, y)"),
    "DeformConv": Example(
        "{0}[1,1,3,3] x, {1}[1,1,2,2] y, {2}[1,8,2,2] o",
        "[it] z = DeformConv <kernel_shape = [2, 2], pads = [0, 0, 0, 0]> (x, y, o)",
    ),
    "AveragePool": Example(_IMAGE, "[it] z = AveragePool <kernel_shape = [2, 2]> (x)"),
    "LpPool": Example(_IMAGE, "[it] z = LpPool <kernel_shape = [2, 2]> (x)"),
    "MaxPool": Example(_IMAGE, "[it] z = MaxPool <kernel_shape = [2, 2]> (x)"),
    "BatchNormalization": Example(
        _IMAGE + ", {1}[3] s, {2}[3] b, {3}[3] m, {4}[3] v", "[it] z = BatchNormalization (x, s, b, m, v)"
    ),
    "InstanceNormalization": Example(
        _IMAGE + ", {1}[3] s, {2}[3] b", "[it] z = InstanceNormalization (x, s, b)"
    ),
    "GroupNormalization": Example(
        _IMAGE + ", {1}[3] s, {2}[3] b", "[it] z = GroupNormalization <num_groups = 1> (x, s, b)"
    ),
    "LRN": Example(_IMAGE, "[it] z = LRN <size = 3> (x)"),
    "Resize": Example(_IMAGE, "[it] z = Resize (x, , , c)", "int64[4] c = {2, 3, 4, 4}"),
    "Upsample": Example(_IMAGE, "[it] z = Upsample (x, c)", "float[4] c = {1.0, 1.0, 2.0, 2.0}", 9),
    "GridSample": Example(_IMAGE + ", {1}[2,4,4,2] y", "[it] z = GridSample (x, y)"),
    "RoiAlign": Example(_IMAGE + ", {1}[5,4] y, int64[5] w", "[it] z = RoiAlign (x, y, w)"),
    "STFT": Example(
        "{0}[1,16,1] x", "[it] z = STFT (x, c, w)", "int64 c = {4}, float[4] w = {1.0, 1.0, 1.0, 1.0}"
    ),
    "DFT": Example("{0}[1,8,1] x", "[it] z = DFT (x)"),
    "BlackmanWindow": Example("float[1] x", "[it] z = BlackmanWindow (c)", "int64 c = {4}"),
    "HammingWindow": Example("float[1] x", "[it] z = HammingWindow (c)", "int64 c = {4}"),
    "HannWindow": Example("float[1] x", "[it] z = HannWindow (c)", "int64 c = {4}"),
    "Dropout": Example("{0}[2,3] x", "[it] z = Dropout (x)"),
    "RandomNormal": Example("float[1] x", "[it] z = RandomNormal <shape = [2]> ()"),
    "RandomUniform": Example("float[1] x", "[it] z = RandomUniform <shape = [2]> ()"),
    "GRU": Example(
        "{0}[3,1,2] x, {1}[1,12,2] w, {2}[1,12,4] r", "[it] , z = GRU <hidden_size = 4> (x, w, r)"
    ),
    "RNN": Example("{0}[3,1,2] x, {1}[1,4,2] w, {2}[1,4,4] r", "[it] , z = RNN <hidden_size = 4> (x, w, r)"),
    "LSTM": Example(
        "{0}[3,1,2] x, {1}[1,16,2] w, {2}[1,16,4] r", "[it] , z = LSTM <hidden_size = 4> (x, w, r)"
    ),
    "Attention": Example(
        "{0}[1,2,3,8] x, {1}[1,2,5,8] y, {2}[1,2,5,8] v, bool[1,1,3,5] m", "[it] z = Attention (x, y, v, m)"
    ),
    "TensorScatter": Example(_CACHE, "[it] z = TensorScatter <axis = -2> (x, y, w)"),
    "RotaryEmbedding": Example(
        "{0}[1,2,3,8] x, {1}[1,3,4] y, {2}[1,3,4] v", "[it] z = RotaryEmbedding (x, y, v)"
    ),
    "RMSNormalization": Example("{0}[2,3] x, {1}[3] y", "[it] z = RMSNormalization (x, y)"),
    "LayerNormalization": Example("{0}[2,3] x, {1}[3] y", "[it] z = LayerNormalization (x, y)"),
    "QuantizeLinear": Example(
        "{0}[2,3] x", "[it] z = QuantizeLinear <output_dtype = 3> (x, c)", "float c = {0.5}"
    ),
    "DequantizeLinear": Example("{0}[2,4] x", "[it] z = DequantizeLinear (x, c)", "float c = {0.5}"),
    "If": Example("{0} b, float[2] x", f"[it] z = If <{_FLAGS}> (b)"),
    "Loop": Example("int64 n, bool b, float[2] x", f"[it] z = Loop <{_BODY}> (n, b, x)"),
    "Scan": Example(
        "{0}[4,2] x",
        "[it] z = Scan <num_scan_inputs = 1, "
        "body = a (float[2] v) => (float[2] v_out) { v_out = Neg (v) }> (x)",
    ),
    "TRT_Attention": Example(
        "{0}[1,2,3,8] x, {1}[1,2,5,8] y, {2}[1,2,5,8] v, int32[1] n",
        '[it] z = trt.TRT_Attention <causal_kind = "lower_right"> (x, y, v, , , n)',
    ),
    "TRT_KVCacheUpdate": Example(
        "{0}[1,2,16,8] x, {1}[1,2,3,8] y, int32[1] w",
        '[it] z = trt.TRT_KVCacheUpdate <axis = -2, mode = "linear"> (x, y, w)',
    ),
}


def with_input(model: onnx.ModelProto, name: str = "c") -> onnx.ModelProto:
    """The same graph with a constant handed in from outside."""
    (held,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    value = onnx.helper.make_tensor_value_info(name, held.data_type, list(held.dims))
    model.graph.initializer.remove(held)
    model.graph.input.append(value)
    add_outputs(model)
    return model
