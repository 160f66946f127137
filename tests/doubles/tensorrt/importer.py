"""What the ONNX importer refuses, node by node, after its operator table and its source.

A rule is a function of a node that returns a reason or None; OPERATORS says which types and rules an operator
has. What is not in the table is no built-in operator: the importer then looks for a plugin and finds none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import numpy_helper

from doubles.tensorrt.enums import ErrorCode
from doubles.tensorrt.expand import attributes

NEWEST_OPSET, TOP_K = 24, 3840
F = {T.FLOAT, T.FLOAT16, T.BFLOAT16, T.DOUBLE}
FI = F | {T.INT32, T.INT64}
FIB = FI | {T.BOOL}
INTS = {T.INT32, T.INT64}
SMALL = {T.INT8, T.FLOAT8E4M3FN, T.INT4, T.FLOAT4E2M1}


@dataclass(frozen=True)
class Refusal:
    """One parser error: the node's index, name and operator, the kind of failure, and the sentence."""

    index: int
    node: str
    operator: str
    code: Any
    reason: str


class View:
    """A node with what the importer knows of it: types, ranks and constants of its tensors."""

    def __init__(self, node: onnx.NodeProto, graph: Graph) -> None:
        self.node, self.graph = node, graph
        self.inputs, self.outputs = list(node.input), list(node.output)

    @cached_property
    def attrs(self) -> dict[str, Any]:
        return attributes(self.node)

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and bool(self.inputs[index])

    def dtype(self, index: int) -> int:
        return self.graph.types.get(self.inputs[index], 0) if self.has(index) else 0

    def shape(self, index: int) -> tuple[int, ...] | None:
        return self.graph.shapes.get(self.inputs[index]) if self.has(index) else None

    def rank(self, index: int) -> int | None:
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def constant(self, index: int) -> np.ndarray | None:
        return self.graph.constant(self.inputs[index]) if self.has(index) else None


class Graph:
    """Types, ranks and constants by tensor name; `inferred` is the standard form with onnx's inference."""

    def __init__(self, model: onnx.ModelProto, inferred: onnx.ModelProto) -> None:
        graph = inferred.graph
        values = [*graph.value_info, *graph.input, *graph.output]
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}
        self.shapes = {
            v.name: tuple(
                d.dim_value if d.HasField("dim_value") else -1 for d in v.type.tensor_type.shape.dim
            )
            for v in values
            if v.type.tensor_type.HasField("shape")
        }
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._tensors[node.output[0]] = node.attribute[0].t
        self.types |= {name: tensor.data_type for name, tensor in self._tensors.items()}
        self.shapes |= {name: tuple(tensor.dims) for name, tensor in self._tensors.items()}

    def constant(self, name: str) -> np.ndarray | None:
        return numpy_helper.to_array(self._tensors[name]) if name in self._tensors else None

    def is_constant(self, name: str) -> bool:
        return name in self._tensors


Rule = Callable[[View], str | None]


def constant_input(index: int, what: str) -> Rule:
    def rule(view: View) -> str | None:
        fine = not view.has(index) or view.graph.is_constant(view.inputs[index])
        return None if fine else f"{what} must be an initializer"

    return rule


def attribute_is(name: str, wanted: Any, default: Any) -> Rule:
    def rule(view: View) -> str | None:
        found = view.attrs.get(name, default)
        return None if found == wanted else f"{name} = {found} is not supported, only {wanted}"

    return rule


def same_types(*indices: int) -> Rule:
    """Inputs that must have one type; all of them if none are named."""

    def rule(view: View) -> str | None:
        found = {view.dtype(i) for i in indices or range(len(view.inputs))} - {0}
        return None if len(found) < 2 else f"inputs of different types: {sorted(map(T.DataType.Name, found))}"

    return rule


def attention(view: View) -> str | None:
    attrs = view.attrs
    if len(view.outputs) != 1:
        return f"exactly one output is supported, the node lists {len(view.outputs)}"
    if view.has(4) or view.has(5):
        return "past_key and past_value are not supported"
    if attrs.get("softcap", 0.0):
        return "softcap is not supported"
    if "softmax_precision" in attrs or "qk_matmul_output_mode" in attrs:
        return "softmax_precision and qk_matmul_output_mode are not supported"
    if view.rank(0) == 3 and not {"q_num_heads", "kv_num_heads"} <= attrs.keys():
        return "3-D queries need q_num_heads and kv_num_heads"
    return _heads(view) or _mask(view) or same_types(0, 1, 2)(view)


def _mask(view: View) -> str | None:
    if view.has(3) and view.dtype(3) not in (T.BOOL, view.dtype(0)):
        return "the mask must be BOOL or of the query's type"
    return "the mask has more than 4 dimensions" if (view.rank(3) or 0) > 4 else None


def _heads(view: View) -> str | None:
    """Heads are counted when the engine is built; those of the queries are a multiple of the keys'."""
    query, key = view.shape(0), view.shape(1)
    if query is None or key is None or len(query) != 4 or len(key) != 4:
        return None if query is None or len(query) in (3, 4) else "queries must have 3 or 4 dimensions"
    if query[1] < 1 or key[1] < 1:
        return "the number of heads must be static"
    return None if query[1] % key[1] == 0 else f"{query[1]} heads are no multiple of {key[1]}"


def trt_attention(view: View) -> str | None:
    if len(view.outputs) != 1:
        return "exactly one output is supported"
    if view.has(3) and view.attrs.get("causal_kind", "none") != "none":
        return "a mask and causal_kind exclude each other"
    if any(view.has(i) and view.dtype(i) != T.INT32 for i in (4, 5)):
        return "query_lengths and kv_lengths must be INT32"
    kind = view.attrs.get("causal_kind", "none")
    if kind not in ("none", "upper_left", "lower_right"):
        return f"unknown causal_kind {kind}"
    return _heads(view) or _mask(view) or same_types(0, 1, 2)(view)


def cache_update(view: View) -> str | None:
    if view.attrs.get("axis", -2) != -2 or view.rank(0) not in (None, 4):
        return "the cache must have 4 dimensions and axis -2"
    if view.attrs.get("mode", "linear") != "linear":
        return "only mode linear is supported"
    if view.has(2) and view.dtype(2) not in (INTS if view.node.op_type == "TensorScatter" else {T.INT32}):
        return "write_indices of another type than INT32"
    return same_types(0, 1)(view)


def rotary(view: View) -> str | None:
    if len(view.inputs) > 3 and not view.inputs[3]:
        return "an empty fourth input counts as position_ids"
    if view.has(3) and view.dtype(3) != T.INT64:
        return "position_ids must be INT64"
    if view.rank(0) == 3 and not view.attrs.get("num_heads"):
        return "3-D input needs num_heads"
    return same_types(0, 1, 2)(view)


def top_k(view: View) -> str | None:
    if view.attrs.get("sorted", 1) != 1:
        return "only sorted = 1 is supported"
    count = view.constant(1)
    if count is not None and not 0 < int(count.reshape(-1)[0]) < TOP_K:
        return f"K = {int(count.reshape(-1)[0])} is not in 1..{TOP_K - 1}"
    rank, axis = view.rank(0), view.attrs.get("axis", -1)
    fine = rank is None or axis % rank >= rank - 4
    return None if fine else "the axis must be one of the last four"


def indices(view: View) -> str | None:
    return None if view.dtype(1) in (0, *INTS) else "indices must be INT32 or INT64"


def known_rank(view: View) -> str | None:
    """The shape that is asked for has a number of entries that is known when the engine is built."""
    shape = view.shape(1)
    return "the rank of the result is unknown" if shape is not None and -1 in shape else None


def squeeze(view: View) -> str | None:
    shape = view.shape(0)
    if len(view.inputs) < 2 and shape is not None and -1 in shape:
        return "without axes the shape must be static"
    return constant_input(1, "axes")(view)


def quantised(view: View) -> str | None:
    scale, zero = view.constant(1), view.constant(2)
    if scale is None or not (np.asarray(scale, np.float32) > 0).all():
        return "the scale must be a positive constant"
    if view.has(2) and (zero is None or np.asarray(zero, np.float32).any()):
        return "the zero point must be a constant 0"
    return None


def int4_blocks(view: View) -> str | None:
    """Blocks of int4 hold 64 or 128 numbers, none of them fewer (page "Quantization Schemes")."""
    gives = view.node.op_type == "QuantizeLinear"
    kind = view.attrs.get("output_dtype") if gives else view.dtype(0)
    size, shape, scale = view.attrs.get("block_size", 0), view.shape(0), view.constant(1)
    if kind != T.INT4 or not size or shape is None or scale is None:
        return None
    axis = view.attrs.get("axis", 1)
    whole = shape[axis] < 0 or shape[axis] == size * scale.shape[axis]
    return None if size in (64, 128) and whole else f"blocks of {size} are not supported for INT4"


def cast(view: View) -> str | None:
    to = view.attrs.get("to")
    fine = to in FIB | {T.UINT8}
    return None if fine else f"a cast to {T.DataType.Name(to)} is not supported; use QuantizeLinear"


def condition(view: View) -> str | None:
    return None if view.dtype(0) in (0, T.BOOL) else "the condition must be BOOL"


def modulo(view: View) -> str | None:
    integers = view.dtype(0) in INTS
    return (
        "fmod on integers is not supported" if integers and view.attrs.get("fmod", 0) else same_types()(view)
    )


def resize(view: View) -> str | None:
    if view.attrs.get("antialias", 0):
        return "antialias is not supported"
    found = view.attrs.get("keep_aspect_ratio_policy", "stretch")
    return None if found == "stretch" else f"policy {found} is not supported"


def one_output(view: View) -> str | None:
    return None if len([name for name in view.outputs if name]) == 1 else "only the first output is supported"


@dataclass(frozen=True)
class Operator:
    """Types of the inputs in `typed` (all of them when empty), and further rules."""

    types: frozenset[int] | None
    rules: tuple[Rule, ...] = ()
    typed: tuple[int, ...] = (0,)


def _table() -> Iterator[tuple[str, Operator]]:
    def many(names: str, types: set[int] | None, *rules: Rule, typed: tuple[int, ...] = (0,)) -> Any:
        made = Operator(None if types is None else frozenset(types), rules, typed)
        return [(name, made) for name in names.split()]

    yield from many("Attention", F | SMALL, attention, typed=(0, 1, 2))
    yield from many("TRT_Attention", F, trt_attention, typed=(0, 1, 2))
    yield from many("TensorScatter TRT_KVCacheUpdate", F, cache_update)
    yield from many("RotaryEmbedding", F, rotary)
    yield from many("RMSNormalization", F, same_types(0, 1))
    yield from many("Softmax LogSoftmax Erf Exp Log Sqrt Sigmoid Tanh Sin Cos", F)
    yield from many("Floor Ceil Round Reciprocal HardSwish HardSigmoid Elu Celu LeakyRelu Selu", F)
    yield from many(
        "Softplus Softsign Mish Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh ThresholdedRelu", F
    )
    yield from many("Gelu Swish GlobalAveragePool GlobalMaxPool AveragePool LpNormalization LRN Hardmax", F)
    yield from many("MeanVarianceNormalization LpPool GlobalLpPool Upsample GRU RNN LSTM STFT", F)
    yield from many("Clip PRelu Einsum Conv ConvTranspose", F, same_types())
    yield from many("InstanceNormalization GroupNormalization BatchNormalization MaxPool", F, one_output)
    yield from many("LayerNormalization", F, one_output, same_types(0, 1))
    yield from many("RandomNormal RandomUniform RandomNormalLike RandomUniformLike", None)
    yield from many("BlackmanWindow HammingWindow HannWindow", None)
    yield from many("MatMul Gemm", F | SMALL, same_types(), typed=(0, 1))
    yield from many("NonZero", {T.FLOAT, T.FLOAT16, T.BFLOAT16, T.INT32, T.INT64, T.INT8, T.BOOL})
    yield from many("TopK", FI, top_k)
    yield from many("Gather GatherElements GatherND", FIB, indices)
    yield from many("Expand Reshape", FIB, known_rank)
    yield from many("Concat", FIB, same_types())
    yield from many("Tile Slice Flatten Split Transpose Identity Shape Size ReverseSequence Trilu", FIB)
    yield from many("EyeLike DepthToSpace SpaceToDepth", FIB)
    yield from many("Squeeze", FIB, squeeze)
    yield from many("Unsqueeze", FIB, constant_input(1, "axes"))
    yield from many("ScatterND", FI, attribute_is("reduction", "none", "none"), indices, same_types(0, 2))
    yield from many("Scatter ScatterElements", FI, indices, same_types(0, 2))
    yield from many("Where", FIB, condition, same_types(1, 2), typed=(1, 2))
    yield from many("CumSum", F, constant_input(1, "axis"))
    yield from many("ArgMax ArgMin", FI, attribute_is("select_last_index", 0, 0))
    yield from many("Range", {T.INT32, T.INT64, T.FLOAT}, same_types(), typed=(0, 1, 2))
    yield from many("Pad", FI)
    yield from many("OneHot", FIB, constant_input(1, "depth"))
    yield from many("Constant Dropout Scan", None)
    yield from many("ConstantOfShape", {T.INT32, T.INT64})
    yield from many("If", {T.BOOL})
    yield from many("Loop", FIB, typed=())
    yield from many("ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2", FI, _axes)
    yield from many("ReduceLogSum ReduceLogSumExp ReduceSumSquare", FI, _axes)
    yield from many("Add Sub Mul Div Pow", FI, same_types(), typed=(0, 1))
    yield from many("Max Min Sum Mean", FI, same_types())
    yield from many("Mod", FI, modulo, typed=(0, 1))
    yield from many("Neg Abs Sign Relu Shrink IsNaN", FI)
    yield from many("IsInf", F)
    yield from many("Equal Less Greater LessOrEqual GreaterOrEqual", FI, same_types(), typed=(0, 1))
    yield from many("And Or Not Xor", {T.BOOL})
    yield from many("Cast", FIB | {T.UINT8}, cast)
    yield from many("CastLike", None)
    yield from many("QuantizeLinear", F, quantised, int4_blocks)
    yield from many("DequantizeLinear", SMALL, quantised, int4_blocks)
    yield from many("Resize", F, resize)
    yield from many("GridSample NonMaxSuppression RoiAlign DeformConv", {T.FLOAT, T.FLOAT16})


def _axes(view: View) -> str | None:
    return constant_input(1, "axes")(view)


OPERATORS = dict(_table())


def refusals(model: onnx.ModelProto, inferred: onnx.ModelProto) -> Iterator[Refusal]:
    """Everything that the importer objects to, in the nodes' order. (TensorRT stops at the first.)"""
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset > NEWEST_OPSET:
        reason = f"opset {opset} is newer than {NEWEST_OPSET}, the newest that is supported"
        yield Refusal(-1, "", "", ErrorCode.UNSUPPORTED_GRAPH, reason)
    graph = Graph(model, inferred)
    local = {function.name for function in model.functions}
    for value in model.graph.input:
        if not value.type.tensor_type.HasField("shape"):
            reason = f"the rank of input {value.name} is unknown"
            yield Refusal(-1, value.name, "", ErrorCode.UNSUPPORTED_NODE_DYNAMIC, reason)
    for index, node in enumerate(model.graph.node):
        if node.op_type in local:
            continue
        found = _refuse(View(node, graph))
        if found is not None:
            yield Refusal(index, node.name, node.op_type, *found)


def _refuse(view: View) -> tuple[Any, str] | None:
    operator = OPERATORS.get(view.node.op_type)
    if operator is None:
        return (
            ErrorCode.UNSUPPORTED_NODE,
            "Plugin not found, are the plugin name, version, and namespace correct?",
        )
    every = operator.typed or range(len(view.inputs))
    for index in every if operator.types is not None else ():
        dtype = view.dtype(index)
        if dtype and dtype not in (operator.types or ()):
            return ErrorCode.UNSUPPORTED_NODE_DATATYPE, f"type {T.DataType.Name(dtype)} of input {index}"
    for rule in operator.rules:
        if (reason := rule(view)) is not None:
            return ErrorCode.UNSUPPORTED_NODE_ATTR, reason
    return None
