"""Branches and loops."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from foveate.export.check.conditions import dtype_in
from foveate.export.check.place import Place, dims_of
from foveate.export.check.rule import ANY, BOOL, FLOATS, Operator, Rule


def _branches(place: Place) -> tuple[ir.Graph, ir.Graph] | None:
    both: list[Any] = [place.attribute(name) for name in ("then_branch", "else_branch")]
    return None if None in both else (both[0], both[1])


def _ranks(place: Place) -> str | None:
    branches = _branches(place)
    if branches is None:
        return None
    for number, (one, other) in enumerate(zip(branches[0].outputs, branches[1].outputs, strict=False)):
        a, b = dims_of(one), dims_of(other)
        if a is not None and b is not None and len(a) != len(b):
            return f"output {number} has {len(a)} axes in one branch and {len(b)} in the other"
    return None


def _names(place: Place) -> str | None:
    branches = _branches(place)
    if branches is None:
        return None
    shared = {value.name for value in branches[0].outputs} & {value.name for value in branches[1].outputs}
    return f"both branches call an output {sorted(map(str, shared))[0]}" if shared else None


def _body(place: Place) -> ir.Graph | None:
    body: ir.Graph | None = place.attribute("body")
    return body


def _scan_outputs(place: Place) -> str | None:
    """Behind condition and carried values come the outputs that grow by a row in each round."""
    body = _body(place)
    if body is None:
        return None
    grown = len(body.outputs) - 1 - (len(place.node.inputs) - 2)
    return f"{grown} outputs grow with the rounds" if grown > 0 and not place.constant(0) else None


def _carried(place: Place) -> str | None:
    body = _body(place)
    if body is None:
        return None
    for value, outcome in zip(place.node.inputs[2:], body.outputs[1:], strict=False):
        before, after = dims_of(value), dims_of(outcome)
        if before is None or after is None:
            continue
        fixed = [
            (a, b) for a, b in zip(before, after, strict=False) if isinstance(a, int) and isinstance(b, int)
        ]
        if len(before) != len(after) or any(a != b for a, b in fixed):
            return f"{value.name if value else '?'} is {list(before)} before and {list(after)} after a round"
    return None


ROWS = (
    Operator(
        ("If",),
        BOOL,
        mend="cast the condition to bool",
        rules=(
            Rule("rank", _ranks, "both branches must give as many axes", "add axes of 1"),
            Rule("names", _names, "outputs of the branches must have names of their own", "rename one"),
        ),
    ),
    Operator(
        ("Loop",),
        ANY,
        sizes=(0,),
        rules=(
            Rule("condition", dtype_in(1, BOOL), "the condition must be bool", "cast it"),
            Rule(
                "scan",
                _scan_outputs,
                "their length cannot be dynamic",
                "carry a tensor of full length and write into it by Where",
            ),
            Rule("carried", _carried, "carried values must keep their shape", "pad them to full size"),
        ),
    ),
    Operator(("Scan",), FLOATS),
)
