"""Reading a graph for checking: types and shapes of every value, and no weights at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from foveate.export.check.form import require_form
from foveate.export.check.operators import operators
from foveate.export.check.place import SMALL
from foveate.runtime.errors import BundleError

Source = str | Path | ir.Model | onnx.ModelProto

# Operators whose result is like their first input, under which ONNX's inference would stop.
_LIKE_FIRST: Final = (
    *("TRT_KVCacheUpdate", "TRT_Attention", "MeanVarianceNormalization", "GroupNormalization"),
)
# Loops inside one another that are followed.
_LOOPS: Final = 4
_NOWHERE: Final = "weights-are-not-read"
UNSHAPED: Final = "foveate.unshaped"
"""Under this key a graph that was read says in its metadata what ONNX could not infer (`graph.inference`)."""


def read_graph(source: Source) -> ir.Model:
    """The graph with local functions written out and shapes inferred, on a copy of its own.

    Raises:
        BundleError: the file is no ONNX model, or not a well-formed one.
    """
    proto = _proto(source)
    _empty_sparse(proto)
    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            _empty(tensor)
    if proto.functions:
        proto = ir.to_proto(_inlined(_model(proto)))
    return _model(_inferred(proto))


def load_graph(path: Path) -> ir.Model:
    """A graph as its file says, weights left where they are; raises BundleError where it is none."""
    return _model(_proto(path))


def _proto(source: Source) -> onnx.ModelProto:
    if isinstance(source, ir.Model):
        made: onnx.ModelProto = ir.to_proto(source)
        return made
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        require_form(copy, "the model")
        return copy
    try:
        proto = onnx.load(str(source), load_external_data=False)
    except OSError as error:
        raise BundleError(f"the graph {source} cannot be read", found=str(error.strerror)) from error
    except Exception as error:  # protobuf's own, which has no public name here
        found = f"{type(error).__name__}: {error}"[:200]
        raise BundleError(f"{source} is no ONNX graph", found=found) from error
    if not proto.HasField("graph"):
        raise BundleError(f"{source} is no ONNX graph", found="no graph in it")
    require_form(proto, str(source))
    return proto


def _model(proto: onnx.ModelProto) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except ir.serde.SerdeError as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise BundleError("this is no ONNX graph", found=str(reason)[:200]) from error


def _empty_sparse(proto: onnx.ModelProto) -> None:
    """Sparse tensors become `Constant`s without numbers, for a rule to refuse: nothing here reads them."""
    for graph in _graphs(proto.graph):
        for number, tensor in enumerate(graph.sparse_initializer):
            name = tensor.values.name
            graph.node.insert(number, onnx.helper.make_node("Constant", [], [name], name, sparse_value=0))
        del graph.sparse_initializer[:]
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("sparse_tensor"):
                    attribute.CopyFrom(onnx.helper.make_attribute(attribute.name, 0))


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """A graph and those inside its nodes."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                found += _graphs(inner)
    return found


def _empty(tensor: onnx.TensorProto) -> None:
    """Takes the content of a large tensor away: inference would copy it, and nobody looks at it."""
    count = 1
    for dim in tensor.dims:
        count *= dim
    if count <= SMALL or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    kept = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    kept.data_location = onnx.TensorProto.EXTERNAL
    entry = kept.external_data.add()
    entry.key, entry.value = "location", _NOWHERE
    tensor.CopyFrom(kept)


def _inlined(model: ir.Model) -> ir.Model:
    """Local functions written out, but for those that the parser would never look for.

    What it has an importer of, it imports, by `op_type` alone: calls of such functions stay, for a rule to
    refuse them.
    """
    known = {name for name, row in operators().items() if row.dtypes is not None}
    try:
        passes.InlinePass(criteria=lambda function: function.name not in known)(model)
    except (ir.passes.InvariantError, ir.passes.PassError, ValueError) as error:
        found = str(error.__cause__ or error)[:300]
        raise BundleError("its local functions cannot be written out", found=found) from error
    return model


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Adds what ONNX can infer; operators that it does not know are stood in for by `Identity` meanwhile."""
    stood_in: list[tuple[Any, onnx.NodeProto]] = []
    for graph in _graphs(proto.graph):
        for node in graph.node:
            if node.op_type in _LIKE_FIRST and node.input and node.output:
                kept = onnx.NodeProto()
                kept.CopyFrom(node)
                stood_in.append((node, kept))
                node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output[:1], node.name))
    inferred, fault = _with_all_shapes(proto)
    if fault:
        inferred.metadata_props.add(key=UNSHAPED, value=fault)
    for _ in range(_LOOPS):
        if not sum(_shape_loop(inferred.graph, node) for node in inferred.graph.node):
            break
        inferred = _with_shapes(inferred)
    for (_, kept), node in zip(stood_in, _stand_ins(inferred, stood_in), strict=True):
        node.CopyFrom(kept)
    return inferred


def _with_all_shapes(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """With shapes as far as ONNX gets, and why it got no further; empty where nothing was in its way."""
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True, strict_mode=True), ""
    except Exception as error:  # onnx's own, and what protobuf or an operator's schema says
        return _with_shapes(proto), str(error).strip() or type(error).__name__


def _with_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """As far as ONNX gets: it steps over what it cannot make sense of."""
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # not at all, then: rules work with what the file itself says
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        return copy


def _shape_loop(graph: onnx.GraphProto, node: onnx.NodeProto) -> int:
    """Gives carried values the shape that they have before a loop: ONNX lets them change, TensorRT does not.

    Returns how many shapes are new.
    """
    if node.op_type != "Loop":
        return 0
    known = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    found = 0
    for before, after in zip(node.input[2:], node.output, strict=False):
        source, target = known.get(before), known.get(after)
        if source is None or not source.type.tensor_type.HasField("shape"):
            continue
        if target is None:
            target = graph.value_info.add(name=after)
            target.type.tensor_type.elem_type = source.type.tensor_type.elem_type
        if not target.type.tensor_type.HasField("shape"):
            target.type.tensor_type.shape.CopyFrom(source.type.tensor_type.shape)
            found += 1
    return found


def _stand_ins(proto: onnx.ModelProto, stood_in: list[tuple[Any, onnx.NodeProto]]) -> list[onnx.NodeProto]:
    """The nodes of the inferred graph that stand for others, found by what they give."""
    makers = {node.output[0]: node for graph in _graphs(proto.graph) for node in graph.node if node.output}
    return [makers[kept.output[0]] for _, kept in stood_in]
