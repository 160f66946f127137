"""The graph pass: products by parameters become products by what a kernel stores for them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import onnx_ir as ir

from foveate.export.graph_file import DATA_TYPES
from foveate.export.precision.form import Form, Site
from foveate.export.precision.layers import TABLE
from foveate.export.precision.storage import TABLE_HALF
from foveate.runtime.errors import ExportError


def rewrite(model: ir.Model, forms: Mapping[str, Form]) -> None:
    """Rewrites a traced graph in place; `forms` by name of the weight, without those that stay as they are.

    Raises:
        ExportError: a weight is used otherwise than as a product's right-hand side.
    """
    shared: dict[Hashable, tuple[ir.Value, ...]] = {}
    parts: dict[str, dict[str, ir.Value]] = {}
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "MatMul" and node.domain == "" else None
        form = forms.get(weight.name or "") if weight is not None and weight.is_initializer() else None
        if form is None or weight is None:
            continue
        assert weight.name is not None
        if weight.name not in parts:
            parts[weight.name] = _stored(model, weight, form)
        _replace(model, node, form, parts[weight.name], shared)
    for name in parts:
        weight = model.graph.initializers[name]
        if weight.uses():
            other = next(iter(weight.uses())).node
            raise ExportError(
                f"{name} is no plain product's weight", found=f"{other.op_type} {other.name or ''}"
            )
        del model.graph.initializers[name]


def halve_table(model: ir.Model, half: str) -> None:
    """Reads the rows of the words' table from `half` (float16 or bfloat16), where a graph has one."""
    dtype = DATA_TYPES[half]
    table = model.graph.initializers.get(TABLE)
    if table is None:
        return
    stored = _initializer(model, TABLE_HALF, tuple(table.shape or ()), dtype)
    for use in list(table.uses()):
        node = use.node
        assert node.op_type == "Gather", f"{TABLE} is read by {node.op_type}"
        rows = ir.node("Gather", [stored, node.inputs[1]], dict(node.attributes), name=f"{node.name}.half")
        rows.outputs[0].type = ir.TensorType(dtype)
        wide = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT.value}, name=f"{node.name}.Cast")
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [rows, wide], node.outputs, wide.outputs
        )
    del model.graph.initializers[TABLE]


def _replace(
    model: ir.Model,
    node: ir.Node,
    form: Form,
    parts: Mapping[str, ir.Value],
    shared: dict[Hashable, tuple[ir.Value, ...]],
) -> None:
    x = node.inputs[0]
    assert x is not None
    addition = _bias_behind(node) if form.takes_bias else None
    bias = None
    if addition is not None:
        bias = next(value for value in addition.inputs if value is not node.outputs[0])
    product = form.build(Site(model, node, x, parts, bias, shared))
    last = node if addition is None else addition
    product.shape, product.name = last.outputs[0].shape, last.outputs[0].name
    last.outputs[0].replace_all_uses_with(product, replace_graph_outputs=True)
    model.graph.remove([node] if addition is None else [addition, node], safe=True)


def _bias_behind(node: ir.Node) -> ir.Node | None:
    """The addition of a bias `[n]` that alone reads a product."""
    product = node.outputs[0]
    readers = [use.node for use in product.uses()]
    if len(readers) != 1 or product.is_graph_output() or readers[0].op_type != "Add":
        return None
    other = next((value for value in readers[0].inputs if value is not product), None)
    if other is None or not other.is_initializer() or other.shape is None or len(other.shape) != 1:
        return None
    return readers[0]


def _stored(model: ir.Model, weight: ir.Value, form: Form) -> dict[str, ir.Value]:
    assert weight.shape is not None
    k, n = (int(str(size)) for size in weight.shape)
    return {
        suffix: _initializer(model, f"{weight.name}.{suffix}", part.shape, DATA_TYPES[part.dtype])
        for suffix, part in form.parts(k, n).items()
    }


def _initializer(model: ir.Model, name: str, shape: tuple[object, ...], dtype: ir.DataType) -> ir.Value:
    """A parameter without content, as traced graphs have them."""
    sizes = ir.Shape([int(str(size)) for size in shape])
    value = ir.Value(name=name, shape=sizes, type=ir.TensorType(dtype))
    model.graph.initializers[name] = value
    return value
