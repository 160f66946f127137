"""Rewrites for TensorRT against numpy: sorts with ties of any length, masks, booleans, literals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from foveate.export.rewrites.additive_mask import HIDDEN, add_masks
from foveate.export.rewrites.literals import fold_literals
from foveate.export.rewrites.plain_words import compare_booleans, drop_defaults
from foveate.export.rewrites.sorting import compare_pairs

OPSET = [onnx.helper.make_opsetid("", 24)]
FLOAT, INT64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL

Named = tuple[str, int, Sequence[Any]]


def _model(nodes: Sequence[onnx.NodeProto], inputs: Sequence[Named], outputs: Sequence[Named]) -> ir.Model:
    graph = onnx.helper.make_graph(
        list(nodes),
        "graph",
        [onnx.helper.make_tensor_value_info(*each) for each in inputs],
        [onnx.helper.make_tensor_value_info(*each) for each in outputs],
    )
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=OPSET, ir_version=10))


def _run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    return list(onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"]).run(None, feeds))


def _ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _sort(largest: int, kind: int) -> ir.Model:
    """As the exporter writes a sort: K is the length of the axis."""
    nodes = [
        onnx.helper.make_node("Shape", ["x"], ["shape"]),
        onnx.helper.make_node("Constant", [], ["last"], value_ints=[-1]),
        onnx.helper.make_node("Gather", ["shape", "last"], ["k"], axis=0),
        onnx.helper.make_node("TopK", ["x", "k"], ["v", "i"], "sort", axis=-1, largest=largest, sorted=1),
    ]
    shape = ["batch", "n"]
    return _model(nodes, [("x", kind, shape)], [("v", kind, shape), ("i", INT64, shape)])


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("kind", [FLOAT, INT64])
def test_sorts_are_stable_at_any_length(largest: int, kind: int) -> None:
    model = _sort(largest, kind)
    compare_pairs(model)
    assert "TopK" not in _ops(model)
    rng = np.random.default_rng(largest)
    for b, n in ((1, 1), (2, 7), (3, 64), (1, 4100)):  # TensorRT's TopK ends at 3839
        x = rng.integers(-3, 4, (b, n)).astype(np.float32 if kind == FLOAT else np.int64)
        if kind == FLOAT:
            x[:, ::3] = -np.inf
        wanted = np.argsort(-x if largest else x, axis=1, kind="stable")
        values, indices = _run(model, x=x)
        np.testing.assert_array_equal(indices, wanted)
        np.testing.assert_array_equal(values, np.take_along_axis(x, wanted, 1))


def test_a_selection_of_a_few_is_no_sort() -> None:
    nodes = [
        onnx.helper.make_node("Constant", [], ["k"], value_ints=[3]),
        onnx.helper.make_node("TopK", ["x", "k"], ["v", "i"], "few", axis=-1),
    ]
    model = _model(nodes, [("x", FLOAT, ["b", "n"])], [("v", FLOAT, ["b", 3]), ("i", INT64, ["b", 3])])
    compare_pairs(model)
    assert "TopK" in _ops(model)


def _attention() -> ir.Model:
    nodes = [
        onnx.helper.make_node(
            "Attention", ["q", "k", "v", "mask"], ["y"], "a", is_causal=0, qk_matmul_output_mode=0
        )
    ]
    rows = [(name, FLOAT, [1, 2, 3, 8]) for name in "qkv"]
    return _model(nodes, [*rows, ("mask", BOOL, [1, 1, 3, 3])], [("y", FLOAT, [1, 2, 3, 8])])


def test_masks_become_numbers_and_rows_that_see_nothing_stay_finite() -> None:
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((1, 2, 3, 8), np.float32) for name in "qkv"}
    mask = np.array([[True, False, False], [True, True, False], [False, False, False]])[None, None]
    before, after = _attention(), _attention()
    add_masks(after)
    drop_defaults(after)
    (node,) = [each for each in after.graph if each.op_type == "Attention"]
    assert not node.attributes
    wanted, got = _run(before, mask=mask, **feeds)[0], _run(after, mask=mask, **feeds)[0]
    # Softmax over other numbers for what is hidden: a few roundings of float32 values near 1.
    np.testing.assert_allclose(got[:, :, :2], wanted[:, :, :2], atol=1e-6)
    assert np.isfinite(got).all()
    # float16 scores below the fill are still no infinity; the fill itself counts for nothing.
    assert np.isfinite(np.float16(HIDDEN) + np.float16(HIDDEN))
    assert np.exp(np.float32(HIDDEN)) == 0


def test_an_attribute_that_says_something_stays() -> None:
    model = _attention()
    model.graph[0].attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    drop_defaults(model)
    assert list(model.graph[0].attributes) == ["is_causal"]


def test_booleans_are_compared_by_xor_also_without_types() -> None:
    nodes = [
        onnx.helper.make_node("Greater", ["a", "b"], ["left"]),
        onnx.helper.make_node("Less", ["a", "b"], ["right"]),
        onnx.helper.make_node("Equal", ["left", "right"], ["y"], "same"),
        onnx.helper.make_node("Equal", ["a", "b"], ["z"], "numbers"),
    ]
    inputs = [("a", FLOAT, [4]), ("b", FLOAT, [4])]
    model = _model(nodes, inputs, [("y", BOOL, [4]), ("z", BOOL, [4])])
    compare_booleans(model)
    assert _ops(model).count("Equal") == 1
    a, b = np.array([1, 2, 3, 3], np.float32), np.array([1, 1, 4, 3], np.float32)
    greater_is_less, equal = _run(model, a=a, b=b)
    assert greater_is_less.tolist() == [True, False, False, True]  # both false where they are equal
    assert equal.tolist() == [True, False, False, True]
    assert _run(model, a=a, b=np.full(4, np.nan, np.float32))[0].all()


def test_literals_are_folded_and_nothing_else() -> None:
    nodes = [
        onnx.helper.make_node("Constant", [], ["two"], value_int=2),
        onnx.helper.make_node("Constant", [], ["flat"], value_ints=[-1]),
        onnx.helper.make_node("Reshape", ["two", "flat"], ["axis"], "fold me"),
        onnx.helper.make_node("ReduceSum", ["x", "axis"], ["y"], "sum", keepdims=0),
        onnx.helper.make_node("Shape", ["x"], ["shape"], "keep me"),
    ]
    x = ("x", FLOAT, [2, 3, "n"])
    model = _model(nodes, [x], [("y", FLOAT, [2, 3]), ("shape", INT64, [3])])
    fold_literals(model.graph)
    (total,) = [node for node in model.graph if node.op_type == "ReduceSum"]
    axes = total.inputs[1]
    assert axes is not None
    assert axes.producer() is not None
    assert ir.convenience.get_const_tensor(axes).numpy().tolist() == [2]  # type: ignore[union-attr]
    assert "Shape" in _ops(model)
    assert "Reshape" not in _ops(model)
    np.testing.assert_array_equal(_run(model, x=np.ones((2, 3, 4), np.float32))[0], np.full((2, 3), 4.0))
