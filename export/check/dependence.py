"""Where shapes come from: followed from the graph's inputs to every shape that a node needs.

TensorRT computes shapes on the host, before the work of the device is queued. What follows from shapes and
constants alone, by operators that run on small tensors there, costs nothing. What the device computes and a
shape needs must be waited for: there the engine is cut in two, and no CUDA graph can be captured.
(TensorRT developer guide, "Working with dynamic shapes" and "Dynamically shaped output".)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import onnx_ir as ir

from foveate.export.check.place import bodies, dims_of, elements, is_initializer
from foveate.export.check.rule import INTS, Operator

# So many elements may a tensor have that is computed on the host.
HOST_ELEMENTS: Final = 64
# Operators whose result has as many rows as the values say.
COUNTING: Final = frozenset({"NonZero", "NonMaxSuppression", "Compress", "Unique"})
# A shape of unknown length would mean a result of unknown rank.
RANK_GIVING: Final = frozenset({"Reshape", "Expand", "ConstantOfShape", "Tile"})
BRANCHING: Final = frozenset({"If", "Loop", "Scan"})


class Kind(IntEnum):
    """Where the content of a value is known: when the engine is built, on the host, on the device."""

    CONSTANT = 0
    HOST = 1
    DEVICE = 2


@dataclass(frozen=True)
class SyncPoint:
    """A place where the host waits for the device.

    Attributes:
        node: that needs the value as a shape, or counts by itself.
        start: the node whose result, computed on the device, decides it.
        value: what is copied to the host.
        level: how many waits lie before it.
    """

    node: str
    op: str
    start: str
    start_op: str
    value: str
    level: int


@dataclass(frozen=True)
class Need:
    """A value that a node needs on the host, and its place among the node's inputs."""

    node: ir.Node
    index: int
    value: ir.Value


@dataclass
class _Facts:
    """Of one value: where its content is known, after how many waits, and whose waits its shape follows."""

    kind: Kind
    level: int = 0
    waits: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()


@dataclass
class Dependence:
    """What `follow` found.

    Attributes:
        syncs: where the host waits, in the order of the graph.
        unbounded: needed shapes of unknown length, which give results of unknown rank.
        oversized: small-tensor arithmetic on more elements than the host takes.
        host_inputs: graph inputs whose values decide shapes: they must lie in the host's memory.
        open_outputs: graph outputs whose shape is known only after a wait.
        branches: nodes that branch or loop by something that is no constant.
    """

    syncs: list[SyncPoint] = field(default_factory=list)
    unbounded: list[Need] = field(default_factory=list)
    oversized: list[tuple[Need, ir.Value]] = field(default_factory=list)
    host_inputs: dict[str, ir.Node] = field(default_factory=dict)
    open_outputs: list[ir.Value] = field(default_factory=list)
    branches: list[ir.Node] = field(default_factory=list)

    @property
    def segments(self) -> int:
        """Into how many parts the engine is cut by waits."""
        return 1 + max((sync.level + 1 for sync in self.syncs), default=0)


def follow(model: ir.Model, table: Mapping[str, Operator]) -> tuple[Dependence, Mapping[ir.Value, Kind]]:
    """Follows every value of a graph; also gives where the content of each is known."""
    walk = _Walk(model, table)
    walk.graph(model.graph)
    walk.found.open_outputs = [
        value for value in model.graph.outputs if walk.facts_of(value).waits and walk.is_open(value)
    ]
    return walk.found, {value: facts.kind for value, facts in walk.facts.items()}


class _Walk:
    def __init__(self, model: ir.Model, table: Mapping[str, Operator]) -> None:
        self.table = table
        self.found = Dependence()
        self.facts: dict[ir.Value, _Facts] = {}
        self.copied: dict[ir.Value, int] = {}
        self.axes = {
            dim for value in model.graph.inputs for dim in dims_of(value) or () if isinstance(dim, str)
        }
        for value in model.graph.inputs:
            count = elements(value)
            small = value.dtype in INTS and count is not None and count <= HOST_ELEMENTS
            flat = len(dims_of(value) or ()) <= 1
            name = value.name or ""
            self.facts[value] = (
                _Facts(Kind.HOST, inputs=frozenset({name})) if small and flat else _Facts(Kind.DEVICE)
            )

    def facts_of(self, value: ir.Value | None) -> _Facts:
        if value is None or is_initializer(value):
            return _Facts(Kind.CONSTANT)
        return self.facts.get(value, _Facts(Kind.DEVICE))

    def is_open(self, value: ir.Value) -> bool:
        """Whether a shape has axes that are neither numbers nor those of the graph's inputs."""
        dims = dims_of(value)
        return dims is None or any(not isinstance(dim, int) and dim not in self.axes for dim in dims)

    def graph(self, graph: ir.Graph) -> None:
        for node in graph:
            self.node(node)

    def node(self, node: ir.Node) -> None:
        given = [value for value in node.inputs if value is not None]
        facts = [self.facts_of(value) for value in given]
        level = max((each.level for each in facts), default=0)
        waits = frozenset().union(*(each.waits for each in facts))
        for need in self._needs(node):
            wait = self._copy(need)
            if wait is not None:
                level, waits = max(level, wait.level + 1), waits | {wait.start}
        for inner in bodies(node):
            self.graph(inner)
            for value in inner.outputs:
                given_out = self.facts_of(value)
                level, waits = max(level, given_out.level), waits | given_out.waits
        if node.op_type in BRANCHING and not self._settled(node):
            self.found.branches.append(node)
        if node.op_type in COUNTING:
            name = node.name or node.outputs[0].name or ""
            self.found.syncs.append(
                SyncPoint(name, node.op_type, name, node.op_type, node.outputs[0].name or "", level)
            )
            level, waits = level + 1, waits | {name}
        for value in node.outputs:
            self.facts[value] = self._result(node, value, facts, level, waits)

    def _result(
        self, node: ir.Node, value: ir.Value, facts: list[_Facts], level: int, waits: frozenset[str]
    ) -> _Facts:
        row = self.table.get(node.op_type)
        if node.op_type in ("Shape", "Size"):
            static = elements(node.inputs[0]) is not None if node.inputs[0] is not None else False
            return _Facts(Kind.CONSTANT if static else Kind.HOST, level, waits)
        kind = max((each.kind for each in facts), default=Kind.CONSTANT)
        count = elements(value)
        large = kind is Kind.HOST and (count is None or count > HOST_ELEMENTS)
        if row is None or not row.on_host or large:
            kind = Kind.DEVICE
        inputs = frozenset().union(*(each.inputs for each in facts))
        settled = kind is not Kind.HOST and not self.is_open(value)
        return _Facts(kind, level, frozenset() if settled else waits, inputs)

    def _needs(self, node: ir.Node) -> Iterator[Need]:
        row = self.table.get(node.op_type)
        for index in row.sizes if row is not None else ():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None:
                yield Need(node, index, value)

    def _copy(self, need: Need) -> SyncPoint | None:
        """Notes what a needed value costs; the wait, where there is one."""
        facts = self.facts_of(need.value)
        if elements(need.value) is None and need.node.op_type in RANK_GIVING:
            self.found.unbounded.append(need)
        for name in facts.inputs if facts.kind is Kind.HOST else ():
            self.found.host_inputs.setdefault(name, need.node)
        if facts.kind is not Kind.DEVICE:
            return None
        start = self._start(need, need.value)
        if start is None:
            return None
        if start in self.copied:
            level = self.copied[start]
        else:
            level = self.copied[start] = facts.level
        producer = start.producer()
        made = (producer.name or start.name or "") if producer is not None else f"input {start.name}"
        sync = SyncPoint(
            need.node.name or need.node.outputs[0].name or "",
            need.node.op_type,
            made,
            producer.op_type if producer is not None else "",
            start.name or "",
            level,
        )
        if not any(other.value == sync.value for other in self.found.syncs):
            self.found.syncs.append(sync)
        return sync

    def _start(self, need: Need, value: ir.Value) -> ir.Value | None:
        """From a needed value back to the first one that the device alone can compute.

        None where the host could compute everything, were it not for the number of elements.
        """
        producer = value.producer()
        row = self.table.get(producer.op_type) if producer is not None else None
        if producer is None or row is None or not row.on_host:
            return value
        if self._is_oversized(value):
            self.found.oversized.append((need, value))
            return None
        behind = [v for v in producer.inputs if v is not None and self.facts_of(v).kind is Kind.DEVICE]
        count = elements(behind[0])
        small = count is not None and count <= HOST_ELEMENTS
        if len(behind) == 1 and (small or self._is_oversized(behind[0])):
            return self._start(need, behind[0])
        return value

    def _is_oversized(self, value: ir.Value) -> bool:
        """Whether the host could compute a value of the device, had it fewer elements."""
        producer = value.producer()
        row = self.table.get(producer.op_type) if producer is not None else None
        if producer is None or row is None or not row.on_host or self.facts_of(value).kind is not Kind.DEVICE:
            return False
        return all(v is None or self.facts_of(v).kind is not Kind.DEVICE for v in producer.inputs)

    def _settled(self, node: ir.Node) -> bool:
        """Whether a branch is decided when the engine is built; loops always run on the device."""
        return node.op_type == "If" and self.facts_of(node.inputs[0]).kind is Kind.CONSTANT
