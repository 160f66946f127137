"""A node as a rule sees it: types, shapes and constants of its inputs, without reading any weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from foveate.export.check.versions import Version

# Contents of larger tensors are not looked at.
SMALL: Final = 4096

_LITERALS: Final[dict[str, Any]] = {
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}


@dataclass(frozen=True)
class Place:
    """A node, what it is checked for, and what is known of constants.

    Attributes:
        flavoured: in the copy that is made for the builder.
        fused: attention must have a fused kernel; it is not decomposed where there is none.
    """

    node: ir.Node
    version: Version
    flavoured: bool
    fused: bool
    is_constant: Callable[[ir.Value], bool]

    def input(self, index: int) -> ir.Value | None:
        """The value at a position; None where there is none, or an empty name."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def dtype(self, index: int) -> ir.DataType | None:
        """Of an input; None where it is absent or unknown."""
        value = self.input(index)
        return None if value is None else value.dtype

    def dims(self, index: int) -> tuple[int | str | None, ...] | None:
        """Of an input: numbers, names of dynamic axes, None for unnamed ones; None for an unknown rank."""
        return dims_of(self.input(index))

    def rank(self, index: int) -> int | None:
        """Of an input; None where it is absent or unknown."""
        dims = self.dims(index)
        return None if dims is None else len(dims)

    def dim(self, index: int, axis: int) -> int | str | None:
        """One axis of an input; None where it is unknown, unnamed or out of range."""
        dims = self.dims(index)
        return None if dims is None or not -len(dims) <= axis < len(dims) else dims[axis]

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, or `default`."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def number(self, index: int) -> np.ndarray[Any, Any] | None:
        """The content of a small constant input that lies in the graph's own file."""
        value = self.input(index)
        return None if value is None else content_of(value)

    def constant(self, index: int) -> bool:
        """Whether an input follows from constants alone."""
        value = self.input(index)
        return value is not None and self.is_constant(value)


def dims_of(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """A value's axes, see `Place.dims`."""
    if value is None or value.shape is None:
        return None
    # Some exporters write open axes as -1.
    dims = (dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return tuple(None if isinstance(dim, int) and dim < 0 else dim for dim in dims)


def elements(value: ir.Value) -> int | None:
    """How many elements a value has; None where that is not static."""
    dims = dims_of(value)
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        return None
    return math.prod(dim for dim in dims if isinstance(dim, int))


def is_initializer(value: ir.Value) -> bool:
    """Whether the parser holds it as weights: an initialiser, or what a `Constant` gives."""
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs inside a node; of a branch that a constant decides, the one that the parser reads."""
    condition = node.inputs[0] if node.op_type == "If" else None
    content = None if condition is None else content_of(condition)
    taken = None if content is None or content.size != 1 else ("else_branch", "then_branch")[bool(content)]
    for name, attribute in node.attributes.items():
        if taken is not None and name != taken:
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def content_of(value: ir.Value) -> np.ndarray[Any, Any] | None:
    """The content of a small initialiser or `Constant`; None for others and for external data."""
    tensor, producer = value.const_value, value.producer()
    if tensor is None and producer is not None and producer.op_type == "Constant":
        (literal,) = producer.attributes.values()
        if literal.name in _LITERALS:
            return np.asarray(literal.value, _LITERALS[literal.name])
        tensor = literal.value if literal.name == "value" else None
    if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.size > SMALL:
        return None
    return np.asarray(tensor.numpy())
