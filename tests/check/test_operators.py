"""Every operator's row: its good example passes, and each way of spoiling it is found and named."""

from __future__ import annotations

import onnx
import pytest
from examples import TEXT, example, first_type, with_input
from graphs import IT, graph
from onnx_ir import DataType

from foveate.export.check import GraphReport, all_rules, check_graph
from foveate.export.check.operators import operators
from foveate.export.check.rule import Severity

# The newest of our versions, so that no row is refused for its version.
NEWEST = "11.4"
PARTS = ("dtype", "mixed", "initializer", "constant", "outputs", "version", "unsupported")
ROWS = [rule.rule for rule in all_rules() if rule.rule.partition(".")[2] in PARTS]


def check(model: onnx.ModelProto, name: str, version: str = NEWEST) -> GraphReport:
    return check_graph(model, version=version, flavoured=name.startswith("TRT_"))


def errors(report: GraphReport) -> list[tuple[str, str]]:
    return [(f.rule, f.node) for f in report.findings if f.severity is Severity.ERROR]


@pytest.mark.parametrize("name", [n for n, row in operators().items() if row.dtypes is not None])
def test_a_good_node_is_taken(name: str) -> None:
    model = example(name).build(operators()[name])
    assert errors(check(model, name)) == []


STANDARD = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}


# ONNX's own inference stumbles over the body of MeanVarianceNormalization.
VALID = [n for n, row in operators().items() if row.dtypes and n in STANDARD - {"MeanVarianceNormalization"}]


@pytest.mark.parametrize("name", VALID)
def test_good_nodes_are_valid_onnx(name: str) -> None:
    onnx.checker.check_model(example(name).build(operators()[name]), full_check=True)


@pytest.mark.parametrize("rule", ROWS)
def test_a_spoilt_node_is_refused(rule: str) -> None:
    name, part = rule.split(".")
    bad, version = SPOIL[part](name)
    assert (rule, IT) in errors(check(bad, name, version))


def _dtype(name: str) -> tuple[onnx.ModelProto, str]:
    row = operators()[name]
    assert row.dtypes is not None
    wrong = next(dtype for dtype in TEXT if dtype not in row.dtypes)
    sample = example(name)
    if name in ("BlackmanWindow", "HammingWindow", "HannWindow"):
        return graph(f"{TEXT[wrong]} c", f"[it] z = {name} (c)"), NEWEST
    if name == "Loop":
        return graph("uint16 n, bool b", sample.node.replace("(n, b, x)", "(n, b, n)"), ""), NEWEST
    return sample.build(row, dict.fromkeys(range(sample.inputs.count("{")), wrong)), NEWEST


def _mixed(name: str) -> tuple[onnx.ModelProto, str]:
    row, sample = operators()[name], example(name)
    assert row.dtypes is not None
    other = next(t for t in TEXT if t in row.dtypes and t is not first_type(row))
    return sample.build(row, {sample.inputs.count("{") - 1: other}), NEWEST


def _handed_in(name: str) -> tuple[onnx.ModelProto, str]:
    return with_input(example(name).build(operators()[name])), NEWEST


def _outputs(name: str) -> tuple[onnx.ModelProto, str]:
    model = example(name).build(operators()[name])
    model.graph.node[0].output.append("more")
    return model, NEWEST


def _version(name: str) -> tuple[onnx.ModelProto, str]:
    return example(name).build(operators()[name]), "10.15"


def _unsupported(name: str) -> tuple[onnx.ModelProto, str]:
    domain = "trt." if name.startswith("TRT_") else ""
    return graph("float[2,3] x", f"[it] z = {domain}{name} (x)"), NEWEST


SPOIL = {
    "dtype": _dtype,
    "mixed": _mixed,
    "initializer": _handed_in,
    "constant": _handed_in,
    "outputs": _outputs,
    "version": _version,
    "unsupported": _unsupported,
}


def test_every_operator_of_onnx_is_known() -> None:
    """Of the opsets that are read, none is left to be refused as unknown; later ones are named too."""
    deprecated = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.deprecated}
    assert STANDARD - set(operators()) - deprecated == set()


def test_types_of_examples_are_not_all_float32() -> None:
    kinds = {first_type(row) for row in operators().values() if row.dtypes is not None}
    assert {DataType.FLOAT, DataType.BOOL, DataType.INT8} <= kinds
