"""What a kernel stores for a weight, and which nodes multiply by it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from foveate.export.precision.quantize import by_column
from foveate.export.weights import Parameter

CONTRIB: Final = "com.microsoft"
ZERO: Final = 128
"""What stands for 0.0 in activations that were quantised by row."""
SMALLEST: Final = 1e-20
"""The least range of a row: rows of zeros stay zeros."""


@dataclass
class Site:
    """One product that is about to be rewritten.

    Attributes:
        model: the graph's.
        place: the node of the product; new nodes stand in front of it.
        x: what is multiplied, `[..., k]`.
        parts: what the form stored for the weight, by suffix.
        bias: `[n]`, where the form takes one and the layer has one.
        shared: what sites of one graph have in common, made by the first that asks.
    """

    model: ir.Model
    place: ir.Node
    x: ir.Value
    parts: Mapping[str, ir.Value]
    bias: ir.Value | None
    shared: dict[Hashable, tuple[ir.Value, ...]] = field(default_factory=dict)
    _added: int = 0

    def add(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        dtypes: Sequence[ir.DataType] = (ir.DataType.FLOAT,),
        domain: str = "",
    ) -> tuple[ir.Value, ...]:
        """Puts a node in front of the product and returns its outputs."""
        stem, self._added = self.place.name or "linear", self._added + 1
        node = ir.node(
            op, inputs, attributes, domain=domain, num_outputs=len(dtypes), name=f"{stem}.{op}_{self._added}"
        )
        for value, dtype in zip(node.outputs, dtypes, strict=True):
            value.type = ir.TensorType(dtype)
        self.model.graph.insert_before(self.place, node)
        if domain:
            self.model.opset_imports[domain] = 1
        return tuple(node.outputs)

    def constant(self, value: Any, dtype: Any) -> ir.Value:
        """A literal."""

        def make() -> tuple[ir.Value, ...]:
            tensor = ir.tensor(np.array(value, dtype))
            return self.add("Constant", [], {"value": tensor}, dtypes=(tensor.dtype,))

        return self.once(("constant", repr(value), dtype), make)[0]

    def once(self, key: Hashable, make: Callable[[], tuple[ir.Value, ...]]) -> tuple[ir.Value, ...]:
        """What `make` gave the first time that this graph asked for `key`."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def by_tensor(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """`x` as uint8, its scale, its zero point: one range for all rows. Once for all products of `x`."""

        def make() -> tuple[ir.Value, ...]:
            dtypes = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
            return self.add("DynamicQuantizeLinear", [self.x], dtypes=dtypes)

        x, scale, zero = self.once((self.x, "by tensor"), make)
        return x, scale, zero

    def by_row(self) -> tuple[ir.Value, ir.Value]:
        """`x` as uint8 around 128, and the scale of each row `[..., 1]`. Once for all products of `x`."""
        x, scale = self.once((self.x, "by row"), self._by_row)
        return x, scale

    def _by_row(self) -> tuple[ir.Value, ...]:
        assert self.x.shape is not None
        axes = self.constant([-1], np.int64)
        (highest,) = self.add("ReduceMax", [self.x, axes], {"keepdims": 1})
        (lowest,) = self.add("ReduceMin", [self.x, axes], {"keepdims": 1})
        (depth,) = self.add("Neg", [lowest])
        (most,) = self.add("Max", [highest, depth, self.constant(SMALLEST, np.float32)])
        # Without rows, ONNX Runtime 1.31 leaves the reduced axis as long as it was: a picture without tokens.
        start, stop = self.constant([0], np.int64), self.constant([1], np.int64)
        (one,) = self.add("Slice", [most, start, stop, axes])
        (scale,) = self.add("Mul", [one, self.constant(1 / 127, np.float32)])
        # uint8 with a zero point for each row: ONNX Runtime's products of int8 with int8 are twenty times
        # slower than those of uint8 with int8, and its quantisation to int8 is no faster.
        (rows,) = self.add("Shape", [scale], dtypes=(ir.DataType.INT64,))
        middle = self.constant(np.full([1] * len(self.x.shape), ZERO).tolist(), np.uint8)
        (zeros,) = self.add("Expand", [middle, rows], dtypes=(ir.DataType.UINT8,))
        weight = self.place.inputs[1]
        assert weight is not None
        assert weight.shape is not None
        (x,) = self.add(
            "QuantizeLinear",
            [self.x, scale, zeros],
            {"axis": -1, "block_size": int(str(weight.shape[0]))},
            dtypes=(ir.DataType.UINT8,),
        )
        return x, scale


class Form(Protocol):
    """A kernel on a target."""

    takes_bias: bool

    def parts(self, inputs: int, outputs: int) -> dict[str, Parameter]:
        """What is stored for a weight `[inputs, outputs]`, by suffix of its name."""

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """The content of `parts`; 4-bit values packed, two in a byte."""

    def build(self, site: Site) -> ir.Value:
        """Adds the nodes and returns the product, with the bias where it takes one."""


@dataclass(frozen=True)
class Half:
    """Stored in half precision and cast when it is loaded: on a CPU that has no half-precision product,
    the file is half as large, and the memory is not."""

    takes_bias = False

    def parts(self, inputs: int, outputs: int) -> dict[str, Parameter]:
        return {"half": Parameter((inputs, outputs), transposed=False, dtype="float16")}

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        return {"half": weight.to(torch.float16)}

    def build(self, site: Site) -> ir.Value:
        (weight,) = site.add("Cast", [site.parts["half"]], {"to": ir.DataType.FLOAT.value})
        return site.add("MatMul", [site.x, weight])[0]


@dataclass(frozen=True)
class ColumnInteger:
    """What dynamic 8-bit products store: integers `[k, n]` and a scale for each output."""

    def parts(self, inputs: int, outputs: int) -> dict[str, Parameter]:
        return {
            "int8": Parameter((inputs, outputs), transposed=False, dtype="int8"),
            "scale": Parameter((outputs,), transposed=False),
        }

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        found = by_column(weight)
        return {"int8": found.codes, "scale": found.scale}


def block_size(inputs: int) -> int:
    """Inputs that share a scale: the fewer scales, the faster; a power of two from 16."""
    return next((size for size in (128, 64, 32) if inputs % size == 0), 32)
