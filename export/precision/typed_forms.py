"""Kernels that multiply in a half type: casts stand around the product, the stream stays float32."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar, runtime_checkable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from foveate.export.graph_file import DATA_TYPES
from foveate.export.precision.form import CONTRIB, Form, Site, block_size
from foveate.export.precision.quantize import by_block, by_output, pack_nibbles
from foveate.export.weights import Parameter

_TORCH: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_NUMPY: Final = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_EIGHT: Final = {"int8": (np.int8, 127.0), "float8e4m3fn": (ml_dtypes.float8_e4m3fn, 448.0)}
"""Of each 8-bit type: numpy's type, and its largest number that is used."""
SMALLEST_SCALE: Final = 1e-6
"""Above the least float16 (6e-8) by enough for a scale to keep some digits; zero is no scale."""

_Same = TypeVar("_Same", bound="Tunable")


@runtime_checkable
class Tunable(Protocol):
    """A form that wants to know more than its kernel's name."""

    def tuned(self: _Same, half: str, largest: float | None) -> _Same:
        """For products in `half`, of activations whose largest magnitude is `largest`."""
        ...


def tune(form: Form, half: str | None, largest: float | None) -> Form:
    """A form for one layer."""
    return form.tuned(half or "float16", largest) if isinstance(form, Tunable) else form


def narrow(site: Site, half: str) -> ir.Value:
    """The site's activations in a half type; once for all products of them."""
    dtype = DATA_TYPES[half]

    def make() -> tuple[ir.Value, ...]:
        return site.add("Cast", [site.x], {"to": dtype.value}, dtypes=(dtype,))

    (x,) = site.once((site.x, half), make)
    x.shape = site.x.shape
    return x


def widen(site: Site, product: ir.Value) -> ir.Value:
    """A product in float32 again."""
    product.shape = site.place.outputs[0].shape
    return site.add("Cast", [product], {"to": ir.DataType.FLOAT.value})[0]


def _multiply(site: Site, x: ir.Value, weight: ir.Value, half: str) -> ir.Value:
    (product,) = site.add("MatMul", [x, weight], dtypes=(DATA_TYPES[half],))
    return widen(site, product)


@dataclass(frozen=True)
class TypedHalf:
    """Weights and products in one half type."""

    half: str
    takes_bias = False

    def parts(self, inputs: int, outputs: int) -> dict[str, Parameter]:
        return {self.half: Parameter((inputs, outputs), transposed=False, dtype=self.half)}

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        return {self.half: weight.to(_TORCH[self.half])}

    def build(self, site: Site) -> ir.Value:
        return _multiply(site, narrow(site, self.half), site.parts[self.half], self.half)


@dataclass(frozen=True)
class BlockWeight:
    """Standard: `DequantizeLinear` of 4-bit blocks to the half type, and an ordinary product."""

    half: str = "float16"
    takes_bias = False

    def tuned(self, half: str, largest: float | None) -> BlockWeight:
        return replace(self, half=half)

    def parts(self, inputs: int, outputs: int) -> dict[str, Parameter]:
        blocks = -(-inputs // block_size(inputs))
        return {
            "int4": Parameter((inputs, outputs), transposed=False, dtype="int4"),
            "scale": Parameter((blocks, outputs), transposed=False, dtype=self.half),
        }

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        found = by_block(weight, 4, block_size(weight.shape[0]), positive=True)
        codes = pack_nibbles(found.codes.reshape(-1))
        return {"int4": codes, "scale": _half_scale(found.scale, self.half)}

    def build(self, site: Site) -> ir.Value:
        weight = site.parts["int4"]
        assert weight.shape is not None
        attributes = {"axis": 0, "block_size": block_size(int(str(weight.shape[0])))}
        inputs, dtypes = [weight, site.parts["scale"]], (DATA_TYPES[self.half],)
        (whole,) = site.add("DequantizeLinear", inputs, attributes, dtypes=dtypes)
        whole.shape = weight.shape
        return _multiply(site, narrow(site, self.half), whole, self.half)


@dataclass(frozen=True)
class StaticRange:
    """Standard: 8-bit weights by output and 8-bit activations of one range, each with its
    `DequantizeLinear` in front of the product, which a runtime fuses into one 8-bit product."""

    eight: str
    half: str = "float16"
    largest: float | None = None
    takes_bias = False

    def tuned(self, half: str, largest: float | None) -> StaticRange:
        return replace(self, half=half, largest=largest)

    def parts(self, inputs: int, outputs: int) -> dict[str, Parameter]:
        return {
            self.eight: Parameter((inputs, outputs), transposed=False, dtype=self.eight),
            "scale": Parameter((outputs,), transposed=False, dtype=self.half),
        }

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        scale = _half_scale(weight.abs().amax(dim=0) / _EIGHT[self.eight][1], self.half)
        return {self.eight: to_eight(weight, scale.to(weight.dtype), self.eight), "scale": scale}

    def build(self, site: Site) -> ir.Value:
        weight = site.parts[self.eight]
        zero = site.constant(0, _EIGHT[self.eight][0])
        inputs = [weight, site.parts["scale"]]
        (whole,) = site.add("DequantizeLinear", inputs, {"axis": 1}, dtypes=(DATA_TYPES[self.half],))
        whole.shape = weight.shape
        return _multiply(site, self._activations(site, zero), whole, self.half)

    @property
    def step(self) -> float:
        """The scale of activations, as the half type has it."""
        assert self.largest is not None, "plans without ranges are refused before anything is built"
        return float(_NUMPY[self.half](max(self.largest / _EIGHT[self.eight][1], SMALLEST_SCALE)))

    def _activations(self, site: Site, zero: ir.Value) -> ir.Value:
        """Through 8 bits and back; once for all products of them: they have one range, too."""
        size = self.step

        def make() -> tuple[ir.Value, ...]:
            scale = site.constant(size, _NUMPY[self.half])
            x = narrow(site, self.half)
            (codes,) = site.add("QuantizeLinear", [x, scale, zero], dtypes=(DATA_TYPES[self.eight],))
            (back,) = site.add("DequantizeLinear", [codes, scale, zero], dtypes=(DATA_TYPES[self.half],))
            codes.shape = back.shape = x.shape
            return (back,)

        return site.once((site.x, self.eight, self.half, size), make)[0]


@dataclass(frozen=True)
class NBitsWeight:
    """ONNX Runtime's `MatMulNBits` with activations of the half type as they are."""

    bits: int
    half: str = "float16"
    takes_bias = False

    def tuned(self, half: str, largest: float | None) -> NBitsWeight:
        return replace(self, half=half)

    def parts(self, inputs: int, outputs: int) -> dict[str, Parameter]:
        block = block_size(inputs)
        blocks = -(-inputs // block)
        return {
            f"int{self.bits}": Parameter(
                (outputs, blocks, block * self.bits // 8), transposed=False, dtype="uint8"
            ),
            "scale": Parameter((outputs, blocks), transposed=False, dtype=self.half),
        }

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        found = by_block(weight, self.bits, block_size(weight.shape[0]), positive=True)
        scale = _half_scale(found.scale.t(), self.half)
        return {f"int{self.bits}": by_output(found, self.bits), "scale": scale}

    def build(self, site: Site) -> ir.Value:
        weights = site.place.inputs[1]
        assert weights is not None
        assert weights.shape is not None
        k, n = (int(str(size)) for size in weights.shape)
        attributes = {"K": k, "N": n, "bits": self.bits, "block_size": block_size(k)}
        inputs = [narrow(site, self.half), site.parts[f"int{self.bits}"], site.parts["scale"]]
        dtypes = (DATA_TYPES[self.half],)
        (product,) = site.add("MatMulNBits", inputs, attributes, dtypes=dtypes, domain=CONTRIB)
        return widen(site, product)


def to_eight(x: Tensor, scale: Tensor | float, eight: str) -> Tensor:
    """`x / scale` in an 8-bit type: to the nearest, and no further than its largest number."""
    most = _EIGHT[eight][1]
    codes = (x / scale).clamp_(-most, most)
    return codes.round_().to(torch.int8) if eight == "int8" else codes.to(torch.float8_e4m3fn)


def _half_scale(scale: Tensor, half: str) -> Tensor:
    """Scales in a half type, away from zero."""
    return scale.clamp(min=SMALLEST_SCALE).to(_TORCH[half])
