"""Every rule that is not a row's own has a graph that breaks it and a twin that keeps it."""

from __future__ import annotations

import onnx
import pytest
from examples import example
from graphs import IT, graph
from pairs import BAD, GOOD
from test_operators import PARTS, STANDARD

from foveate.export.check import Severity, all_rules, check_graph
from foveate.export.check.operators import operators

OWN = [rule for rule in all_rules() if rule.rule.partition(".")[2] not in PARTS]
# Of a version that knows five axes; the others hold for the floor.
LATE = {"GridSample.volume"}


def report_of(rule: str, model: onnx.ModelProto):  # type: ignore[no-untyped-def]
    flavoured = rule.startswith("TRT_") or rule == "TensorScatter.capacity"
    version = "11.4" if rule in LATE else "11.1"
    return check_graph(model, version=version, flavoured=flavoured, attention="native")


def bad_graph(rule: str) -> onnx.ModelProto:
    if rule == "graph.opset":
        model = graph("float[2] x", "[it] z = Neg (x)", opset=25)
        model.graph.name = IT
        return model
    return nested(26) if rule == "graph.nesting" else graph(*BAD[rule])


def nested(depth: int) -> onnx.ModelProto:
    """Branches in branches; the innermost node is `it`."""
    text = "r0 = Identity (x)"
    for level in range(depth):
        label = "[it] " if level == 0 else ""
        inner, name = text, f"r{level + 1}"
        text = (
            f"{label}{name} = If <then_branch = a{level} () => (float[2] r{level}) {{ {inner} }}, "
            f"else_branch = b{level} () => (float[2] e{level}) {{ e{level} = Neg (x) }}> (b)"
        )
    return graph("float[2] x, bool b", text)


def test_no_rule_is_without_a_pair() -> None:
    rules = {entry.rule for entry in OWN}
    assert rules - set(BAD) == {"graph.opset"}
    assert set(BAD) - rules == set()
    assert set(GOOD) - rules == set()


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: entry.rule)
def test_a_graph_that_breaks_it_is_found(entry) -> None:  # type: ignore[no-untyped-def]
    report = report_of(entry.rule, bad_graph(entry.rule))
    found = [finding for finding in report.findings if finding.rule == entry.rule]
    assert [finding.node for finding in found] == [IT]
    assert found[0].severity is entry.severity
    assert report.refused or entry.severity is not Severity.ERROR
    assert found[0].what
    assert found[0].mend
    assert found[0].source == entry.source


def good_graph(rule: str) -> onnx.ModelProto:
    if rule == "graph.opset":
        return graph("float[2] x", "[it] z = Neg (x)", opset=24)
    if rule in GOOD:
        return graph(*GOOD[rule])
    name = rule.partition(".")[0]
    return example(name).build(operators()[name])


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: entry.rule)
def test_its_good_twin_passes(entry) -> None:  # type: ignore[no-untyped-def]
    report = report_of(entry.rule, good_graph(entry.rule))
    assert entry.rule not in {finding.rule for finding in report.findings}
    assert not report.refused, report.findings


def test_good_twins_are_valid_onnx() -> None:
    for rule in GOOD:
        model = good_graph(rule)
        if {node.op_type for node in model.graph.node} <= STANDARD:
            onnx.checker.check_model(model, full_check=True)
