"""What the builder gets: a copy of a portable graph in TensorRT's terms.

The bundle's own graphs are standard ONNX and run anywhere. TensorRT wants caches of fixed capacity, and has
attention layers of its own; both are put into a copy that lives only while engines are built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from foveate.export.engines.native import lower_natively
from foveate.runtime.engines import Attention


@dataclass(frozen=True)
class Flavoured:
    """A graph for the builder.

    Attributes:
        added: inputs that the bundle's graph does not have: lengths in place of masks.
        removed: inputs that nothing reads any more; TensorRT would drop them anyway, with a warning.
    """

    model: ir.Model
    added: tuple[str, ...]
    removed: tuple[str, ...]


def flavour(
    model: ir.Model,
    attention: Attention = "native",
    capacities: Mapping[str, int] | None = None,
    *,
    fused_only: bool = False,
) -> Flavoured:
    """Rewrites a graph in place; its weights stay where they are.

    Args:
        model: one of a bundle for TensorRT.
        attention: "native" or "portable", see `foveate.runtime.engines.BuildOptions`.
        capacities: slots by the name of the axis, `capacity_0`, `text_capacity_0`, ...; None: they stay open.
        fused_only: forbids TensorRT to take an attention apart where it has no kernel for it.

    Raises:
        ExportError: an attention has a form that the native layers do not have.
    """
    before = [value.name or "" for value in model.graph.inputs]
    _drop_idle_attributes(model.graph)
    if attention == "native":
        lower_natively(model, fused_only=fused_only)
    RemoveUnusedNodesPass()(model)
    _drop_unused_inputs(model.graph)
    if capacities:
        _fix_axes(model.graph, capacities)
    after = [value.name or "" for value in model.graph.inputs]
    return Flavoured(
        model,
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
    )


def _drop_idle_attributes(graph: ir.Graph) -> None:
    """Takes off what says only what TensorRT does anyway, and makes its parser refuse the node.

    Its kernels compute an attention's softmax in float32.
    """
    for node in graph:
        if node.op_type != "Attention":
            continue
        if node.attributes.get_int("softmax_precision", 0) == ir.DataType.FLOAT.value:
            del node.attributes["softmax_precision"]
        if node.attributes.get_int("qk_matmul_output_mode", 0) == 0:
            node.attributes.pop("qk_matmul_output_mode", None)


def _drop_unused_inputs(graph: ir.Graph) -> None:
    for value in list(graph.inputs):
        if not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)


def _fix_axes(graph: ir.Graph, sizes: Mapping[str, int]) -> None:
    """Writes numbers for named axes wherever a tensor has them."""
    values = {*graph.inputs, *graph.outputs}
    for node in ir.traversal.RecursiveGraphIterator(graph):
        values.update(node.outputs)
    for value in values:
        if value.shape is None:
            continue
        names = [None if isinstance(axis, int) else axis.value for axis in value.shape]
        if any(name in sizes for name in names):
            value.shape = ir.Shape(
                [sizes.get(name or "", axis) for name, axis in zip(names, value.shape, strict=True)]
            )
