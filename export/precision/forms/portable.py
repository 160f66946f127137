"""Standard operators only; runtimes know the patterns and fuse them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from torch import Tensor

from foveate.export.precision.form import ZERO, ColumnInteger, Form, Half, Site, block_size
from foveate.export.precision.quantize import by_block, pack_nibbles
from foveate.export.weights import Parameter


@dataclass(frozen=True)
class DynamicInteger(ColumnInteger):
    """`DynamicQuantizeLinear`, `MatMulInteger`, and back by both scales."""

    takes_bias = False

    def build(self, site: Site) -> ir.Value:
        x, x_scale, x_zero = site.by_tensor()
        (sums,) = site.add("MatMulInteger", [x, site.parts["int8"], x_zero], dtypes=(ir.DataType.INT32,))
        (numbers,) = site.add("Cast", [sums], {"to": ir.DataType.FLOAT.value})
        (scale,) = site.add("Mul", [x_scale, site.parts["scale"]])
        return site.add("Mul", [numbers, scale])[0]


@dataclass(frozen=True)
class RowInteger(ColumnInteger):
    """`MatMulInteger` of activations with a scale for each row, and back by both scales."""

    takes_bias = False

    def build(self, site: Site) -> ir.Value:
        x, x_scale = site.by_row()
        zero = site.constant(ZERO, np.uint8)
        (sums,) = site.add("MatMulInteger", [x, site.parts["int8"], zero], dtypes=(ir.DataType.INT32,))
        (numbers,) = site.add("Cast", [sums], {"to": ir.DataType.FLOAT.value})
        (rows,) = site.add("Mul", [numbers, x_scale])
        return site.add("Mul", [rows, site.parts["scale"]])[0]


@dataclass(frozen=True)
class BlockInteger:
    """`DequantizeLinear` by blocks in front of an ordinary product."""

    bits: int
    takes_bias = False

    def parts(self, inputs: int, outputs: int) -> dict[str, Parameter]:
        blocks = -(-inputs // block_size(inputs))
        return {
            f"int{self.bits}": Parameter((inputs, outputs), transposed=False, dtype=f"int{self.bits}"),
            "scale": Parameter((blocks, outputs), transposed=False),
        }

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        found = by_block(weight, self.bits, block_size(weight.shape[0]))
        codes = pack_nibbles(found.codes.reshape(-1)) if self.bits == 4 else found.codes
        return {f"int{self.bits}": codes, "scale": found.scale}

    def build(self, site: Site) -> ir.Value:
        weight = site.parts[f"int{self.bits}"]
        assert weight.shape is not None
        attributes = {"axis": 0, "block_size": block_size(int(str(weight.shape[0])))}
        (whole,) = site.add("DequantizeLinear", [weight, site.parts["scale"]], attributes)
        return site.add("MatMul", [site.x, whole])[0]


FORMS: Final[Mapping[str, Form]] = {
    "fp16": Half(),
    "int8": DynamicInteger(),
    "int8-row": RowInteger(),
    "int8-block": BlockInteger(8),
    "int4-block": BlockInteger(4),
}
