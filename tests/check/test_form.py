"""Files that break ONNX's own rules are refused as no graphs, with what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foveate.export.check import check_graph
from foveate.runtime.errors import BundleError

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
Nodes = list[onnx.NodeProto]


def node(op: str, inputs: str, outputs: str = "z", **attributes: object) -> onnx.NodeProto:
    names = [[name.strip("_") for name in text.split()] for text in (inputs, outputs)]
    return helper.make_node(op, *names, name="it", **attributes)


def model(nodes: Nodes, *held: onnx.TensorProto, output: str = "z") -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    inputs = [value("x", FLOAT, [2, 3]), value("b", BOOL, [])]
    graph = helper.make_graph(nodes, "g", inputs, [value(output, FLOAT, [2, 3])], initializer=held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])


def branch(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A branch in which some nodes stand."""
    bodies = [
        helper.make_graph(each, name, [], [helper.make_tensor_value_info(name, FLOAT, [2, 3])])
        for name, each in (("p", nodes), ("q", [node("Neg", "x", "q")]))
    ]
    return model([node("If", "b", then_branch=bodies[0], else_branch=bodies[1])])


def referring() -> onnx.NodeProto:
    made = node("Softmax", "x")
    made.attribute.append(onnx.AttributeProto(name="axis", ref_attr_name="k", type=onnx.AttributeProto.INT))
    return made


def tensor(count: int = 3, **fields: object) -> onnx.TensorProto:
    made = numpy_helper.from_array(np.ones(count, np.int64), "k")
    for name, content in fields.items():
        made.ClearField(name)
        getattr(made, name).extend(content) if isinstance(content, list) else setattr(made, name, content)
    return made


def few() -> onnx.TensorProto:
    """One number where three are wanted, in the field of their type."""
    return onnx.TensorProto(name="k", data_type=TensorProto.INT64, dims=[3], int64_data=[1])


TOP = node("TopK", "x k", "z i")
FAULTS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "too few inputs": (lambda: model([node("Add", "x")]), "Add it: it has 1 inputs"),
    "too many inputs": (lambda: model([node("Neg", "x x")]), "it has 2 inputs"),
    "a needed input left out": (lambda: model([node("Shape", "_")]), "input 0 is left out"),
    "too many outputs": (lambda: model([node("Neg", "x", "z y")]), "it has 2 outputs"),
    "no output": (lambda: model([node("Zork", "x", "_")]), "it gives nothing"),
    "from nowhere": (lambda: model([node("Add", "x y")]), "input 'y' is given by nothing before it"),
    "in a circle": (lambda: model([node("Add", "x y"), node("Neg", "z", "y")]), "given by nothing before it"),
    "out of order": (lambda: model([node("Neg", "y"), node("Abs", "x", "y")]), "given by nothing before it"),
    "in a body": (lambda: branch(node("Neg", "y", "p")), "input 'y' is given by nothing"),
    "from a body": (lambda: model([*branch(node("Neg", "x", "p")).graph.node, node("Neg", "p", "w")]),
                    "input 'p' is given by nothing"),
    "given twice": (lambda: model([node("Neg", "x"), node("Abs", "x")]), "'z' is given twice"),
    "an input given again": (lambda: model([node("Neg", "x", "x")], output="x"), "'x' is given twice"),
    "an output of nobody": (lambda: model([node("Neg", "x")], output="w"), "output 'w' is given by no node"),
    "two of a name": (lambda: model([node("Add", "x k")], tensor(), tensor()), "two initialisers"),
    "an attribute missing": (lambda: model([node("Cast", "x")]), "attribute 'to' is missing"),
    "an attribute of another kind": (lambda: model([node("Softmax", "x", axis="last")]), "of another kind"),
    "an attribute of no function": (lambda: model([referring()]), "refers to one of a function"),
    "a constant of nothing": (lambda: model([node("Constant", "")]), "it has 0 values"),
    "bytes missing": (lambda: model([TOP], tensor(raw_data=b"1234567")), "has 7 bytes, and [3] need 24"),
    "all bytes missing": (lambda: model([TOP], tensor(raw_data=b"")), "has 0 bytes, and [3] need 24"),
    "numbers missing": (lambda: model([TOP], few()), "has not the 3 numbers that [3] need"),
    "a negative length": (lambda: model([TOP], tensor(dims=[-1])), "negative length"),
    "an unknown type": (lambda: model([TOP], tensor(data_type=99)), "unknown type, 99"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_said(name: str) -> None:
    make, said = FAULTS[name]
    with pytest.raises(BundleError, match="no valid ONNX graph") as raised:
        check_graph(make())
    assert said in raised.value.found


def test_what_is_right_is_not_refused() -> None:
    """Nodes of the same kinds; a name of an outer scope is seen in a body."""
    for good in (
        model([node("Add", "x x")]),
        model([node("Cast", "x", to=1)]),
        branch(node("Neg", "x", "p")),
    ):
        assert not check_graph(good).refused


def call(name: str, inner: str = "Neg", opset: int = 24) -> onnx.ModelProto:
    made = model([node(name, "x", domain="own")])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    domain = "own" if inner == name else ""
    nodes = [helper.make_node(inner, ["a"], ["c"], name="inner", domain=domain)]
    made.functions.append(helper.make_function("own", name, ["a"], ["c"], nodes, imports))
    made.opset_import.append(helper.make_opsetid("own", 1))
    return made


def test_functions_are_looked_into() -> None:
    assert not check_graph(call("Twist")).refused
    (finding,) = check_graph(call("Twist", "Det")).findings[:1]
    assert (finding.rule, finding.op) == ("Det.unsupported", "Det")


def test_a_function_that_bears_an_operators_name_is_taken_for_it() -> None:
    """The parser looks for an importer first; of Unique it has none, and the function is used."""
    report = check_graph(call("Gelu"))
    assert [(f.rule, f.node) for f in report.findings] == [("graph.mistaken", "it")]
    assert report.refused
    assert not check_graph(call("Unique")).refused


@pytest.mark.parametrize("made", [call("Twist", "Twist"), call("Twist", opset=23)], ids=["itself", "opset"])
def test_functions_that_cannot_be_written_out(made: onnx.ModelProto) -> None:
    with pytest.raises(BundleError, match="local functions cannot be written out"):
        check_graph(made)


def test_sparse_tensors_are_refused_by_their_rule() -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64), "i"), [3])
    held = model([node("Add", "x s")])
    held.graph.sparse_initializer.append(sparse)
    inside = model([node("Constant", "", "s", sparse_value=sparse), node("Add", "x s")])
    for made in (held, inside):
        assert "Constant.literal" in {finding.rule for finding in check_graph(made).findings}


def test_the_opset_may_stand_under_the_domains_full_name() -> None:
    made = model([node("Neg", "x")])
    for version, refused in ((24, False), (25, True), (8, True)):
        made.opset_import[0].CopyFrom(helper.make_opsetid("ai.onnx", version))
        assert check_graph(made).refused is refused


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        (model([TOP], tensor(0)), "TopK.k"),
        (model([TOP], numpy_helper.from_array(np.array([4]), "k")), "TopK.k"),
        (model([TOP], helper.make_tensor("k", TensorProto.STRING, [1], [b"3"])), "TopK.k"),
        (model([node("TopK", "b k", "z i")], tensor(1)), "TopK.axis"),
        (model([node("TopK", "x k", "z i", axis=9)], tensor(1)), "TopK.axis"),
        (model([node("Cast", "x", to=999)]), "Cast.target"),
        (model([node("Attention", "k k k", q_num_heads=2, kv_num_heads=0)],
               numpy_helper.from_array(np.ones((1, 2, 4), np.float32), "k")), "Attention.groups"),
        (model([node("DequantizeLinear", "w k", axis=7, block_size=64)],
               helper.make_tensor("w", TensorProto.INT4, [64, 2], [0] * 128),
               numpy_helper.from_array(np.ones((1, 2), np.float32), "k")), "DequantizeLinear.int4-blocks"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_break_their_rule(bad: onnx.ModelProto, rule: str) -> None:
    report = check_graph(bad)
    assert (rule, "it") in {(finding.rule, finding.node) for finding in report.findings}
    assert report.refused
