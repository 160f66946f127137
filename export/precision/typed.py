"""The pass behind the weights: attention and caches in half precision, everything else a float32 stream.

A graph is traced in float32. Products by weights are rewritten kernel by kernel (`rewrite`); this pass puts
the attention operators and the caches between them into the same half type. What comes between, residuals,
norms, RoPE, scores, knees, thresholds, stays float32. Casts stand at every border, and those between two
half-precision operators are taken out again where nothing but data movement lies between (`casts`): the same
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import onnx_ir as ir
import onnx_ir.passes.common as passes

from foveate.export.graph_file import DATA_TYPES
from foveate.export.precision.casts import cast, merge_casts
from foveate.export.stage import Stage, TensorSpec

# Operators and their inputs that carry numbers of one type; their float outputs have it, too.
_IN_HALF: Final[Mapping[tuple[str, str], tuple[int, ...]]] = {
    ("", "Attention"): (0, 1, 2, 3),
    ("", "TensorScatter"): (0, 1),
    ("com.microsoft", "GroupQueryAttention"): (0, 1, 2, 3, 4),
    ("com.microsoft", "MultiHeadAttention"): (0, 1, 2),
}


def type_graph(model: ir.Model, half: str) -> None:
    """Puts attention and caches of a float32 graph into `half` ("float16" or "bfloat16"), in place.

    Graph inputs and outputs stay float32, except the caches: those that a `TensorScatter` or
    `GroupQueryAttention` reads and writes as they are.
    """
    dtype = DATA_TYPES[half]
    for node in list(model.graph):
        places = _IN_HALF.get((node.domain, node.op_type))
        if places is not None:
            _convert(model.graph, node, places, dtype)
    for value in model.graph.inputs:
        if is_cache(value.name or ""):
            _retype_input(model.graph, value, dtype)
    for value in model.graph.outputs:
        if is_cache(value.name or ""):
            _retype_output(model.graph, value, dtype)
    tidy(model)


def typed_stage(stage: Stage, half: str | None) -> Stage:
    """A stage as its graph is after `type_graph`; None leaves it in float32."""
    if half is None:
        return stage

    def typed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, dtype=half) if is_cache(spec.name) else spec for spec in specs)

    return replace(stage, inputs=typed(stage.inputs), outputs=typed(stage.outputs))


def tidy(model: ir.Model) -> None:
    """Takes out casts that change nothing, and what nobody reads any more."""
    merge_casts(model.graph)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)


def is_cache(name: str) -> bool:
    """Whether a graph's input or output is a cache, as `decoder_specs.cache_specs` calls them."""
    when, _, rest = name.partition("_")
    return when in ("past", "present") and rest.removeprefix("text_").startswith(("key_", "value_"))


def _convert(graph: ir.Graph, node: ir.Node, places: tuple[int, ...], dtype: ir.DataType) -> None:
    for place in places:
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is not None and value.dtype != ir.DataType.BOOL:
            name = f"{node.name}.narrow_{place}"
            node.replace_input_with(place, cast(graph, value, dtype, before=node, name=name))
    for place, value in enumerate(node.outputs):
        if value.uses() or value.is_graph_output():
            _widen(graph, value, dtype, f"{node.name}.wide_{place}")


def _widen(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, label: str) -> None:
    """Gives a node's output the half type, and its readers what they read before."""
    node = value.producer()
    assert node is not None
    readers = list(value.uses())
    value.type = ir.TensorType(dtype)
    wide = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value}, name=label)
    out = wide.outputs[0]
    out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    graph.insert_after(node, wide)
    for reader, index in readers:
        reader.replace_input_with(index, out)
    if value.is_graph_output():
        name = value.name
        for place, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[place] = out
        value.name, out.name = f"{name}.half", name


def _retype_input(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> None:
    """A cache comes in as it is stored; who read float32 reads a cast of it."""
    readers = list(value.uses())
    value.type = ir.TensorType(dtype)
    if not readers:
        return
    wide = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value}, name=f"{value.name}.wide")
    wide.outputs[0].type, wide.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    graph.insert_before(graph[0], wide)
    for reader, index in readers:
        reader.replace_input_with(index, wide.outputs[0])


def _retype_output(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> None:
    """A cache goes out as it is stored."""
    producer = value.producer()
    assert producer is not None, f"{value.name} is an input of its graph"
    name, value.name = value.name, f"{value.name}.float32"
    narrow = ir.node("Cast", [value], {"to": dtype.value}, name=f"{name}.narrow")
    narrow.outputs[0].type, narrow.outputs[0].shape = ir.TensorType(dtype), value.shape
    narrow.outputs[0].name = name
    graph.insert_after(producer, narrow)
    for place, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[place] = narrow.outputs[0]
