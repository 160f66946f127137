"""The network that the parser fills: tensors, layers, attentions, and the parser itself.

A layer comes back as a plain ILayer; `layer.__class__ = IAttentionInputLayer` is how Python reaches its
attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from doubles.tensorrt.analysis import Facts, analyse
from doubles.tensorrt.compute import inferred
from doubles.tensorrt.enums import (
    CausalMaskKind,
    DataType,
    ErrorCode,
    LayerType,
    OnnxParserFlag,
    TensorLocation,
)
from doubles.tensorrt.expand import attributes
from doubles.tensorrt.importer import OPERATORS, Refusal, refusals
from doubles.tensorrt.values import FROM_ONNX, Dims, check_logger

# Kinds of layers by operator; what is not listed shows as IDENTITY, which nothing here asks about.
KINDS = {
    **{"MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY", "Softmax": "SOFTMAX", "TopK": "TOPK"},
    **{
        "Gather": "GATHER",
        "Reshape": "SHUFFLE",
        "Transpose": "SHUFFLE",
        "Constant": "CONSTANT",
        "Shape": "SHAPE",
    },
    **{"Where": "SELECT", "Slice": "SLICE", "Cast": "CAST", "Concat": "CONCATENATION", "NonZero": "NON_ZERO"},
    **{
        "Add": "ELEMENTWISE",
        "Mul": "ELEMENTWISE",
        "Sub": "ELEMENTWISE",
        "Div": "ELEMENTWISE",
        "CumSum": "CUMULATIVE",
    },
    **{"QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE", "RotaryEmbedding": "ROTARY_EMBEDDING"},
    **{"TensorScatter": "KV_CACHE_UPDATE", "TRT_KVCacheUpdate": "KV_CACHE_UPDATE", "Conv": "CONVOLUTION"},
    **{"Range": "FILL", "ScatterND": "SCATTER", "LayerNormalization": "NORMALIZATION", "If": "CONDITION"},
}
ATTENTIONS = ("Attention", "TRT_Attention")


class ITensor:
    """A tensor of the network."""

    def __init__(
        self, name: str, dtype: Any, shape: tuple[int, ...], role: str, on_host: bool = False
    ) -> None:
        self.name, self._dtype, self.shape = name, dtype, Dims(shape)
        self._role, self._on_host = role, on_host

    @property
    def dtype(self) -> Any:
        return self._dtype

    @property
    def is_network_input(self) -> bool:
        return self._role == "input"

    @property
    def is_network_output(self) -> bool:
        return self._role == "output"

    @property
    def is_shape_tensor(self) -> bool:
        return self._on_host

    @property
    def is_execution_tensor(self) -> bool:
        return not self._on_host

    @property
    def location(self) -> Any:
        return TensorLocation.HOST if self._on_host else TensorLocation.DEVICE


class IAttention:
    """Options of one attention; `decomposable` decides whether it may fall back to separate kernels."""

    def __init__(self, name: str, attrs: dict[str, Any], fused: bool) -> None:
        self.name, self.decomposable, self._fused = name, bool(attrs.get("TRT_decomposable", 0)), fused
        kind = str(attrs.get("causal_kind", "upper_left" if attrs.get("is_causal") else "none"))
        self._kind = CausalMaskKind[kind.upper()]

    @property
    def causal_kind(self) -> Any:
        return self._kind


class ILayer:
    """One layer."""

    def __init__(self, name: str, kind: Any, attention: IAttention | None = None) -> None:
        self.name, self._type, self._attention, self.metadata = name, kind, attention, ""

    @property
    def type(self) -> Any:
        return self._type


class IAttentionBoundaryLayer(ILayer):
    @property
    def attention(self) -> IAttention | None:
        return self._attention


class IAttentionInputLayer(IAttentionBoundaryLayer):
    """Where an attention begins."""


class IAttentionOutputLayer(IAttentionBoundaryLayer):
    """Where an attention ends."""


class INetworkDefinition:
    """What a parser has read; empty before."""

    def __init__(self, flags: int) -> None:
        self.name, self._flags = "", flags
        self._inputs, self._outputs = list[ITensor](), list[ITensor]()
        self._layers = list[ILayer]()
        self._model: onnx.ModelProto | None = None
        self._facts = Facts()

    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))
    num_layers = property(lambda self: len(self._layers))
    flags = property(lambda self: self._flags)

    def get_flag(self, flag: Any) -> bool:
        return bool(self._flags >> int(flag) & 1)

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, index: int) -> ILayer:
        return self._layers[index]

    def _fill(self, model: onnx.ModelProto, plain: onnx.ModelProto) -> None:
        self._model, self._facts = model, analyse(model)
        self.name = model.graph.name
        shapes = {v.name: v for v in plain.graph.value_info}
        constants = {tensor.name for tensor in model.graph.initializer}
        for value in model.graph.input:
            if value.name not in constants:
                on_host = value.name in self._facts.shape_inputs
                self._inputs.append(_tensor(value, "input", on_host))
        for value in model.graph.output:
            known = value if value.type.tensor_type.HasField("shape") else shapes.get(value.name, value)
            self._outputs.append(_tensor(known, "output"))
        for node in model.graph.node:
            self._layers.extend(_layers(node, plain))


def _tensor(value: onnx.ValueInfoProto, role: str, on_host: bool = False) -> ITensor:
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return ITensor(value.name, FROM_ONNX[kind.elem_type], shape, role, on_host)


def _layers(node: onnx.NodeProto, plain: onnx.ModelProto) -> Iterator[ILayer]:
    if node.op_type not in ATTENTIONS:
        yield ILayer(node.name, LayerType[KINDS.get(node.op_type, "IDENTITY")])
        return
    attrs = attributes(node)
    attention = IAttention(node.name, attrs, _has_fused_kernel(node, attrs, plain))
    yield ILayer(node.name, LayerType.ATTENTION_INPUT, attention)
    yield ILayer(node.name, LayerType.ATTENTION_OUTPUT, attention)


def _has_fused_kernel(node: onnx.NodeProto, attrs: dict[str, Any], plain: onnx.ModelProto) -> bool:
    """Fused kernels: FP16 or BF16, heads of 16..256 numbers, a multiple of 8 (tensorrt.md C)."""
    graph = plain.graph
    query = {v.name: v.type.tensor_type for v in (*graph.value_info, *graph.input)}.get(node.input[0])
    if query is None or FROM_ONNX.get(query.elem_type) not in (DataType.HALF, DataType.BF16):
        return False
    sizes = [dim.dim_value for dim in query.shape.dim]
    head = sizes[-1] // attrs["q_num_heads"] if len(sizes) == 3 else (sizes or [0])[-1]
    return 16 <= head <= 256 and head % 8 == 0


class ParserError:
    """One error; everything about it is a method."""

    def __init__(self, refusal: Refusal) -> None:
        self._refusal = refusal

    def code(self) -> Any:
        return self._refusal.code

    def desc(self) -> str:
        return f"Assertion failed: {self._refusal.reason}"

    def file(self) -> str:
        return "onnxOpImporters.cpp"

    def func(self) -> str:
        return f"import{self._refusal.operator}"

    def line(self) -> int:
        return 1

    def node(self) -> int:
        return self._refusal.index

    def node_name(self) -> str:
        return self._refusal.node

    def node_operator(self) -> str:
        return self._refusal.operator

    def local_function_stack(self) -> list[str]:
        return []

    def local_function_stack_size(self) -> int:
        return 0

    def __str__(self) -> str:
        where = f"In node {self.node()} with name: {self.node_name()} and operator: {self.node_operator()}"
        return f"{where} ({self.func()}): {self.code().name}: {self.desc()}"

    __repr__ = __str__


class OnnxParser:
    """Reads ONNX into a network; a refusal makes `parse` False and leaves the reasons in `get_error`."""

    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self._network, self._logger = network, check_logger(logger)
        self._errors = list[Refusal]()
        self.flags = 1 << int(OnnxParserFlag.NATIVE_INSTANCENORM)
        self._subgraphs = list[tuple[list[int], bool]]()

    num_errors = property(lambda self: len(self._errors))
    num_subgraphs = property(lambda self: len(self._subgraphs))

    def parse(self, model: Any, path: str | None = None) -> bool:
        try:
            proto = onnx.ModelProto.FromString(bytes(model))
            if any(tensor.external_data for tensor in proto.graph.initializer):
                if path is None:
                    return self._fail("external weights: give parse() the path of the model")
                onnx.load_external_data_for_model(proto, str(Path(path).parent))
        except Exception as error:
            return self._fail(f"not a valid ONNX model: {error}")
        return self._read(proto)

    def parse_from_file(self, model: str) -> bool:
        try:
            return self._read(onnx.load(model))
        except Exception as error:
            return self._fail(f"cannot read {model}: {error}")

    def supports_model_v2(self, model: Any, path: str | None = None) -> bool:
        proto = onnx.ModelProto.FromString(bytes(model))
        refused = {found.index for found in refusals(proto, inferred(proto))}
        self._subgraphs = []
        for index in range(len(proto.graph.node)):
            good = index not in refused
            if self._subgraphs and self._subgraphs[-1][1] is good:
                self._subgraphs[-1][0].append(index)
            else:
                self._subgraphs.append(([index], good))
        return not refused

    def is_subgraph_supported(self, index: int) -> bool:
        return self._subgraphs[index][1]

    def get_subgraph_nodes(self, index: int) -> list[int]:
        return self._subgraphs[index][0]

    def supports_operator(self, op_name: str) -> bool:
        return op_name in OPERATORS

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._errors[index])

    def clear_errors(self) -> None:
        self._errors = []

    def set_flag(self, flag: Any) -> None:
        self.flags |= 1 << int(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags &= ~(1 << int(flag))

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags >> int(flag) & 1)

    def set_builder_config(self, builder_config: Any) -> bool:
        return builder_config is not None

    def get_used_vc_plugin_libraries(self) -> list[str]:
        return []

    def _fail(self, reason: str) -> bool:
        self._errors.append(Refusal(-1, "", "", ErrorCode.MODEL_DESERIALIZE_FAILED, reason))
        self._logger.log(self._logger.ERROR, f"ModelImporter: {reason}")
        return False

    def _read(self, model: onnx.ModelProto) -> bool:
        if self._network._model is not None:
            return self._fail("the network is not empty")
        plain = inferred(model)
        found = list(refusals(model, plain))[:1]  # the importer stops at the first
        if found:
            self._errors += found
            self._logger.log(self._logger.ERROR, str(ParserError(found[0])))
            return False
        self._network._fill(model, plain)
        return True
