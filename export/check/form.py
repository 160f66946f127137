"""Whether a file is a well-formed graph: what every rule takes for granted. Weights are never read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import onnx
import onnx_ir as ir

from foveate.export.check.operators import operators
from foveate.export.check.place import SMALL
from foveate.runtime.errors import BundleError

_DEFAULT_DOMAINS: Final = frozenset({"", "ai.onnx"})
_Single: Final = onnx.defs.OpSchema.FormalParameterOption.Single


def require_form(proto: onnx.ModelProto, what: str) -> None:
    """Raises BundleError for the first thing in a graph or its functions that ONNX does not allow.

    Only what the rules lean on: names, counts, kinds of attributes, sizes of tensors. Unknown operators and
    attributes are left to the rules, and so are opsets. (ONNX IR specification; the operators' schemas.)
    """
    fault = next(_faults(proto), None)
    if fault is not None:
        raise BundleError(
            f"{what} is no valid ONNX graph",
            found=fault,
            mend="export it again; onnx.checker.check_model says more",
        )


def _faults(proto: onnx.ModelProto) -> Iterator[str]:
    yield from _graph(proto.graph, frozenset(), _opset(proto.opset_import))
    for function in proto.functions:
        yield from _nodes(function.node, set(function.input), set(), _opset(function.opset_import), True)


def _opset(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    """The version of ONNX's own operators, as far as the installed onnx knows them."""
    newest: int = onnx.defs.onnx_opset_version()
    found = [each.version for each in imports if each.domain in _DEFAULT_DOMAINS]
    return min(max(found[0], 1), newest) if found else newest


def _graph(graph: onnx.GraphProto, outside: frozenset[str], opset: int) -> Iterator[str]:
    inputs = [value.name for value in graph.input]
    held = [tensor.name for tensor in graph.initializer]
    held += [tensor.values.name for tensor in graph.sparse_initializer]
    for names, kind in ((inputs, "inputs"), (held, "initialisers")):
        twice = next((name for name in names if names.count(name) > 1), None) if _repeats(names) else None
        if twice is not None:
            yield f"two {kind} are called {twice!r}"
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type.elem_type
        if kind not in onnx.TensorProto.DataType.values():
            yield f"{value.name!r} has elements of an unknown type, {kind}"
    for tensor in graph.initializer:
        yield from _tensor(tensor)
    known = {*outside, *inputs, *held}
    yield from _nodes(graph.node, known, {*inputs, *held}, opset, False)
    for value in graph.output:
        if value.name not in known:
            yield f"output {value.name!r} is given by no node"


def _repeats(names: list[str]) -> bool:
    return len(set(names)) < len(names)


def _nodes(
    nodes: Iterable[onnx.NodeProto], known: set[str], given: set[str], opset: int, function: bool
) -> Iterator[str]:
    """Faults of nodes in a scope where some names are `known`, and some of them `given` in this very graph.

    Adds to both what the nodes give.
    """
    for node in nodes:
        where = f"{node.op_type or 'a node'} {node.name or next(iter(node.output), '')}".strip()
        for name in node.input:
            if name and name not in known:
                yield f"{where}: input {name!r} is given by nothing before it"
        yield from (f"{where}: {fault}" for fault in _node(node, opset, function))
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graph(inner, frozenset(known), opset)
            if attribute.HasField("t"):
                yield from (f"{where}: {fault}" for fault in _tensor(attribute.t))
        named = [name for name in node.output if name]
        twice = [name for name in named if name in given] or ([named[0]] if _repeats(named) else [])
        if twice or not named:
            yield f"{where}: {f'{twice[0]!r} is given twice' if twice else 'it gives nothing'}"
        given.update(named)
        known.update(named)


def _node(node: onnx.NodeProto, opset: int, function: bool) -> Iterator[str]:
    """Against its schema, where ONNX has one, and a rule would look at the node."""
    referring = [attribute.name for attribute in node.attribute if attribute.ref_attr_name]
    if referring and not function:
        yield f"attribute {referring[0]!r} refers to one of a function, and it stands in none"
    if node.op_type == "Constant" and len(node.attribute) != 1:
        yield f"it has {len(node.attribute)} values"
    row = operators().get(node.op_type)
    if node.domain not in _DEFAULT_DOMAINS or row is None or row.dtypes is None:
        return
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return
    if not schema.min_input <= len(node.input) <= schema.max_input:
        yield f"it has {len(node.input)} inputs"
    for index, (name, wanted) in enumerate(zip(node.input, schema.inputs, strict=False)):
        if not name and wanted.option == _Single:
            yield f"input {index} is left out"
    most = schema.max_output if row.outputs is None else len(node.output)  # there is a rule about more
    if not schema.min_output <= len(node.output) <= most:
        yield f"it has {len(node.output)} outputs"
    kinds = {attribute.name: attribute.type for attribute in node.attribute}
    for name, wanted in schema.attributes.items():
        if wanted.required and name not in kinds:
            yield f"attribute {name!r} is missing"
        elif kinds.get(name, 0) not in (0, wanted.type.value):  # 0: files of old do not say
            yield f"attribute {name!r} is of another kind"


def _tensor(tensor: onnx.TensorProto) -> Iterator[str]:
    if tensor.data_type not in onnx.TensorProto.DataType.values() or not tensor.data_type:
        yield f"tensor {tensor.name!r} has elements of an unknown type, {tensor.data_type}"
        return
    if any(dim < 0 for dim in tensor.dims):
        yield f"tensor {tensor.name!r} has a negative length"
        return
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type == onnx.TensorProto.STRING:
        return
    count = 1
    for dim in tensor.dims:
        count *= dim
    if tensor.HasField("raw_data"):
        wanted, found = -(-count * ir.DataType(tensor.data_type).bitwidth // 8), len(tensor.raw_data)
        if found != wanted:
            yield f"tensor {tensor.name!r} has {found} bytes, and {list(tensor.dims)} need {wanted}"
    elif count <= SMALL:
        try:
            onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError):
            yield f"tensor {tensor.name!r} has not the {count} numbers that {list(tensor.dims)} need"
