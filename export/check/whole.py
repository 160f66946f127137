"""Rules about a graph as a whole: opset, types of values, ranks, waits, masks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from foveate.export.check.dependence import HOST_ELEMENTS, Dependence
from foveate.export.check.nodes import OWN_DOMAINS, label
from foveate.export.check.operators.custom import PREFIX
from foveate.export.check.place import content_of, dims_of
from foveate.export.check.reading import UNSHAPED
from foveate.export.check.rule import (
    DEVELOPER_GUIDE,
    FLOATS,
    IMPORTERS,
    OPERATORS_TABLE,
    TAKEN,
    Finding,
    Mark,
    Severity,
    name_of,
)

OLDEST_OPSET: Final = 9
NEWEST_OPSET: Final = 24
DEEPEST: Final = 24
# What may touch bytes: they are for pictures coming in.
_BYTE_OPS: Final = frozenset({"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Shape", "Size"})
# Through these a constant becomes part of a mask.
_PASSED_ON: Final = frozenset(
    {"Where", "Cast", "Add", "Mul", "Expand", "Unsqueeze", "Reshape", "Identity", "Slice"}
)
# Axes of their inputs are the same ones, counted from the last.
_ALIGNED: Final = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Equal", "Less", "Greater", "And", "Or"})
_ATTENTIONS: Final = ("Attention", "TRT_Attention")
# As ONNX's shape inference words it, a line for each node.
_FAULT: Final = re.compile(
    r"\(op_type:(?P<op>\w+)(?:, node name: (?P<node>[^)\n]*))?\): (?:\[\w+\] )*(?P<why>[^\n]*)"
)


@dataclass(frozen=True)
class Scene:
    """A graph and what was followed in it."""

    model: ir.Model
    nodes: Sequence[tuple[ir.Node, int]]
    dependence: Dependence


@dataclass(frozen=True)
class WholeRule:
    """A rule about a graph: where it is broken is what `test` gives, as (node or value, operator, found)."""

    name: str
    test: Callable[[Scene], Iterator[tuple[str, str, str]]]
    what: str
    mend: str
    source: str
    mark: Mark = "doc"
    severity: Severity = Severity.ERROR

    def check(self, scene: Scene) -> Iterator[Finding]:
        """A finding for each place where the rule is broken."""
        for node, op, found in self.test(scene):
            rule, what = f"graph.{self.name}", f"{found}: {self.what}"
            yield Finding(rule, self.severity, node, op, what, self.mend, self.source, self.mark)


Broken = Iterator[tuple[str, str, str]]


def _opset(scene: Scene) -> Broken:
    imports = scene.model.opset_imports
    version = imports.get("", imports.get("ai.onnx", NEWEST_OPSET))  # two names of one domain
    if not OLDEST_OPSET <= version <= NEWEST_OPSET:
        yield scene.model.graph.name or "graph", "", f"opset {version}"


def _values(scene: Scene) -> Iterator[tuple[ir.Value, str, str]]:
    """Every value with the name of what makes it, and its operator; `input` for those from outside."""
    for value in (*scene.model.graph.inputs, *scene.model.graph.initializers.values()):
        yield value, value.name or "", "input" if value.is_graph_input() else "initialiser"
    for node, _ in scene.nodes:
        for value in node.outputs:
            if value.name:
                yield value, label(node), node.op_type


def _type(scene: Scene) -> Broken:
    for value, name, op in _values(scene):
        if value.dtype is not None and value.dtype not in TAKEN:
            yield name, op, f"{value.name} is {name_of(value.dtype)}"
        elif value.type is not None and not isinstance(value.type, ir.TensorType):
            yield name, op, f"{value.name} is no tensor"


def _double(scene: Scene) -> Broken:
    for value, name, op in _values(scene):
        if value.dtype == ir.DataType.DOUBLE:
            yield name, op, f"{value.name} is float64"


def _bytes(scene: Scene) -> Broken:
    for node, _ in scene.nodes:
        if node.op_type in _BYTE_OPS or node.domain not in OWN_DOMAINS:
            continue
        for value in node.inputs:
            if value is not None and value.dtype == ir.DataType.UINT8:
                yield label(node), node.op_type, f"{value.name} is uint8"


def _rank(scene: Scene) -> Broken:
    for value in scene.model.graph.inputs:
        if value.shape is None:
            yield value.name or "", "input", f"nothing says how many axes {value.name} has"
    for node, _ in scene.nodes:
        known = all(value is None or value.shape is not None for value in node.inputs)
        if known and node.domain in OWN_DOMAINS and not node.op_type.startswith(PREFIX):
            for value in node.outputs:
                if value.name and value.shape is None and isinstance(value.type, ir.TensorType | None):
                    yield label(node), node.op_type, f"nothing says how many axes {value.name} has"


def _open_rank(scene: Scene) -> Broken:
    for need in scene.dependence.unbounded:
        yield label(need.node), need.node.op_type, f"{need.value.name} has a length that is not static"


def _oversized(scene: Scene) -> Broken:
    for need, value in scene.dependence.oversized:
        found = f"{value.name} is needed by {label(need.node)} and has {dims_of(value)} elements"
        producer = value.producer()
        assert producer is not None
        yield label(producer), producer.op_type, found


def _nesting(scene: Scene) -> Broken:
    for node, depth in scene.nodes:
        if depth > DEEPEST:
            yield label(node), node.op_type, f"it lies {depth} bodies deep"
            return


def _trailing(scene: Scene) -> Broken:
    for node, _ in scene.nodes:
        if node.inputs and node.inputs[-1] is None:
            yield label(node), node.op_type, "the last input is an empty name"
        elif len(node.outputs) > 1 and not node.outputs[-1].name:
            yield label(node), node.op_type, "the last output is an empty name"


def _waits(scene: Scene) -> Broken:
    for sync in scene.dependence.syncs:
        where = f"{sync.value}, which {sync.start_op or 'an input'} {sync.start} gives, becomes a shape"
        if sync.node == sync.start:
            where = "it counts what it finds"
        yield sync.node, sync.op, f"wait {sync.level + 1}: {where}"


def _split(scene: Scene) -> Broken:
    segments = scene.dependence.segments
    if segments > 2:
        last = max(scene.dependence.syncs, key=lambda sync: sync.level)
        yield last.node, last.op, f"the engine runs in {segments} parts, one after the other"


def _open_output(scene: Scene) -> Broken:
    for value in scene.dependence.open_outputs:
        producer = value.producer()
        op = producer.op_type if producer is not None else "output"
        yield value.name or "", op, f"the shape of output {value.name} is known only after a wait"


def _host_input(scene: Scene) -> Broken:
    for name, node in scene.dependence.host_inputs.items():
        yield label(node), node.op_type, f"input {name} decides a shape"


def _branch(scene: Scene) -> Broken:
    for node in scene.dependence.branches:
        yield label(node), node.op_type, "what it runs is decided on the device"


def _infinite(scene: Scene) -> Broken:
    for node, _ in scene.nodes:
        index = {"Attention": 3, "TRT_Attention": 3, "Softmax": 0}.get(node.op_type)
        value = node.inputs[index] if index is not None and index < len(node.inputs) else None
        fill = _infinite_behind(value, 8)
        if fill:
            yield label(node), node.op_type, f"{fill} fills its mask"


def _infinite_behind(value: ir.Value | None, steps: int) -> str:
    """The name of an infinite constant from which a mask is made, in few steps."""
    if value is None:
        return ""
    content = content_of(value) if value.dtype in FLOATS or value.dtype is None else None
    if content is not None and content.dtype.kind == "f" and np.isinf(content.astype(np.float32)).any():
        return value.name or "a constant"
    producer = value.producer()
    if producer is None or producer.op_type not in _PASSED_ON or not steps:
        return ""
    found = (_infinite_behind(each, steps - 1) for each in producer.inputs)
    return next((name for name in found if name), "")


def _axis_names(scene: Scene) -> Broken:
    declared = {dim for value in scene.model.graph.inputs for dim in dims_of(value) or ()}
    for node, _ in scene.nodes:
        if node.op_type not in _ALIGNED:
            continue
        shapes = [dims for value in node.inputs if (dims := dims_of(value))]
        for axis in range(1, max(map(len, shapes), default=0) + 1):
            names = {dims[-axis] for dims in shapes if len(dims) >= axis} & declared
            clash = sorted(name for name in names if isinstance(name, str))
            if len(clash) > 1:
                yield label(node), node.op_type, f"axes {clash[0]} and {clash[1]} must be equal here"
                break


def _masks(scene: Scene) -> Broken:
    """Masks of one shape and one way of being made, apart from what they are made of."""
    seen: dict[tuple[object, ...], ir.Value] = {}
    for node, _ in scene.nodes:
        mask = node.inputs[3] if node.op_type in _ATTENTIONS and len(node.inputs) > 3 else None
        producer = mask.producer() if mask is not None else None
        if mask is None or producer is None:
            continue
        key = (dims_of(mask), producer.op_type, *(id(value) for value in producer.inputs))
        if seen.setdefault(key, mask) is not mask:
            yield label(node), node.op_type, f"{mask.name} repeats {seen[key].name}"


def _inference(scene: Scene) -> Broken:
    said = scene.model.metadata_props.get(UNSHAPED, "")
    faults = list(_FAULT.finditer(said))
    for fault in faults:
        yield (
            fault["node"] or scene.model.graph.name or "graph",
            fault["op"],
            fault["why"].strip().rstrip("."),
        )
    if said and not faults:
        yield scene.model.graph.name or "graph", "", " ".join(said.split())[:300].rstrip(".")


RULES: Final[tuple[WholeRule, ...]] = (
    WholeRule(
        "inference",
        _inference,
        "ONNX cannot infer shapes here, so that rules about shapes may have seen less than there is",
        "make the node fit its inputs, or the file's own shapes what is computed; onnx.checker says more",
        "onnx shape inference, strict mode",
        "source",
        Severity.WARNING,
    ),
    WholeRule(
        "axis-names",
        _axis_names,
        "TensorRT knows that two lengths are equal when they have one name",
        "name both axes alike in the inputs",
        DEVELOPER_GUIDE,
        severity=Severity.NOTE,
    ),
    WholeRule(
        "masks",
        _masks,
        "a mask is made once for all layers that share it",
        "eliminate common subexpressions",
        "NVIDIA TensorRT-Model-Connect",
        "source",
        Severity.NOTE,
    ),
    WholeRule(
        "opset",
        _opset,
        f"opsets {OLDEST_OPSET} to {NEWEST_OPSET} are read",
        "export again, or convert the file with onnx.version_converter",
        OPERATORS_TABLE,
    ),
    WholeRule("type", _type, "no such values are taken", "cast to a type that is", OPERATORS_TABLE),
    WholeRule(
        "double",
        _double,
        "it becomes float32, and what does not fit is clamped",
        "compute in float32",
        OPERATORS_TABLE,
        severity=Severity.WARNING,
    ),
    WholeRule(
        "bytes",
        _bytes,
        "bytes may only enter and leave a graph",
        "cast to float or int32 first",
        OPERATORS_TABLE,
    ),
    WholeRule("rank", _rank, "every rank must be known", "give the value a shape", DEVELOPER_GUIDE),
    WholeRule(
        "open-rank",
        _open_rank,
        "the result would have a rank that nobody knows",
        "build the shape of a fixed number of axes",
        DEVELOPER_GUIDE,
    ),
    WholeRule(
        "shape-size",
        _oversized,
        f"shapes are computed from at most {HOST_ELEMENTS} elements, whose number is static",
        "reduce it before, or leave it to the device",
        DEVELOPER_GUIDE,
    ),
    WholeRule(
        "nesting",
        _nesting,
        f"bodies lie in one another at most {DEEPEST} deep",
        "flatten it",
        IMPORTERS,
        "source",
    ),
    WholeRule(
        "trailing",
        _trailing,
        "some importers count it as given",
        "end the list before it",
        "onnx-tensorrt issue 4738",
        "field",
        Severity.WARNING,
    ),
    WholeRule(
        "infinite",
        _infinite,
        "a row without any visible key becomes NaN",
        "fill with a large finite number (-30000 in half precision)",
        "NVIDIA TensorRT-Model-Connect",
        "field",
        Severity.WARNING,
    ),
    WholeRule(
        "wait",
        _waits,
        "the host waits for the device, and no CUDA graph can be captured",
        "compute it from shapes, or hand it in as the length of an input (segmented layout)",
        DEVELOPER_GUIDE,
        severity=Severity.COST,
    ),
    WholeRule(
        "split",
        _split,
        "the device idles between them",
        "have one wait at most, as late as possible",
        DEVELOPER_GUIDE,
        severity=Severity.WARNING,
    ),
    WholeRule(
        "open-output",
        _open_output,
        "its memory cannot be bound beforehand",
        "run it with an output allocator, or give full length and a count",
        DEVELOPER_GUIDE,
        severity=Severity.COST,
    ),
    WholeRule(
        "host-input",
        _host_input,
        "its numbers, not only its length, are part of the profile, and it must lie in the host's memory",
        "hand the number in as the length of an input",
        DEVELOPER_GUIDE,
        severity=Severity.COST,
    ),
    WholeRule(
        "branch",
        _branch,
        "no CUDA graph can be captured",
        "unroll it, or compute both sides and choose by Where",
        DEVELOPER_GUIDE,
        severity=Severity.COST,
    ),
)
