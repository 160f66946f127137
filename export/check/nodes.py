"""Holding one node to the row of its operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import onnx_ir as ir

from foveate.export.check.operators.custom import PREFIX
from foveate.export.check.place import Place, is_initializer
from foveate.export.check.rule import CUSTOM_OPS, IMPORTERS, Finding, Operator, Rule, Severity, name_of
from foveate.export.check.versions import parse_version_unchecked

# Domains in which an operator of a known name means what the name says.
OWN_DOMAINS = frozenset({"", "ai.onnx"})
DISPATCH: Final = f"{IMPORTERS}: nodes are found by op_type, whatever the domain"


def label(node: ir.Node) -> str:
    """A node's name, or that of what it gives."""
    return node.name or next((value.name for value in node.outputs if value.name), None) or node.op_type


def check_node(place: Place, table: Mapping[str, Operator]) -> Iterator[Finding]:
    """What is wrong with a node by itself."""
    node = place.node
    custom = node.op_type.startswith(PREFIX)
    if node.domain not in OWN_DOMAINS and not custom:
        yield _foreign(node, table)
        return
    row = table.get(node.op_type)
    if row is None:
        yield _finding(
            node,
            "graph.unlisted",
            f"nothing is known of {node.op_type}: it stands in no list of what TensorRT takes",
            "write it in listed operators, or bring a plugin and leave the check",
        )
        return
    if custom and not place.flavoured:
        yield _finding(
            node,
            "graph.flavour",
            f"{node.op_type} is TensorRT's own: ONNX Runtime does not run this file",
            "leave it to the copy that foveate build makes",
            source=CUSTOM_OPS,
        )
        return
    yield from _row(place, row)


def _foreign(node: ir.Node, table: Mapping[str, Operator]) -> Finding:
    name = f"{node.domain}::{node.op_type}"
    if node.op_type in table:
        return _finding(
            node,
            "graph.mistaken",
            f"{name} is taken for ONNX's {node.op_type}, whose inputs mean something else",
            "export with --target tensorrt, which has standard operators only",
            source=DISPATCH,
        )
    return _finding(
        node,
        "graph.contrib",
        f"there is no plugin of the name {node.op_type} ({name})",
        "export with --target tensorrt, which has standard operators only",
        source=DISPATCH,
    )


def _row(place: Place, row: Operator) -> Iterator[Finding]:
    node = place.node
    if row.dtypes is None:
        yield _of_row(node, row, "unsupported", "TensorRT does not take it", row.mend)
        return
    if row.since and place.version < parse_version_unchecked(row.since):
        yield _of_row(node, row, "version", f"TensorRT takes it from {row.since} on", row.older)
        return
    yield from _types(place, row)
    for index in row.initializers:
        value = place.input(index)
        if value is not None and not is_initializer(value):
            found = f"input {index} ({value.name}) is computed, and must be an initialiser"
            yield _of_row(node, row, "initializer", found, row.mend)
    for index in row.constants:
        value = place.input(index)
        if value is not None and not place.is_constant(value):
            found = f"input {index} ({value.name}) must follow from constants"
            yield _of_row(node, row, "constant", found, row.mend)
    if row.outputs is not None and len(node.outputs) > row.outputs:
        found = f"{len(node.outputs)} outputs are declared (empty names count), and it gives {row.outputs}"
        yield _of_row(node, row, "outputs", found, "declare no other outputs")
    for rule in row.rules:
        if applies(rule, place):
            found_text = rule.test(place)
            if found_text is not None:
                yield _of_rule(node, rule, found_text)


def _types(place: Place, row: Operator) -> Iterator[Finding]:
    node, every = place.node, range(len(place.node.inputs))
    assert row.dtypes is not None
    mend = row.mend or "cast before it"
    for index in every if row.typed is None else row.typed:
        dtype = place.dtype(index)
        if dtype is not None and dtype not in row.dtypes and dtype != ir.DataType.DOUBLE:
            found = (
                f"input {index} is {name_of(dtype)}; it takes {', '.join(sorted(map(name_of, row.dtypes)))}"
            )
            yield _of_row(node, row, "dtype", found, mend)
            return
    types = {
        dtype: index
        for index in (every if row.equal is None else row.equal)
        if (dtype := place.dtype(index)) is not None
    }
    if len(types) > 1:
        found = " and ".join(f"input {index} is {name_of(dtype)}" for dtype, index in types.items())
        yield _of_row(node, row, "mixed", f"{found}: nothing is cast by itself", mend)


def applies(rule: Rule, place: Place) -> bool:
    """Whether a rule holds for this version and this kind of file."""
    if not (rule.flavoured if place.flavoured else rule.standard):
        return False
    if rule.since and place.version < parse_version_unchecked(rule.since):
        return False
    return not rule.until or place.version < parse_version_unchecked(rule.until)


def _of_row(node: ir.Node, row: Operator, name: str, what: str, mend: str) -> Finding:
    rule = f"{node.op_type}.{name}"
    return Finding(rule, Severity.ERROR, label(node), node.op_type, what, mend, row.source, row.mark)


def _of_rule(node: ir.Node, rule: Rule, found: str) -> Finding:
    return Finding(
        f"{node.op_type}.{rule.name}",
        rule.severity,
        label(node),
        node.op_type,
        f"{found}: {rule.what}",
        rule.mend,
        rule.source,
        rule.mark,
    )


def _finding(node: ir.Node, rule: str, what: str, mend: str, source: str = IMPORTERS) -> Finding:
    return Finding(rule, Severity.ERROR, label(node), node.op_type, what, mend, source, "source")
