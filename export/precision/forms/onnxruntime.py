"""ONNX Runtime's own operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from torch import Tensor

from foveate.export.precision.form import CONTRIB, ZERO, ColumnInteger, Form, Half, Site, block_size
from foveate.export.precision.quantize import by_block, by_output
from foveate.export.weights import Parameter

# Activations become 8-bit integers, each block with a scale of its own.
_INTEGERS: Final = 4


@dataclass(frozen=True)
class DynamicInteger(ColumnInteger):
    """`MatMulIntegerToFloat` behind a `DynamicQuantizeLinear` that layers of one input share.

    One scale for all of a call's activations; ONNX Runtime fuses pairs that nobody shares.
    """

    takes_bias = True

    def build(self, site: Site) -> ir.Value:
        x, x_scale, x_zero = site.by_tensor()
        inputs = [x, site.parts["int8"], x_scale, site.parts["scale"], x_zero, None, site.bias]
        while inputs[-1] is None:
            inputs.pop()
        return site.add("MatMulIntegerToFloat", inputs, domain=CONTRIB)[0]


@dataclass(frozen=True)
class RowInteger(ColumnInteger):
    """`MatMulIntegerToFloat` of activations with a scale for each row, which is put back behind it.

    No row depends on another: a token in a batch, a chunk or beside an outlier is the same number.
    """

    takes_bias = False

    def build(self, site: Site) -> ir.Value:
        x, scale = site.by_row()
        one, zero = site.constant(1.0, np.float32), site.constant(ZERO, np.uint8)
        inputs = [x, site.parts["int8"], one, site.parts["scale"], zero]
        (numbers,) = site.add("MatMulIntegerToFloat", inputs, domain=CONTRIB)
        return site.add("Mul", [numbers, scale])[0]


@dataclass(frozen=True)
class BlockInteger:
    """`MatMulNBits`: integers with a scale for each block of inputs, output by output."""

    bits: int
    takes_bias = True

    def parts(self, inputs: int, outputs: int) -> dict[str, Parameter]:
        block = block_size(inputs)
        blocks = -(-inputs // block)
        packed = (outputs, blocks, block * self.bits // 8)
        return {
            f"int{self.bits}": Parameter(packed, transposed=False, dtype="uint8"),
            "scale": Parameter((outputs, blocks), transposed=False),
        }

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        found = by_block(weight, self.bits, block_size(weight.shape[0]))
        return {f"int{self.bits}": by_output(found, self.bits), "scale": found.scale.t()}

    def build(self, site: Site) -> ir.Value:
        weight, scale = site.parts[f"int{self.bits}"], site.parts["scale"]
        inputs: list[ir.Value | None] = [site.x, weight, scale]
        if site.bias is not None:
            inputs += [None, None, site.bias]
        weights = site.place.inputs[1]
        assert weights is not None
        assert weights.shape is not None
        k, n = (int(str(size)) for size in weights.shape)
        attributes = {
            "K": k,
            "N": n,
            "bits": self.bits,
            "block_size": block_size(k),
            "accuracy_level": _INTEGERS,
        }
        return site.add("MatMulNBits", inputs, attributes, domain=CONTRIB)[0]


FORMS: Final[Mapping[str, Form]] = {
    "fp16": Half(),
    "int8": DynamicInteger(),
    "int8-row": RowInteger(),
    "int8-block": BlockInteger(8),
    "int4-block": BlockInteger(4),
}
